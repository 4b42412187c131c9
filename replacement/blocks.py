"""The linear parts of a host's blocks, in one vocabulary for all families.

    r_mid  = r_pre + post1( attention( norm1(r_pre) ) )        sequential block
    r_post = r_mid + post2( mlp( norm2(r_mid) ) )

A parallel block feeds both from r_pre. `post1` and `post2` are absent in most families.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NormWeights:
    """An RMSNorm, or with `center` a LayerNorm: (x - mean) / denominator * weight + bias."""

    weight: Float[Tensor, " d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    center: bool
    hook: str  # the activation that holds this norm's denominators


@dataclass(frozen=True, eq=False)
class Block:
    """One layer of a host: what is linear in it."""

    values: Float[Tensor, "d_model kv_width"]
    values_bias: Float[Tensor, " kv_width"] | None
    outputs: Float[Tensor, "heads_width d_model"]
    outputs_bias: Float[Tensor, " d_model"] | None
    heads: int
    kv_heads: int
    parallel: bool
    norm1: NormWeights
    norm2: NormWeights
    post1: NormWeights | None
    post2: NormWeights | None


def linear(component: Any) -> tuple[Tensor, Tensor | None]:
    """(inputs, outputs) weight and bias of a Linear or of GPT-2's transposed Conv1D."""
    module = component.original_component
    weight = module.weight.detach()
    bias = getattr(module, "bias", None)
    if isinstance(module, torch.nn.Linear):
        weight = weight.T
    return weight, None if bias is None else bias.detach()


def norm(component: Any, hook: str) -> NormWeights:
    """A norm's weights; Gemma stores them as an offset from one."""
    module = component.original_component
    weight = module.weight.detach()
    if component.uses_weight_offset:
        weight = 1 + weight
    center = not component.uses_rms_norm
    bias = getattr(module, "bias", None) if center else None
    return NormWeights(weight, None if bias is None else bias.detach(), center, hook)


def block(bridge: Any, index: int) -> Block:
    """Read the linear parts of one block."""
    part = bridge.blocks[index]
    prefix = f"blocks.{index}."
    values, values_bias = linear(part.attn.v)
    outputs, outputs_bias = linear(part.attn.o)

    def maybe(name: str) -> NormWeights | None:
        if name not in part.submodules or part.submodules[name].original_component is None:
            return None
        return norm(part.submodules[name], f"{prefix}{name}.hook_scale")

    norm1, norm2 = maybe("ln1"), maybe("ln2")
    assert norm1 is not None
    heads = bridge.cfg.n_heads
    return Block(
        values=values,
        values_bias=values_bias,
        outputs=outputs,
        outputs_bias=outputs_bias,
        heads=heads,
        kv_heads=values.shape[1] // (outputs.shape[0] // heads),
        parallel="Parallel" in type(part).__name__,
        norm1=norm1,
        norm2=norm2 or norm1,  # Phi and GPT-J: one norm feeds attention and MLP
        post1=maybe("ln1_post"),
        post2=maybe("ln2_post"),
    )
