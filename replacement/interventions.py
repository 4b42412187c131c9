"""Interventions: what is done to which features, where. Data only; `plan` checks and `run` acts.

All but a swap turn an activation a into

    min(max(scale * a + shift, low), high)

so that the rest of the package knows only these four numbers. Features are given as (layer,
feature), as text ("L2/F472" or "2/472"), as the name of a group, as the name of a concept that
the model's evidence knows ("Texas"), or as a sequence of these. A concept is the features that
bear its name on the tokens of the prompt; where none is active there, those mainly of that name.
Positions are a whole number (negative ones count from the prompt's end), a sequence of them, a
slice (`slice(4, None)` is from position 4 on, also in what is generated), or None: everywhere.
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from replacement.evidence import concepts
from replacement.model import ReplacementModel
from replacement.reading import LayerReading
from replacement.words import nearest

What: TypeAlias = Any  # features, as above; checked by `resolve`
Positions: TypeAlias = Any  # positions, as above; checked by `places`
Numbers: TypeAlias = Any  # a number, or one a feature, or (features, positions) of them
Names: TypeAlias = Mapping[str, Any]  # groups of features by name
# A prompt's ids and the readings of its clean run; called where a name or a swap needs them.
Seen: TypeAlias = Callable[[], tuple[Sequence[int], Sequence[LayerReading]]]

_TEXT = re.compile(r"\s*L?(\d+)\s*/\s*F?(\d+)\s*", re.IGNORECASE)


class Affine(NamedTuple):
    """min(max(scale * a + shift, low), high) of an activation a."""

    scale: Numbers = 1.0
    shift: Numbers = 0.0
    low: Numbers = float("-inf")
    high: Numbers = float("inf")


@dataclass(frozen=True, eq=False)
class Set:
    """The features take these activations."""

    what: What
    value: Numbers
    positions: Positions = None

    @property
    def affine(self) -> Affine:
        """value, whatever the activation was."""
        return Affine(scale=0.0, shift=self.value)


@dataclass(frozen=True, eq=False)
class Scale:
    """The features' activations are multiplied."""

    what: What
    factor: Numbers
    positions: Positions = None

    @property
    def affine(self) -> Affine:
        """Factor times the activation."""
        return Affine(scale=self.factor)


@dataclass(frozen=True, eq=False)
class Add:
    """Something is added to the features' activations."""

    what: What
    amount: Numbers
    positions: Positions = None

    @property
    def affine(self) -> Affine:
        """The activation plus amount."""
        return Affine(shift=self.amount)


@dataclass(frozen=True, eq=False)
class Ablate:
    """The features do not fire."""

    what: What
    positions: Positions = None

    @property
    def affine(self) -> Affine:
        """Zero."""
        return Affine(scale=0.0)


@dataclass(frozen=True, eq=False)
class Clamp:
    """The features' activations are held within bounds, of which one may be left open."""

    what: What
    low: Numbers | None = None
    high: Numbers | None = None
    positions: Positions = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise ValueError(f"Clamp of {self.what!r} has no bounds; give low=, high= or both.")

    @property
    def affine(self) -> Affine:
        """The activation within its bounds."""
        low = Affine().low if self.low is None else self.low
        return Affine(low=low, high=Affine().high if self.high is None else self.high)


@dataclass(frozen=True, eq=False)
class Swap:
    """Two features exchange the activations that they have on the clean run; or two groups of the
    same size, feature by feature in the order given. At each position, in every regime.
    """

    one: What
    other: What
    positions: Positions = None


Intervention: TypeAlias = Set | Scale | Add | Ablate | Clamp | Swap
KINDS = (Set, Scale, Add, Ablate, Clamp, Swap)


def resolve(
    model: ReplacementModel, what: What, names: Names | None = None, seen: Seen | None = None
) -> list[tuple[int, int]]:
    """The (layer, feature) pairs that are meant; `names` are groups that may be named.

    Concepts are looked for on the prompt that was `seen`, if there is one.
    """
    if isinstance(what, str):
        pairs = _named(model, what, names or {}, seen)
    elif not isinstance(what, Iterable):
        raise ValueError(f"{what!r} names no features; {_how()}")
    elif _is_pair(what := list(what)):
        pairs = [(operator.index(what[0]), operator.index(what[1]))]
    else:
        pairs = [pair for one in what for pair in resolve(model, one, names, seen)]
    if not pairs:
        raise ValueError(f"no features are given; {_how()}")
    for layer, feature in pairs:
        _check(model, layer, feature)
    return pairs


