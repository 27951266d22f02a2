"""Whether an old table still holds on this machine: ten of its policies are timed again.

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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtri

from costmodels.errors import BackendError, CostError, TableError
from costmodels.measurement import Measurement
from costmodels.table import CostTable, FloatArray
from hil.calibration import Measure
from hil.design import Pattern
from hil.timing import Clock

PROBES = 10
_LEAST_PROBES = 5
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

    def __str__(self) -> str:
        if self.rescales:
            return f"{self.answer} by {self.scale:.3g}"
        return self.answer.value


@dataclass(frozen=True, eq=False)
class StoredProbe:
    """A timed policy of a table.

    Args:
        pattern: (L,) which layers ran as integers.
        probe: what was read then, its time as the table was rescaled since.
    """

    pattern: Pattern
    probe: Probe


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
        CostError: if there are fewer than five probes or not as many now as then, or if the noise
            is not positive.
    """
    if not _LEAST_PROBES <= len(before) == len(after):
        raise CostError(f"at least {_LEAST_PROBES} probes expected, as many now as then")
    if not (0 < noise < math.inf and 0 <= table_error < math.inf):
        raise CostError("the noise of the probes must be positive")
    count = len(before)
    changes = np.sort(np.abs(_changes(before, after)))
    middle, large = count // 2 + 1, count - 1
    unit = _unit(noise, table_error)
    median_limit, large_limit = (_quantile(rank, count) * unit for rank in (middle, large))
    floats = np.log([p.float_s for p in before])
    spread = 1.4826 * float(np.median(np.abs(floats - np.median(floats))))  # of a normal sample
    scale_limit = float(ndtri(1 - _FALSE_SHARE / 2)) * math.sqrt(2) * max(noise, spread)
    shift = float(np.median(np.log([p.float_s for p in after])) - np.median(floats))
    if changes[middle - 1] > median_limit or changes[large - 1] > large_limit:
        answer = Answer.RECALIBRATE
    else:
        answer = Answer.RESCALE if abs(shift) > scale_limit else Answer.UNCHANGED
    return Drift(
        answer,
        math.exp(shift),
        scale_limit,
        float(changes[middle - 1]),
        median_limit,
        float(changes[large - 1]),
        large_limit,
        count,
    )


def choose_probes(table: CostTable, count: int = PROBES) -> list[StoredProbe]:
    """Return timed policies of `table` that spread over the ratios; the all-integer one is first.

    The others are the middle ones of ``count - 1`` equal groups in the order of ratios. Extremes
    are left out: among hundreds of readings they owe their place to noise, and come back less
    extreme.

    Args:
        table: a measured table, with its timed policies.
        count: how many.

    Raises:
        TableError: if the table holds fewer timed policies with an integer layer.
    """
    factor = float(table.source.get("rescaled", 1.0))  # of the values, not of what was measured
    stored = [_stored(each, factor) for each in table.measurements]
    stored = [each for each in stored if each.pattern.any()]
    if len(stored) < count:
        raise TableError(
            f"the table holds {len(stored)} timed policies, {count} are needed to check it; "
            "calibrate anew"
        )
    integer = max(range(len(stored)), key=lambda i: int(stored[i].pattern.sum()))
    others = sorted(set(range(len(stored))) - {integer}, key=lambda i: stored[i].probe.ratio)
    step = len(others) / (count - 1)
    return [stored[integer], *(stored[others[int((g + 0.5) * step)]] for g in range(count - 1))]


def check_drift(
    table: CostTable,
    measure: Measure,
    noise: float,
    *,
    table_error: float = 0.0,
    seconds: float = 10.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> Drift:
    """Time policies of `table` again and compare.

    Probes whose ratios seem to have changed are timed once more, and the reading closer to the old
    one counts: a disturbance passes, a change stays.

    Args:
        table: a measured table, with its timed policies.
        measure: builds and times the policy of a pattern beside the float network.
        noise: relative standard deviation of one reading of a ratio.
        table_error: mean absolute relative error of the table on policies that were not fitted.
        seconds: no probe starts that would end later, if it lasts as long as the longest so far.
        seed: of the timing.
        clock: seconds; for tests.

    Raises:
        BackendError: if the time is too short for five probes.
        TableError: if the table holds too few timed policies.
    """
    chosen = _mixed(choose_probes(table))
    readings = _Readings(measure, seconds, seed, clock)
    after: list[Probe] = []
    for each in chosen:
        if (found := readings.take(each.pattern)) is None:
            break
        after.append(found)
    if len(after) < _LEAST_PROBES:
        raise BackendError(
            f"{seconds:g} s were enough for {len(after)} probes only; "
            f"{_LEAST_PROBES} are needed: give more time"
        )
    before = [p.probe for p in chosen[: len(after)]]
    first = judge_drift(before, after, noise, table_error)
    if first.answer is not Answer.RECALIBRATE:
        return first
    changes = np.abs(_changes(before, after))
    for i in np.argsort(-changes):
        if changes[i] <= min(first.median_limit, first.large_limit):
            break
        if (again := readings.take(chosen[i].pattern)) is None:
            break
        after[i] = min(after[i], again, key=lambda p: abs(math.log(p.ratio / before[i].ratio)))
    return judge_drift(before, after, noise, table_error)


class _Readings:
    """New readings, as many as the time allows."""

    def __init__(self, measure: Measure, seconds: float, seed: int, clock: Clock) -> None:
        self._measure, self._seed, self._clock = measure, seed, clock
        self._end = clock() + seconds
        self._longest = 0.0

    def take(self, pattern: Pattern) -> Probe | None:
        """Time the policy of a pattern; None if that would last too long."""
        start = self._clock()
        if start + self._longest > self._end:
            return None
        timed = self._measure(pattern, self._seed)
        self._seed += 1
        self._longest = max(self._longest, self._clock() - start)
        return Probe(timed.reference.p10_s, timed.ratio)


def _stored(values: Mapping[str, Any], factor: float) -> StoredProbe:
    try:
        reference = Measurement.from_dict(values["float"])
        pattern = np.array(values["integer_layers"], np.bool_)
        return StoredProbe(
            pattern, Probe(reference.p10_s * factor, float(values["ratio_to_float"]))
        )
    except (KeyError, TypeError, ValueError, CostError):
        raise TableError(
            "the table holds no policies timed beside the float network; calibrate anew"
        ) from None


def _mixed(probes: Sequence[StoredProbe]) -> list[StoredProbe]:
    """The first one, then the others far from each other, so that any part of them is spread."""
    others = list(probes[1:])
    return [probes[0], *(p for start in (0, 2, 1, 3) for p in others[start::4])]


def _changes(before: Sequence[Probe], after: Sequence[Probe]) -> FloatArray:
    """(n,) differences of the logarithms of the ratios."""
    return np.log([p.ratio for p in after]) - np.log([p.ratio for p in before])


def _unit(noise: float, table_error: float) -> float:
    """Standard deviation of a change that means nothing."""
    return math.sqrt(2 * noise**2 + math.pi / 2 * table_error**2)


def _quantile(rank: int, count: int) -> float:
    """What the `rank`-th smallest of `count` sizes of standard normal numbers rarely passes.

    >>> round(_quantile(9, 10), 2)  # two or more of ten beyond it in 1 % of cases
    2.42
    """
    inner = float(betaincinv(rank, count - rank + 1, 1 - _FALSE_SHARE))
    return float(ndtri((1 + inner) / 2))
