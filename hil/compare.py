"""Which of two is faster: timed side by side until it is clear, or not worth telling.

Candidates and a reference are interleaved in randomised blocks. At block counts laid down
beforehand the interval of each ratio is looked at (`hil.sequential`); a candidate that is clearly
faster or slower leaves, so a clear loser costs few runs.

An interval is about the sessions that were timed. Two sessions of the *same* model differ
lastingly, by where their memory came to lie, so a verdict also has to clear a floor: the difference
that two sessions of one model may have. `noise_floor` measures it beforehand; a race can measure it
itself, with a second session of the reference among its candidates.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from costmodels.errors import CostError
from costmodels.measurement import Measurement
from hil.conditions import Snapshot, observe
from hil.sequential import decides, levels, signed_rank_interval
from hil.timing import Clock, Interleaving, Ratio, Run, TurnOptions, log_ratios

_REFERENCE = "reference"
_CANDIDATE = "candidate"
_FIRST_LOOK = 10


class Verdict(StrEnum):
    """What a comparison says of the candidate."""

    FASTER = "faster"
    SLOWER = "slower"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class CompareOptions:
    """How two are compared.

    Args:
        looks: block counts at which the ratios are looked at; the last ends the comparison.
        alpha: chance that any of the intervals of one comparison misses.
        floor: relative difference that two sessions of the same model may have; 0 compares the
            sessions themselves. The default is what `benchmarks/noise.py` found on two virtual
            cores (Zen 5, one thread): ratios of two sessions were within 0.4 % of 1 in 95 % of 200
            comparisons of the reference network, within 1.0 % in 95 % of 30 of MobileNetV2.
        quantile: of a turn's samples that stands for the turn. A low one is disturbed least: turns
            of the reference network scattered by 0.3 to 0.6 % at 0.2, by 1.0 to 1.4 % at 0.5.
        turns: what a turn is.
        seed: of the order within blocks.

    Raises:
        CostError: if the last look could not decide anything, or a number is out of range.
    """

    looks: tuple[int, ...] = (10, 15, 22, 33, 50)
    alpha: float = 0.05
    floor: float = 0.01
    quantile: float = 0.2
    turns: TurnOptions = field(default_factory=TurnOptions)
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.looks or list(self.looks) != sorted({*self.looks}) or self.looks[0] < 1:
            raise CostError("looks are increasing block counts, such as (10, 15, 22)")
        if not (0 < self.alpha < 1 and self.floor >= 0 and 0 <= self.quantile <= 1):
            raise CostError("alpha and quantile are shares, and the floor is not negative")
        if not decides(self.looks[-1], levels(self.looks, self.alpha)[-1]):
            raise CostError(
                f"{self.looks[-1]} blocks cannot decide at a level of {self.alpha}: give more"
            )


def looks_until(blocks: int) -> tuple[int, ...]:
    """Return the block counts at which a comparison of at most `blocks` is looked at.

    Ten, then half as many more each time: a clear loser costs a fifth of what a close call does.

    >>> looks_until(50), looks_until(8)
    ((10, 15, 22, 33, 50), (8,))
    """
    looks = [_FIRST_LOOK]
    while looks[-1] * 3 // 2 < blocks:
        looks.append(looks[-1] * 3 // 2)
    # None shortly before the last, which would spend error and tell nothing new.
    return (*(look for look in looks if 5 * look <= 4 * blocks), blocks)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Args:
        ratio: time of the candidate over that of the reference; the middle is the median of the
            pairwise means of the blocks' log-ratios, the interval that of the last look.
        verdict: undecided unless the whole interval is further from 1 than the floor.
        floor: that of the options or, if that is more, what two sessions of the reference differed
            by in the same race.
        blocks: that both were timed in.
        looks: how often the ratio was looked at.
        candidate: raw samples.
        reference: raw samples of these and, in a race, of later blocks.
    """

    ratio: Ratio
    verdict: Verdict
    floor: float
    blocks: int
    looks: int
    candidate: Measurement
    reference: Measurement

    @property
    def detectable(self) -> float:
        """The smallest relative difference that these blocks would have told.

        Half the interval's width and the floor.
        """
        half = (np.log(self.ratio.high) - np.log(self.ratio.low)) / 2
        return float(np.exp(half) * (1 + self.floor) - 1)

    def __str__(self) -> str:
        """One line for people."""
        ratio = f"{self.ratio.mid:.3f}x [{self.ratio.low:.3f}, {self.ratio.high:.3f}]"
        if self.verdict is Verdict.UNDECIDED:
            return f"no difference detectable below {self.detectable:.1%}: {ratio}"
        return f"{self.verdict.value}: {ratio} after {self.blocks} blocks"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "ratio": self.ratio.to_dict(),
            "verdict": self.verdict.value,
            "floor": self.floor,
            "detectable": self.detectable,
            "blocks": self.blocks,
            "looks": self.looks,
            "candidate": self.candidate.to_dict(),
            "reference": self.reference.to_dict(),
        }


def compare(
    candidate: Run,
    reference: Run,
    options: CompareOptions | None = None,
    *,
    clock: Clock = time.perf_counter,
    observe: Callable[[], Snapshot] = observe,
) -> Comparison:
    """Compare two; as `compare_many` with one candidate."""
    many = compare_many({_CANDIDATE: candidate}, reference, options, clock=clock, observe=observe)
    return many[_CANDIDATE]


