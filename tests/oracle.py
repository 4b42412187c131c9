"""The naive oracle: autograd through the Hugging Face model itself, one target at a time.

A model that no bridge has touched is run once with its softmax and its norms' denominators
detached, and with each MLP's output replaced by a sum of constants, one for each feature, error
and bias, each multiplied by a leaf that equals one. An edge is the derivative of what the target
read with respect to its source's leaf. Nothing here is shared with the tracer but the
dictionary's weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replacement import BatchTopK, Dictionary, JumpReLU, ReLU, TopK
from replacement.neurons import Neurons

NORMS_BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "ln_1")
NORMS = (*NORMS_BEFORE_MLP, "input_layernorm")  # in this order: the last feeds a parallel block
# Where queries, keys and values are one matrix the bridge computes attention itself, and its
# softmax in the model's own precision.
JOINT = ("gpt2", "gpt_neox", "phi3")


@dataclass
class Naive:
    """One run: every possible target as a scalar in the autograd graph, and the leaves."""

    features: list[Tensor] = field(default_factory=list)  # per layer: leaves (positions, features)
    errors: list[Tensor] = field(default_factory=list)  # per layer: leaves (positions)
    tokens: Tensor | None = None
    values: list[Tensor] = field(default_factory=list)  # per layer: own values, attached
    activations: list[Tensor] = field(default_factory=list)
    final: Tensor | None = None  # the final norm's output, attached
    unembedding: Tensor | None = None  # (vocabulary, d_model)
    unembedding_bias: Tensor | None = None

    def row(self, value: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Edges into one target from features, errors and tokens."""
        leaves = [*self.features, *self.errors, self.tokens]
        grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
        grads = [
            torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)
        ]
        layers = len(self.features)
        return grads[:layers], grads[layers:-1], grads[-1]

    def logit(self, token: int, position: int) -> Tensor:
        """The logit before any cap, less the mean over the vocabulary."""
        logits = self.unembedding @ self.final[position]
        if self.unembedding_bias is not None:
            logits = logits + self.unembedding_bias
        return logits[token] - logits.mean()


def activate(activation: Any, values: Tensor) -> Tensor:
    """The activation functions, entry by entry."""
    out = torch.zeros_like(values)
    if isinstance(activation, TopK):
        for p in range(len(values)):
            for f in sorted(range(values.shape[1]), key=lambda f: -values[p, f])[: activation.k]:
                out[p, f] = max(values[p, f], 0)
        return out
    if isinstance(activation, BatchTopK) and activation.threshold is None:
        places = [(p, f) for p in range(len(values)) for f in range(values.shape[1])]
        places.sort(key=lambda place: -values[place])
        for place in places[: activation.k * len(values)]:
            out[place] = max(values[place], 0)
        return out
    threshold = torch.zeros(values.shape[1])
    if isinstance(activation, JumpReLU | BatchTopK):
        threshold = threshold + activation.threshold
    else:
        assert isinstance(activation, ReLU)
    for p in range(len(values)):
        for f in range(values.shape[1]):
            if values[p, f] > threshold[f]:
                out[p, f] = values[p, f]
    return out


def blocks(model: Any) -> Any:
    """A Hugging Face model's decoder layers."""
    base = model.base_model
    return base.layers if hasattr(base, "layers") else base.h


def norm_before_mlp(block: Any) -> Any:
    """The norm whose output a block's MLP reads."""
    return getattr(block, next(name for name in NORMS if hasattr(block, name)))


def freeze_norms(model: Any) -> None:
    """Detach the denominators; compute in the model's own precision; remember what is inside."""
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.LayerNorm) or name.endswith("RMSNorm"):
            module.forward = _frozen_norm(module, gemma=name.startswith("Gemma"))


def _frozen_norm(module: Any, gemma: bool) -> Any:
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps

    def forward(x: Tensor) -> Tensor:
        module.read = x
        if isinstance(module, nn.LayerNorm):
            x = x - x.mean(-1, keepdim=True)
        module.normalized = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt().detach()
        weight = 1 + module.weight if gemma else module.weight
        bias = getattr(module, "bias", None)
        return module.normalized * weight + (0 if bias is None else bias)

    return forward


