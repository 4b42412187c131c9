"""Plan: interventions on one prompt, checked against it and against each other, layer by layer."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from replacement.interventions import (
    KINDS,
    Affine,
    Names,
    Numbers,
    Positions,
    Seen,
    Swap,
    feature_name,
    places,
    resolve,
)
from replacement.model import ReplacementModel
from replacement.reading import LayerReading


@dataclass(frozen=True, eq=False)
class Change:
    """What is done to one layer: entry i is done to one feature at one position.

    It turns that feature's activation a into  min(max(scale * a + shift, low), high).
    """

    positions: Int[Tensor, " entries"]
    features: Int[Tensor, " entries"]
    scale: Float[Tensor, " entries"]
    shift: Float[Tensor, " entries"]
    low: Float[Tensor, " entries"]
    high: Float[Tensor, " entries"]

    def __call__(self, activations: Float[Tensor, " entries"]) -> Float[Tensor, " entries"]:
        """What the entries' activations become."""
        return (self.scale * activations + self.shift).maximum(self.low).minimum(self.high)

    def within(self, start: int, stop: int) -> "Change":
        """The entries at positions start..stop, counted from start."""
        inside = (self.positions >= start) & (self.positions < stop)
        parts = (self.features, self.scale, self.shift, self.low, self.high)
        return Change(self.positions[inside] - start, *(part[inside] for part in parts))


Plan: TypeAlias = Mapping[int, Change]  # by layer


@dataclass(frozen=True, eq=False)
class _Entries:
    """One intervention, spread over its features and positions."""

    label: str
    pairs: Sequence[tuple[int, int]]
    positions: Sequence[int]
    numbers: Sequence[Float[Tensor, "features positions"]]  # scale, shift, low and high

    def columns(self) -> list[Tensor]:
        """Layer, position, feature and the four numbers of each feature at each position."""
        device = self.numbers[0].device
        layers, features = torch.tensor(self.pairs, device=device).T
        count, at = len(self.positions), torch.tensor(self.positions, device=device)
        spread = [layers.repeat_interleave(count), at.repeat(len(self.pairs))]
        spread.append(features.repeat_interleave(count))
        return spread + [numbers.flatten() for numbers in self.numbers]


def plan(
    model: ReplacementModel,
    interventions: Any,
    length: int,
    total: int | None = None,
    names: Names | None = None,
    seen: Seen | None = None,
) -> Plan:
    """Check interventions on a prompt of so many tokens, and put them in the order of layers.

    With `total` the prompt will grow to so many tokens. `seen` gives the prompt's clean run, from
    which a swap takes its activations and the name of a concept its features.
    """
    entries = []
    for number, intervention in enumerate(listed(interventions), start=1):
        if not isinstance(intervention, KINDS):
            known = ", ".join(kind.__name__ for kind in KINDS)
            raise ValueError(f"{intervention!r} is no intervention; give one of {known}.")
        kind = type(intervention).__name__
        label = f"{number} ({kind})"
        positions = places(intervention.positions, length, total)
        if isinstance(intervention, Swap):
            if max(positions) >= length:
                raise ValueError(
                    f"Swap takes its activations from the prompt, which has {length} tokens; give "
                    "positions within it, or Set from a position on."
                )
            entries.append(_swap(model, label, intervention, positions, names, seen))
        else:
            pairs = resolve(model, intervention.what, names, seen)
            numbers = _numbers(model, kind, pairs, positions, intervention.affine)
            entries.append(_Entries(label, pairs, positions, numbers))
    if not entries:
        return {}
    columns = [torch.cat(parts) for parts in zip(*(e.columns() for e in entries), strict=True)]
    _check_distinct(entries, *columns[:3])
    layers = columns[0]
    return {m: Change(*(c[layers == m] for c in columns[1:])) for m in layers.unique().tolist()}


def listed(interventions: Any) -> list[Any]:
    """Interventions as a list; one alone is a list of one."""
    alone = isinstance(interventions, str) or not isinstance(interventions, Iterable)
    return [interventions] if alone else list(interventions)


