"""Rates: how often something happened, with the interval that the count leaves open."""

from typing import NamedTuple


class Rate(NamedTuple):
    """A share of trials, and its Wilson interval of 95% confidence."""

    hits: int
    trials: int
    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.1%} ({self.low:.1%} to {self.high:.1%} of {self.trials})"


def rate(hits: int, trials: int) -> Rate:
    """The share of hits among trials."""
    from scipy.stats import binomtest

    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1; a rate needs something to count.")
    interval = binomtest(hits, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return Rate(hits, trials, hits / trials, float(interval.low), float(interval.high))
