"""Interleaved, paired timing: candidates take turns, so drift hits all of them alike.

A turn runs one candidate: some runs that do not count (the caches still hold the previous one's
data), then samples; a sample is the mean of enough runs to last at least a millisecond.
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

_RESAMPLES = 2000


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
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, Measurement]:
    """Time all candidates in randomised blocks.

    Args:
        candidates: what to call, by name.
        options: see `TimingOptions`.
        clock: seconds; for tests.
        progress: called with the share done.

    Returns:
        A measurement per candidate; its `block` numbers pair the candidates.
    """
    given = options or TimingOptions()
    order = np.random.default_rng(given.seed)
    loops = {name: _inner_loops(run, given, clock) for name, run in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    warmups: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    load_before = os.getloadavg()[0]
    for block in range(given.blocks):
        for position in order.permutation(len(names)):
            name = names[position]
            run = candidates[name]
            warmups[name] += [_once(run, 1, clock) for _ in range(given.warm_runs)]
            samples[name] += [_once(run, loops[name], clock) for _ in range(given.samples)]
        progress((block + 1) / given.blocks)
    context = {"load": [load_before, os.getloadavg()[0]], "interleaved": names}
    numbers = tuple(int(b) for b in np.repeat(np.arange(given.blocks), given.samples))
    return {
        name: Measurement(
            name, tuple(samples[name]), tuple(warmups[name]), loops[name], numbers, context
        )
        for name in names
    }


def _once(run: Run, loops: int, clock: Clock) -> float:
    start = clock()
    for _ in range(loops):
        run()
    return max((clock() - start) / loops, 1e-12)


def _inner_loops(run: Run, options: TimingOptions, clock: Clock) -> int:
    """Runs that make a sample last long enough, from the fastest of a few first runs."""
    fastest = min(_once(run, 1, clock) for _ in range(4))
    return max(1, int(np.ceil(options.sample_s / fastest)))


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
