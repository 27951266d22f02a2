"""Windows of time in which joules are counted, from one movement of a counter to another.

A counter moves once per update, so its joules belong to the time between two updates, not to the
time between two readings. A window therefore begins and ends at readings that found it moved; what
is not known is when, within the time since the reading before (or within one update, if that is
shorter). That is the window's `Span.edge_s`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from hil.meters import EnergyError, Meter, Reading

_MOVES = 20
"""How often every counter must move before its interval is known."""
_PROBE_S = 10.0
_STILL = 3
"""A counter that moved less often than this while it was probed stands still."""
_PER_UPDATE = 4
"""Readings per update: edges are then known to a quarter of it."""
_READING_SHARE = 0.005
"""Of a window's time that reading takes at most; it counts as the subject's, or as idle."""
_COLD_S = 1e-4
"""What a reading costs beyond what it does in a tight loop, roughly: caches are cold, a sleeping
machine is woken. Reading each 2.8 ms kept 3 % of a core busy (Zen 5, November 2026)."""
_MARGIN = 1.3
"""Time that is planned for the updates that a window needs, over what they take on average."""
_PATIENCE = 4
"""Windows are ended after this many times what was planned."""
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Pace:
    """How often counters move, and how long reading them takes; measured.

    Args:
        intervals_s: median time between two movements of each counter.
        read_s: median time from one reading to the next without a pause.
    """

    intervals_s: tuple[float, ...]
    read_s: float

    @property
    def period_s(self) -> float:
        """Time between readings in a window."""
        return max(min(self.intervals_s) / _PER_UPDATE, (self.read_s + _COLD_S) / _READING_SHARE)

    def planned_s(self, updates: int, least_s: float) -> float:
        """Return how long a window is to last that holds that many updates of every counter."""
        return max(least_s, _MARGIN * updates * max(self.intervals_s))


class Span(NamedTuple):
    """What one counter counted in a window.

    Args:
        joules: between the two movements that bound it.
        seconds: the same.
        runs: of the subject, the same.
        updates: movements; where readings are further apart than updates, those that passed.
        edge_s: how well the time of either bound is known.
    """

    joules: float
    seconds: float
    runs: int
    updates: int
    edge_s: float

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds


class _Poll(NamedTuple):
    """A reading in a window: when, after how many runs, and joules since the window began."""

    time_s: float
    runs: int
    joules: tuple[float, ...]


def find_pace(meter: Meter) -> Pace:
    """Read the counters without pause until each has moved often enough to tell its interval.

    Raises:
        EnergyError: if a counter stands still, or a reading is no counter's.
    """
    began = meter.clock()
    last = meter.read()
    moved: list[list[float]] = [[] for _ in meter.counters]
    spent: list[float] = []
    while min(map(len, moved)) <= _MOVES and last.time_s - began < _PROBE_S:
        found = meter.read()
        spent.append(found.time_s - last.time_s)
        gained = _gained(meter, last, found)
        for times, joules in zip(moved, gained, strict=True):
            if joules > 0:
                times.append(found.time_s)
        last = found
    for counter, times in zip(meter.counters, moved, strict=True):
        if len(times) <= _STILL:
            raise EnergyError(
                f"{counter.name} moved {len(times)} times in {last.time_s - began:.3g} s: "
                "the counter stands still"
            )
    gaps = ([after - before for before, after in pairwise(times)] for times in moved)
    return Pace(tuple(_median(each) for each in gaps), _median(spent))


def take_window(
    meter: Meter, run: Callable[[], object], pace: Pace, *, updates: int, least_s: float
) -> tuple[Span, ...]:
    """Run the subject until every counter has moved often enough; return what each counted.

    Between two runs costs one look at the clock, and a reading each `Pace.period_s`.

    Args:
        meter: the counters.
        run: the subject; for the idle machine, what sleeps.
        pace: of the counters.
        updates: fewest movements of each counter.
        least_s: shortest duration.

    Raises:
        EnergyError: if a counter moved less often in four times the planned duration, went back, or
            cannot be read.
    """
    planned = pace.planned_s(updates, least_s)
    last = meter.read()
    polls = [_Poll(last.time_s, 0, (0.0,) * len(meter.counters))]
    began, due, runs = last.time_s, last.time_s + pace.period_s, 0
    while True:
        run()
        runs += 1
        if meter.clock() < due:
            continue
        found = meter.read()
        gained = _gained(meter, last, found)
        joules = tuple(a + b for a, b in zip(polls[-1].joules, gained, strict=True))
        polls.append(_Poll(found.time_s, runs, joules))
        last, due = found, found.time_s + pace.period_s
        if found.time_s - began >= planned:
            spans = [_span(polls, k, interval) for k, interval in enumerate(pace.intervals_s)]
            if all(span is not None and span.updates >= updates for span in spans):
                return tuple(span for span in spans if span is not None)
            if found.time_s - began > _PATIENCE * planned and len(polls) > _STILL:
                raise _too_few(meter, spans, updates, found.time_s - began)


def _too_few(
    meter: Meter, spans: Sequence[Span | None], updates: int, seconds: float
) -> EnergyError:
    counted = [0 if span is None else span.updates for span in spans]
    fewest = min(counted)
    name = meter.counters[counted.index(fewest)].name
    return EnergyError(
        f"{name} was updated {fewest} times in {seconds:.3g} s; a window needs {updates} updates"
    )


def _span(polls: Sequence[_Poll], counter: int, interval_s: float) -> Span | None:
    """Return what was counted between the first and the last movement; None without two."""
    values = [poll.joules[counter] for poll in polls]
    moved = [i for i in range(1, len(polls)) if values[i] != values[i - 1]]
    if len(moved) < 2:
        return None
    first, final = polls[moved[0]], polls[moved[-1]]
    gaps = [polls[i].time_s - polls[i - 1].time_s for i in moved]
    updates = sum(max(1, math.floor(gap / interval_s + _ROUNDING)) for gap in gaps[1:])
    return Span(
        final.joules[counter] - first.joules[counter],
        final.time_s - first.time_s,
        final.runs - first.runs,
        updates,
        max(min(gap, interval_s) for gap in (gaps[0], gaps[-1])),
    )


def _gained(meter: Meter, before: Reading, after: Reading) -> list[float]:
    seconds = after.time_s - before.time_s
    pairs = zip(meter.counters, before.joules, after.joules, strict=True)
    return [counter.gained(b, a, seconds) for counter, b, a in pairs]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
