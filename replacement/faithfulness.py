"""How faithful a replacement is to its host, over a corpus.

Layer by layer, on the host's own activations (what a trace sees):

    FVU = sum ‖y - ŷ‖² / sum ‖y - mean y‖²  of the MLP's output y and the dictionary's stand-in ŷ
    L0 = active features a position
    dead = share of the features that are active nowhere in the corpus

End to end, with every MLP replaced and no errors added back, so that errors pile up:

    KL = mean over positions of KL(host's next token || replaced model's next token), in nats
    top-1 = share of positions at which both name the same likeliest token
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.host import Run
from replacement.model import ReplacementModel
from replacement.reading import LayerReading

_CHUNK = 64  # positions whose whole vocabulary is compared at once, in float64


class LayerFaithfulness(NamedTuple):
    """One layer: its variance unexplained, features active a position, share never active.

    `fvu` is None where the MLP writes the same at every position: there is nothing to explain.
    """

    fvu: float | None
    l0: float
    dead: float
    features: int


@dataclass(frozen=True)
class Faithfulness:
    """What `evaluate` measured, layer by layer and end to end."""

    layers: tuple[LayerFaithfulness, ...]
    kl: float
    top1: float
    prompts: int
    positions: int

    @property
    def fvu(self) -> float:
        """The mean over layers (their outputs differ in scale by orders of magnitude)."""
        each = [layer.fvu for layer in self.layers if layer.fvu is not None]
        return sum(each) / len(each)

    @property
    def l0(self) -> float:
        """Active features a position, of all layers together."""
        return sum(layer.l0 for layer in self.layers)

    @property
    def dead(self) -> float:
        """The share of all layers' features that are active nowhere."""
        dead = sum(layer.dead * layer.features for layer in self.layers)
        return dead / sum(layer.features for layer in self.layers)


@torch.no_grad()
def evaluate(
    model: ReplacementModel,
    corpus_ids: Iterable[str | Sequence[int] | Tensor],
    last: bool = False,
    skip_first: int = 0,
) -> Faithfulness:
    """How faithful a replacement is over a corpus of prompts (token ids, or texts).

    Everything is counted at every position, or with `last` at the last of each prompt only. The
    first `skip_first` positions of each prompt are left out of the counts: many hosts write
    outliers there, hundreds of times as large as anywhere else, which would be most of the
    variance. (They are replaced all the same.) To show progress, wrap `corpus_ids`.
    """
    _check(corpus_ids, skip_first)
    tallies = [_Tally.of(layer.size) for layer in model.dictionary.layers]
    divergence = agreed = prompts = positions = 0
    for prompt in corpus_ids:
        run = model.run(prompt)
        length = len(run.ids)
        first = max(length - 1, skip_first) if last else skip_first
        if first >= length:
            continue
        _tally(tallies, model, run, first)
        kl, same = _compare(run.logits[first:], model.replaced(run.ids)[first:], model.host.name)
        divergence, agreed = divergence + kl, agreed + same
        prompts, positions = prompts + 1, positions + length - first
    if positions < 2:
        raise ValueError(
            f"the corpus has {positions} positions to count; a variance needs at least two, so "
            "give more prompts, or a lower skip_first."
        )
    layers = tuple(tally.result() for tally in tallies)
    if all(layer.fvu is None for layer in layers):
        raise ValueError(
            f"the MLPs write the same at all {positions} positions, so there is no variance to "
            "explain; give prompts that differ."
        )
    return Faithfulness(layers, divergence / positions, agreed / positions, prompts, positions)


def _check(corpus_ids: Any, skip_first: int) -> None:
    if isinstance(corpus_ids, str) or (
        isinstance(corpus_ids, Sequence) and corpus_ids and isinstance(corpus_ids[0], int)
    ):
        raise ValueError("the corpus is a single prompt; give a list of prompts.")
    if skip_first < 0:
        raise ValueError(f"skip_first={skip_first} must be at least 0; 1 leaves out the first.")


@dataclass(eq=False)
class _Tally:
    """Sums over the corpus of one layer, in float64 and in one pass.

    Means and squared deviations of two parts merge (Chan, Golub and LeVeque) without the
    cancellation of  sum y² - n mean²,  which matters where a mean is large.
    """

    seen: Tensor
    mean: Tensor | float = 0.0
    count: int = 0
    spread: float = 0.0
    missed: float = 0.0
    active: int = 0

    @classmethod
    def of(cls, features: int) -> "_Tally":
        return cls(torch.zeros(features, dtype=torch.bool))

    def add(self, y: Float[Tensor, "positions d_model"], error: Tensor | None) -> None:
        y = y.cpu().double()
        n, mean = len(y), y.mean(0)
        gap = mean - self.mean
        total = self.count + n
        self.spread += float((y - mean).square().sum())
        self.spread += float(gap.square().sum()) * self.count * n / total
        self.mean, self.count = self.mean + gap * (n / total), total
        self.missed += 0.0 if error is None else float(error.cpu().double().square().sum())

    def fire(self, reading: LayerReading, first: int) -> None:
        features = reading.features[reading.positions >= first].cpu()
        self.active += len(features)
        self.seen[features] = True

    def result(self) -> LayerFaithfulness:
        return LayerFaithfulness(
            fvu=self.missed / self.spread if self.spread else None,
            l0=self.active / self.count,
            dead=1 - int(self.seen.sum()) / len(self.seen),
            features=len(self.seen),
        )


def _tally(tallies: list[_Tally], model: ReplacementModel, run: Run, first: int) -> None:
    """Count one prompt, from a position on."""
    reading = model.read(run)
    for index, tally in enumerate(tallies):
        error = None if reading.errors is None else reading.errors[index, first:]
        tally.add(run[f"blocks.{index}.{model.dictionary.write}"][first:], error)
        tally.fire(reading.layers[index], first)


def _compare(
    host: Float[Tensor, "positions vocabulary"],
    replaced: Float[Tensor, "positions vocabulary"],
    name: str,
) -> tuple[float, int]:
    """KL(host || replaced), and how often the likeliest token is the same, summed."""
    divergence, agreed = 0.0, 0
    for one, other in zip(host.split(_CHUNK), replaced.split(_CHUNK), strict=True):
        if not bool(torch.isfinite(one).all() and torch.isfinite(other).all()):
            raise ValueError(
                f"{name} computes NaN or infinite logits on this corpus, itself or with its MLPs "
                "replaced; open it with dtype=torch.float32."
            )
        p, q = (logits.cpu().double().log_softmax(-1) for logits in (one, other))
        divergence += float((p.exp() * (p - q)).sum())
        agreed += int((one.argmax(-1) == other.argmax(-1)).sum())
    return divergence, agreed