def feature_name(layer: int, feature: int) -> str:
    """A feature as text, which `resolve` understands."""
    return f"L{layer}/F{feature}"


def _named(
    model: ReplacementModel, text: str, names: Names, seen: Seen | None
) -> list[tuple[int, int]]:
    if text in names:
        return resolve(model, names[text])
    match = _TEXT.fullmatch(text)
    if match is not None:
        return [(int(match[1]), int(match[2]))]
    pairs = [] if model.evidence is None else _concept(model, text, seen)
    if not pairs:
        raise unknown(model, text, names)
    return pairs


def _concept(model: ReplacementModel, name: str, seen: Seen | None) -> list[tuple[int, int]]:
    """The features that bear a name on the prompt; else those that are mainly of that name."""
    assert model.evidence is not None
    here = [] if seen is None else concepts.active(model.evidence, name, *seen())
    found = sorted({(entry.layer, entry.feature) for entry in here})
    return found or concepts.mainly(model.evidence, name)


def unknown(model: ReplacementModel, name: str, names: Iterable[str] = ()) -> ValueError:
    """The refusal of a name, with the nearest that are known."""
    known = {*names} | (set() if model.evidence is None else concepts.known(model.evidence))
    if name in known:
        return ValueError(
            f"no feature is mainly {name!r}, and none bears that name on this prompt; {_how()}"
        )
    near = ", ".join(nearest(name, known))
    rest = f"the nearest that is: {near}" if near else _how().rstrip(".")
    return ValueError(f"the concept {name!r} is not known; {rest}.")


def _how() -> str:
    return "give (layer, feature), text such as 'L2/F472', or a sequence of these."


def _is_pair(what: list[Any]) -> bool:
    return len(what) == 2 and all(hasattr(n, "__index__") for n in what)


def _check(model: ReplacementModel, layer: int, feature: int) -> None:
    layers = model.host.n_layers
    if not 0 <= layer < layers:
        raise ValueError(
            f"{feature_name(layer, feature)}: the dictionary has layers 0 to {layers - 1}."
        )
    features = model.dictionary.layers[layer].size
    if not 0 <= feature < features:
        raise ValueError(
            f"{feature_name(layer, feature)}: layer {layer} has features 0 to {features - 1}."
        )


def places(positions: Positions, length: int, total: int | None = None) -> list[int]:
    """The positions that are meant of a prompt of so many tokens, in the order given.

    With `total`, the prompt will grow to so many tokens; negative positions and ends of slices
    still count from the end of the prompt itself.
    """
    total = length if total is None else total
    if positions is None:
        return list(range(total))
    if isinstance(positions, slice):
        found = list(range(total)[_from_prompt(positions, length)])
    else:
        given = [positions] if hasattr(positions, "__index__") else positions
        found = [_place(p, length, total) for p in _listed(given)]
    if not found:
        raise ValueError(f"positions={positions} hold none of the {total} tokens; None holds all.")
    return found


def _listed(positions: Any) -> list[Any]:
    if isinstance(positions, str) or not isinstance(positions, Iterable):
        raise ValueError(
            f"positions={positions!r}: give a whole number, a sequence, a slice or None."
        )
    return list(positions)


def _from_prompt(positions: slice, length: int) -> slice:
    def place(end: int | None) -> int | None:
        return end if end is None or end >= 0 else max(end + length, 0)

    return slice(place(positions.start), place(positions.stop), positions.step)


def _place(position: Any, length: int, total: int) -> int:
    if not hasattr(position, "__index__"):
        raise ValueError(f"position {position!r} must be a whole number.")
    index = operator.index(position)
    if not -length <= index < total:
        raise ValueError(
            f"position {index} is outside the {total} tokens; give 0 to {total - 1}, "
            f"or -{length} to -1 from the prompt's end."
        )
    return index + length if index < 0 else index
