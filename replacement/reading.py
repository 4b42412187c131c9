"""A reading: the features that are active on one prompt, and how each of them reads and writes.

The engine needs to know of a feature only this, whatever kind of dictionary it comes from:

- its activation a and its own value v (what its reader read; the books of its row sum to it),
- its reader, a linear combination  sum_k coefficient_k * weight_k[feature]  of rows of matrices
  (one term for a transcoder; one or two for a neuron, whose non-linearity is frozen in the
  coefficients), and the constant  sum_k coefficient_k * bias_k[feature],
- its writers: a * writers[layer][feature] is added to the write site of each of those layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Term:
    """One part of the readers: coefficient[i] * weight[feature of i], and likewise its bias."""

    weight: Float[Tensor, "features d_model"]
    bias: Float[Tensor, " features"] | None = None
    coefficient: Float[Tensor, " active"] | None = None


@dataclass(frozen=True, eq=False)
class LayerReading:
    """The active features of one layer, ordered by position, then feature."""

    positions: Int[Tensor, " active"]
    features: Int[Tensor, " active"]
    activations: Float[Tensor, " active"]
    values: Float[Tensor, " active"]
    terms: tuple[Term, ...]
    writers: Mapping[int, Float[Tensor, "features d_model"]]

    @property
    def size(self) -> int:
        """How many features the layer has, active or not."""
        return len(next(iter(self.writers.values())))

    def readers(self, which: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen d_model"]:
        """The reader vectors of the chosen active features, at the dictionary's read site."""
        features = self.features[which]
        out = None
        for term in self.terms:
            part = term.weight[features]
            if term.coefficient is not None:
                part = part * term.coefficient[which, None]
            out = part if out is None else out.add_(part)
        assert out is not None
        return out

    def constants(self, which: Int[Tensor, " chosen"]) -> Float[Tensor, " chosen"]:
        """What the chosen features' own biases add to their values."""
        features = self.features[which]
        out = self.values.new_zeros(len(features))
        for term in self.terms:
            if term.bias is not None:
                bias = term.bias[features]
                out += bias if term.coefficient is None else bias * term.coefficient[which]
        return out

    def writes(self, layer: int, span: slice) -> Float[Tensor, "span d_model"]:
        """What the active features in a span of this reading write at a layer's write site."""
        return self.writers[layer][self.features[span]] * self.activations[span, None]


@dataclass(frozen=True, eq=False)
class Reading:
    """All layers' active features on one prompt, and what the dictionary missed."""

    layers: tuple[LayerReading, ...]
    errors: Float[Tensor, "layers positions d_model"] | None

    @property
    def active(self) -> int:
        """How many features are active over all layers and positions."""
        return sum(len(layer.features) for layer in self.layers)


def sparse(
    values: Float[Tensor, "positions features"], activations: Float[Tensor, "positions features"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, features, activations and own values of the entries that are active."""
    positions, features = torch.nonzero(activations, as_tuple=True)
    return positions, features, activations[positions, features], values[positions, features]
