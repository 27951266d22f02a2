"""Energy counters: what a meter is, how readings become joules, and a meter that replays a file.

A counter shows joules since some moment. It moves in steps, once per update; some begin again at 0
when they are full. What is measured with one is in `hil.energy`, real ones are in `hil.counters`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from costmodels.errors import CostError

MOST_WATTS = 2_000.0
"""No processor, memory or accelerator of one counter draws more; what seems to was reset."""
_SLACK_S = 1.0
"""What an update may bring at once, in seconds of that power."""
VERSION = 1
_ROUNDING_S = 1e-9


class EnergyError(CostError):
    """Energy cannot be measured, or a measurement of it tells nothing; one line says why."""


class Part(StrEnum):
    """What a counter counts the joules of."""

    PROCESSOR = "processor"
    MEMORY = "memory"
    GPU = "gpu"


@dataclass(frozen=True)
class Counter:
    """One domain whose energy is counted.

    Args:
        name: such as ``package-0``, ``dram-0`` or ``gpu-0``.
        part: what it counts.
        range_j: joules at which it begins again at 0; None if it does not.

    Raises:
        EnergyError: if the range is not positive.
    """

    name: str
    part: Part
    range_j: float | None = None

    def __post_init__(self) -> None:
        if self.range_j is not None and not 0 < self.range_j < math.inf:
            raise EnergyError(f"{self.name}: a range of {self.range_j:g} J is none")

    def gained(self, before_j: float, after_j: float, seconds: float) -> float:
        """Return the joules between two readings, one wrap between them included.

        Args:
            before_j: the earlier reading.
            after_j: the later one.
            seconds: between them.

        Raises:
            EnergyError: if the counter went back without wrapping, or gained more than hardware can
                draw (`MOST_WATTS`): it was reset; or if it could have wrapped twice.

        >>> Counter("package-0", Part.PROCESSOR, 262_143.0).gained(262_142.0, 4.0, 0.5)
        5.0
        """
        gained = after_j - before_j
        if self.range_j is not None:
            if seconds * MOST_WATTS >= self.range_j:
                raise EnergyError(
                    f"{self.name}, which wraps at {self.range_j:.6g} J, was read {seconds:.3g} s "
                    "apart: it could have wrapped twice; a run must be shorter"
                )
            gained %= self.range_j
        if 0 <= gained <= MOST_WATTS * (seconds + _SLACK_S):
            return gained
        if after_j < before_j:
            raise EnergyError(
                f"{self.name} went back from {before_j:.6g} J to {after_j:.6g} J, and not by "
                "wrapping: it was reset; measure again"
            )
        raise EnergyError(
            f"{self.name} gained {gained:.6g} J in {seconds:.3g} s, more than hardware can draw: "
            "it was reset; measure again"
        )


@dataclass(frozen=True)
class Reading:
    """What all counters of a meter showed.

    Args:
        time_s: when, by the clock of the meter.
        joules: of each counter, in their order.
    """

    time_s: float
    joules: tuple[float, ...]


class Meter(Protocol):
    """Counters that are read together, and the clock that says when.

    How often they move is not asked of it: `hil.energy` measures that from its readings.
    """

    @property
    def counters(self) -> Sequence[Counter]:
        """What is read."""
        ...

    @property
    def described(self) -> str:
        """Which counters, through what: for records."""
        ...

    def clock(self) -> float:
        """Return the time now, in seconds."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Let time pass without work."""
        ...

    def read(self) -> Reading:
        """Read every counter now.

        Raises:
            EnergyError: if a counter cannot be read any more.
        """
        ...


