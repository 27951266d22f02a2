"""Energy of one run of a model, measured with counters: idle subtracted, repeated, with interval.

    energy per run = (joules - idle power * seconds) / runs

over a window in which the subject runs without pause, between two windows in which the machine
idles. No window serves two repeats, so repeats are independent of one another.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from costmodels.errors import CostError
from hil.energy_windows import Pace, Span, find_pace, take_window
from hil.meters import EnergyError, Meter

_LEVEL = 0.95
_DRIFT = 0.1
"""Drift of the idle power, over the net power, above which a note says so."""
_SLOWER = 3.0
"""Factor between the intervals of a counter before and after that is no coincidence."""


@dataclass(frozen=True)
class EnergyOptions:
    """How energy is measured.

    Args:
        repeats: windows of each subject, each between idle windows of its own.
        updates: fewest updates of each counter in a window.
        window_s: shortest window.
        settle_s: pause before an idle window, and warm-up before a subject's.
        seed: of the order in which subjects are repeated.

    Raises:
        CostError: if there would be no interval, no window, or fewer than 50 updates.
    """

    repeats: int = 5
    updates: int = 50
    window_s: float = 1.0
    settle_s: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 3 or self.updates < 50 or min(self.window_s, self.settle_s) < 0:
            raise CostError("energy needs 3 repeats of 50 updates at least, and no negative time")


@dataclass(frozen=True)
class Repeat:
    """One window of a subject and the idle windows around it; tuples are by counter.

    Args:
        energy_j: per run, idle subtracted.
        load_w: power while the subject ran.
        idle_before_w: power before.
        idle_after_w: power after.
        runs: of the subject.
        seconds: of the subject's window.
        updates: fewest that a counter had in one of the three windows.
        resolution_j: what `energy_j`, summed, may be off by since the counters move in steps.
    """

    energy_j: tuple[float, ...]
    load_w: tuple[float, ...]
    idle_before_w: tuple[float, ...]
    idle_after_w: tuple[float, ...]
    runs: int
    seconds: float
    updates: int
    resolution_j: float

    @property
    def drift_w(self) -> float:
        """By how much the idle power changed, summed over the counters."""
        return abs(sum(self.idle_after_w) - sum(self.idle_before_w))

    @property
    def net_w(self) -> float:
        """Power above idle, summed over the counters."""
        return sum(self.load_w) - (sum(self.idle_before_w) + sum(self.idle_after_w)) / 2

    @classmethod
    def of(cls, load: Sequence[Span], before: Sequence[Span], after: Sequence[Span]) -> "Repeat":
        """Subtract the mean of both idle powers.

        Raises:
            EnergyError: if the net power is not positive, or the idle power drifted by as much.
        """
        energy, resolution = [], 0.0
        for on, first, last in zip(load, before, after, strict=True):
            idle_w = (first.watts + last.watts) / 2
            energy.append((on.joules - idle_w * on.seconds) / on.runs)
            # A window's bounds shift its runs with its seconds: idle * seconds / runs stays.
            resolution += on.joules / on.runs * on.edge_s / on.seconds
            off = (s.watts * s.edge_s / s.seconds for s in (first, last))
            resolution += sum(off) / 2 * on.seconds / on.runs
        found = cls(
            tuple(energy),
            tuple(span.watts for span in load),
            tuple(span.watts for span in before),
            tuple(span.watts for span in after),
            min(span.runs for span in load),
            max(span.seconds for span in load),
            min(span.updates for span in (*load, *before, *after)),
            resolution,
        )
        if found.net_w <= 0:
            load_w = sum(found.load_w)
            says = f"it draws no more than the idle machine: {load_w:.3g} W, and idle "
            says += f"{load_w - found.net_w:.3g} W"
            if found.drift_w >= -found.net_w:
                says += f"; idle power drifted by {found.drift_w:.3g} W: keep the machine idle"
            raise EnergyError(says)
        if found.drift_w >= found.net_w:
            raise EnergyError(
                f"idle power drifted by {found.drift_w:.3g} W around a window, the net signal is "
                f"{found.net_w:.3g} W: keep the machine idle and repeat"
            )
        return found


@dataclass(frozen=True)
class MeasuredEnergy:
    """Energy per run of one subject, idle subtracted.

    The interval is Student's t of the repeats at 95 %, widened on either side by what the steps of
    the counters leave unknown (`Repeat.resolution_j`, a bound).

    Args:
        counters: names, whose joules are summed.
        repeats: three or more.
        intervals_s: measured time between updates of each counter.
        described: which counters, through what.
    """

    counters: tuple[str, ...]
    repeats: tuple[Repeat, ...]
    intervals_s: tuple[float, ...]
    described: str

    @property
    def energy_j(self) -> float:
        """Mean over the repeats, summed over the counters."""
        return float(np.mean(self._totals))

    @property
    def half_width_j(self) -> float:
        """Half of the 95 % interval."""
        from scipy.stats import t

        count = len(self.repeats)
        error = float(np.std(self._totals, ddof=1)) / math.sqrt(count)
        steps = float(np.mean([repeat.resolution_j for repeat in self.repeats]))
        return float(t.ppf((1 + _LEVEL) / 2, count - 1)) * error + steps

    @property
    def low_j(self) -> float:
        """Lower limit; may be negative."""
        return self.energy_j - self.half_width_j

    @property
    def high_j(self) -> float:
        """Upper limit."""
        return self.energy_j + self.half_width_j

    @property
    def load_w(self) -> float:
        """Mean power while the subject ran, idle included."""
        return float(np.mean([sum(repeat.load_w) for repeat in self.repeats]))

    @property
    def idle_w(self) -> float:
        """Mean power of the idle machine, which is subtracted."""
        windows = (w for r in self.repeats for w in (r.idle_before_w, r.idle_after_w))
        return float(np.mean([sum(each) for each in windows]))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, one line each."""
        found = []
        drift = max(repeat.drift_w / repeat.net_w for repeat in self.repeats)
        if drift > _DRIFT:
            found.append(f"idle power drifted by up to {drift:.0%} of the net signal")
        if self.low_j <= 0:
            found.append("the interval reaches zero: not told from the idle machine")
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement with its raw repeats as JSON values."""
        return {
            "provenance": "measured",
            "energy_j": self.energy_j,
            "low_j": self.low_j,
            "high_j": self.high_j,
            "interval": "95 %: Student's t of the repeats, widened by the counters' resolution",
            "idle_w": self.idle_w,
            "load_w": self.load_w,
            "counters": list(self.counters),
            "update_intervals_s": list(self.intervals_s),
            "through": self.described,
            "notes": list(self.notes),
            "repeats": [asdict(repeat) for repeat in self.repeats],
        }

    @property
    def _totals(self) -> list[float]:
        return [sum(repeat.energy_j) for repeat in self.repeats]


@dataclass(frozen=True)
class NotMeasured:
    """Why there is no measured energy; one line, without a full stop."""

    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Return the reason as JSON values."""
        return {"provenance": "absent", "reason": self.reason}


