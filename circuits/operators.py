"""The frozen operators of the residual stream.

Once patterns and denominators are fixed, everything between one feature and the next is affine.
An operator maps what is in the stream, x with shape (batch, positions, d_model), to what it adds:

    push(x)   carries a written direction up,
    pull(g)   carries a reader down: the adjoint,  <push(x), g> == <x, pull(g)>,
    bias      the constant that it adds, (positions, d_model), or None.

`pull` also takes readers cut off after their own position (positions 0..q of T): attention is
causal, so what lies after a reader's position never reaches it. A new architecture is a new
operator here, not a new engine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.blocks import Block, NormWeights

Stream = Float[Tensor, "batch positions d_model"]
Streams = Float[Tensor, "*batch positions d_model"]  # any number of leading axes


class Operator(Protocol):
    """What the sweep needs of an operator."""

    @property
    def bias(self) -> Tensor | None:
        """The constant that it adds."""
        ...

    def push(self, x: Tensor) -> Tensor:
        """Carry up."""
        ...

    def pull(self, g: Tensor) -> Tensor:
        """Carry down."""
        ...


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm or RMSNorm with its denominators frozen:  C x / scale * weight + bias.

    C subtracts the mean (LayerNorm) or is the identity. C is symmetric and acts on features,
    1 / scale acts on positions, so the two commute and the adjoint is  C (weight * g) / scale.
    """

    scale: Float[Tensor, "positions 1"]
    weight: Float[Tensor, " d_model"] | None = None
    offset: Float[Tensor, " d_model"] | None = None
    center: bool = False

    @property
    def bias(self) -> Float[Tensor, "positions d_model"] | None:
        """The constant that the norm adds at every position."""
        return None if self.offset is None else self.offset.expand(len(self.scale), -1)

    def push(self, x: Streams) -> Streams:
        """Carry up."""
        return self.push_at(x, slice(0, x.shape[-2]))

    def pull(self, g: Streams) -> Streams:
        """Carry down."""
        return self.pull_at(g, slice(0, g.shape[-2]))

    def push_at(self, x: Tensor, positions: Tensor | slice) -> Tensor:
        """Carry up vectors whose next-to-last index runs over the given positions."""
        x = x / self.scale[positions]
        if self.center:
            x = x - x.mean(-1, keepdim=True)
        return x if self.weight is None else x * self.weight

    def pull_at(self, g: Tensor, positions: Tensor | slice) -> Tensor:
        """Carry down readers whose next-to-last index runs over the given positions."""
        g = g if self.weight is None else g * self.weight
        if self.center:
            g = g - g.mean(-1, keepdim=True)
        return g / self.scale[positions]


