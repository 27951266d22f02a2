"""One candidate's turns: its warm-up, then samples that count, warm or cold."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from costmodels.errors import CostError

Run = Callable[[], object]
Clock = Callable[[], float]
Evict = Callable[[], object]

_GROWTH = 10
"""Bound of each raise of the runs per sample: a coarse clock may show no time."""


class Mode(StrEnum):
    """What the caches hold when a run begins."""

    WARM = "warm"
    COLD = "cold"


@dataclass(frozen=True)
class WarmUp:
    """When a candidate's initial warm-up ends.

    It is run in small blocks, and is warm once the medians of the last `blocks` of them are within
    `tolerance` of one another (largest over smallest at most ``1 + tolerance``), or at the cap.

    Args:
        samples: in a small block.
        blocks: how many must agree.
        tolerance: relative.
        cap_s: seconds after which it ends anyway, which the measurement says.

    Raises:
        CostError: if one of them is not positive.
    """

    samples: int = 3
    blocks: int = 3
    tolerance: float = 0.02
    cap_s: float = 0.2

    def __post_init__(self) -> None:
        if min(self.samples, self.blocks, self.tolerance, self.cap_s) <= 0:
            raise CostError("a warm-up needs samples, blocks, a tolerance and a cap above zero")


@dataclass(frozen=True)
class TurnOptions:
    """What a turn is.

    Args:
        turn_s: least duration of the part of a turn that counts; in cold mode with emptying the
            caches.
        samples: fewest samples of a turn that count.
        warm_runs: runs at the start of a turn that do not count: the caches still hold the data of
            the candidate before. None are discarded in cold mode, where all runs begin alike.
        sample_s: least duration of a sample, which is the mean of as many runs as it takes; a cold
            sample is always one run.
        mode: warm is what every number means unless it says otherwise.
        warm_up: of each candidate before the first turn; None goes without.

    Raises:
        CostError: if a turn would hold no sample, or a number is negative.
    """

    turn_s: float = 10e-3
    samples: int = 3
    warm_runs: int = 2
    sample_s: float = 2e-4
    mode: Mode = Mode.WARM
    warm_up: WarmUp | None = field(default_factory=WarmUp)

    def __post_init__(self) -> None:
        if self.samples < 1 or min(self.turn_s, self.warm_runs, self.sample_s) < 0:
            raise CostError("a turn has at least one sample, and no negative duration or runs")


class Turns:
    """The turns of one candidate; making it warms the candidate up.

    Args:
        run: the candidate.
        options: what a turn is.
        evict: empties the caches, in cold mode.
        clock: seconds.
    """

    def __init__(
        self, run: Run, options: TurnOptions, evict: Evict, clock: Clock = time.perf_counter
    ) -> None:
        self._run, self._options, self._evict, self._clock = run, options, evict, clock
        self._loops = 1
        self._loops_of: list[int] = []
        self._discarded = 0
        self.samples_s: list[float] = []
        self.blocks: list[int] = []
        self.warmups_s: list[float] = []
        self._reached_cap = options.warm_up is not None and not self._warm_up(options.warm_up)
        self._warm_up_runs = self._discarded
        if options.mode is Mode.COLD:
            self._loops = 1

    @property
    def inner_loops(self) -> int:
        """Runs per sample, at last."""
        return self._loops

    def take(self, block: int) -> None:
        """Run the candidate until it has one turn's samples more, of the given block number."""
        if self._options.mode is Mode.COLD:
            self._take_cold(block)
            return
        for _ in range(self._options.warm_runs):
            self._discard(self._lasted(1), 1)
        lasted, count = 0.0, 0
        while count < self._options.samples or lasted < self._options.turn_s:
            sample_s, loops = self._sample()
            if loops:
                self._keep(sample_s / loops, loops, block)
                lasted, count = lasted + sample_s, count + 1

    def context(self) -> dict[str, Any]:
        """Return what was discarded and how runs make samples, as JSON values."""
        raised = {"inner_loops": self._loops_of} if len(set(self._loops_of)) > 1 else {}
        warm_up = {"runs": self._warm_up_runs, "reached_cap": self._reached_cap}
        return {
            **raised,
            "turns": asdict(self._options),
            "warm_up": warm_up,
            "discarded_runs": self._discarded,
        }

    def _take_cold(self, block: int) -> None:
        start, count = self._clock(), 0
        while count < self._options.samples or self._clock() - start < self._options.turn_s:
            self._evict()
            self._keep(_positive(self._lasted(1)), 1, block)
            count += 1

    def _warm_up(self, rule: WarmUp) -> bool:
        """Run until the medians of small blocks are quiet; False at the cap."""
        start, medians, taken = self._clock(), list[float](), list[float]()
        while True:
            sample_s, loops = self._sample()
            if loops:
                taken.append(sample_s / loops)
                self._discard(sample_s, loops)
            if len(taken) == rule.samples:
                medians.append(float(np.median(taken)))
                taken = []
                last = medians[-rule.blocks :]
                if len(last) == rule.blocks and max(last) <= (1 + rule.tolerance) * min(last):
                    return True
            if self._clock() - start >= rule.cap_s:
                return False

    def _sample(self) -> tuple[float, int]:
        """Return a sample's duration and its runs; no runs if it was too short, and discarded."""
        loops = self._loops
        lasted = self._lasted(loops)
        if lasted >= self._options.sample_s:
            return _positive(lasted), loops
        self._discard(lasted, loops)
        enough = int(np.ceil(self._options.sample_s * loops / _positive(lasted)))
        self._loops = max(loops + 1, min(enough, _GROWTH * loops))
        return lasted, 0

    def _keep(self, run_s: float, loops: int, block: int) -> None:
        self.samples_s.append(run_s)
        self.blocks.append(block)
        self._loops_of.append(loops)

    def _discard(self, lasted: float, loops: int) -> None:
        self.warmups_s.append(_positive(lasted) / loops)
        self._discarded += loops

    def _lasted(self, loops: int) -> float:
        start = self._clock()
        for _ in range(loops):
            self._run()
        return self._clock() - start


def _positive(seconds: float) -> float:
    """A coarse clock may not have moved."""
    return max(seconds, 1e-12)
