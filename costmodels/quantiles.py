"""How many runs a printed percentile needs."""

from functools import lru_cache

_DOUBT = 0.01
"""Chance that fewer than two runs lie beyond the quantile, at most."""


@lru_cache
def least_runs(quantile: float) -> int:
    """Return the fewest runs from which a quantile in the tail may be printed.

    The smallest n with

        P[at most one of n runs lies beyond] = p^n + n (1 - p) p^(n - 1) <= 1 %,

    where p is `quantile`, or 1 - `quantile` below the median. So with 99 % confidence the second
    largest run is an upper bound of the quantile: what is printed does not hang on one run, which a
    single interrupt may have made. It holds for independent runs of any distribution; runs that
    were disturbed together need more.

    Args:
        quantile: between 0 and 1, exclusive.

    Raises:
        ValueError: if it is not.

    >>> least_runs(0.9), least_runs(0.99)
    (64, 662)
    """
    if not 0 < quantile < 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {quantile}")
    inside = max(quantile, 1 - quantile)
    runs = 2
    while inside ** (runs - 1) * (inside + runs * (1 - inside)) > _DOUBT:
        runs += 1
    return runs
