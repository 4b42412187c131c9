"""Expand: which targets get a row, and their rows.

If every active feature fits the budget, all are expanded and the graph is complete. If not, they
are expanded in rounds, each round taking those of the largest influence so far. Since a node's
influence can only grow as others are expanded, this approaches the sets that no order of expansion
can change: all nodes with at least some influence over the chosen paths. What is not chosen is
summed into the remainders, one a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.local import Group, Local
from circuits.sweep import sweep
from circuits.targets import Explained

Report = Callable[[int, int], None]

CARRIED = 1 << 26  # numbers in flight, and in a block of full rows, at once
HELD = 1 << 28  # numbers kept while choosing; beyond that only likely candidates' columns are
ROUNDS = 16  # rankings while choosing
OVERHEAD = 64  # readers' worth of work that starting another sweep costs


@dataclass(frozen=True, eq=False)
class Expansion:
    """Rows of the explained outputs, then of `expanded` features, in that order.

    The columns are: `kept` features, errors, tokens, a remainder for each layer, bias.
    """

    rows: Float[Tensor, "targets columns"]
    scale: Float[Tensor, " targets"]  # sum of |edge| over every single source but the bias
    expanded: Int[Tensor, " features"]
    kept: Int[Tensor, " features"]


def expand(local: Local, explained: Explained, budget: int, report: Report) -> Expansion:
    """The rows of the graph: of all features if they fit the budget, else of the chosen ones."""
    if local.active <= budget:
        numbers = torch.arange(local.active)
        held = _Held.empty(local, numbers, len(explained.outputs) + len(numbers))
        _start(held, local, explained)
        _add(held, local, numbers, lambda done: report(done, len(numbers)))
    else:
        held = _choose(local, explained, budget, report)
    expanded = torch.tensor(held.expanded, dtype=torch.long)
    return Expansion(*_keep_expanded(held, local), expanded, expanded.sort().values)


@dataclass(eq=False)
class _Held:
    """Rows while they are being made: candidate features' columns, the rest summed."""

    rows: Tensor
    scale: Tensor
    candidates: Tensor  # ascending numbers of the features that have a column
    expanded: list[int]
    used: int = 0

    @classmethod
    def empty(cls, local: Local, candidates: Tensor, count: int) -> "_Held":
        width = len(candidates) + local.others
        like = local.embeddings
        rows = like.new_zeros(count, width, device=_room(like, count * width))
        return cls(rows, torch.zeros(count, dtype=torch.float64), candidates, [])

    def room(self, count: int, local: Local) -> Tensor:
        """Zeros for the next full rows: in place, where every feature has its column."""
        if self._whole(local):
            return self.rows[self.used : self.used + count]
        return local.embeddings.new_zeros(count, local.width)

    def _whole(self, local: Local) -> bool:
        same = self.rows.device == local.embeddings.device
        return same and len(self.candidates) == local.active

    def store(self, full: Tensor, local: Local, numbers: Sequence[int]) -> None:
        """Keep finished full rows; what has no column here goes into the remainder."""
        span = slice(self.used, self.used + len(full))
        self.scale[span] = torch.linalg.vector_norm(full[:, :-1], ord=1, dim=1).cpu().double()
        self.expanded += numbers
        self.used = span.stop
        count = len(self.candidates)
        if self._whole(local):
            return
        columns = self.candidates.to(full.device)
        self.rows[span, :count] = full[:, columns].to(self.rows.device)
        full[:, columns] = 0
        for m in range(len(local.layers)):
            rest = full[:, local.offsets[m] : local.offsets[m + 1]]
            full[:, m - 1 - len(local.layers)] = rest.sum(1)
        self.rows[span, count:] = full[:, local.active :].to(self.rows.device)


def _room(like: Tensor, numbers: int) -> torch.device:
    """Rows stay on a GPU when they take less than a third of what is free there."""
    if like.device.type != "cuda":
        return torch.device("cpu")
    free, _ = torch.cuda.mem_get_info(like.device)
    return like.device if numbers * like.element_size() < free // 3 else torch.device("cpu")


def _start(held: _Held, local: Local, explained: Explained) -> None:
    """The rows of the explained outputs."""
    if explained.outputs:
        group = explained.group(local)
        _sweep_into(held, local, [group], [])


def _add(
    held: _Held, local: Local, numbers: Tensor, report: Callable[[int], None] | None = None
) -> None:
    """The rows of some features, chunk by chunk."""
    done = 0
    for chunk in plan(local, numbers):
        _sweep_into(held, local, local.readers(chunk), _in_sweep_order(local, chunk))
        done += len(chunk)
        if report is not None:
            report(done)


def _sweep_into(held: _Held, local: Local, groups: list[Group], numbers: list[int]) -> None:
    count = sum(len(group.positions) for group in groups)
    full = held.room(count, local)
    sweep(local, groups, full)
    held.store(full, local, numbers)


def _in_sweep_order(local: Local, chunk: Tensor) -> list[int]:
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