def activations_at(
    reading: LayerReading, positions: Int[Tensor, " entries"], features: Int[Tensor, " entries"]
) -> Float[Tensor, " entries"]:
    """The activations of features at positions; zero where a feature is not active."""
    if not len(reading.features):
        return reading.activations.new_zeros(len(features))
    keys = reading.positions * reading.size + reading.features  # ascending: a reading is ordered
    wanted = positions * reading.size + features
    found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where(keys[found] == wanted, reading.activations[found], 0)


def _numbers(
    model: ReplacementModel,
    kind: str,
    pairs: Sequence[tuple[int, int]],
    positions: Positions,
    affine: Affine,
) -> list[Float[Tensor, "features positions"]]:
    """The four numbers of each entry."""
    shape = (len(pairs), len(positions))
    scale, shift, low, high = (_spread(model, kind, numbers, shape) for numbers in affine)
    free = Affine()
    for given, made, bound in zip(affine, (scale, shift, low, high), free, strict=True):
        ok = made.isfinite() | (made == bound)
        if not bool(ok.all()):
            what = feature_name(*pairs[int((~ok).nonzero()[0, 0])])
            raise ValueError(f"{kind} of {what}: {given} is NaN or infinite; give finite numbers.")
    if bool((low > high).any()):
        raise ValueError(f"{kind}: low={affine.low} must not exceed high={affine.high}.")
    return [scale, shift, low, high]


def _spread(
    model: ReplacementModel, kind: str, numbers: Numbers, shape: tuple[int, int]
) -> Float[Tensor, "features positions"]:
    """A number, one a feature, or one a feature and position, as the last of these."""
    precision = torch.promote_types(model.host.dtype, torch.float32)
    remedy = (
        f"give one number, one for each of the {shape[0]} features, or rows of one for each of "
        f"the {shape[1]} positions."
    )
    try:
        values = torch.as_tensor(numbers, dtype=precision, device=model.host.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{kind}: {numbers!r} are not numbers; {remedy}") from error
    if tuple(values.shape) not in ((), shape[:1], shape):
        raise ValueError(f"{kind} has numbers of shape {tuple(values.shape)}; {remedy}")
    values = values[:, None] if values.ndim == 1 else values
    return values.expand(shape)


def _swap(
    model: ReplacementModel,
    label: str,
    swap: Swap,
    positions: Sequence[int],
    names: Names | None,
    seen: Seen | None,
) -> _Entries:
    """Each feature is set to the other's activation on the clean run."""
    one, other = (resolve(model, group, names, seen) for group in (swap.one, swap.other))
    if len(one) != len(other):
        raise ValueError(
            f"Swap exchanges {len(one)} features with {len(other)}; give groups of one size, or "
            "Ablate the one and Set the other."
        )
    assert seen is not None
    clean, device = seen()[1], model.host.device
    at = torch.tensor(positions, device=device)
    values = [
        activations_at(clean[layer], at, torch.full_like(at, feature))
        for layer, feature in [*other, *one]
    ]
    numbers = _numbers(
        model, "Swap", one + other, positions, Affine(scale=0.0, shift=torch.stack(values))
    )
    return _Entries(label, one + other, positions, numbers)


def _check_distinct(
    entries: Sequence[_Entries], layers: Tensor, positions: Tensor, features: Tensor
) -> None:
    """Nothing may be done twice to one feature at one position."""
    keys = (layers * (features.max() + 1) + features) * (positions.max() + 1) + positions
    order = keys.argsort(stable=True)
    twice = (keys[order][1:] == keys[order][:-1]).nonzero()
    if not len(twice):
        return
    ends = torch.tensor([len(e.pairs) * len(e.positions) for e in entries]).cumsum(0)
    at = order[int(twice[0, 0]) :][:2].cpu()
    first, second = (entries[i].label for i in torch.searchsorted(ends, at, right=True).tolist())
    raise ValueError(
        f"interventions {first} and {second} both change "
        f"{feature_name(int(layers[at[0]]), int(features[at[0]]))} at position "
        f"{int(positions[at[0]])}; keep one."
    )
