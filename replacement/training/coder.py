"""The transcoders of all layers, trained together: pre-activations and outputs.

    z_l = x_l @ reader_l.T + reader_bias_l        a_l = activation(z_l)
    y_m = sum over l <= m of a_l @ writer_{l -> m}  +  writer_bias_m  (+ x_m @ skip_m.T)

A layer's writers to all the layers that it writes to lie side by side in one tensor, (features,
targets, d_model), so that one product serves them all: of a per-layer transcoder there is one
target, the layer itself, of a cross-layer one these are the layers from it on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.training.active import Active, Positions
from replacement.training.settings import Settings

Stack = Float[Tensor, "layers positions d_model"]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer's weights."""

    reader: Float[Tensor, "features d_model"]
    reader_bias: Float[Tensor, " features"]
    writer: Float[Tensor, "features targets d_model"]
    writer_bias: Float[Tensor, " d_model"]
    skip: Float[Tensor, "d_model d_model"] | None = None
    log_threshold: Float[Tensor, " features"] | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors that are trained, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def unit(self) -> float:
        """The norm of a typical normalised activation, in which contributions are measured."""
        return self.reader.shape[1] ** 0.5

    @property
    def threshold(self) -> Float[Tensor, " features"]:
        """JumpReLU's thresholds, trained as logarithms so that they stay positive."""
        assert self.log_threshold is not None
        return self.log_threshold.exp()

    def pre(self, x: Positions) -> Float[Tensor, "positions features"]:
        """What the readers read, bias included."""
        return torch.addmm(self.reader_bias, x, self.reader.T)

    def norms(self) -> Float[Tensor, " features"]:
        """The norm of what a feature writes to all layers together."""
        return self.writer.flatten(1).norm(dim=1)

    def pick(self, chosen: Int[Tensor, " some"]) -> "Layer":
        """Some of the features."""
        picked = {n: getattr(self, n)[chosen] for n in ("reader", "reader_bias", "writer")}
        return replace(self, **picked, log_threshold=None)

    @torch.no_grad()
    def unit_writers(self) -> None:
        """Give every feature's writers, taken together, norm one; its reader takes the scale.

        The k largest activations are then the k largest contributions.
        """
        norms = self.norms().clamp_min(1e-8)
        self.reader.mul_(norms.unsqueeze(1))
        self.reader_bias.mul_(norms)
        self.writer.div_(norms[:, None, None])


@dataclass(frozen=True, eq=False)
class Coder:
    """All layers."""

    layers: Sequence[Layer]

    @property
    def weights(self) -> dict[str, Tensor]:
        """All tensors that are trained, by the names that a checkpoint gives them."""
        return {
            f"layers.{index}.{name}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.weights.items()
        }

    def decode(self, active: Sequence[Active], x: Stack) -> Stack:
        """What the active features stand in for; x is there for the skip path."""
        return written(self.layers, active) + torch.stack(
            [
                layer.writer_bias.expand_as(at)
                if layer.skip is None
                else torch.addmm(layer.writer_bias, at, layer.skip.T)
                for layer, at in zip(self.layers, x, strict=True)
            ]
        )


def written(layers: Sequence[Layer], active: Sequence[Active]) -> Stack:
    """What the active features write, summed by the layer written to."""
    out: list[Tensor] = []
    for index, (layer, features) in enumerate(zip(layers, active, strict=True)):
        parts = features.write(layer.writer).unbind(1)
        out += [torch.zeros_like(parts[0])] * (index + len(parts) - len(out))
        for m, part in enumerate(parts, start=index):
            out[m] = out[m] + part
    return torch.stack(out)


def create(settings: Settings, x: Stack, y: Stack, generator: torch.Generator) -> Coder:
    """A new coder: each feature reads the direction of one sample and writes what it led to.

    Features that begin where the data are seldom die. x and y are normalised samples.
    """
    layers, samples, width = x.shape
    size = (settings.features, width)
    chosen = torch.randint(samples, (settings.features,), generator=generator).to(x.device)

    def near(vectors: Positions) -> Float[Tensor, "features d_model"]:
        noise = torch.randn(size, generator=generator).to(x)
        return _unit(_unit(vectors[chosen]) + 0.5 * _unit(noise))

    made = []
    for index in range(layers):
        reader = near(x[index])
        last = layers if settings.kind == "cross-layer" else index + 1
        writer = torch.stack([near(y[m]) for m in range(index, last)], dim=1)
        layer = Layer(
            reader=reader,
            reader_bias=reader.new_zeros(settings.features),
            writer=writer / writer.shape[1] ** 0.5,
            writer_bias=reader.new_zeros(width),
            skip=reader.new_zeros(width, width) if settings.kind == "skip" else None,
            log_threshold=_log_threshold(settings, reader),
        )
        made.append(layer)
    for layer in made:
        for tensor in layer.weights.values():
            tensor.requires_grad_()
    return Coder(made)


def _log_threshold(settings: Settings, like: Positions) -> Tensor | None:
    if settings.activation != "jumprelu":
        return None
    start = settings.threshold * like.shape[1] ** 0.5
    return torch.full((len(like),), start).log().to(like)


def _unit(vectors: Positions) -> Positions:
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-8)
