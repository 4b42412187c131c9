"""Promoted: the tokens that a feature makes likelier, and those that it makes less likely.

A feature's direction in the stream is its writers, summed over the layers written to. What it says
straight to the output is that direction through the final norm's weight and the unembedding less
its vocabulary mean; norms' denominators, which differ from prompt to prompt, are left out.

Many features in the middle of a model speak through the attention of the layers above. With norm1,
values V_h, outputs O_h and post1 of layer m, and all heads taken alike, that carries a direction by

    M_m = norm1 ( sum over heads h of V_h O_h ) post1

and what layer w writes is read by every attention above it: w @ (M_{w+1} + M_{w+2} + ...).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.blocks import Block, NormWeights
from replacement.host import Host
from replacement.model import ReplacementModel

SHOWN = 10
_BLOCK = 1 << 24  # numbers of (features x vocabulary) held at once


@dataclass(frozen=True, eq=False)
class Promoted:
    """Per feature some tokens, the strongest first, and what a unit of it adds to their logits."""

    tokens: Int[Tensor, "features shown"]
    values: Float[Tensor, "features shown"]


@torch.no_grad()
def promoted(model: ReplacementModel) -> tuple[Promoted, Promoted, Promoted]:
    """Of all features, layer after layer: promoted, suppressed, promoted through attention."""
    readout = _readout(model.host)
    direct: list[tuple[Promoted, Promoted]] = []
    through: list[Promoted] = []
    for straight, carried in _directions(model):
        size = max(1, _BLOCK // readout.shape[1])
        for start in range(0, len(straight), size):
            span = slice(start, start + size)
            logits = straight[span] @ readout
            direct.append((_top(logits), _top(-logits, -1.0)))
            through.append(_top(carried[span] @ readout))
    return _joined([d for d, _ in direct]), _joined([s for _, s in direct]), _joined(through)


def _directions(model: ReplacementModel) -> Iterator[tuple[Tensor, Tensor]]:
    """Per layer what its features write, and what attention makes of that in the layers above."""
    host, dictionary = model.host, model.dictionary
    blocks = [host.block(m) for m in range(host.n_layers)]
    above = _above(blocks)
    for layer in dictionary.layers:
        straight: Tensor | float = 0.0
        carried: Tensor | float = 0.0
        for m, writer in layer.writers.items():
            post = blocks[m].post2 if dictionary.write == "mlp.hook_out" else None
            written = _normed(writer.float(), post)
            straight, carried = straight + written, carried + written @ above[m]
        assert isinstance(straight, Tensor) and isinstance(carried, Tensor)
        yield straight, carried


def _above(blocks: Sequence[Block]) -> list[Float[Tensor, "d_model d_model"]]:
    """For each layer written to, the sum of the later layers' M."""
    width = blocks[0].values.shape[0]
    total = blocks[0].values.new_zeros(width, width, dtype=torch.float32)
    sums = []
    for block in reversed(blocks):
        sums.append(total)
        total = total + through_attention(block)
    return sums[::-1]


def through_attention(block: Block) -> Float[Tensor, "d_model d_model"]:
    """M: where one layer's attention carries each direction, all heads taken alike."""
    head = block.values.shape[1] // block.kv_heads
    values = block.values.float().unflatten(1, (block.kv_heads, head))
    values = values.repeat_interleave(block.heads // block.kv_heads, dim=1).flatten(1)
    identity = torch.eye(len(values), device=values.device)
    return _normed(_normed(identity, block.norm1) @ values @ block.outputs.float(), block.post1)


def _readout(host: Host) -> Float[Tensor, "d_model vocabulary"]:
    """From a direction in the stream to logits less their mean over the vocabulary."""
    matrix = host.unembedding.float()
    identity = torch.eye(len(matrix), device=matrix.device)
    return _normed(identity, host.final_norm) @ (matrix - matrix.mean(1, keepdim=True))


def _normed(
    rows: Float[Tensor, "rows d_model"], norm: NormWeights | None
) -> Float[Tensor, "rows d_model"]:
    """What a norm makes of directions, its denominator and its constant aside."""
    if norm is None:
        return rows
    if norm.center:
        rows = rows - rows.mean(1, keepdim=True)
    return rows if norm.weight is None else rows * norm.weight.float()


def _top(logits: Float[Tensor, "features vocabulary"], sign: float = 1.0) -> Promoted:
    values, tokens = logits.topk(min(SHOWN, logits.shape[1]), dim=1)
    return Promoted(tokens.cpu(), sign * values.cpu())


def _joined(parts: Sequence[Promoted]) -> Promoted:
    return Promoted(torch.cat([p.tokens for p in parts]), torch.cat([p.values for p in parts]))
