"""A synthetic machine: its clock moves only when something runs, its counters in steps.

Nothing here was measured. ``python -m tests.hil.power`` writes the synthetic recording that the
replay is tested on.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from hil.energy import EnergyOptions, measure_energy
from hil.meters import Counter, Part, Reading, RecordingMeter

TRACE = Path(__file__).parent / "traces" / "synthetic-idle-10w-load-25w-1ms.json"
WHAT = "synthetic: idle 10 W, while a run of 3 ms goes on 25 W, updates each 1 ms, wraps at 262 J"
BRIEF = EnergyOptions(repeats=3, window_s=0.0, settle_s=0.01)


class SyntheticMeter:
    """A counter of a machine that draws `idle_w`, and `load_w` while a run goes on.

    Args:
        idle_w: watts, or a function of the time.
        load_w: watts.
        update_s: time between two movements.
        range_j: where the counter begins again.
        starts_j: what it shows at first.
        frozen: whether no update happens at a time.
        read_s: how long a reading takes.
    """

    described = "synthetic"

    def __init__(
        self,
        idle_w: float | Callable[[float], float] = 10.0,
        load_w: float = 25.0,
        *,
        update_s: float = 1e-3,
        range_j: float | None = 262.0,
        starts_j: float = 0.0,
        frozen: Callable[[float], bool] = lambda _now: False,
        read_s: float = 2e-5,
    ) -> None:
        self.counters: Sequence[Counter] = (Counter("package-0", Part.PROCESSOR, range_j),)
        self._idle_w = idle_w if callable(idle_w) else lambda _now: idle_w
        self._load_w, self._update_s, self._range_j = load_w, update_s, range_j
        self._frozen, self._read_s = frozen, read_s
        self.now, self._spent_j = 0.0, starts_j
        self._shown_j, self._next = starts_j, 1

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self._draw(seconds, None)

    def running(self, seconds: float, watts: float | None = None) -> Callable[[], None]:
        return lambda: self._draw(seconds, self._load_w if watts is None else watts)

    def reset(self) -> None:
        """Begin at 0 again, as after the machine slept."""
        self._spent_j = self._shown_j = 0.0

    def read(self) -> Reading:
        self._draw(self._read_s, None)
        shown = self._shown_j if self._range_j is None else self._shown_j % self._range_j
        return Reading(self.now, (shown,))

    def _draw(self, seconds: float, watts: float | None) -> None:
        end = self.now + seconds
        while self.now < end:
            update = self._next * self._update_s
            until = min(end, update)
            drawn = self._idle_w(self.now) if watts is None else watts
            self._spent_j += drawn * (until - self.now)
            self.now = until
            if until >= update:
                self._next = math.floor(self.now / self._update_s + 1e-9) + 1
                if not self._frozen(self.now):
                    self._shown_j = self._spent_j


def recording() -> str:
    """Return the synthetic recording, made by the steps that measure it."""
    meter = SyntheticMeter(starts_j=257.0)
    recorder = RecordingMeter(meter, WHAT)
    measure_energy(recorder, {"subject": meter.running(3e-3)}, BRIEF)
    return recorder.to_json()


if __name__ == "__main__":
    TRACE.parent.mkdir(exist_ok=True)
    TRACE.write_text(recording())
