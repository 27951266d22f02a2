"""Interleaved, paired timing: candidates take turns, so drift hits all of them alike.

In every block each candidate has one turn, in an order drawn anew. Which of two candidates comes
first is then a fair coin that nothing on the machine knows of, and intervals may rest on that.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.errors import CostError
from costmodels.measurement import Measurement
from hil.caches import Eviction, last_level_bytes
from hil.conditions import Snapshot, between, observe
from hil.turns import Clock, Evict, Mode, Run, TurnOptions, Turns, WarmUp

__all__ = [
    "Clock",
    "Interleaving",
    "Mode",
    "Ratio",
    "Run",
    "TimingOptions",
    "TurnOptions",
    "WarmUp",
    "low_ratio",
    "paired_ratio",
    "time_interleaved",
]

_RESAMPLES = 2000

_TRIMMED = 0.2
"""Share of the blocks that a trimmed mean leaves out on either side."""


@dataclass(frozen=True)
class TimingOptions(TurnOptions):
    """How long to time, and what a turn is (`hil.turns.TurnOptions`).

    Args:
        blocks: how often every candidate gets a turn.
        seed: of the order within blocks.
    """

    blocks: int = 20
    seed: int = 0


class Interleaving:
    """Candidates that take turns in randomised blocks; making it warms them up.

    Args:
        candidates: what to call, by name.
        options: what a turn is.
        seed: of the order within blocks.
        clock: seconds; for tests.
        observe: counters of the machine, before and after; for tests.
        evict: empties the caches in cold mode; for tests. None sweeps a buffer (`hil.caches`).
    """

    def __init__(
        self,
        candidates: Mapping[str, Run],
        options: TurnOptions,
        *,
        seed: int = 0,
        clock: Clock = time.perf_counter,
        observe: Callable[[], Snapshot] = observe,
        evict: Evict | None = None,
    ) -> None:
        self._order, self._observe = np.random.default_rng(seed), observe
        self._swept: dict[str, object] = {}
        if options.mode is Mode.COLD and evict is None:
            evict = Eviction(last_level_bytes())
            self._swept = {"swept_bytes": evict.bytes}
        self._before = observe()
        self._turns = {
            name: Turns(run, options, evict or _nothing, clock) for name, run in candidates.items()
        }
        self.blocks = 0

    def take_block(self, among: Collection[str] | None = None) -> None:
        """Give one turn to every candidate, or to those named, in random order."""
        names = [name for name in self._turns if among is None or name in among]
        for position in self._order.permutation(len(names)):
            self._turns[names[position]].take(self.blocks)
        self.blocks += 1

    def measurements(self) -> dict[str, Measurement]:
        """Return what was measured so far, of every candidate that had a turn.

        ``context`` holds the load and what else happened meanwhile (`hil.conditions.Conditions`),
        who was interleaved, what a turn was, and how many runs were discarded. Samples that were
        too short are among the warm-ups. Where the runs per sample had to be raised on the way,
        `inner_loops` is the last number, and ``context["inner_loops"]`` that of each sample.
        """
        conditions = between(self._before, self._observe()).to_dict()
        shared = {
            "load": conditions["load"],
            "conditions": conditions,
            "interleaved": list(self._turns),
            **self._swept,
        }
        return {
            name: Measurement(
                name,
                tuple(turns.samples_s),
                tuple(turns.warmups_s),
                turns.inner_loops,
                tuple(turns.blocks),
                {**shared, **turns.context()},
            )
            for name, turns in self._turns.items()
            if turns.samples_s
        }


def time_interleaved(
    candidates: Mapping[str, Run],
    options: TimingOptions | None = None,
    *,
    clock: Clock = time.perf_counter,
    observe: Callable[[], Snapshot] = observe,
    evict: Evict | None = None,
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, Measurement]:
    """Time all candidates in randomised blocks.

    Args:
        candidates: what to call, by name.
        options: see `TimingOptions`.
        clock: seconds; for tests.
        observe: counters of the machine, before and after; for tests.
        evict: empties the caches in cold mode; for tests.
        progress: called with the share done.

    Returns:
        A measurement per candidate, as `Interleaving.measurements` gives it; its `block` numbers
        pair the candidates.
    """
    given = options or TimingOptions()
    run = Interleaving(
        candidates, given, seed=given.seed, clock=clock, observe=observe, evict=evict
    )
    for block in range(given.blocks):
        run.take_block()
        progress((block + 1) / given.blocks)
    return run.measurements()


def _nothing() -> None:
    """Leave the caches as they are."""


@dataclass(frozen=True)
class Ratio:
    """A ratio of times with its 95 % interval."""

    low: float
    mid: float
    high: float

    @property
    def furthest(self) -> float:
        """How far from 1 the interval reaches, relative: 0.02 if it reaches 1.02 or 1 / 1.02.

        Infinite, if it is that of too few blocks for any limit.
        """
        return max(self.high, 1 / self.low if self.low > 0 else np.inf) - 1.0

    def to_dict(self) -> dict[str, float]:
        """Return the fields as JSON values."""
        return {"low": self.low, "mid": self.mid, "high": self.high}


def paired_ratio(candidate: Measurement, reference: Measurement, *, seed: int = 0) -> Ratio:
    """Return time of `candidate` over time of `reference`.

    The median over blocks of the log-ratio of block medians; the interval is a bootstrap over
    blocks, percentiles 2.5 and 97.5. With 20 blocks or more it holds what it says nearly as often
    as it says (93 to 95 %), with few it does not; `hil.compare` has an exact one.

    Raises:
        CostError: if the two share no block: they were not timed together.
    """
    logs = log_ratios(candidate, reference)
    low, high = np.exp(np.percentile(_bootstrap_medians(logs, seed), [2.5, 97.5]))
    return Ratio(float(low), float(np.exp(np.median(logs))), float(high))


def log_ratios(
    candidate: Measurement, reference: Measurement, quantile: float = 0.5
) -> npt.NDArray[np.float64]:
    """Return the logarithm of `candidate` over `reference` in each block that both have, (B,).

    Args:
        candidate: one.
        reference: the other.
        quantile: of a block's samples that stands for the block.

    Raises:
        CostError: if the two share no block: they were not timed together.
    """
    ours, theirs = candidate.block_values(quantile), reference.block_values(quantile)
    if not ours.keys() & theirs.keys():
        raise CostError(f"{candidate.name} and {reference.name} share no block of timing")
    return np.log([ours[b] / theirs[b] for b in sorted(ours) if b in theirs])


def low_ratio(candidate: Measurement, reference: Measurement) -> float:
    """Return time of `candidate` over time of `reference`, each as undisturbed as its blocks were.

        exp(trimmed mean over blocks b of log(min of candidate in b / min of reference in b))

    without the fifth of the blocks where the ratio is largest and that where it is smallest. For
    fits to many brief readings, where one that repeats well counts for more than an interval of its
    own. Error of such a fit over policies that it did not see (four folds, 60 s of five turns, one
    thread of a shared Zen 5, November 2026) on MobileNetV2 and MobileNetV3-Small: 1.6 and 3.0 %;
    with the plain mean 2.6 and 3.1 %, with ratios of p10 1.5 and 3.4 %.

    Raises:
        CostError: if the two share no block: they were not timed together.
    """
    from scipy.stats import trim_mean

    return float(np.exp(trim_mean(log_ratios(candidate, reference, 0.0), _TRIMMED)))


def _bootstrap_medians(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    return np.asarray(np.median(values[drawn], axis=1))
