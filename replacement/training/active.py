"""The features active on a batch, as a full matrix or as a list of its few entries.

Of TopK's (positions x features) matrix a few per cent are not zero. Products with it, and all its
gradients, are then sums of a few rows (`embedding_bag`): of writers per position, and of what
positions read or were given per feature. Only the readers' product stays dense.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

Positions = Float[Tensor, "positions d_model"]


@dataclass(frozen=True, eq=False)
class Dense:
    """All activations of one layer, zeros included."""

    values: Float[Tensor, "positions features"]

    def write(
        self, writer: Float[Tensor, "features targets d_model"]
    ) -> Float[Tensor, "positions targets d_model"]:
        """What the features write to every layer they write to."""
        return (self.values @ writer.flatten(1)).unflatten(1, writer.shape[1:])

    @cached_property
    def counts(self) -> Float[Tensor, " features"]:
        """At how many positions each feature fired."""
        return (self.values.detach() > 0).to(self.values.dtype).sum(0)


@dataclass(frozen=True, eq=False)
class Sparse:
    """The entries that are not zero, in the order of their positions."""

    values: Float[Tensor, " entries"]
    positions: Int[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    size: tuple[int, int]

    def write(
        self, writer: Float[Tensor, "features targets d_model"]
    ) -> Float[Tensor, "positions targets d_model"]:
        """What the features write to every layer they write to."""
        table = writer.flatten(1)
        starts = _starts(self.positions, self.size[0])
        out = embedding_bag(
            self.features, table.detach(), starts, mode="sum", per_sample_weights=self.values
        )
        routed: Any = ToWriter.apply(out, table, self.values.detach(), self)
        return routed.unflatten(1, writer.shape[1:])

    def per_feature(
        self, rows: Float[Tensor, "positions columns"], weights: Float[Tensor, " entries"]
    ) -> Float[Tensor, "features columns"]:
        """For each feature the sum over its entries of weight * that position's row."""
        order, starts = self._by_feature
        return embedding_bag(
            self.positions[order], rows, starts, mode="sum", per_sample_weights=weights[order]
        )

    @cached_property
    def counts(self) -> Float[Tensor, " features"]:
        """At how many positions each feature fired."""
        fired = (self.values.detach() > 0).to(self.values.dtype)
        return fired.new_zeros(self.size[1]).index_add_(0, self.features, fired)

    @cached_property
    def _by_feature(self) -> tuple[Tensor, Tensor]:
        return self.features.argsort(stable=True), _starts(self.features, self.size[1])


Active = Dense | Sparse


def read_entries(
    x: Positions,
    reader: Float[Tensor, "features d_model"],
    bias: Float[Tensor, " features"],
    z: Float[Tensor, "positions features"],
    flat: Int[Tensor, " entries"],
) -> Sparse:
    """Some entries of z = x @ reader.T + bias, clamped at zero, with their gradients.

    `flat` are sorted places in the flattened z, which itself needs no gradient.
    """
    columns = z.shape[1]
    size = (z.shape[0], columns)
    found = Sparse(z.flatten()[flat], flat // columns, flat % columns, size)
    values: Any = ToReader.apply(found.values, reader, bias, x, found)
    return Sparse(values.clamp_min(0), found.positions, found.features, found.size)


def largest(
    values: Float[Tensor, "rows columns"], k: int
) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of every row, in no order: `topk` in two steps that see far fewer numbers.

    Cut a row into groups of s. The k largest numbers lie in at most k groups, which are the k
    groups with the largest maxima. So n / s maxima and then k * s numbers are searched instead
    of n, which is least where s = sqrt(n / k).
    """
    rows, columns = values.shape
    size = 1
    while columns % (2 * size) == 0 and (2 * size) ** 2 * k <= 2 * columns:
        size *= 2
    if size == 1:
        top = values.topk(k, sorted=False)
        return top.values, top.indices
    grid = values.view(rows, size, columns // size)
    groups = grid.amax(1).topk(k, sorted=False).indices
    candidates = grid.gather(2, groups.unsqueeze(1).expand(-1, size, -1)).flatten(1)
    top = candidates.topk(k, sorted=False)
    place = (top.indices // k) * (columns // size) + groups.gather(1, top.indices % k)
    return top.values, place


def _starts(sorted_or_not: Int[Tensor, " entries"], bags: int) -> Int[Tensor, " bags"]:
    counts = torch.bincount(sorted_or_not, minlength=bags)
    return counts.cumsum(0) - counts


class ToWriter(torch.autograd.Function):
    """Hands the gradient of what was written on to the writers, one row per entry."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, table: Tensor, values: Tensor, entries: Sparse) -> Tensor:
        """What was written, as it is."""
        ctx.values, ctx.entries = values, entries
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """d out / d writer[f] is the activation of f at each position."""
        of_table = ctx.entries.per_feature(gradients[0].contiguous(), ctx.values)
        return gradients[0], of_table, None, None


class ToReader(torch.autograd.Function):
    """Hands the gradient of entries on to the readers and biases that gave them."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, reader: Tensor, bias: Tensor, x: Tensor, entries: Sparse
    ) -> Tensor:
        """The entries, as they are."""
        ctx.x, ctx.entries = x, entries
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """d z / d reader[f] is what was read at each position."""
        of_reader = ctx.entries.per_feature(ctx.x, gradients[0])
        of_bias = torch.zeros_like(of_reader[:, 0]).index_add_(
            0, ctx.entries.features, gradients[0]
        )
        return None, of_reader, of_bias, None, None