def frozen_norm(weights: NormWeights, scale: Tensor) -> Norm:
    """A host's norm with this prompt's denominators."""

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(scale)

    return Norm(scale, cast(weights.weight), cast(weights.bias), weights.center)


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention with its patterns frozen, between its norms, as two matrix products and a mix.

        add[q] = sum over heads h, positions k <= q of  x[k] @ values_h * mix_h[k, q] @ outputs_h

    The norms are folded in: weights and centring into `values` and `outputs`, the denominators
    of both into `mix`. With grouped queries, `repeat` heads share one value head, and `mix` holds
    for each value head a matrix (positions k, positions q * repeat), so that the sum over a
    group's heads is part of one product. It is cut into strips of positions k, each without the
    zeros before its first position: attention is causal.
    """

    values: Float[Tensor, "d_model kv_width"]
    outputs: Float[Tensor, "heads_width d_model"]
    mix: tuple[Float[Tensor, "kv_heads _ _"], ...]
    repeat: int
    bias: Float[Tensor, "positions d_model"] | None

    STRIP = 256  # positions in a strip
    BLOCK = 1 << 22  # numbers held between the two products: readers are pulled block by block

    @property
    def kv_heads(self) -> int:
        """How many value heads there are."""
        return len(self.mix[0])

    def strips(self, positions: int) -> Iterator[tuple[slice, Tensor]]:
        """The positions and the matrix of each strip, for a stream of so many positions."""
        start = 0
        for strip in self.mix:
            if start >= positions:
                return
            rows = slice(start, min(start + strip.shape[1], positions))
            yield rows, strip[:, : rows.stop - start, : (positions - start) * self.repeat]
            start = rows.stop

    def pull(self, g: Stream) -> Stream:
        """Carry down."""
        out = torch.zeros_like(g)
        self.pull_into(g, out)
        return out

    def pull_into(self, g: Stream, out: Stream) -> None:
        """Add the pulled readers to `out`, which may be `g` itself (out = g + pull(g))."""
        size = max(1, self.BLOCK // (g.shape[1] * self.outputs.shape[0]))
        for start in range(0, len(g), size):
            span = slice(start, start + size)
            mixed = self._mix_down(g[span])
            flat = out[span].flatten(0, 1)  # a view: a span of rows is contiguous
            flat.addmm_(mixed.flatten(0, 1), self.values.T)

    def _mix_down(self, g: Stream) -> Float[Tensor, "batch positions kv_width"]:
        n, q = g.shape[:2]
        kv, repeat = self.kv_heads, self.repeat
        head = self.outputs.shape[0] // (kv * repeat)
        split = (g.flatten(0, 1) @ self.outputs.T).view(n, q, kv, repeat, head)
        # (value head, (position, head of its group), (reader, unit)): one product per value head
        split = split.permute(2, 1, 3, 0, 4).reshape(kv, q * repeat, n * head)
        mixed = torch.empty(kv, q, n * head, dtype=g.dtype, device=g.device)
        for rows, strip in self.strips(q):
            torch.bmm(strip, split[:, rows.start * repeat :], out=mixed[:, rows])
        return mixed.view(kv, q, n, head).permute(2, 1, 0, 3).reshape(n, q, kv * head)

    def push(self, x: Stream) -> Stream:
        """Carry up."""
        n, t = x.shape[:2]
        kv, repeat = self.kv_heads, self.repeat
        head = self.values.shape[1] // kv
        value = (x @ self.values).view(n, t, kv, head).permute(2, 1, 0, 3).reshape(kv, t, n * head)
        split = x.new_zeros(kv, t * repeat, n * head)
        for rows, strip in self.strips(t):
            split[:, rows.start * repeat :] += strip.transpose(1, 2) @ value[:, rows]
        split = split.view(kv, t, repeat, n, head)
        return split.permute(3, 1, 0, 2, 4).reshape(n, t, -1) @ self.outputs


def frozen_attention(
    block: Block, pattern: Float[Tensor, "heads q k"], before: Norm, after: Norm | None
) -> Attention:
    """Fold a block's attention, its norms and this prompt's pattern into one operator."""
    values, outputs = block.values.to(pattern), block.outputs.to(pattern)
    if block.kv_heads == 0 or block.heads % block.kv_heads:
        raise ValueError(f"{block.heads} heads cannot share {block.kv_heads} value heads.")
    bias = _attention_bias(block, pattern, before, after)
    # x @ diag(weight) and centring on the input side belong to `values` ...
    if before.weight is not None:
        values = before.weight[:, None] * values
    if before.center:
        values = values - values.mean(0, keepdim=True)
    # ... and those of a post-norm to `outputs`.
    mixing = pattern / before.scale[None, :, 0]
    if after is not None:
        if after.center:
            outputs = outputs - outputs.mean(1, keepdim=True)
        outputs = outputs if after.weight is None else outputs * after.weight
        mixing = mixing / after.scale[None, :]
    kv, repeat = block.kv_heads, block.heads // block.kv_heads
    t = pattern.shape[1]
    mix = mixing.view(kv, repeat, t, t).permute(0, 3, 2, 1).reshape(kv, t, t * repeat)
    size = Attention.STRIP
    strips = tuple(mix[:, k : k + size, k * repeat :].contiguous() for k in range(0, t, size))
    return Attention(values.contiguous(), outputs.contiguous(), strips, repeat, bias)


def _attention_bias(
    block: Block, pattern: Tensor, before: Norm, after: Norm | None
) -> Float[Tensor, "positions d_model"] | None:
    """What attention adds whatever the stream holds: the biases, carried to the output."""
    t, width = pattern.shape[1], block.values.shape[1]
    constant = pattern.new_zeros(t, width)
    if before.bias is not None:
        constant = constant + before.bias @ block.values.to(pattern)
    if block.values_bias is not None:
        constant = constant + block.values_bias.to(pattern)
    head = width // block.kv_heads
    by_head = constant.view(t, block.kv_heads, head).permute(1, 0, 2)
    by_head = by_head.repeat_interleave(block.heads // block.kv_heads, 0)
    out = (pattern @ by_head).permute(1, 0, 2).reshape(t, -1) @ block.outputs.to(pattern)
    if block.outputs_bias is not None:
        out = out + block.outputs_bias.to(pattern)
    if after is not None:
        out = after.push(out)
        out = out if after.bias is None else out + after.bias
    return out if bool(out.any()) else None


@dataclass(frozen=True, eq=False)
class Skip:
    """A skip transcoder's linear path beside its features:  after( before(x) @ weight.T )."""

    weight: Float[Tensor, "d_model d_model"]
    before: Norm | None
    after: Norm | None

    @property
    def bias(self) -> Float[Tensor, "positions d_model"] | None:
        """The constant that the path adds (a post-norm's own bias belongs to the writers)."""
        if self.before is None or self.before.bias is None:
            return None
        out = self.before.bias @ self.weight.T
        return out if self.after is None else self.after.push(out)

    def push(self, x: Stream) -> Stream:
        """Carry up."""
        x = x if self.before is None else self.before.push(x)
        out = x @ self.weight.T
        return out if self.after is None else self.after.push(out)

    def pull(self, g: Stream) -> Stream:
        """Carry down."""
        g = g if self.after is None else self.after.pull(g)
        out = g @ self.weight
        return out if self.before is None else self.before.pull(out)
