"""Gathering: a harvest and what the writers promote, made into the evidence that is kept."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from replacement.evidence.evidence import Arrays, Evidence, Source
from replacement.evidence.harvest import LOWEST, Harvest, LayerHarvest, Progress, harvest
from replacement.evidence.names import Name, names
from replacement.evidence.promoted import Promoted, promoted
from replacement.host import Host
from replacement.model import ReplacementModel
from replacement.training import corpus as corpora

CONTEXTS = 5  # of each feature
WINDOW, BEFORE = 16, 11  # tokens of a context, and those before the activating one


@dataclass(frozen=True, eq=False)
class Example:
    """A chunk with a feature's activation in it."""

    chunk: Integer[np.ndarray, " tokens"]
    position: int
    token: int
    activation: float

    def window(self) -> tuple[list[int], int]:
        """The tokens around the activating one, and its place among them."""
        start = max(0, min(self.position - BEFORE, len(self.chunk) - WINDOW))
        return self.chunk[start : start + WINDOW].tolist(), self.position - start


def gather(
    model: ReplacementModel,
    corpus: Any,
    prompts: int | None = None,
    tokens: int = 128,
    skip_first: int = 0,
    progress: Progress = lambda done, total: None,
) -> Evidence:
    """Evidence of every feature from one pass over a corpus; see `harvest` for the options."""
    found = harvest(model, corpus, prompts, tokens, skip_first, progress)
    return distilled(model, found, corpora.label(corpus))


def distilled(model: ReplacementModel, found: Harvest, corpus: str) -> Evidence:
    """What is kept of a harvest: names, a few contexts, counts, and what the writers promote."""
    weak, frequency = _weak(model.host), found.frequency.numpy()
    words: list[list[Name]] = []
    chosen: list[list[Example]] = []
    for layer in found.layers:
        strong = layer.strong().tolist()
        for feature, count in enumerate(strong):
            seen = examples(found, layer, feature)
            words.append(_named(seen, count, frequency, found.chunks, weak))
            chosen.append(contexts(seen))
    low, counts = _occupied([layer.histogram.numpy() for layer in found.layers])
    arrays = {
        "fired": np.concatenate([layer.fired.numpy() for layer in found.layers]),
        "largest": np.concatenate([layer.largest.numpy() for layer in found.layers]),
        "histogram": counts,
        **_listed(promoted(model)),
        **_windowed(chosen),
        **_flattened(words),
    }
    arrays, ids = _numbered(arrays)
    sizes = tuple(len(layer.fired) for layer in found.layers)
    name = model.dictionary.name
    source = Source(name, sizes, corpus, found.chunks, found.positions, LOWEST + low)
    texts = tuple(model.host.token(index) for index in ids.tolist())
    kept = {key: _compact(values) for key, values in {"tokens": ids, **arrays}.items()}
    return Evidence(source, Arrays(**kept), texts)


def examples(found: Harvest, layer: LayerHarvest, feature: int) -> list[Example]:
    """A feature's examples, the strongest first."""
    order = layer.activation[feature].abs().argsort(descending=True, stable=True)
    rows = zip(
        layer.chunk[feature, order].tolist(),
        layer.position[feature, order].tolist(),
        layer.token[feature, order].tolist(),
        layer.activation[feature, order].tolist(),
        strict=True,
    )
    return [Example(found.pool[c].numpy(), p, t, a) for c, p, t, a in rows if c >= 0]


def distinct(seen: Sequence[Example]) -> list[Example]:
    """The strongest example of every text."""
    texts = {example.chunk.tobytes(): example for example in reversed(seen)}
    return [e for e in seen if texts[e.chunk.tobytes()] is e]


def contexts(seen: Sequence[Example]) -> list[Example]:
    """The strongest examples of different texts and, as far as there are, different tokens."""
    seen = distinct(seen)
    first = {example.token: example for example in reversed(seen)}
    fresh = [e for e in seen if first[e.token] is e]
    rest = [e for e in seen if first[e.token] is not e]
    return sorted((*fresh, *rest)[:CONTEXTS], key=lambda e: -abs(e.activation))


