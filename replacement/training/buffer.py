"""Buffer: a bounded store of harvested positions, filled, used up in a shuffled order, refilled.

Nothing in it depends on what came before the present fill but the place in the corpus where that
fill began: a run is resumed by harvesting one fill anew, not by saving gigabytes.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from replacement.training.coder import Stack
from replacement.training.harvest import Sample
from replacement.training.randomness import generator


@runtime_checkable
class Source(Protocol):
    """Where a buffer's positions come from."""

    def samples(self, positions: int) -> Iterator[Sample]:
        """At least so many positions more."""
        ...

    def place(self) -> dict[str, int]:
        """Where the next samples begin."""
        ...

    def seek(self, place: Mapping[str, int]) -> None:
        """Go on from a place that was noted before."""
        ...


@dataclass(frozen=True)
class Shape:
    """What one position takes, and how many positions fit into `bound` bytes, or are `needed`."""

    layers: int
    width: int
    dtype: torch.dtype
    device: torch.device
    bound: int
    needed: int

    @property
    def capacity(self) -> int:
        """Positions that the buffer holds."""
        return min(self.bound // self.bytes(1), self.needed)

    def bytes(self, positions: int) -> int:
        """Two activations a layer, the token's id and a place in the order for each position."""
        return positions * (2 * self.layers * self.width * self.dtype.itemsize + 16)


class Buffer:
    """Positions to train on, in memory or, given a file, on disk."""

    def __init__(
        self,
        shape: Shape,
        source: Source,
        key: tuple[int, ...],
        even: bool = False,
        file: Path | None = None,
    ) -> None:
        self.shape, self.source, self.key, self.even = shape, source, key, even
        self.fills, self.used, self.began = 0, 0, source.place()
        self.tokens = torch.zeros(0, dtype=torch.long)
        self.order = torch.zeros(0, dtype=torch.long)
        size = (shape.capacity, 2, shape.layers, shape.width)
        if file is None:
            self.values = torch.empty(size, dtype=shape.dtype, device=shape.device)
        else:
            self.values = _mapped(file, shape.dtype, size)

    def take(self, positions: int) -> tuple[Stack, Stack]:
        """The next positions in shuffled order: what all layers read and wrote there."""
        parts = []
        while positions:
            if self.used == len(self.order):
                self.fill()
            rows = self.order[self.used : self.used + positions]
            self.used += len(rows)
            positions -= len(rows)
            parts.append(self.values[rows.to(self.values.device)])
        return self._stack(parts[0] if len(parts) == 1 else torch.cat(parts))

    def look(self, positions: int) -> tuple[Stack, Stack]:
        """Some of the next positions, without using them up."""
        if self.used == len(self.order):
            self.fill()
        rows = self.order[self.used : self.used + positions]
        return self._stack(self.values[rows.to(self.values.device)])

    def _stack(self, values: Tensor) -> tuple[Stack, Stack]:
        read, write = values.to(self.shape.device).float().permute(1, 2, 0, 3)
        return read, write

    def fill(self) -> None:
        """Replace the contents, all of which were used."""
        random = generator(*self.key, "fill", self.fills)
        self.began = self.source.place()
        tokens, held = [], 0
        while held < self.shape.capacity:
            for sample in self.source.samples(self.shape.capacity - held):
                room = min(len(sample.tokens), self.shape.capacity - held)
                # Where not all fits, a random part of the last prompts does.
                chosen = torch.randperm(len(sample.tokens), generator=random)[:room]
                rows = sample.values[chosen.to(sample.values.device)]
                self.values[held : held + room] = rows.to(self.values.device)
                tokens.append(sample.tokens[chosen.to(sample.tokens.device)].cpu())
                held += room
        self.tokens = torch.cat(tokens)
        shuffled = torch.randperm(held, generator=random)
        self.order = evenly(self.tokens, shuffled, random) if self.even else shuffled
        self.fills, self.used = self.fills + 1, 0

    def state(self) -> dict[str, Any]:
        """What is needed to have the same contents and order again."""
        return {"fills": self.fills, "used": self.used, "began": self.began}

    def load(self, state: Mapping[str, Any]) -> None:
        """Harvest the fill again that was being used when `state` was noted."""
        self.source.seek(state["began"])
        self.fills = state["fills"] - 1
        self.fill()
        self.used = state["used"]


def evenly(
    tokens: Int[Tensor, " positions"], shuffled: Int[Tensor, " positions"], random: torch.Generator
) -> Int[Tensor, " positions"]:
    """As many draws as there are positions, each token type as often as any other, give or take 1.

    A round draws every type once. A type's positions are gone through in shuffled order, and
    over again where they are fewer than the rounds.
    """
    _, types, counts = tokens[shuffled].unique(return_inverse=True, return_counts=True)
    by_type = shuffled[types.argsort(stable=True)]
    starts = counts.cumsum(0) - counts
    rounds = torch.arange(-(-len(tokens) // len(counts))).unsqueeze(1)
    drawn = by_type[starts + rounds % counts]
    within = torch.rand(drawn.shape, generator=random).argsort(dim=1)
    return drawn.gather(1, within).flatten()[: len(tokens)]


def _mapped(file: Path, dtype: torch.dtype, size: tuple[int, ...]) -> Tensor:
    """A tensor in a file; the name is removed at once, so that the disk is freed with the map."""
    file.unlink(missing_ok=True)
    count = torch.Size(size).numel()
    flat = torch.from_file(os.fspath(file), shared=True, size=count, dtype=dtype)
    with contextlib.suppress(OSError):
        file.unlink()
    return flat.view(size)
