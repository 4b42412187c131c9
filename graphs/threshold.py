"""The smallest set of numbers that adds up to a share of the total, without sorting them.

The bits of a non-negative float order like the float itself. So the threshold is found digit by
digit, in base 65,536: add up the values by their leading digit, walk down from the largest digit
until the share is reached, and go on within that digit. Two passes settle a float32, and four a
float64, however many numbers there are.
"""

import numpy as np
from jaxtyping import Bool, Float

_DIGIT = 16


def threshold(values: Float[np.ndarray, " values"], share: float) -> float:
    """The largest t such that the values >= t add up to the share of the total."""
    if not len(values):
        return 0.0
    bits = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    wanted = share * float(values.sum(dtype=np.float64))
    above, prefix = 0.0, 0
    width = 8 * values.dtype.itemsize
    inside = values > 0
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        pool = bits[inside]
        if not pool.size:
            return 0.0
        digits = (pool >> shift) & 0xFFFF
        pooled = values[inside].astype(np.float64)
        sums = np.bincount(digits, weights=pooled, minlength=1 << _DIGIT)
        reached = above + np.cumsum(sums[::-1])
        present = np.flatnonzero(np.bincount(digits, minlength=1 << _DIGIT)[::-1])
        # Rounding may leave the full sum a hair short of a share of 1: take the last digit then.
        enough = present[reached[present] >= wanted * (1 - 1e-12)]
        chosen = int(enough[0] if enough.size else present[-1])
        above = float(reached[chosen] - sums[::-1][chosen])
        digit = (1 << _DIGIT) - 1 - chosen
        prefix = (prefix << _DIGIT) | digit
        inside &= (bits >> shift) == prefix
    return float(np.array([prefix], dtype=bits.dtype).view(values.dtype)[0])


def smallest_kept(
    values: Float[np.ndarray, " values"], share: float
) -> Bool[np.ndarray, " values"]:
    """Which of the (non-negative) values make up the share; ties at the threshold all stay."""
    return (values >= threshold(values, share)) & (values > 0)
