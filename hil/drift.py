"""Whether an old table still holds on this machine: ten of its policies are timed again.

`hil.judgement` tells what the new readings say of the old ones.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.errors import BackendError, CostError, TableError
from costmodels.measurement import Measurement
from costmodels.table import CostTable
from hil.calibration import Measure
from hil.design import Pattern
from hil.judgement import LEAST_PROBES, PROBES, Answer, Drift, Probe, changes, judge_drift
from hil.timing import Clock


@dataclass(frozen=True, eq=False)
class StoredProbe:
    """A timed policy of a table.

    Args:
        pattern: (L,) which layers ran as integers.
        probe: what was read then, its time as the table was rescaled since.
    """

    pattern: Pattern
    probe: Probe


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
        BackendError: if the time is too short for three probes.
        TableError: if the table holds too few timed policies.
    """
    chosen = _mixed(choose_probes(table))
    readings = _Readings(measure, seconds, seed, clock)
    after: list[Probe] = []
    for each in chosen:
        if (found := readings.take(each.pattern)) is None:
            break
        after.append(found)
    if len(after) < LEAST_PROBES:
        raise BackendError(
            f"{seconds:g} s were enough for {len(after)} probes only; "
            f"{LEAST_PROBES} are needed: the network is too slow to be checked"
        )
    before = [p.probe for p in chosen[: len(after)]]
    first = judge_drift(before, after, noise, table_error)
    if first.answer is not Answer.RECALIBRATE:
        return first
    moved = np.abs(changes(before, after))
    for i in np.argsort(-moved):
        if moved[i] <= min(first.median_limit, first.large_limit):
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
        narrow = "half_layers" if "half_layers" in values else "integer_layers"
        pattern = np.array(values[narrow], np.bool_)
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
