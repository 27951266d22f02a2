"""Interleaved, paired timing: candidates take turns, so drift hits all of them alike.

A turn runs one candidate: some runs that do not count (the caches still hold the previous one's
data), then samples; a sample is the mean of enough runs to last at least a millisecond. A sample
that was over sooner is taken again with more runs.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.errors import CostError
from costmodels.measurement import Measurement

Run = Callable[[], object]
Clock = Callable[[], float]


def machine_load() -> float:
    """Return the mean number of runnable processes over the last minute."""
    return os.getloadavg()[0]


_RESAMPLES = 2000

_FIRST_LOOPS = 1000
_GROWTH = 10
"""Bounds of the runs per sample at first, and of each raise: a coarse clock may show no time."""


@dataclass(frozen=True)
class TimingOptions:
    """How long to time.

    Args:
        blocks: how often every candidate gets a turn.
        samples: samples of a turn that count.
        warm_runs: runs at the start of a turn that do not count.
        sample_s: least duration of a sample.
        seed: of the order within blocks.
    """

    blocks: int = 20
    samples: int = 5
    warm_runs: int = 2
    sample_s: float = 1e-3
    seed: int = 0


def time_interleaved(
    candidates: Mapping[str, Run],
    options: TimingOptions | None = None,
    *,
    clock: Clock = time.perf_counter,
    load: Callable[[], float] = machine_load,
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, Measurement]:
    """Time all candidates in randomised blocks.

    Args:
        candidates: what to call, by name.
        options: see `TimingOptions`.
        clock: seconds; for tests.
        load: how busy the machine is, before and after; for tests.
        progress: called with the share done.

    Returns:
        A measurement per candidate; its `block` numbers pair the candidates. Samples that were
        too short are among its warm-ups. Where the runs per sample had to be raised on the way,
        `inner_loops` is the last number, and ``context["inner_loops"]`` that of each sample.
    """
    given = options or TimingOptions()
    order = np.random.default_rng(given.seed)
    turns = {name: _Turns(run, given, clock) for name, run in candidates.items()}
    names = list(candidates)
    load_before = load()
    for block in range(given.blocks):
        for position in order.permutation(len(names)):
            turns[names[position]].take()
        progress((block + 1) / given.blocks)
    context = {"load": [load_before, load()], "interleaved": names}
    numbers = tuple(int(b) for b in np.repeat(np.arange(given.blocks), given.samples))
    return {name: turns[name].measurement(name, numbers, context) for name in names}


class _Turns:
    """The turns of one candidate.

    Args:
        run: the candidate.
        options: how long to time.
        clock: seconds.
    """

    def __init__(self, run: Run, options: TimingOptions, clock: Clock) -> None:
        self._run, self._options, self._clock = run, options, clock
        self._samples: list[float] = []
        self._warmups: list[float] = []
        self._loops_of: list[int] = []
        self._loops = min(self._enough(min(self._lasted(1) for _ in range(4))), _FIRST_LOOPS)

    def take(self) -> None:
        """Run the candidate until it has one turn's samples more."""
        self._warmups += [_positive(self._lasted(1)) for _ in range(self._options.warm_runs)]
        wanted = len(self._samples) + self._options.samples
        while len(self._samples) < wanted:
            lasted = self._lasted(self._loops)
            run_s = _positive(lasted / self._loops)
            if lasted < self._options.sample_s:
                self._warmups.append(run_s)
                enough = min(self._enough(run_s), _GROWTH * self._loops)
                self._loops = max(self._loops + 1, enough)
            else:
                self._samples.append(run_s)
                self._loops_of.append(self._loops)

    def measurement(
        self, name: str, blocks: tuple[int, ...], context: Mapping[str, object]
    ) -> Measurement:
        """Return what the turns gave."""
        raised = {"inner_loops": self._loops_of} if len(set(self._loops_of)) > 1 else {}
        return Measurement(
            name,
            tuple(self._samples),
            tuple(self._warmups),
            self._loops,
            blocks,
            {**context, **raised},
        )

    def _lasted(self, loops: int) -> float:
        start = self._clock()
        for _ in range(loops):
            self._run()
        return self._clock() - start

    def _enough(self, run_s: float) -> int:
        """How many runs of `run_s` make a sample."""
        return max(1, int(np.ceil(self._options.sample_s / _positive(run_s))))


def _positive(seconds: float) -> float:
    """A coarse clock may not have moved."""
    return max(seconds, 1e-12)


@dataclass(frozen=True)
class Ratio:
    """A paired ratio of times with its 95 % interval."""

    low: float
    mid: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields as JSON values."""
        return {"low": self.low, "mid": self.mid, "high": self.high}


def paired_ratio(candidate: Measurement, reference: Measurement, *, seed: int = 0) -> Ratio:
    """Return time of `candidate` over time of `reference`.

    The median over blocks of the log-ratio of block medians; the interval is a bootstrap over
    blocks, percentiles 2.5 and 97.5.

    Raises:
        CostError: if the two share no block: they were not timed together.
    """
    ours, theirs = candidate.block_values(), reference.block_values()
    if not ours.keys() & theirs.keys():
        raise CostError(f"{candidate.name} and {reference.name} share no block of timing")
    logs = np.log([ours[b] / theirs[b] for b in sorted(ours) if b in theirs])
    low, high = np.exp(np.percentile(_bootstrap_medians(logs, seed), [2.5, 97.5]))
    return Ratio(float(low), float(np.exp(np.median(logs))), float(high))


def _bootstrap_medians(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    return np.asarray(np.median(values[drawn], axis=1))
