"""The smallest set of numbers that adds up to a share of the total, without sorting them.

The bits of a non-negative float order like the float itself. So the threshold is found digit by
digit, in base 65,536: add up the values by their leading digit, walk down from the largest digit
until the share is reached, and go on within that digit. Two passes settle a float32, and four a
float64, however many numbers there are.
"""

import numpy as np
from jaxtyping import Bool, Float

_DIGIT = 16
_BLOCK = 1 << 20  # numbers looked at together


def threshold(values: Float[np.ndarray, " values"], share: float) -> float:
    """The largest t such that the values >= t add up to the share of the total."""
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    wanted = share * float(values.sum(dtype=np.float64))
    above, prefix = 0.0, 0
    for shift in range(8 * values.dtype.itemsize - _DIGIT, -1, -_DIGIT):
        counts, sums = _histogram(values, bits, shift, prefix)
        present = np.flatnonzero(counts)[::-1]
        if not present.size:
            return 0.0
        reached = above + np.cumsum(sums[present])
        # Rounding may leave the full sum a hair short of a share of 1: take the last digit then.
        enough = np.flatnonzero(reached >= wanted * (1 - 1e-12))
        chosen = int(enough[0]) if enough.size else len(present) - 1
        digit = int(present[chosen])
        above = float(reached[chosen] - sums[digit])
        prefix = (prefix << _DIGIT) | digit
    return float(np.array([prefix], dtype=bits.dtype).view(values.dtype)[0])


def _histogram(
    values: Float[np.ndarray, " values"], bits: np.ndarray, shift: int, prefix: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per digit at `shift`, how many positive values start with the prefix, and their sum."""
    counts = np.zeros(1 << _DIGIT, dtype=np.int64)
    sums = np.zeros(1 << _DIGIT)
    above = bits.dtype.type(shift + _DIGIT)
    for start in range(0, len(values), _BLOCK):
        block, found = bits[start : start + _BLOCK], values[start : start + _BLOCK] > 0
        if prefix:
            found &= (block >> above) == prefix
        digits = (block[found] >> bits.dtype.type(shift)) & 0xFFFF
        counts += np.bincount(digits, minlength=1 << _DIGIT)
        kept = values[start : start + _BLOCK][found].astype(np.float64)
        sums += np.bincount(digits, weights=kept, minlength=1 << _DIGIT)
    return counts, sums


def smallest_kept(
    values: Float[np.ndarray, " values"], share: float
) -> Bool[np.ndarray, " values"]:
    """Which of the (non-negative) values make up the share; ties at the threshold all stay."""
    return (values >= threshold(values, share)) & (values > 0)
