"""Trainer: the weights, the optimiser and the counts of one run, advanced a step at a time."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.training.coder import Coder, Layer, Stack, create
from replacement.training.losses import Outcome, activate, objective
from replacement.training.normal import Normal, estimate
from replacement.training.parallel import Ranks
from replacement.training.randomness import generator
from replacement.training.settings import Settings

# Weight of the newest batch in BatchTopK's running threshold.
_NEWEST = 0.01
_ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Metrics:
    """One step as the log has it; fvu, l0 and dead are means over layers."""

    step: int
    loss: float
    fvu: float
    l0: float
    dead: float
    learning_rate: float


@dataclass(eq=False)
class Trainer:
    """What a step changes, and what a checkpoint holds."""

    settings: Settings
    ranks: Ranks
    normal: Normal
    coder: Coder
    optimiser: torch.optim.Optimizer
    quiet: Int[Tensor, "layers features"]
    floors: Float[Tensor, " layers"]
    step: int = 0

    def advance(self, x: Stack, y: Stack) -> Metrics:
        """One step on this rank's share of a batch of raw activations."""
        settings, rate = self.settings, self.settings.rate(self.step, x.shape[2])
        x, y = self.normal(x, y)
        dead = self.quiet >= settings.dead_after
        outcome = objective(self.coder, x, y, settings, settings.weight(self.step), dead)
        self.optimiser.zero_grad(set_to_none=True)
        outcome.loss.backward()
        numbers = _numbers(outcome, y)
        gradients = [w.grad for w in self.coder.weights.values() if w.grad is not None]
        self.ranks.mean_([*gradients, outcome.counts, outcome.floors, numbers])
        loss, fvu, l0 = numbers.tolist()
        metrics = Metrics(self.step, loss, fvu, l0, float(dead.float().mean()), rate)
        _check_finite(metrics)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        if settings.activation in ("topk", "batchtopk"):
            for layer in self.coder.layers:
                layer.unit_writers()
        self.quiet = torch.where(outcome.counts > 0, 0, self.quiet + 1)
        share = _NEWEST if self.step else 1.0
        self.floors = (1 - share) * self.floors + share * outcome.floors
        self.step += 1
        return metrics

    def state(self) -> dict[str, Tensor]:
        """All tensors, by the names that `restored` reads."""
        kept = {f"normal.{name}": tensor for name, tensor in vars(self.normal).items()}
        for name, weight in self.coder.weights.items():
            kept[name] = weight.detach()
            for part, tensor in self.optimiser.state.get(weight, {}).items():
                kept[f"{part}.{name}"] = tensor
        kept |= {"quiet": self.quiet, "floors": self.floors}
        return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}


def start(settings: Settings, x: Stack, y: Stack, ranks: Ranks | None = None) -> Trainer:
    """A new run whose normalisation and first weights come from samples of the activations."""
    ranks = ranks or Ranks()
    normal = estimate(x, y, ranks)
    x, y = normal(x, y)
    coder = create(settings, x, y, generator(settings.seed, "weights"))
    _scale(coder, x[:, : settings.batch], y[:, : settings.batch], settings)
    ranks.broadcast_(coder.weights.values())
    quiet = torch.zeros(len(x), settings.features, dtype=torch.long, device=x.device)
    floors = torch.zeros(len(x), device=x.device)
    return Trainer(settings, ranks, normal, coder, _optimiser(coder, settings), quiet, floors)


@torch.no_grad()
def _scale(coder: Coder, x: Stack, y: Stack, settings: Settings) -> None:
    """Shrink the readers by the one factor that makes the first output fit best.

    Many random features at once overshoot the output several times, and learn from that.
    """
    active = [activate(layer, at, settings)[0] for layer, at in zip(coder.layers, x, strict=True)]
    out = coder.decode(active, x)
    factor = ((out * y).sum() / out.square().sum().clamp_min(1e-12)).clamp(0.01, 1)
    for layer in coder.layers:
        layer.reader.mul_(factor)


def restored(settings: Settings, kept: Mapping[str, Tensor], step: int, ranks: Ranks) -> Trainer:
    """The run as it was when its `state` was kept."""
    normal = Normal(**{f.name: kept[f"normal.{f.name}"] for f in fields(Normal)})
    by_layer: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in kept.items():
        if name.startswith("layers."):
            _, index, part = name.split(".")
            by_layer[int(index)][part] = tensor.requires_grad_()
    coder = Coder([Layer(**by_layer[index]) for index in range(len(by_layer))])
    optimiser = _optimiser(coder, settings)
    if step:
        moments = {
            index: {part: kept[f"{part}.{name}"] for part in _ADAM}
            for index, name in enumerate(coder.weights)
        }
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": moments, "param_groups": groups})
    return Trainer(settings, ranks, normal, coder, optimiser, kept["quiet"], kept["floors"], step)


def _optimiser(coder: Coder, settings: Settings) -> torch.optim.Optimizer:
    weights: list[Any] = list(coder.weights.values())
    return torch.optim.AdamW(
        weights,
        lr=settings.rate(0, weights[0].shape[1]),
        weight_decay=settings.weight_decay,
        fused=weights[0].device.type in ("cpu", "cuda"),
    )


def _numbers(outcome: Outcome, y: Stack) -> Float[Tensor, " 3"]:
    """Loss, fraction of variance unexplained and active features a position."""
    variance = (y.square().mean(1) - y.mean(1).square()).mean(1).clamp_min(1e-12)
    l0 = outcome.counts.sum(1).mean() / y.shape[1]
    return torch.stack([outcome.loss.detach(), (outcome.error / variance).mean(), l0])


def _check_finite(metrics: Metrics) -> None:
    odd = [name for name, value in asdict(metrics).items() if not math.isfinite(value)]
    if odd:
        raise ValueError(
            f"{odd[0]} is {getattr(metrics, odd[0])} at step {metrics.step}, where the learning "
            f"rate was {metrics.learning_rate:.3g}; try a third of it, a longer warmup, or "
            "skip_first=1 if the host writes outliers at its first position. The last checkpoint "
            "is kept."
        )
