"""Rows: the edges of a graph while they are being made.

A full row has a column for every active feature. Where they cannot all be kept, only candidates
have a column of their own and the others are summed, layer by layer, into the remainders.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.local import Group, Local
from circuits.sweep import sweep

CARRIED = 1 << 26  # numbers in flight, and in a block of full rows, at once
OVERHEAD = 64  # readers' worth of work that starting another sweep costs
BLOCK = 256  # rows narrowed at once


@dataclass(eq=False)
class Rows:
    """Finished rows: first those of the explained outputs, then of `expanded` features.

    The columns are: `candidates` (ascending numbers of features), errors, tokens, a remainder for
    each layer, bias.
    """

    local: Local
    edges: Float[Tensor, "rows columns"]
    scale: Float[Tensor, " rows"]  # sum of |edge| over every single source but the bias
    candidates: Int[Tensor, " candidates"]
    expanded: list[int] = field(default_factory=list)
    used: int = 0

    @classmethod
    def empty(cls, local: Local, candidates: Tensor, count: int) -> "Rows":
        """Room for `count` rows."""
        like = local.embeddings
        width = len(candidates) + local.others
        edges = like.new_zeros(count, width, device=_place(like, count, width))
        return cls(local, edges, torch.zeros(count, dtype=torch.float64), candidates)

    @property
    def done(self) -> Float[Tensor, "rows columns"]:
        """The rows that are finished."""
        return self.edges[: self.used]

    def add(self, groups: Sequence[Group], numbers: Sequence[int] = ()) -> None:
        """Sweep some readers, of the features with these numbers, and keep their rows."""
        count = sum(len(group.positions) for group in groups)
        span = slice(self.used, self.used + count)
        whole = len(self.candidates) == self.local.active
        here = whole and self.edges.device == self.local.embeddings.device
        like = self.local.embeddings
        full = self.edges[span] if here else like.new_zeros(count, self.local.width)
        sweep(self.local, groups, full)
        self.scale[span] = torch.linalg.vector_norm(full[:, :-1], ord=1, dim=1).cpu().double()
        if not here:
            self._keep(span, full)
        self.expanded += numbers
        self.used = span.stop

    def _keep(self, span: slice, full: Tensor) -> None:
        """Store the candidates' columns; what has no column here goes into the remainders."""
        local, count = self.local, len(self.candidates)
        columns = self.candidates.to(full.device)
        self.edges[span, :count] = full[:, columns].to(self.edges.device)
        full[:, columns] = 0
        for m in range(len(local.layers)):
            rest = full[:, local.offsets[m] : local.offsets[m + 1]]
            full[:, m - 1 - len(local.layers)] = rest.sum(1)
        self.edges[span, count:] = full[:, local.active :].to(self.edges.device)

    def add_features(self, numbers: Tensor, report: Callable[[int], None]) -> None:
        """The rows of some features, chunk by chunk."""
        before = len(self.expanded)
        for chunk in plan(self.local, numbers):
            self.add(self.local.readers(chunk), sweep_order(self.local, chunk))
            report(len(self.expanded) - before)

    def narrow(self) -> tuple[Tensor, Tensor]:
        """Edges and scale without the columns of candidates that were not expanded.

        Those go into the remainders. In place: the narrower rows overwrite the wider ones from
        the first on (a row's new place never reaches beyond its old one), since a second copy of
        all rows may not fit.
        """
        edges, layers, count = self.done, len(self.local.layers), len(self.candidates)
        chosen = torch.isin(self.candidates, torch.tensor(self.expanded, dtype=torch.long))
        if bool(chosen.all()):
            return edges, self.scale[: self.used]
        wide = edges.shape[1]
        keep = torch.cat([chosen.nonzero()[:, 0], torch.arange(count, wide)]).to(edges.device)
        dropped = (~chosen).nonzero()[:, 0]
        home = self.local.feature_layers[self.candidates[dropped]].to(edges.device)
        flat, size = edges.view(-1), len(keep)
        for start in range(0, len(edges), BLOCK):
            block = edges[start : start + BLOCK].clone()
            remainders = block[:, wide - 1 - layers : wide - 1]
            remainders.index_add_(1, home, block[:, dropped.to(edges.device)])
            narrow = block[:, keep]
            flat[start * size : start * size + narrow.numel()] = narrow.flatten()
        return flat[: len(edges) * size].view(len(edges), size), self.scale[: self.used]


def _place(like: Tensor, count: int, width: int) -> torch.device:
    """Rows stay on a GPU when they take less than a third of what is free there."""
    size = count * width * like.element_size()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise ValueError(
            f"{count} rows of {width} edges take {size / 1e9:.0f} GB and this machine has "
            f"{memory / 1e9:.0f}; choose a smaller budget."
        )
    if like.device.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(like.device)
    return like.device if size < free // 3 else torch.device("cpu")


def sweep_order(local: Local, chunk: Tensor) -> list[int]:
    """A chunk's features as `Local.readers` orders them: layers descending, numbers ascending."""
    order = torch.argsort(local.feature_layers[chunk], descending=True, stable=True)
    return chunk[order].tolist()


def plan(local: Local, numbers: Int[Tensor, " features"]) -> list[Int[Tensor, " chunk"]]:
    """Chunks of features to sweep together, each of neighbouring positions.

    A chunk costs its readers times the positions up to its last one, so readers of earlier
    positions waste work in it; they join only as long as that is cheaper than another sweep.
    """
    positions = local.feature_positions[numbers]
    width = local.embeddings.shape[1]
    chunks: list[Tensor] = []
    taken, cone, wasted = [], 0, 0
    for p in positions.unique().flip(0).tolist():
        here = numbers[positions == p]
        wasted += len(here) * (cone - 1 - p)
        if wasted > OVERHEAD * (p + 1) or not taken:
            chunks += _split(torch.cat(taken), cone * width, local.width) if taken else []
            taken, cone, wasted = [], p + 1, 0
        taken.append(here)
    return chunks + (_split(torch.cat(taken), cone * width, local.width) if taken else [])


def _split(numbers: Tensor, carried: int, row: int) -> list[Tensor]:
    """A chunk, in parts that fit: neither readers in flight nor full rows exceed CARRIED."""
    most = max(1, CARRIED // max(carried, row))
    return [part.sort().values for part in numbers.split(most)]
