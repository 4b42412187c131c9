"""The host's own MLP neurons as a dictionary: exact, nothing to train, on any host.

A neuron's activation is not linear in what it reads, so its reader is frozen at this prompt.
For an ungated neuron a = f(z), z = w_in . x + b, the rule of relevance propagation gives

    a = (f(z) / z) * (w_in . x + b)

and for a gated one a = f(g) * u, with g = w_gate . x and u = w_up . x, the product is shared
half and half between its factors (the RelP rule):

    a = 1/2 * (a / g) * (w_gate . x)  +  1/2 * (a / u) * (w_up . x)

since u * f(g) / g = a / g and f(g) = a / u. In a mixture of experts a neuron belongs to an expert
and a carries the router's weight r, frozen like an attention pattern: a = r * f(g) * u.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.reading import LayerReading, Term

if TYPE_CHECKING:
    from replacement.dictionary import Dictionary
    from replacement.host import Host

ROUTER = "mlp.gate.hook_expert_weights"


@dataclass(frozen=True, eq=False)
class Neurons:
    """One layer's MLP neurons. `factors` are (weight, bias) of z, or of g and u."""

    factors: tuple[tuple[Float[Tensor, "features d_model"], Float[Tensor, " features"] | None], ...]
    writers: Mapping[int, Float[Tensor, "features d_model"]]
    biases: Mapping[int, Float[Tensor, " d_model"]]
    function: Any
    experts: int = 0

    skip = None

    @property
    def hooks(self) -> frozenset[str]:
        """The activations of the host that reading needs beside the read site."""
        return frozenset({ROUTER} if self.experts else ())

    @property
    def size(self) -> int:
        """How many neurons it has, of all experts together."""
        return len(self.factors[0][0])

    @property
    def width(self) -> int:
        """The host's d_model."""
        return self.factors[0][0].shape[1]

    def read(
        self, x: Float[Tensor, "positions d_model"], captured: Mapping[str, Tensor]
    ) -> LayerReading:
        """All neurons with a nonzero activation where the MLP reads x."""
        pre = [x @ w.T if b is None else x @ w.T + b for w, b in self.factors]
        activations = self.function(pre[0])
        for factor in pre[1:]:
            activations = activations * factor
        if self.experts:
            router = captured[ROUTER].to(activations)
            activations = activations * router.repeat_interleave(
                activations.shape[1] // self.experts, dim=1
            )
        positions, features = torch.nonzero(activations, as_tuple=True)
        active = activations[positions, features]
        share = 1 / len(pre)
        terms = tuple(
            Term(w, b, share * active / z[positions, features])
            for z, (w, b) in zip(pre, self.factors, strict=True)
        )
        return LayerReading(positions, features, active, active, terms, self.writers)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Neurons":
        """A copy on another device or in another precision."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device=device, dtype=dtype)

        return Neurons(
            factors=tuple((move(w), None if b is None else move(b)) for w, b in self.factors),
            writers={m: move(w) for m, w in self.writers.items()},
            biases={m: move(b) for m, b in self.biases.items()},
            function=self.function,
            experts=self.experts,
        )


def neuron_dictionary(host: "Host") -> "Dictionary":
    """The dictionary of a host's own MLP neurons."""
    from replacement.dictionary import Dictionary

    layers = [_layer(host, index) for index in range(host.n_layers)]
    return Dictionary(layers, read="mlp.hook_in", write="mlp.hook_out", name="neurons")


def _layer(host: "Host", index: int) -> Neurons:
    mlp = host.bridge.blocks[index].mlp
    module = mlp.original_component
    if hasattr(module, "experts"):
        return _expert_layer(module.experts, index, host.dtype)
    names = ("gate", "in") if "gate" in mlp.submodules else ("in",)
    factors = tuple(_linear(mlp.submodules[name]) for name in names)
    weight, bias = _linear(mlp.submodules["out"])
    biases = {} if bias is None else {index: bias}
    return Neurons(factors, {index: weight.T.contiguous()}, biases, _function(module))


def _expert_layer(experts: Any, index: int, dtype: torch.dtype) -> Neurons:
    """Stack the experts' neurons: feature = expert * hidden + unit."""
    gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
    down = experts.down_proj.detach()
    writer = down.transpose(1, 2).flatten(0, 1).contiguous()
    factors = ((gate.flatten(0, 1), None), (up.flatten(0, 1), None))
    return Neurons(factors, {index: writer}, {}, experts.act_fn, experts=len(down))


def _linear(component: Any) -> tuple[Tensor, Tensor | None]:
    """(outputs, inputs) weight and bias of a linear component of the host."""
    from replacement.blocks import linear

    weight, bias = linear(component)
    return weight.T, bias


def _function(module: Any) -> Any:
    for name in ("act_fn", "activation_fn", "act"):
        if hasattr(module, name):
            return getattr(module, name)
    raise ValueError(
        f"{type(module).__name__} names no activation function, so its neurons cannot be read; "
        "use a trained dictionary for this host."
    )