def measure_energy(
    meter: Meter, subjects: Mapping[str, Callable[[], object]], options: EnergyOptions | None = None
) -> dict[str, MeasuredEnergy | NotMeasured]:
    """Measure the energy per run of each subject; they take turns in random order.

    Args:
        meter: the counters; what nothing else may use much meanwhile.
        subjects: what to call, by name.
        options: see `EnergyOptions`.

    Returns:
        For each subject what was measured, or why one of its windows tells nothing. A counter that
        slows down, stands still or cannot be read after the last window leaves none measured.

    Raises:
        EnergyError: if a counter stands still or cannot be read, before any subject ran.
    """
    given = options or EnergyOptions()
    pace = find_pace(meter)
    order = np.random.default_rng(given.seed)
    taken: dict[str, list[Repeat]] = {name: [] for name in subjects}
    refused: dict[str, NotMeasured] = {}
    for _ in range(given.repeats):
        names = [name for name in subjects if name not in refused]
        for position in order.permutation(len(names)):
            name = names[position]
            try:
                taken[name].append(_repeat(meter, subjects[name], pace, given))
            except EnergyError as error:
                refused[name] = NotMeasured(str(error))
    counters = tuple(counter.name for counter in meter.counters)
    if len(refused) < len(subjects) and (changed := _changed(meter, pace)):
        return {name: refused.get(name) or NotMeasured(changed) for name in subjects}
    return {
        name: refused.get(name)
        or MeasuredEnergy(counters, tuple(repeats), pace.intervals_s, meter.described)
        for name, repeats in taken.items()
    }


def _changed(meter: Meter, before: Pace) -> str:
    """Return which counter moves much more slowly than before the windows, or not at all.

    Empty if none does.
    """
    try:
        after = find_pace(meter).intervals_s
    except EnergyError as error:
        return f"after the last window, {error}"
    for counter, was, now in zip(meter.counters, before.intervals_s, after, strict=True):
        if now > _SLOWER * was:
            return f"{counter.name} was updated each {was:.3g} s before, and each {now:.3g} s after"
    return ""


def _repeat(meter: Meter, run: Callable[[], object], pace: Pace, options: EnergyOptions) -> Repeat:
    def window(work: Callable[[], object]) -> tuple[Span, ...]:
        return take_window(meter, work, pace, updates=options.updates, least_s=options.window_s)

    def idle() -> tuple[Span, ...]:
        meter.sleep(options.settle_s)
        return window(lambda: meter.sleep(pace.period_s))

    before = idle()
    warm = meter.clock() + options.settle_s
    while meter.clock() < warm:
        run()
    load = window(run)
    return Repeat.of(load, before, idle())
