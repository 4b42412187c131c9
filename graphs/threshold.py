"""The cut that keeps a stated share of a sum, found without sorting.

For non-negative scores ``x`` and a share ``q`` the cut is the largest score ``c`` for which

    sum of all x < c   <=   (1 - q) * sum of all x,

so that ``x >= c`` is the smallest set which reaches the share, ties at the cut included.  Counting
from below makes ``q = 1`` keep every non-zero score whatever the rounding of the sum.

Non-negative floats are ordered as their bits are when read as integers.  The cut's bits are found 16
at a time, from the top: one pass makes a histogram of the mass by the next 16 bits, among the scores
that agree with the bits found so far.  float32 takes two passes and float64 four, at 1 MB each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

_DIGIT = 16
_BINS = 1 << _DIGIT
_SLACK = 1e-9  # relative: 1 - 0.8 comes out a little below 0.2, which must not cost one more score

Blocks = Callable[[], Iterable[np.ndarray]]


def cut(blocks: Blocks, share: float, dtype: np.dtype) -> tuple[float, float]:
    """``(cut, total)`` of the scores that ``blocks()`` yields, afresh for each pass, as ``dtype``.

    The cut is infinite when every score is zero: then there is nothing to keep.
    """
    prefix, below, total, budget = 0, 0.0, 0.0, 0.0
    top = 8 * dtype.itemsize - _DIGIT
    for shift in range(top, -1, -_DIGIT):
        mass, count = _histogram(blocks(), dtype, prefix, shift)
        if shift == top:
            total = float(mass.sum())
            budget = (1.0 - share) * total * (1.0 + _SLACK)
            if total == 0.0:
                return np.inf, 0.0
        lower = below + np.concatenate(([0.0], np.cumsum(mass)[:-1]))
        # Bin by bin, `lower` is the sum of all scores under the smallest one of the bin.
        digit = int(np.flatnonzero((count > 0) & (lower <= budget))[-1])
        prefix, below = (prefix << _DIGIT) | digit, float(lower[digit])
    return float(np.array(prefix, dtype=f"u{dtype.itemsize}").view(dtype)), total


def _histogram(
    blocks: Iterable[np.ndarray], dtype: np.dtype, prefix: int, shift: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the scores, by the 16 bits at ``shift``, among those under ``prefix``."""
    mass, count = np.zeros(_BINS), np.zeros(_BINS, dtype=np.int64)
    for block in blocks:
        scores = np.ascontiguousarray(block).reshape(-1)
        digits = scores.view(f"u{dtype.itemsize}") >> shift
        if shift + _DIGIT < 8 * dtype.itemsize:
            under = np.flatnonzero(digits >> _DIGIT == prefix)
            scores, digits = scores[under], digits[under] & (_BINS - 1)
        digits = digits.astype(np.int64)
        mass += np.bincount(digits, weights=scores, minlength=_BINS)
        count += np.bincount(digits, minlength=_BINS)
    return mass, count
