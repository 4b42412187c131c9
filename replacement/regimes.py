"""Regimes: what follows when features are changed, as hooks on the host.

An intervention changes the activation of a feature from a to a', and each of its writers adds
(a' - a) * W_dec to the MLP output of the layer that it writes to. Beyond that

- free:         everything recomputes. a is what the changed stream makes of the feature; the
                host's own MLPs run, so what the dictionary misses recomputes with them.
- constrained:  within a range of layers the MLP outputs are those of the clean run, plus what
                the changed features write; a is the clean activation. Attention patterns and
                norms recompute, and outside the range the host runs freely.
- direct:       attention patterns, norms' denominators and all MLP outputs are those of the clean
                run; only what the changed features write moves on, linearly, a skip transcoder's
                linear path included. This is what the edges of a trace predict, exactly.

In the direct regime each frozen part gives its clean output plus its linear part's image of what
has changed in its input, so that with nothing changed the run is the host's own to the bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from replacement.blocks import NormWeights
from replacement.host import Host, Run
from replacement.model import ReplacementModel
from replacement.plan import Plan, activations_at
from replacement.reading import LayerReading

REGIMES = ("free", "constrained", "direct")
Hook = tuple[str, Callable[..., Tensor | None]]


@dataclass(frozen=True, eq=False)
class Clean:
    """A prompt's clean run: what a change is compared with. Make one with `observe`."""

    run: Run
    readings: tuple[LayerReading, ...]
    kept: Mapping[str, Tensor]  # what the direct regime holds, by the names of the hooks


@dataclass(eq=False)
class Steering:
    """The hooks that carry a plan out, over one pass or, token by token, over many.

    `held` has the layers whose features and MLP outputs are those of the clean run: the reading
    and the output of each. `moved` is by layer what has changed at the read site, where a skip
    path is to carry it on. `watched` are features by layer; after a pass `seen` has their
    activations (positions, features), as the stream makes them before any change of their own.
    """

    model: ReplacementModel
    plan: Plan
    held: Mapping[int, tuple[LayerReading, Tensor]] = field(default_factory=dict)
    moved: Mapping[int, Tensor] = field(default_factory=dict)
    watched: Mapping[int, Tensor] = field(default_factory=dict)
    start: int = 0  # the position of the first token of the pass
    seen: dict[int, Tensor] = field(default_factory=dict)
    _captured: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _changes: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def hooks(self) -> list[Hook]:
        """Read sites of the layers whose features matter, and the write sites that change."""
        dictionary, hooks = self.model.dictionary, []
        touched = {*self.plan, *self.watched}
        for m in sorted(touched):
            for site in (dictionary.read, *dictionary.layers[m].hooks):
                hooks.append((f"blocks.{m}.{site}", self._keep(m, site)))
        written = {m for source in self.plan for m in dictionary.layers[source].writers}
        for m in sorted({*self.held, *touched, *written}):
            hooks.append((f"blocks.{m}.{dictionary.write}", self._write(m)))
        return hooks

    def _keep(self, m: int, site: str) -> Callable[..., None]:
        captured = self._captured.setdefault(m, {})

        def keep(x: Tensor, hook: Any) -> None:
            # Routers work on (tokens, experts); everything else has the batch's axis in front.
            x = x[0] if x.ndim > 2 else x
            captured[site] = x.to(torch.promote_types(x.dtype, torch.float32))

        return keep

    def _write(self, m: int) -> Callable[..., Tensor | None]:
        layers = self.model.dictionary.layers
        sources = [source for source in self.plan if m in layers[source].writers]
        skip = layers[m].skip if m in self.held else None

        def write(y: Tensor, hook: Any) -> Tensor | None:
            if m in self.plan or m in self.watched:
                self._read(m, y.shape[-2])
            if m not in self.held and not sources:
                return None
            out = self.held[m][1] if m in self.held else y[0]
            out = out.to(torch.promote_types(y.dtype, torch.float32))
            if skip is not None and m in self.moved:
                out = out + self.moved[m] @ skip.T
            for source in sources:
                positions, features, change = self._changes[source]
                writer = layers[source].writers[m]
                out = out.index_add(0, positions, change[:, None] * writer[features])
            return out.to(y.dtype)[None]

        return write

    def _read(self, m: int, length: int) -> None:
        """What the watched features of a layer are, and how much the planned ones change."""
        if m in self.held:
            reading = self.held[m][0]
        else:
            captured = self._captured[m]
            x = captured[self.model.dictionary.read]
            reading = self.model.dictionary.layers[m].read(x, captured)
        if m in self.watched:
            self.seen[m] = _grid(reading, length, self.watched[m])
        if m in self.plan:
            change = self.plan[m].within(self.start, self.start + length)
            a = activations_at(reading, change.positions, change.features)
            self._changes[m] = change.positions, change.features, change(a) - a


