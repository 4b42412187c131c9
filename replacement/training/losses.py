"""What is minimised: squared error, a penalty on activity where k does not bound it, and AuxK."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from replacement.training.active import Active, Dense, Positions, Sparse, largest, read_entries
from replacement.training.coder import Coder, Layer, Stack, written
from replacement.training.settings import Settings


@dataclass(frozen=True, eq=False)
class Outcome:
    """One batch through the coder: the loss, and what the log and the dead counts need."""

    loss: Float[Tensor, ""]
    error: Float[Tensor, " layers"]
    counts: Float[Tensor, "layers features"]
    floors: Float[Tensor, " layers"]


def objective(
    coder: Coder,
    x: Stack,
    y: Stack,
    settings: Settings,
    weight: float,
    dead: Bool[Tensor, "layers features"],
) -> Outcome:
    """The loss on normalised x and y, at the penalty's present weight.

    The mean square of y is 1, so that the mean squared error is a share of the variance.
    """
    active: list[Active] = []
    costs, floors = x.new_zeros(()), x.new_zeros(len(x))
    for index, (layer, at) in enumerate(zip(coder.layers, x, strict=True)):
        features, cost = activate(layer, at, settings)
        active.append(features)
        costs = costs + cost
        if settings.activation == "batchtopk" and isinstance(features, Sparse):
            floors[index] = features.values.detach().min()
    residual = y - coder.decode(active, x)
    error = residual.square().mean((1, 2))
    loss = error.mean() + weight * costs / len(x)
    if settings.auxiliary and bool(dead.any()):
        loss = loss + settings.auxiliary * revival(coder, x, residual.detach(), dead)
    counts = torch.stack([features.counts for features in active])
    return Outcome(loss, error.detach(), counts, floors)


def activate(layer: Layer, x: Positions, settings: Settings) -> tuple[Active, Float[Tensor, ""]]:
    """One layer's activations, and the penalty on them (0 where k bounds them)."""
    if settings.activation in ("topk", "batchtopk"):
        return _chosen(layer, x, settings), x.new_zeros(())
    z = layer.pre(x)
    if settings.activation == "relu":
        a = z.clamp_min(0)
    else:
        a = _call(Jump, z, layer.threshold, settings.bandwidth * layer.unit)
    if settings.penalised_by == "l0":
        cost = _call(Step, z, layer.threshold, settings.bandwidth * layer.unit)
    else:
        contribution = a * (layer.norms() / layer.unit)
        tanh = settings.penalised_by == "tanh"
        cost = torch.tanh(settings.sharpness * contribution) if tanh else contribution
    return Dense(a), cost.sum() / len(x)


def _chosen(layer: Layer, x: Positions, settings: Settings) -> Sparse:
    """The k largest of each position, or of the batch k a position on average."""
    with torch.no_grad():
        z = layer.pre(x)
        if settings.activation == "topk":
            places = largest(z, settings.k)[1]
            starts = torch.arange(len(z), device=z.device).unsqueeze(1) * z.shape[1]
            flat = (places + starts).flatten()
        else:
            flat = largest(z.view(1, -1), settings.k * len(z))[1].flatten().sort().values
    return read_entries(x, layer.reader, layer.reader_bias, z, flat)


def revival(
    coder: Coder, x: Stack, residual: Stack, dead: Bool[Tensor, "layers features"]
) -> Float[Tensor, ""]:
    """AuxK: how far each position's best dead features are from explaining its residual error.

    The dead features are picked out first, so that the cost is their share of a step.
    """
    picked: list[Layer] = []
    active: list[Active] = []
    for layer, at, gone in zip(coder.layers, x, dead, strict=True):
        some = layer.pick(gone.nonzero()[:, 0])
        z = some.pre(at)
        kept = z.topk(min(z.shape[1], max(1, x.shape[2] // 2)), dim=1, sorted=False)
        values = torch.zeros_like(z).scatter(1, kept.indices, kept.values.clamp_min(0))
        picked.append(some)
        active.append(Dense(values))
    missed = (residual - written(picked, active)).square().mean((1, 2))
    return (missed / residual.square().mean((1, 2)).clamp_min(1e-8)).mean()


def _call(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Any = function.apply(*arguments)
    return result


class Jump(torch.autograd.Function):
    """z * 1[z > threshold]; the threshold's gradient goes through a window around the jump.

    d/dθ of the expectation of z 1[z > θ] is -θ p(θ), and the density p at the threshold is
    estimated by the share of z that lie within bandwidth / 2 of it, over the bandwidth.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Apply to pre-activations."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of the activations with respect to pre-activations and thresholds."""
        z, threshold = ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        to_threshold = -(threshold / ctx.bandwidth) * (near * gradients[0]).sum(0)
        return gradients[0] * (z > threshold), to_threshold, None


class Step(torch.autograd.Function):
    """1[z > threshold], with the same estimate of the threshold's gradient: -p(θ)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Apply to pre-activations."""
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Of the count with respect to thresholds; a step has no slope in z."""
        z, threshold = ctx.saved_tensors
        near = (z - threshold).abs() < ctx.bandwidth / 2
        return None, -(near * gradients[0]).sum(0) / ctx.bandwidth, None