def compare_many(
    candidates: Mapping[str, Run],
    reference: Run,
    options: CompareOptions | None = None,
    *,
    again: str | None = None,
    clock: Clock = time.perf_counter,
    observe: Callable[[], Snapshot] = observe,
    progress: Callable[[float], None] = lambda _share: None,
) -> dict[str, Comparison]:
    """Compare candidates with one reference in one race that they leave once they are decided.

    Each comparison errs with probability `CompareOptions.alpha` by itself; of many, more will.

    With a second session of the reference, `again`, what the two differ by raises the floor of all
    verdicts. It stays to the last look; whoever had left comes back where its interval no longer
    clears the floor.

    Args:
        candidates: what to call, by name.
        reference: what all are compared with.
        options: how.
        again: the candidate that is the reference loaded a second time; None if none is.
        clock: seconds; for tests.
        observe: counters of the machine; for tests.
        progress: called with the share of the most blocks that may be needed.

    Raises:
        CostError: if there is no candidate, one is named like the reference, or none like `again`.
    """
    given = options or CompareOptions()
    if not candidates or _REFERENCE in candidates:
        raise CostError(f"candidates are needed, none of which is named {_REFERENCE!r}")
    if again is not None and again not in candidates:
        raise CostError(f"no candidate is named {again!r}, as the reference's second session")
    race = Interleaving(
        {**candidates, _REFERENCE: reference},
        given.turns,
        seed=given.seed,
        clock=clock,
        observe=observe,
    )
    found: dict[str, tuple[Ratio, int]] = {}
    running, floor = list(candidates), given.floor
    for look, level in enumerate(levels(given.looks, given.alpha), start=1):
        while race.blocks < given.looks[look - 1]:
            race.take_block({*running, _REFERENCE})
            progress(race.blocks / given.looks[-1])
        measured = race.measurements()
        for name in running:
            found[name] = _ratio(measured[name], measured[_REFERENCE], given.quantile, level), look
        if again is not None:
            floor = max(given.floor, found[again][0].furthest)
        running = [
            name
            for name, (ratio, _) in found.items()
            if name == again or _verdict(ratio, floor) is Verdict.UNDECIDED
        ]
        if not running:
            break
    progress(1.0)
    measured = race.measurements()
    return {
        name: Comparison(
            ratio,
            _verdict(ratio, floor),
            floor,
            len(set(measured[name].block)),
            looks,
            measured[name],
            measured[_REFERENCE],
        )
        for name, (ratio, looks) in found.items()
    }


def equal(reference: Measurement, floor: float) -> Comparison:
    """Return the comparison of a reference with itself: no difference, whatever was measured."""
    blocks = len(set(reference.block))
    return Comparison(
        Ratio(1.0, 1.0, 1.0), Verdict.UNDECIDED, floor, blocks, 0, reference, reference
    )


@dataclass(frozen=True)
class NoiseFloor:
    """How different equals seem on this machine.

    Args:
        pairs: ratio of two sessions of the same model, for each pair, with its 95 % interval.
        blocks: of each pair.
    """

    pairs: tuple[Ratio, ...]
    blocks: tuple[int, ...]

    @property
    def relative(self) -> float:
        """The furthest from 1 that a pair's interval reaches; serves as `CompareOptions.floor`."""
        return max(ratio.furthest for ratio in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        pairs = [ratio.to_dict() for ratio in self.pairs]
        return {"relative": self.relative, "pairs": pairs, "blocks": list(self.blocks)}


def noise_floor(
    load: Callable[[], Run],
    seconds: float,
    options: CompareOptions | None = None,
    *,
    pairs: int = 3,
    clock: Clock = time.perf_counter,
    observe: Callable[[], Snapshot] = observe,
) -> NoiseFloor:
    """Time a model against itself: what is found is noise.

    Args:
        load: loads the model anew, so that both lie elsewhere in memory.
        seconds: of timing in all, without loading; each pair gets as many blocks as a comparison
            could decide with, at least.
        options: looks and floor do not matter here.
        pairs: how often two sessions are loaded and timed.
        clock: seconds; for tests.
        observe: counters of the machine; for tests.

    Raises:
        CostError: if there is no pair.
    """
    given = options or CompareOptions()
    if pairs < 1:
        raise CostError("a noise floor needs a pair of sessions")
    ratios, blocks = [], []
    for pair in range(pairs):
        runs = {_CANDIDATE: load(), _REFERENCE: load()}
        started = clock()
        race = Interleaving(runs, given.turns, seed=given.seed + pair, clock=clock, observe=observe)
        while clock() - started < seconds / pairs or not decides(race.blocks, given.alpha):
            race.take_block()
        timed = race.measurements()
        ratios.append(_ratio(timed[_CANDIDATE], timed[_REFERENCE], given.quantile, given.alpha))
        blocks.append(race.blocks)
    return NoiseFloor(tuple(ratios), tuple(blocks))


def _ratio(candidate: Measurement, reference: Measurement, quantile: float, level: float) -> Ratio:
    logs = log_ratios(candidate, reference, quantile)
    low, mid, high = np.exp(signed_rank_interval(logs, level))
    return Ratio(float(low), float(mid), float(high))


def _verdict(ratio: Ratio, floor: float) -> Verdict:
    if ratio.low > 1 + floor:
        return Verdict.SLOWER
    if ratio.high < 1 / (1 + floor):
        return Verdict.FASTER
    return Verdict.UNDECIDED
