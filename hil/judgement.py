"""What ten policies timed again tell: unchanged, changed by one factor, or changed otherwise.

Two things can change. If every time grew by one factor (another clock rate), ratios to the float
network stay and the table only needs that factor. If the ratios moved (another driver, a busy
neighbour on the shared cache), no factor mends it.

Changes are differences of logarithms, d_i = log(ratio now / ratio then). If nothing changed, d_i is
noise of both readings and, where the table itself is off by more than that, not worth more:

    s^2 = 2 noise^2 + (pi / 2) table_error^2        (a mean absolute error e is a deviation of
                                                     e sqrt(pi / 2), if errors are normal)

The k-th smallest of n values |d_i| / s of normal d_i stays, in a share q of all cases, below

    z_k = Phi^-1((1 + B) / 2),    B the q-quantile of Beta(k, n - k + 1)

Two of them are looked at, each with q = 99 %: the median (k = n // 2 + 1), which sees what moves
all ratios a little, and the last but one (k = n - 1), which sees what moves some of them much. Not
the last: one stored reading that was disturbed when the table was made cannot be repeated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.special import betaincinv, ndtri

from costmodels.errors import CostError
from costmodels.table import FloatArray

PROBES = 10
LEAST_PROBES = 3
_FALSE_SHARE = 0.01
"""Share of cases without any change in which one of the three limits is passed; 3 % together."""


class Answer(StrEnum):
    """What to do with the table."""

    UNCHANGED = "unchanged"
    RESCALE = "rescale"
    RECALIBRATE = "recalibrate"


@dataclass(frozen=True)
class Probe:
    """One reading of a policy beside the float network.

    Args:
        float_s: p10 of the float network in seconds.
        ratio: time of the policy over that of the float network.

    Raises:
        CostError: unless both are positive and finite.
    """

    float_s: float
    ratio: float

    def __post_init__(self) -> None:
        if not all(0 < value < math.inf for value in (self.float_s, self.ratio)):
            raise CostError("a probe holds a positive time and a positive ratio")


@dataclass(frozen=True)
class Drift:
    """What changed since a table was made; changes and limits are differences of logarithms.

    Args:
        answer: what to do.
        scale: the float network's time now over that of then.
        scale_limit: what its logarithm may reach unchanged, in either direction.
        median_change: of the ratios, without sign.
        median_limit: what it may reach unchanged.
        large_change: the largest change of a ratio but one, without sign.
        large_limit: what it may reach unchanged.
        probes: how many policies were timed.
    """

    answer: Answer
    scale: float
    scale_limit: float
    median_change: float
    median_limit: float
    large_change: float
    large_limit: float
    probes: int

    @property
    def rescales(self) -> bool:
        """Whether the table needs a factor and nothing else."""
        return self.answer is Answer.RESCALE

    @property
    def grounds(self) -> str:
        """Which change decided, and what it may reach unchanged, in words."""
        scale = f"float network {self.scale:.3f}x as slow as then"
        if self.rescales:
            scale += f", up to {math.expm1(self.scale_limit):.1%} means nothing"
        change, limit, where = self.median_change, self.median_limit, "in the median"
        if self.large_change > self.large_limit and change <= limit:
            change, limit, where = self.large_change, self.large_limit, "or more in two"
        policies = f"{self.probes} policies"
        if self.probes < PROBES:
            policies += f", {PROBES} would have taken too long"
        return (
            f"{scale}; ratios to it off by {math.expm1(change):.1%} {where} of {policies}; "
            f"up to {math.expm1(limit):.1%} means nothing"
        )

    def __str__(self) -> str:
        if self.rescales:
            return f"{self.answer} by {self.scale:.3g}"
        return self.answer.value


def judge_drift(
    before: Sequence[Probe], after: Sequence[Probe], noise: float, table_error: float = 0.0
) -> Drift:
    """Compare two readings of the same policies.

    The factor of the float network's time counts if its logarithm is beyond z sqrt(2) times the
    deviation of one reading, z = 2.58 (99 %): what ten readings of the same ten seconds share does
    not average out. That deviation is `noise`, or the spread of `before`, if that is wider.

    Args:
        before: when the table was made.
        after: now, in the same order.
        noise: relative standard deviation of one reading of a ratio.
        table_error: mean absolute relative error of the table on policies that were not fitted.

    Raises:
        CostError: if there are fewer than three probes or not as many now as then, or if the noise
            is not positive.
    """
    if not LEAST_PROBES <= len(before) == len(after):
        raise CostError(f"at least {LEAST_PROBES} probes expected, as many now as then")
    if not (0 < noise < math.inf and 0 <= table_error < math.inf):
        raise CostError("the noise of the probes must be positive")
    count = len(before)
    moved = np.sort(np.abs(changes(before, after)))
    middle, large = count // 2 + 1, count - 1
    unit = _unit(noise, table_error)
    median_limit, large_limit = (_quantile(rank, count) * unit for rank in (middle, large))
    floats = np.log([p.float_s for p in before])
    spread = 1.4826 * float(np.median(np.abs(floats - np.median(floats))))  # of a normal sample
    scale_limit = float(ndtri(1 - _FALSE_SHARE / 2)) * math.sqrt(2) * max(noise, spread)
    shift = float(np.median(np.log([p.float_s for p in after])) - np.median(floats))
    if moved[middle - 1] > median_limit or moved[large - 1] > large_limit:
        answer = Answer.RECALIBRATE
    else:
        answer = Answer.RESCALE if abs(shift) > scale_limit else Answer.UNCHANGED
    return Drift(
        answer,
        math.exp(shift),
        scale_limit,
        float(moved[middle - 1]),
        median_limit,
        float(moved[large - 1]),
        large_limit,
        count,
    )


def noise_of(equals: Sequence[float]) -> float:
    """Return the relative standard deviation of one reading, by ratios of a network to itself.

    The lower median of the sizes of their logarithms, over what that of standard normal numbers is
    in half of all cases: one disturbed reading, even of two, does not count.

    Args:
        equals: at least two ratios that would be 1 without noise.

    Raises:
        CostError: if there are fewer.

    >>> round(noise_of([1.01, 0.99, 1.01, 5.0]), 3), round(noise_of([1.01, 5.0]), 3)
    (0.02, 0.026)
    """
    if len(equals) < 2:
        raise CostError("two readings tell of noise, fewer do not")
    rank = (len(equals) + 1) // 2
    size = sorted(abs(math.log(ratio)) for ratio in equals)[rank - 1]
    return size / _quantile(rank, len(equals), 0.5)


def changes(before: Sequence[Probe], after: Sequence[Probe]) -> FloatArray:
    """Return the differences of the logarithms of the ratios, (n,)."""
    return np.log([p.ratio for p in after]) - np.log([p.ratio for p in before])


def _unit(noise: float, table_error: float) -> float:
    """Standard deviation of a change that means nothing."""
    return math.sqrt(2 * noise**2 + math.pi / 2 * table_error**2)


def _quantile(rank: int, count: int, passed: float = _FALSE_SHARE) -> float:
    """What the `rank`-th smallest of `count` sizes of normal numbers passes in that share of cases.

    >>> round(_quantile(9, 10), 2)  # two or more of ten beyond it in 1 % of cases
    2.42
    """
    inner = float(betaincinv(rank, count - rank + 1, 1 - passed))
    return float(ndtri((1 + inner) / 2))