def _choose(local: Local, explained: Explained, budget: int, report: Report) -> _Held:
    """Expand the features of the largest influence, in rounds."""
    seeds = torch.tensor([number for number, _ in explained.features], dtype=torch.long)
    if budget < len(seeds):
        raise ValueError(f"budget={budget} is less than the {len(seeds)} features to explain.")
    count = len(explained.outputs) + budget
    candidates = torch.arange(local.active)
    fits = max(2 * budget, HELD // count - local.others)
    if fits < local.active:
        candidates = _screen(local, explained, min(fits, 4 * budget), budget // 8)
    held = _Held.empty(local, candidates, count)
    _start(held, local, explained)
    todo = seeds
    while True:
        before = len(held.expanded)
        _add(held, local, todo, lambda done: report(done + before, budget))  # noqa: B023
        room = budget - len(held.expanded)
        if room == 0:
            return held
        ranks = _influence(held, local, explained)
        ranks[torch.isin(held.candidates, torch.tensor(held.expanded))] = -1
        best = ranks.topk(min(room, max(64, budget // ROUNDS))).indices
        todo = held.candidates[best.cpu()].sort().values


def _influence(held: _Held, local: Local, explained: Explained) -> Tensor:
    """Each candidate's influence through the rows so far, from the outputs down.

    w_t = the target's weight + its own influence; a source gets sum_t w_t |edge| / scale_t.
    Rows are visited layer by layer from the top, so that w_t is final when it is used.
    """
    rows = held.rows[: held.used, : len(held.candidates)]
    scale = held.scale[: held.used].to(rows.device).clamp_min(torch.finfo(torch.float64).tiny)
    influence = torch.zeros(len(held.candidates), dtype=torch.float64, device=rows.device)
    outputs = len(explained.outputs)
    weights = torch.tensor([o.weight for o in explained.outputs], dtype=torch.float64)
    layers = torch.full((held.used,), len(local.layers))
    expanded = torch.tensor(held.expanded, dtype=torch.long)
    layers[outputs:] = local.feature_layers[expanded]
    column = torch.searchsorted(held.candidates, expanded).to(rows.device)
    extra = torch.zeros_like(influence)
    for number, weight in explained.features:
        extra[torch.searchsorted(held.candidates, torch.tensor(number))] = weight
    for m in layers.unique().flip(0).tolist():
        which = (layers == m).nonzero()[:, 0].to(rows.device)
        if m == len(local.layers):
            w = weights.to(rows.device)
        else:
            own = column[which - outputs]
            w = influence[own] + extra[own]
        for part in range(0, len(which), 256):
            span = slice(part, part + 256)
            share = (w[span] / scale[which[span]]).to(rows.dtype)
            influence += (share @ rows[which[span]].abs()).double()
    return influence


def _screen(
    local: Local, explained: Explained, keep: int, effort: int
) -> Int[Tensor, " candidates"]:
    """The features worth a column, when not all of them can have one.

    A first, smaller expansion whose rows are not kept: each row's shares are added, times its
    target's influence at that moment, to the influence of all active features.
    """
    influence = torch.zeros(local.active, dtype=torch.float64)
    done = torch.zeros(local.active, dtype=torch.bool)
    seeds = {number: weight for number, weight in explained.features}

    def visit(groups: list[Group], weights: Tensor) -> None:
        full = local.embeddings.new_zeros(len(weights), local.width)
        sweep(local, groups, full)
        full = full[:, :-1].abs_()
        share = weights.to(full) / full.sum(1).clamp_min(torch.finfo(full.dtype).tiny)
        influence.add_((share @ full[:, : local.active]).cpu().double())

    if explained.outputs:
        weights = torch.tensor([o.weight for o in explained.outputs])
        visit([explained.group(local)], weights)
    for number, weight in seeds.items():
        influence[number] += weight
    for _ in range(4):
        ranks = influence.masked_fill(done, -1)
        best = ranks.topk(max(1, effort // 4)).indices.sort().values
        for chunk in plan(local, best):
            numbers = torch.tensor(_in_sweep_order(local, chunk))
            visit(local.readers(chunk), influence[numbers])
        done[best] = True
    influence[torch.tensor(list(seeds), dtype=torch.long)] = float("inf")
    return influence.topk(min(keep, local.active)).indices.sort().values


def _keep_expanded(held: _Held, local: Local) -> tuple[Tensor, Tensor]:
    """Drop the columns of candidates that were not expanded, adding them to the remainders.

    In place: the narrower rows overwrite the wider ones from the first on (a row's new place
    never reaches beyond its old one), since a second copy of all rows may not fit.
    """
    layers, count = len(local.layers), len(held.candidates)
    chosen = torch.isin(held.candidates, torch.tensor(held.expanded, dtype=torch.long))
    rows, scale = held.rows[: held.used], held.scale[: held.used]
    if bool(chosen.all()):
        return rows, scale
    wide = rows.shape[1]
    keep = torch.cat([chosen.nonzero()[:, 0], torch.arange(count, wide)]).to(rows.device)
    # Per layer, the dropped columns' sum: a sparse (columns x layers) indicator.
    dropped = (~chosen).nonzero()[:, 0]
    home = local.feature_layers[held.candidates[dropped]]
    flat = rows.view(-1)
    for start in range(0, len(rows), 256):
        block = rows[start : start + 256].clone()
        rest = block[:, dropped.to(rows.device)]
        remainder = slice(wide - 1 - layers, wide - 1)
        block[:, remainder].index_add_(1, home.to(rows.device), rest)
        narrow = block[:, keep]
        flat[start * len(keep) : start * len(keep) + narrow.numel()] = narrow.flatten()
    return flat[: len(rows) * len(keep)].view(len(rows), len(keep)), scale