class RecordingMeter:
    """Passes the readings of another meter on and keeps them, for `ReplayedMeter`.

    Args:
        meter: the other one.
        what: what was measured, in words; a synthetic recording says so.
    """

    def __init__(self, meter: Meter, what: str) -> None:
        self._meter, self._what = meter, what
        self._kept: list[Reading] = []
        self._spent: list[float] = []

    @property
    def counters(self) -> Sequence[Counter]:
        """See `Meter.counters`."""
        return self._meter.counters

    @property
    def described(self) -> str:
        """See `Meter.described`."""
        return self._meter.described

    def clock(self) -> float:
        """See `Meter.clock`."""
        return self._meter.clock()

    def sleep(self, seconds: float, /) -> None:
        """See `Meter.sleep`."""
        self._meter.sleep(seconds)

    def read(self) -> Reading:
        """See `Meter.read`; a reading is kept if a counter has moved."""
        began = self.clock()
        found = self._meter.read()
        self._spent.append(self.clock() - began)
        if not self._kept or found.joules != self._kept[-1].joules:
            self._kept.append(found)
        return found

    def to_json(self) -> str:
        """Return the text of a file of what was read, with how long a reading took at median."""
        spent = sorted(self._spent)
        lines = [json.dumps([r.time_s, *r.joules]) for r in self._kept]
        head = {
            "version": VERSION,
            "what": self._what,
            "read_s": spent[len(spent) // 2] if spent else 0.0,
            "ends_s": self.clock(),
            "counters": [asdict(counter) for counter in self.counters],
        }
        text = json.dumps(head, indent=1)
        return text[:-2] + ',\n "readings": [\n  ' + ",\n  ".join(lines) + "\n ]\n}\n"


@dataclass
class ReplayedMeter:
    """Shows what was recorded, on a clock that moves only by reading, sleeping and `advance`.

    Each reading is that of the last recorded moment up to now, so replaying the same steps gives
    the same readings. For tests: it measures nothing.

    Args:
        counters: what was read.
        readings: in order of their time.
        ends_s: until when it was recorded.
        read_s: how long a reading takes.
        described: what was recorded.

    Raises:
        EnergyError: unless there are readings, of every counter, in order of time.
    """

    counters: Sequence[Counter]
    readings: Sequence[Reading]
    ends_s: float
    read_s: float
    described: str

    def __post_init__(self) -> None:
        times = [reading.time_s for reading in self.readings]
        if not times or times != sorted(times) or self.ends_s < times[-1] or self.read_s < 0:
            raise EnergyError("a recording holds readings in order of time, within its span")
        if any(len(reading.joules) != len(self.counters) for reading in self.readings):
            raise EnergyError(f"a reading of {len(self.counters)} counters holds as many joules")
        self._now, self._at = times[0] - self.read_s, 0

    @classmethod
    def read_file(cls, path: str | Path) -> "ReplayedMeter":
        """Read what `RecordingMeter.to_json` wrote.

        Raises:
            EnergyError: if the file is missing or holds no recording; names the file.
        """
        try:
            return cls._from_content(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise EnergyError(f"{path}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError, EnergyError) as error:
            raise EnergyError(f"{path}: no recording of energy counters: {error}") from None

    @classmethod
    def _from_content(cls, content: Any) -> "ReplayedMeter":
        if content["version"] != VERSION:
            raise EnergyError(f"version {content['version']!r} is not known; use {VERSION}")
        counters = [Counter(c["name"], Part(c["part"]), c["range_j"]) for c in content["counters"]]
        readings = [Reading(float(t), tuple(map(float, js))) for t, *js in content["readings"]]
        span, read_s = float(content["ends_s"]), float(content["read_s"])
        return cls(counters, readings, span, read_s, f"replayed: {content['what']}")

    def clock(self) -> float:
        """See `Meter.clock`."""
        return self._now

    def sleep(self, seconds: float, /) -> None:
        """See `Meter.sleep`."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass, as the recorded work did."""
        self._now += seconds

    def running(self, seconds: float) -> Callable[[], None]:
        """Return a run that takes that long."""
        return lambda: self.advance(seconds)

    def read(self) -> Reading:
        """See `Meter.read`.

        Raises:
            EnergyError: behind the end of the recording.
        """
        self.advance(self.read_s)
        if self._now > self.ends_s:
            raise EnergyError(f"the recording ends at {self.ends_s:g} s")
        now = self._now + _ROUNDING_S
        while self._at + 1 < len(self.readings) and self.readings[self._at + 1].time_s <= now:
            self._at += 1
        return Reading(self._now, self.readings[self._at].joules)
