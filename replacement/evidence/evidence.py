"""Evidence: what is known of every feature, to be looked up by layer, feature and token."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from replacement.dictionary import Dictionary
from replacement.evidence.labels import Place

NAMED = 0.2  # share of the activation from which a name is part of a feature's label
JOINED = 2  # names in a label at most
CLEAR = 0.5  # score of a name that no promoted token can outdo
DESCRIBED = 4  # names that a description lists
STANDS_OUT = 2.0  # times the tenth: a token that a feature promotes so much is what it says


@dataclass(frozen=True, eq=False)
class Arrays:
    """Everything that is kept of the features, row for row as they are numbered, layer by layer.

    Tokens are numbers in the table of those that occur, `tokens`, which holds their ids in the
    host's vocabulary. What has no fixed length is cut from one array at `..._ends`.
    """

    tokens: Integer[np.ndarray, " known"]
    fired: Integer[np.ndarray, " features"]
    largest: Float[np.ndarray, " features"]
    histogram: Integer[np.ndarray, "features bins"]
    promotes: Integer[np.ndarray, "features shown"]
    promotes_values: Float[np.ndarray, "features shown"]
    suppresses: Integer[np.ndarray, "features shown"]
    suppresses_values: Float[np.ndarray, "features shown"]
    through: Integer[np.ndarray, "features shown"]
    through_values: Float[np.ndarray, "features shown"]
    context: Integer[np.ndarray, "features contexts"]  # a window's number, or -1
    context_at: Integer[np.ndarray, "features contexts"]
    context_activation: Float[np.ndarray, "features contexts"]
    window_ends: Integer[np.ndarray, " windows"]
    window_tokens: Integer[np.ndarray, " window_tokens"]
    name_ends: Integer[np.ndarray, " features"]
    name_words: Integer[np.ndarray, " names"]
    name_scores: Float[np.ndarray, " names"]
    name_shares: Float[np.ndarray, " names"]
    name_token_ends: Integer[np.ndarray, " names"]
    name_tokens: Integer[np.ndarray, " name_tokens"]


@dataclass(frozen=True)
class Source:
    """Where evidence comes from: the dictionary, the corpus, and the histograms' first bin.

    `lowest` is the power of two at which the first bin of every histogram starts.
    """

    dictionary: str
    sizes: tuple[int, ...]  # features of each layer
    corpus: str
    chunks: int
    positions: int
    lowest: int


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a dictionary's features; `Evidence()` knows nothing but what it is told.

    `texts` are those of `arrays.tokens`. `given` are labels by users; `explained` are those by an
    explainer, with their scores.
    """

    source: Source | None = None
    arrays: Arrays | None = None
    texts: tuple[str, ...] = ()
    explained: Mapping[Place, tuple[str, float]] = field(default_factory=dict)
    given: Mapping[Place, str] = field(default_factory=dict)

    def relabelled(self, labels: Mapping[Place, str]) -> "Evidence":
        """The same evidence, in which these labels of a user win over all others."""
        return replace(self, given={**self.given, **labels})

    def with_explanations(self, said: Mapping[Place, tuple[str, float]]) -> "Evidence":
        """The same evidence with an explainer's labels and their scores."""
        return replace(self, explained={**self.explained, **said})

    def label(self, layer: int, feature: int, token: int | None = None) -> str:
        """What a feature is called; given the id of a token, what it means where it reads that.

        A feature may mean one thing on one token and another on another: with a token the label is
        its name among whose activating tokens that one is; without, its names that account for
        much of it. Where that is not clear, and one token stands out of those that it promotes, it
        is "say" and that token. "" where there is nothing.
        """
        place = (layer, feature)
        if place in self.given:
            return self.given[place]
        if place in self.explained:
            return self.explained[place][0]
        names = self._names(layer, feature)
        if token is None:
            fitting = [n for n in names if n["share"] >= NAMED][:JOINED]
        else:
            fitting = [n for n in names if token in n["ids"]][:1]
        clear = max((n["score"] for n in fitting), default=0.0) >= CLEAR
        said = "" if clear else self._said(layer, feature)
        return said or " / ".join(n["name"] for n in fitting)

    def _said(self, layer: int, feature: int) -> str:
        """What a feature promotes far above all else; "" where there is no such token."""
        row = self._row(layer, feature)
        promoted = [] if row is None or self.arrays is None else self._listed("promotes", row)
        if not promoted or promoted[0][1] < STANDS_OUT * abs(promoted[-1][1]):
            return ""
        return f"say {promoted[0][0].strip() or repr(promoted[0][0])}"

    def describe(self, layer: int, feature: int) -> dict[str, Any]:
        """All that is known of a feature, as JSON can hold it."""
        found: dict[str, Any] = {"label": self.label(layer, feature)}
        if (layer, feature) in self.explained:
            label, score = self.explained[layer, feature]
            found["explained"] = {"label": label, "score": score}
        row = self._row(layer, feature)
        if row is None or self.arrays is None or self.source is None:
            return found
        names = self._names(layer, feature)
        shown = {key: self._listed(key, row) for key in ("promotes", "suppresses", "through")}
        counts = self.arrays.histogram[row].tolist()
        edges = [2.0 ** (self.source.lowest + b) for b in range(len(counts) + 1)]
        return {
            **found,
            "names": [{k: v for k, v in name.items() if k != "ids"} for name in names[:DESCRIBED]],
            "promotes": shown["promotes"],
            "suppresses": shown["suppresses"],
            "promotes_through_attention": shown["through"],
            "contexts": self._contexts(row),
            "density": int(self.arrays.fired[row]) / self.source.positions,
            "histogram": {"edges": edges, "counts": counts},
            "max": float(self.arrays.largest[row]),
        }

    def check(self, dictionary: Dictionary) -> None:
        """Refuse a dictionary that this evidence, or a label in it, is not of."""
        sizes = tuple(layer.size for layer in dictionary.layers)
        own = self.source
        if own is not None and (dictionary.name, sizes) != (own.dictionary, own.sizes):
            raise ValueError(
                f"the evidence is of the dictionary {own.dictionary!r} with {list(own.sizes)} "
                f"features, not of {dictionary.name!r} with {list(sizes)}; build it with "
                "`circuits features`."
            )
        for layer, feature in self.given:
            if not 0 <= layer < len(sizes) or not 0 <= feature < sizes[layer]:
                raise _no_such(layer, feature, dictionary.name, sizes)

    def _row(self, layer: int, feature: int) -> int | None:
        """Where a feature is in the arrays; None where nothing is known of any."""
        if self.source is None:
            return None
        sizes = self.source.sizes
        if not 0 <= layer < len(sizes) or not 0 <= feature < sizes[layer]:
            raise _no_such(layer, feature, self.source.dictionary, sizes)
        return sum(sizes[:layer]) + feature

    def _text(self, known: int) -> str:
        """A token as a name: without the space before it, unless it is nothing else."""
        text = self.texts[known]
        return text.strip() or repr(text)

    def _names(self, layer: int, feature: int) -> list[dict[str, Any]]:
        row, arrays = self._row(layer, feature), self.arrays
        if row is None or arrays is None:
            return []
        names = []
        for n in range(*_span(arrays.name_ends, row)):
            tokens = arrays.name_tokens[slice(*_span(arrays.name_token_ends, n))]
            names.append(
                {
                    "name": self._text(int(arrays.name_words[n])),
                    "score": float(arrays.name_scores[n]),
                    "share": float(arrays.name_shares[n]),
                    "tokens": [self.texts[t] for t in tokens],
                    "ids": arrays.tokens[tokens].tolist(),
                }
            )
        return names

    def _listed(self, key: str, row: int) -> list[list[Any]]:
        """Tokens with their values; those that a feature leaves as they are do not count."""
        tokens, values = getattr(self.arrays, key)[row], getattr(self.arrays, f"{key}_values")[row]
        return [[self.texts[t], float(v)] for t, v in zip(tokens, values, strict=True) if v]

    def _contexts(self, row: int) -> list[dict[str, Any]]:
        arrays, found = self.arrays, []
        assert arrays is not None
        for slot, window in enumerate(arrays.context[row].tolist()):
            if window < 0:
                continue
            tokens = arrays.window_tokens[slice(*_span(arrays.window_ends, window))]
            found.append(
                {
                    "tokens": [self.texts[t] for t in tokens],
                    "at": int(arrays.context_at[row, slot]),
                    "activation": float(arrays.context_activation[row, slot]),
                }
            )
        return found

    @cached_property
    def alive(self) -> int:
        """How many features are active anywhere in the corpus."""
        return 0 if self.arrays is None else int((self.arrays.fired > 0).sum())


def _no_such(layer: int, feature: int, dictionary: str, sizes: tuple[int, ...]) -> ValueError:
    return ValueError(
        f"there is no L{layer}/F{feature} in the dictionary {dictionary!r}, whose layers have "
        f"{list(sizes)} features."
    )


def _span(ends: np.ndarray, index: int) -> tuple[int, int]:
    """Where part `index` begins and ends in what is cut at `ends`."""
    return (int(ends[index - 1]) if index else 0), int(ends[index])
