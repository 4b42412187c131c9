"""Small evidence, drawn or gathered from a tiny host."""

from functools import cache

import hosts
import numpy as np
from hypothesis import strategies as st

from replacement.evidence import Evidence, gather
from replacement.evidence.evidence import Arrays, Source

LINES = [
    hosts.TEXT, "The capital of France is Paris", "The word21 in word22", "Austin Texas is in",
    "The Paris is in France", "Austin is the capital of Texas", "The Dallas is in Texas",
]  # fmt: skip


@cache
def gathered():
    """Evidence of the speaking host's features."""
    return gather(hosts.speaking(), LINES)


TEXTS = st.text(max_size=6)
FRACTIONS = st.floats(-1e4, 1e4, width=16)


def _cut(draw, parts, most, known):
    """Ends and values of so many parts of values below `known`."""
    lengths = draw(st.lists(st.integers(0, most), min_size=parts, max_size=parts))
    values = draw(st.lists(st.integers(0, known - 1), min_size=sum(lengths), max_size=sum(lengths)))
    return np.cumsum(np.array(lengths, dtype=np.int64)), np.array(values, dtype=np.int16)


def _table(draw, rows, columns, numbers, dtype):
    size = rows * columns
    flat = draw(st.lists(numbers, min_size=size, max_size=size))
    return np.array(flat, dtype=dtype).reshape(rows, columns)


@st.composite
def drawn(draw):
    """Any evidence that is consistent in itself."""
    sizes = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    n, known, windows = sum(sizes), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    ids = draw(st.lists(st.integers(0, 2**20), min_size=known, max_size=known, unique=True))
    tokens, halves = st.integers(0, known - 1), (FRACTIONS, np.float16)
    name_ends, words = _cut(draw, n, 2, known)
    token_ends, name_tokens = _cut(draw, len(words), 3, known)
    window_ends, window_tokens = _cut(draw, windows, 4, known)
    arrays = {"tokens": np.array(sorted(ids), dtype=np.int32)}
    for key in ("promotes", "suppresses", "through"):
        arrays[key] = _table(draw, n, 2, tokens, np.int8)
        arrays[f"{key}_values"] = _table(draw, n, 2, *halves)
    arrays |= {
        "fired": _table(draw, n, 1, st.integers(0, 99), np.int64)[:, 0],
        "largest": _table(draw, n, 1, *halves)[:, 0],
        "histogram": _table(draw, n, 3, st.integers(0, 2**30), np.int32),
        "context": _table(draw, n, 2, st.integers(-1, windows - 1), np.int8),
        "context_at": _table(draw, n, 2, st.integers(0, 9), np.int8),
        "context_activation": _table(draw, n, 2, *halves),
        "window_ends": window_ends,
        "window_tokens": window_tokens,
        "name_ends": name_ends,
        "name_words": words,
        "name_scores": _table(draw, len(words), 1, *halves)[:, 0],
        "name_shares": _table(draw, len(words), 1, *halves)[:, 0],
        "name_token_ends": token_ends,
        "name_tokens": name_tokens,
    }
    lengths = np.diff(window_ends, prepend=0)[arrays["context"]]
    arrays["context"][lengths == 0] = -1
    arrays["context_at"] = (arrays["context_at"] % np.maximum(lengths, 1)).astype(np.int8)
    texts = tuple(draw(st.lists(TEXTS, min_size=known, max_size=known)))
    source = Source(draw(TEXTS), sizes, draw(TEXTS), 7, 70, draw(st.integers(-9, 9)))
    place = st.tuples(st.integers(0, 9), st.integers(0, 9))
    explained = draw(st.dictionaries(place, st.tuples(TEXTS, st.floats(0, 1)), max_size=2))
    given = draw(st.dictionaries(place, TEXTS, max_size=2))
    return Evidence(source, Arrays(**arrays), texts, explained, given)
