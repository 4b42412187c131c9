"""Activation functions of dictionaries: pre-activations (positions, features) -> activations.

Each leaves an active feature's pre-activation as it is and sets the others to zero, so that an
active feature's activation equals what its reader read. That is why the books of a trace can be
kept on pre-activations.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Activations: TypeAlias = Float[Tensor, "positions features"]


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k} must be at least 1: the number of features kept per position.")


@dataclass(frozen=True)
class ReLU:
    """Keep what is positive."""

    def __call__(self, values: Activations) -> Activations:
        """Apply to pre-activations."""
        return values.clamp_min(0)


@dataclass(frozen=True, eq=False)
class JumpReLU:
    """Keep what exceeds its feature's threshold: z * 1[z > threshold]."""

    threshold: Tensor | float

    def __call__(self, values: Activations) -> Activations:
        """Apply to pre-activations."""
        threshold = torch.as_tensor(self.threshold, device=values.device, dtype=values.dtype)
        return torch.where(values > threshold, values, torch.zeros_like(values))


@dataclass(frozen=True)
class TopK:
    """Keep the k largest positive pre-activations at each position."""

    k: int

    def __post_init__(self) -> None:
        _check_k(self.k)

    def __call__(self, values: Activations) -> Activations:
        """Apply to pre-activations."""
        kept = values.topk(min(self.k, values.shape[-1]), dim=-1)
        return torch.zeros_like(values).scatter(-1, kept.indices, kept.values.clamp_min(0))


@dataclass(frozen=True)
class BatchTopK:
    """Keep the k largest positive pre-activations per position on average.

    With a threshold (what training leaves behind for inference) a feature is active above it,
    whatever else the prompt holds; without one, the k * positions largest of the prompt are kept.
    """

    k: int
    threshold: float | None = None

    def __post_init__(self) -> None:
        _check_k(self.k)

    def __call__(self, values: Activations) -> Activations:
        """Apply to pre-activations."""
        if self.threshold is not None:
            return JumpReLU(max(self.threshold, 0.0))(values)
        flat = values.flatten()
        kept = flat.topk(min(self.k * values.shape[0], flat.numel()))
        out = torch.zeros_like(flat).scatter(0, kept.indices, kept.values.clamp_min(0))
        return out.view_as(values)


Activation: TypeAlias = ReLU | JumpReLU | TopK | BatchTopK