def _grid(
    reading: LayerReading, length: int, features: Tensor
) -> Float[Tensor, "positions features"]:
    """The activations of some features at every position."""
    at = torch.arange(length, device=features.device).repeat_interleave(len(features))
    return activations_at(reading, at, features.repeat(length)).view(length, -1)


@contextmanager
def hooked(host: Host, hooks: list[Hook]) -> Iterator[None]:
    """The host with hooks on it; they are gone when the block is left, however it is left."""
    with torch.no_grad(), host.bridge.hooks(fwd_hooks=hooks):
        yield


def norms(host: Host) -> list[NormWeights]:
    """All norms of the residual stream, by their place in it."""
    found: dict[str, NormWeights] = {}
    for m in range(host.n_layers):
        block = host.block(m)
        for norm in (block.norm1, block.norm2, block.post1, block.post2):
            if norm is not None:
                found[norm.hook] = norm
    return [*found.values(), host.final_norm]


def frozen_sites(model: ReplacementModel) -> list[str]:
    """What the direct regime must know of the clean run, beside what every run keeps."""
    layers = range(model.host.n_layers)
    stems = [norm.hook.removesuffix("hook_scale") for norm in norms(model.host)]
    names = [stem + end for stem in stems for end in ("hook_in", "hook_out")]
    return names + [f"blocks.{m}.attn.{site}" for m in layers for site in ("hook_v", "hook_z")]


def frozen(model: ReplacementModel, clean: Clean, moved: dict[int, Tensor]) -> list[Hook]:
    """Hooks that hold patterns and denominators, and write into `moved` what each layer reads."""
    inputs: dict[str, Tensor] = {}
    hooks: list[Hook] = []
    for norm in norms(model.host):
        hooks += _frozen_norm(norm, clean, inputs)
    for m in range(model.host.n_layers):
        hooks += _frozen_attention(m, clean, inputs)
        hooks.append(_moved(model, m, clean, moved))
    return hooks


def _frozen_norm(norm: NormWeights, clean: Clean, inputs: dict[str, Tensor]) -> list[Hook]:
    """Clean output plus the change of the input over the clean denominator, centred, weighted."""
    stem = norm.hook.removesuffix("hook_scale")

    def keep(x: Tensor, hook: Any) -> None:
        inputs[stem] = x

    def hold(y: Tensor, hook: Any) -> Tensor:
        change = carried(norm, clean.run[norm.hook], inputs[stem] - clean.kept[stem + "hook_in"])
        change = change if norm.weight is None else change * norm.weight
        return (clean.kept[stem + "hook_out"] + change).to(y.dtype)

    return [(stem + "hook_in", keep), (stem + "hook_out", hold)]


def carried(norm: NormWeights, scale: Tensor, change: Tensor) -> Tensor:
    """A change of a norm's input over the clean denominator, centred if the norm centres."""
    change = change.to(scale.dtype) / scale
    return change - change.mean(-1, keepdim=True) if norm.center else change


def _frozen_attention(m: int, clean: Clean, inputs: dict[str, Tensor]) -> list[Hook]:
    """Clean output of the heads plus the clean pattern's mix of the change of the values.

    Patterns themselves cannot be edited everywhere: GPT-J shows its own after it has used it.
    """
    v, z = (f"blocks.{m}.attn.{site}" for site in ("hook_v", "hook_z"))
    pattern = clean.run[f"blocks.{m}.attn.hook_pattern"]

    def keep(x: Tensor, hook: Any) -> None:
        inputs[v] = x

    def hold(y: Tensor, hook: Any) -> Tensor:
        change = (inputs[v] - clean.kept[v]).to(pattern.dtype)[0]  # (positions, kv heads, head)
        change = change.repeat_interleave(pattern.shape[0] // change.shape[1], dim=1)
        mixed = torch.einsum("hqk,khd->qhd", pattern, change)
        return (clean.kept[z] + mixed).to(y.dtype)

    return [(v, keep), (z, hold)]


def _moved(model: ReplacementModel, m: int, clean: Clean, moved: dict[int, Tensor]) -> Hook:
    """Writes what has changed at a layer's read site; normalised streams keep their denominator."""
    site = f"blocks.{m}.{model.dictionary.read}"
    if model.dictionary.read == "ln2.hook_normalized":
        norm = model.host.block(m).norm2
        scale, name = clean.run[norm.hook], norm.hook.replace("hook_scale", "hook_in")

        def normalised(x: Tensor, hook: Any) -> None:
            moved[m] = carried(norm, scale, (x - clean.kept[name])[0])

        return name, normalised

    def plain(x: Tensor, hook: Any) -> None:
        moved[m] = x[0].to(clean.run[site].dtype) - clean.run[site]

    return site, plain


def linear_values(
    reading: LayerReading, moved: Float[Tensor, "positions d_model"]
) -> Float[Tensor, " active"]:
    """By how much the own values of a reading's features change with what they read."""
    change = torch.zeros_like(reading.values)
    for term in reading.terms:
        part = (moved @ term.weight.T)[reading.positions, reading.features]
        change += part if term.coefficient is None else part * term.coefficient
    return change
