"""Concepts: from a name to the features that bear it, and to the words on which they do.

A feature bears a name on a token where that is its label there (`Evidence.label`). It is mainly of
that name where its label without a token says so: the name accounts for much of its activation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from replacement.evidence.evidence import Evidence
from replacement.evidence.labels import Place
from replacement.reading import LayerReading

_SAY = "say "


class Active(NamedTuple):
    """A feature that is active at a position of a prompt."""

    layer: int
    position: int
    feature: int
    activation: float


def active(
    evidence: Evidence, name: str, ids: Sequence[int], readings: Sequence[LayerReading]
) -> list[Active]:
    """The features that bear a name on this prompt's tokens, where they are active."""
    places, found = _candidates(evidence, name), []
    for layer, reading in enumerate(readings):
        own = torch.tensor([feature for at, feature in places if at == layer], dtype=torch.long)
        for entry in _entries(layer, reading, torch.isin(reading.features.cpu(), own)):
            if evidence.label(layer, entry.feature, ids[entry.position]) == name:
                found.append(entry)
    return found


def everything(readings: Sequence[LayerReading]) -> list[Active]:
    """Every active feature of a prompt."""
    return [
        entry
        for layer, reading in enumerate(readings)
        for entry in _entries(layer, reading, torch.ones(len(reading.features), dtype=torch.bool))
    ]


def _entries(layer: int, reading: LayerReading, chosen: Tensor) -> list[Active]:
    columns = (reading.positions, reading.features, reading.activations)
    rows = zip(*(column.cpu()[chosen].tolist() for column in columns), strict=True)
    return [Active(layer, *row) for row in rows]


def mainly(evidence: Evidence, name: str) -> list[Place]:
    """The features that are mainly of this name, on whatever token."""
    places = _candidates(evidence, name)
    return [place for place in places if name in _parts(evidence.label(*place))]


def _parts(label: str) -> list[str]:
    return [label, *label.split(" / ")]


def carriers(evidence: Evidence, name: str) -> dict[int, int]:
    """The tokens on which features bear a name, and how many features do on each."""
    counts: dict[int, int] = {}
    for place in _candidates(evidence, name):
        for token in {t for told in evidence._names(*place) for t in told["ids"]}:
            if evidence.label(*place, token) == name:
                counts[token] = counts.get(token, 0) + 1
    return counts


def largest(evidence: Evidence, place: Place) -> float | None:
    """A feature's largest activation in the corpus; None where the evidence has none."""
    return evidence.describe(*place).get("max")


def known(evidence: Evidence) -> set[str]:
    """Every name that a feature may bear."""
    known = {said[0] for said in evidence.explained.values()} | set(evidence.given.values())
    if evidence.arrays is not None:
        used = np.unique(evidence.arrays.name_words).tolist()
        said = np.unique(evidence.arrays.promotes[:, 0]).tolist()
        known |= {_text(evidence.texts[n]) for n in used}
        known |= {_SAY + _text(evidence.texts[n]) for n in said}
    return known


def _candidates(evidence: Evidence, name: str) -> list[Place]:
    """The features that may bear a name somewhere."""
    told = {**{at: said[0] for at, said in evidence.explained.items()}, **evidence.given}
    places = {place for place, label in told.items() if name in _parts(label)}
    arrays, source = evidence.arrays, evidence.source
    if arrays is None or source is None:
        return sorted(places)
    entries = np.flatnonzero(_are(evidence, arrays.name_words, name))
    rows = np.searchsorted(arrays.name_ends, entries, "right")
    if name.startswith(_SAY):
        said = _are(evidence, arrays.promotes[:, 0], name.removeprefix(_SAY))
        rows = np.union1d(rows, np.flatnonzero(said))
    starts = np.cumsum([0, *source.sizes])
    layers = np.searchsorted(starts, rows, "right") - 1
    places |= set(zip(layers.tolist(), (rows - starts[layers]).tolist(), strict=True))
    return sorted(places)


def _are(
    evidence: Evidence, tokens: Integer[np.ndarray, " tokens"], name: str
) -> Bool[np.ndarray, " tokens"]:
    """Where numbers in the table of tokens stand for a name."""
    return np.isin(tokens, [n for n, text in enumerate(evidence.texts) if _text(text) == name])


def _text(text: str) -> str:
    return text.strip() or repr(text)
