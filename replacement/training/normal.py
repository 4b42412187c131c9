"""Normalisation of what a layer reads and writes, and its folding into the trained weights.

x̂ = (x - μ) / σ with a mean vector and one scale a layer, so that x̂'s root mean square is 1 and the
mean squared error of ŷ is the fraction of variance unexplained. With z = R x̂ + b the same
pre-activations come from raw x by R / σ and b - R μ / σ; writers take the output's σ.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.activations import BatchTopK, JumpReLU, ReLU, TopK
from replacement.dictionary import Dictionary, Transcoder
from replacement.training.coder import Coder, Layer, Stack
from replacement.training.parallel import Ranks
from replacement.training.settings import Settings


@dataclass(frozen=True, eq=False)
class Normal:
    """Means and scales of the read and the write site, by layer."""

    read_mean: Float[Tensor, "layers d_model"]
    read_scale: Float[Tensor, " layers"]
    write_mean: Float[Tensor, "layers d_model"]
    write_scale: Float[Tensor, " layers"]

    def __call__(self, x: Stack, y: Stack) -> tuple[Stack, Stack]:
        """Both in units of their own root mean square."""
        return (
            (x - self.read_mean.unsqueeze(1)) / self.read_scale[:, None, None],
            (y - self.write_mean.unsqueeze(1)) / self.write_scale[:, None, None],
        )


def estimate(x: Stack, y: Stack, ranks: Ranks) -> Normal:
    """Means and root mean squares about them, of the samples of all ranks."""
    parts = []
    for values in (x, y):
        mean = values.mean(1)
        ranks.mean_([mean])
        power = (values - mean.unsqueeze(1)).square().mean((1, 2))
        ranks.mean_([power])
        # What never changes has no scale to speak of.
        parts += [mean, torch.where(power > 1e-24, power, torch.ones_like(power)).sqrt()]
    return Normal(*parts)


@torch.no_grad()
def fold(
    coder: Coder, normal: Normal, settings: Settings, floors: Float[Tensor, " layers"], name: str
) -> Dictionary:
    """The trained coder as a dictionary that acts on the host's raw activations."""
    layers = []
    for index, layer in enumerate(coder.layers):
        reader = layer.reader / normal.read_scale[index]
        bias, skip = normal.write_scale[index] * layer.writer_bias + normal.write_mean[index], None
        if layer.skip is not None:
            skip = layer.skip * normal.write_scale[index] / normal.read_scale[index]
            bias = bias - skip @ normal.read_mean[index]
        writers = {
            m: (normal.write_scale[m] * writer).contiguous()
            for m, writer in enumerate(layer.writer.unbind(1), start=index)
        }
        transcoder = Transcoder(
            reader=reader,
            writers=writers,
            activation=_activation(layer, settings, float(floors[index])),
            reader_bias=layer.reader_bias - reader @ normal.read_mean[index],
            writer_biases={index: bias},
            skip=skip,
        )
        layers.append(transcoder)
    return Dictionary(layers, settings.read, settings.write, name)


def _activation(layer: Layer, settings: Settings, floor: float) -> Any:
    if settings.activation == "jumprelu":
        return JumpReLU(layer.threshold)
    if settings.activation == "batchtopk":
        return BatchTopK(settings.k, floor)
    return TopK(settings.k) if settings.activation == "topk" else ReLU()