def _named(
    seen: Sequence[Example],
    strong: int,
    frequency: Integer[np.ndarray, " vocabulary"],
    corpus: int,
    weak: Bool[np.ndarray, " vocabulary"],
) -> list[Name]:
    sizes = np.array([abs(example.activation) for example in seen])
    tokens = np.array([example.token for example in seen], dtype=np.int64)
    chunks = [example.chunk for example in seen]
    return names(sizes, tokens, chunks, strong, frequency, corpus, weak)


def _weak(host: Host) -> Bool[np.ndarray, " vocabulary"]:
    """Tokens that are no word: special ones, and those without a letter or digit in any script."""
    special = set(getattr(host.tokenizer, "all_special_ids", ()))
    if host.tokenizer is None:
        return np.zeros(host.vocabulary, dtype=bool)

    def wordless(text: str) -> bool:
        return not any(unicodedata.category(letter)[0] in "LNS" for letter in text)

    return np.array([i in special or wordless(host.token(i)) for i in range(host.vocabulary)])


def _occupied(
    histograms: Sequence[Integer[np.ndarray, "_ bins"]],
) -> tuple[int, Integer[np.ndarray, "features occupied"]]:
    """The bins between the first and the last that any feature has a count in."""
    counts = np.concatenate(histograms)
    used = np.flatnonzero(counts.sum(0))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    return low, counts[:, low:high]


def _listed(lists: tuple[Promoted, Promoted, Promoted]) -> dict[str, np.ndarray]:
    """The tokens promoted, suppressed and promoted through attention, and their values."""
    found: dict[str, np.ndarray] = {}
    for key, part in zip(("promotes", "suppresses", "through"), lists, strict=True):
        found[key], found[f"{key}_values"] = part.tokens.numpy(), part.values.numpy()
    return found


def _windowed(chosen: Sequence[Sequence[Example]]) -> dict[str, np.ndarray]:
    """The contexts, as windows of their chunks that features share."""
    shape = (len(chosen), CONTEXTS)
    context = np.full(shape, -1, dtype=np.int64)
    at, activation = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    windows: dict[tuple[int, ...], int] = {}
    for row, seen in enumerate(chosen):
        for slot, example in enumerate(seen):
            tokens, at[row, slot] = example.window()
            context[row, slot] = windows.setdefault(tuple(tokens), len(windows))
            activation[row, slot] = example.activation
    return {
        "context": context,
        "context_at": at,
        "context_activation": activation,
        "window_ends": _ends(windows),
        "window_tokens": _flat(windows),
    }


def _flattened(words: Sequence[Sequence[Name]]) -> dict[str, np.ndarray]:
    """All features' names, one after the other."""
    flat = [name for each in words for name in each]
    return {
        "name_ends": _ends(words),
        "name_words": np.array([name.word for name in flat], dtype=np.int64),
        "name_scores": np.array([name.score for name in flat]),
        "name_shares": np.array([name.share for name in flat]),
        "name_token_ends": _ends([name.tokens for name in flat]),
        "name_tokens": _flat([name.tokens for name in flat]),
    }


def _ends(parts: Iterable[Sequence[Any]]) -> Integer[np.ndarray, " parts"]:
    return np.cumsum(np.array([len(part) for part in parts], dtype=np.int64))


def _flat(parts: Iterable[Sequence[int]]) -> Integer[np.ndarray, " total"]:
    return np.array([value for part in parts for value in part], dtype=np.int64)


_TOKENS = ("promotes", "suppresses", "through", "window_tokens", "name_words", "name_tokens")


def _numbered(
    arrays: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], Integer[np.ndarray, " known"]]:
    """Vocabulary ids as numbers in the table of those that occur, which is returned too."""
    ids = np.unique(np.concatenate([arrays[key].ravel() for key in _TOKENS]))
    numbered = {key: np.searchsorted(ids, arrays[key]) for key in _TOKENS}
    return arrays | numbered, ids


_WHOLE = (np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64)


def _compact(values: np.ndarray) -> np.ndarray:
    """The same numbers in fewer bytes; fractions are rounded to half precision if it holds them."""
    if values.dtype.kind == "f":
        half = not values.size or float(np.abs(values).max()) <= float(np.finfo(np.float16).max)
        return values.astype(np.float16 if half else np.float32)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    fits = (t for t in _WHOLE if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return values.astype(next(fits))