@contextmanager
def frozen_softmax(exact: bool) -> Iterator[None]:
    """Attention patterns and the routers' weights are constants.

    Hugging Face computes most of them in float32 whatever the model's precision; `exact` keeps
    the precision.
    """
    softmax = F.softmax

    def frozen(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(x, dim=dim, dtype=x.dtype if exact else dtype).detach()

    F.softmax = frozen
    try:
        yield
    finally:
        F.softmax = softmax


def naive(model: Any, dictionary: Dictionary, ids: list[int]) -> Naive:
    """Run the oracle on a Hugging Face model of its own, which it takes apart."""
    model.requires_grad_(False)
    freeze_norms(model)
    out = Naive()
    for index, block in enumerate(blocks(model)):
        if isinstance(dictionary.layers[0], Neurons):
            _replace_by_neurons(out, block)
        else:
            _replace_by_dictionary(out, block, dictionary, index)
    blocks(model)[0].register_forward_pre_hook(_token_leaves(out), with_kwargs=True)
    with frozen_softmax(exact=model.config.model_type in JOINT):
        out.final = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    head = model.get_output_embeddings()
    out.unembedding, out.unembedding_bias = head.weight, getattr(head, "bias", None)
    return out


def _token_leaves(out: Naive) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stream = args[0] if args else kwargs.pop("hidden_states")
        out.tokens = torch.ones(stream.shape[1], dtype=stream.dtype, requires_grad=True)
        return (stream.detach() * out.tokens[:, None], *args[1:]), kwargs

    return hook


def _replace_by_dictionary(out: Naive, block: Any, dictionary: Dictionary, index: int) -> None:
    """The MLP (or what its post-norm makes of it) becomes features and an error."""
    original = block.mlp.forward
    post = getattr(block, "post_feedforward_layernorm", None)
    late = post is not None and dictionary.write == "hook_mlp_out"

    norm = post.forward if late else None
    seen = {}

    def mlp(x: Tensor) -> Tensor:
        seen["x"], true = x[0], original(x).detach()
        return true if late else after(true)

    def after(y: Tensor) -> Tensor:
        true = (y if norm is None else norm(y))[0].detach()
        return _stand_in(out, block, dictionary, index, seen["x"], true)[None]

    block.mlp.forward = mlp
    if late:
        post.forward = after


def _stand_in(
    out: Naive, block: Any, dictionary: Dictionary, index: int, x: Tensor, true: Tensor
) -> Tensor:
    """What the features, the constants and the error write at one layer."""
    norm, layer = norm_before_mlp(block), dictionary.layers[index]
    sites = {"ln2.hook_normalized": norm.normalized[0], "hook_resid_mid": norm.read[0]}
    x = sites.get(dictionary.read, x)
    values = x @ layer.reader.to(x).T
    if layer.reader_bias is not None:
        values = values + layer.reader_bias.to(x)
    out.values.append(values)
    out.activations.append(activate(layer.activation, values.detach()))
    out.features.append(torch.ones_like(values, requires_grad=True))
    out.errors.append(torch.ones_like(x[:, 0], requires_grad=True))
    total, constant = torch.zeros_like(true), torch.zeros_like(true)
    for source in range(index + 1):
        lower, active = dictionary.layers[source], out.activations[source]
        if index in lower.writers:
            total = total + (out.features[source] * active) @ lower.writers[index].to(x)
        if lower.writer_biases is not None and index in lower.writer_biases:
            constant = constant + lower.writer_biases[index].to(x)
    total = total + constant
    if layer.skip is not None:
        total = total + x @ layer.skip.to(x).T
    # All leaves equal one, so the total's number is what the dictionary makes of the MLP.
    return total + out.errors[index][:, None] * (true - total).detach()


def _replace_by_neurons(out: Naive, block: Any) -> None:
    """The MLP becomes its neurons, each a constant; their own values keep their linear reading."""
    original = block.mlp.forward

    def mlp(x: Tensor) -> Tensor:
        active, own, writer, bias = _neurons(block.mlp, x[0])
        assert torch.allclose(active @ writer + bias, original(x)[0], atol=1e-4, rtol=1e-4)
        out.values.append(own)
        out.activations.append(active.detach())
        out.features.append(torch.ones_like(active, requires_grad=True))
        return ((out.features[-1] * active.detach()) @ writer + bias)[None]

    block.mlp.forward = mlp


def _neurons(mlp: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Activations, own values, writers and bias of an MLP's neurons."""
    if hasattr(mlp, "experts"):
        _, weights, chosen = mlp.gate(x)
        routed = torch.zeros(len(x), mlp.experts.num_experts, dtype=x.dtype)
        routed = routed.scatter(1, chosen, weights.to(x.dtype)).detach()
        parts = []
        for e in range(mlp.experts.num_experts):
            gate, up = (x @ mlp.experts.gate_up_proj[e].T).chunk(2, dim=-1)
            parts.append(_gated(mlp.experts.act_fn, gate, up, routed[:, e : e + 1]))
        writer = torch.cat([down.T for down in mlp.experts.down_proj])
        active, own = (torch.cat(p, dim=1) for p in zip(*parts, strict=True))
        return active, own, writer, 0
    if hasattr(mlp, "gate_up_proj"):
        gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
        return *_gated(mlp.activation_fn, gate, up, 1), mlp.down_proj.weight.T, 0
    if hasattr(mlp, "gate_proj"):
        bias = 0 if mlp.down_proj.bias is None else mlp.down_proj.bias
        active, own = _gated(mlp.act_fn, mlp.gate_proj(x), mlp.up_proj(x), 1)
        return active, own, mlp.down_proj.weight.T, bias
    names = (("c_fc", "c_proj"), ("fc_in", "fc_out"), ("fc1", "fc2"))
    names = (*names, ("dense_h_to_4h", "dense_4h_to_h"))
    first, second = next((getattr(mlp, a), getattr(mlp, b)) for a, b in names if hasattr(mlp, a))
    function = mlp.activation_fn if hasattr(mlp, "activation_fn") else mlp.act
    z = first(x)
    active = function(z)
    writer = second.weight.T if isinstance(second, nn.Linear) else second.weight
    return active, (active / z).detach() * z, writer, second.bias


def _gated(function: Any, gate: Tensor, up: Tensor, router: Any) -> tuple[Tensor, Tensor]:
    """r f(g) u, and the same read half through g, half through u."""
    active = router * function(gate) * up
    through_gate = (router * function(gate) / gate * up).detach() * gate
    through_up = (router * function(gate)).detach() * up
    return active, (through_gate + through_up) / 2
