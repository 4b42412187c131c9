"""Harvest: chunks of tokens through the host, what every layer's MLP read and wrote coming out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.host import Host
from replacement.training.corpus import Chunks
from replacement.training.settings import Settings

_FRUITLESS = 10_000  # documents in a row that give no position


@dataclass(frozen=True, eq=False)
class Sample:
    """Positions: the token there, and (read, write) of every layer."""

    tokens: Int[Tensor, " positions"]
    values: Float[Tensor, "positions 2 layers d_model"]


@dataclass(frozen=True, eq=False)
class Harvester:
    """A buffer's source: a host run on a corpus."""

    host: Host
    chunks: Chunks
    settings: Settings

    def samples(self, positions: int) -> Iterator[Sample]:
        """At least so many positions, in forward passes of chunks of similar lengths."""
        pool, found = [], 0
        while found < positions:
            pool.append(next(self.chunks))
            found += max(0, len(pool[-1]) - self.settings.skip_first)
            if len(pool) >= _FRUITLESS and not found:
                raise ValueError(
                    f"skip_first={self.settings.skip_first} leaves nothing of {len(pool)} "
                    "documents; lower it, or give longer ones."
                )
        pool.sort(key=len)
        for start in range(0, len(pool), self.settings.prompts):
            yield harvest(self.host, pool[start : start + self.settings.prompts], self.settings)

    def place(self) -> dict[str, int]:
        """The next chunk's place in the corpus."""
        return self.chunks.place()

    def seek(self, place: Mapping[str, int]) -> None:
        """Go on from a place."""
        self.chunks.seek(place)


def harvest(host: Host, chunks: Sequence[Sequence[int]], settings: Settings) -> Sample:
    """What every layer reads and writes on chunks of several lengths, padding left out."""
    sites = (settings.read, settings.write)
    names = [f"blocks.{layer}.{site}" for site in sites for layer in range(host.n_layers)]
    tokens, captured = watched(host, chunks, names, settings.skip_first)
    picked = torch.stack([captured[name] for name in names], dim=1)
    return Sample(tokens, picked.unflatten(1, (2, host.n_layers)))


@torch.no_grad()
def watched(
    host: Host, chunks: Sequence[Sequence[int]], names: Sequence[str], skip_first: int = 0
) -> tuple[Int[Tensor, " positions"], dict[str, Tensor]]:
    """One forward pass over chunks: their tokens and the named activations, chunk after chunk.

    Padding and the first `skip_first` positions of each chunk are left out of what comes back.
    """
    captured: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(value: Tensor, hook: Any) -> None:
            captured[name] = value

        return hook

    # Causal attention never looks to the right: padding there changes nothing before it.
    longest = max(map(len, chunks))
    ids = torch.zeros(len(chunks), longest, dtype=torch.long)
    real = torch.zeros(len(chunks), longest, dtype=torch.bool)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk)] = torch.tensor(chunk)
        real[row, skip_first : len(chunk)] = True
    ids, real = ids.to(host.device), real.to(host.device)
    hooks = [(name, keep(name)) for name in names]
    host.bridge.run_with_hooks(ids, fwd_hooks=hooks, logits_to_keep=1)
    # Routers work on (tokens, experts); everything else has the batch's axis in front.
    picked = {n: v[real if v.ndim > 2 else real.flatten()] for n, v in captured.items()}
    return ids[real], picked
