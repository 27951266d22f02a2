"""Choice at run time: the cheap policy answers first, the dear one where that is not confident.

A cascade of two exported policies of one Pareto front. Its threshold is chosen on the search part,
its accuracy is told on the test part. Its mean cost is that of the cheap policy, and for the share
of inputs that are forwarded that of the dear one as well.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.table import BoolArray, FloatArray
from quantization.errors import DataError
from search.oracle import Interval, Labels

Run = Callable[[Any], npt.NDArray[np.floating]]
"""Runs one input; returns its logits, with any number of leading extents of 1."""

Clock = Callable[[], float]
"""Seconds."""


def confidence(logits: npt.NDArray[np.floating]) -> FloatArray:
    """Return the largest class probability of each row, (N,) in (0, 1].

    The probabilities are the softmax of the logits (Hendrycks and Gimpel, ICLR 2017).

    Args:
        logits: (N, classes).

    >>> confidence(np.log(np.array([[0.75, 0.25], [0.5, 0.5]]))).round(6).tolist()
    [0.75, 0.5]
    """
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(1, keepdims=True)
    largest: FloatArray = 1.0 / np.exp(shifted).sum(1)
    return largest


@dataclass(frozen=True, eq=False)
class Stage:
    """One policy that a cascade may use.

    Args:
        name: of the policy.
        cost: of one run, in the unit of all stages.
        logits: (N, classes) of the images that are looked at.

    Raises:
        DataError: if the cost is not positive and finite, or the logits have another shape.
    """

    name: str
    cost: float
    logits: npt.NDArray[np.floating]

    def __post_init__(self) -> None:
        if not (np.isfinite(self.cost) and self.cost > 0):
            raise DataError(f"{self.name}: a cost of {self.cost} is not positive and finite")
        if self.logits.ndim != 2 or not self.logits.size:
            raise DataError(f"{self.name}: logits are (N, classes), not {self.logits.shape}")

    def right(self, labels: Labels) -> BoolArray:
        """Return which images, (N,), are classified as labelled."""
        right: BoolArray = self.logits.argmax(1) == labels
        return right


@dataclass(frozen=True)
class Cascade:
    """Which policies run, and when the second does.

    Args:
        cheap: name of the policy that every input runs through.
        dear: name of the one that inputs are forwarded to.
        threshold: inputs whose confidence is below it are forwarded; 0 forwards none.
    """

    cheap: str
    dear: str
    threshold: float

    def forwards(self, cheap: npt.NDArray[np.floating]) -> BoolArray:
        """Return which inputs, (N,), are forwarded, by logits (N, classes) of the cheap policy."""
        forwarded: BoolArray = confidence(cheap) < self.threshold
        return forwarded

    def to_dict(self) -> dict[str, Any]:
        """Return the cascade as JSON values."""
        return {"cheap": self.cheap, "dear": self.dear, "threshold": self.threshold}


def choose_cascade(stages: Sequence[Stage], labels: Labels, *, tolerance: float = 0.0) -> Cascade:
    """Return the cascade of the least mean cost whose accuracy stays within a tolerance.

    Every ordered pair of stages is looked at with every threshold that changes anything. A single
    stage is a pair that forwards nothing.

    Args:
        stages: at least two, on the images of the search part: never those of the test part.
        labels: (N,) right classes of these images.
        tolerance: how much the share of right answers may be below that of the best stage, 0..1.

    Raises:
        DataError: if there are fewer than two stages, or their images or names do not fit.
    """
    _check(stages, labels)
    floor = max(stage.right(labels).mean() for stage in stages) - tolerance
    found: list[tuple[float, float, Cascade]] = []
    for cheap, dear in permutations(stages, 2):
        for threshold, forwarded, accuracy in _thresholds(cheap, dear, labels):
            if accuracy >= floor - 1e-12:  # the best stage itself must pass after rounding
                cost = cheap.cost + forwarded * dear.cost
                found.append((cost, -accuracy, Cascade(cheap.name, dear.name, threshold)))
    return min(found, key=lambda entry: entry[:2])[2]


def _thresholds(cheap: Stage, dear: Stage, labels: Labels) -> Iterator[tuple[float, float, float]]:
    """Yield threshold, share forwarded and accuracy, from nothing forwarded to all."""
    sure = confidence(cheap.logits)
    order = np.argsort(sure, kind="stable")
    gain = dear.right(labels).astype(int) - cheap.right(labels)
    right = int(cheap.right(labels).sum()) + np.concatenate([[0], np.cumsum(gain[order])])
    for count in range(len(sure) + 1):
        above = sure[order[count]] if count < len(sure) else np.inf
        below = sure[order[count - 1]] if count else 0.0
        if above <= below:
            continue  # equal confidences are forwarded together
        # halfway, so that rounding of another machine does not tip the balance
        threshold = 0.0 if not count else min((below + above) / 2, 2.0)
        yield float(threshold), count / len(sure), float(right[count] / len(sure))


@dataclass(frozen=True)
class CascadeReport:
    """What a cascade does on images that it was not chosen on.

    Args:
        cascade: which.
        accuracy: of the cascade.
        cheap: accuracy of the cheap policy alone.
        dear: of the dear one alone.
        forwarded: share of the images that the dear policy ran as well.
        only_cascade: images that the cascade has right and the dear policy wrong.
        only_dear: the other way round.
        cost: mean cost of an image, predicted: cheap + share forwarded * dear.
        dear_cost: that of the dear policy alone.
    """

    cascade: Cascade
    accuracy: Interval
    cheap: Interval
    dear: Interval
    forwarded: Interval
    only_cascade: int
    only_dear: int
    cost: float
    dear_cost: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        shares = {
            "accuracy": self.accuracy,
            "accuracy_of_cheap": self.cheap,
            "accuracy_of_dear": self.dear,
            "forwarded": self.forwarded,
        }
        return {
            **self.cascade.to_dict(),
            **{name: [s.share, s.low, s.high] for name, s in shares.items()},
            "only_cascade_right": self.only_cascade,
            "only_dear_right": self.only_dear,
            "mean_cost_predicted": self.cost,
            "cost_of_dear": self.dear_cost,
        }


def report_cascade(cascade: Cascade, stages: Sequence[Stage], labels: Labels) -> CascadeReport:
    """Return what a cascade does.

    Args:
        cascade: as `choose_cascade` returned it.
        stages: its two among any, on the images of the test part.
        labels: (N,) right classes of these images.

    Raises:
        DataError: if a stage is missing, or images or names do not fit.
    """
    _check(stages, labels)
    by_name = {stage.name: stage for stage in stages}
    if missing := [n for n in (cascade.cheap, cascade.dear) if n not in by_name]:
        raise DataError(f"no stage {missing[0]!r}; there are {', '.join(by_name)}")
    cheap, dear = by_name[cascade.cheap], by_name[cascade.dear]
    forwarded = cascade.forwards(cheap.logits)
    right = np.where(forwarded, dear.right(labels), cheap.right(labels))
    return CascadeReport(
        cascade,
        _share(right),
        _share(cheap.right(labels)),
        _share(dear.right(labels)),
        _share(forwarded),
        int((right & ~dear.right(labels)).sum()),
        int((dear.right(labels) & ~right).sum()),
        cheap.cost + float(forwarded.mean()) * dear.cost,
        dear.cost,
    )


@dataclass(frozen=True, eq=False)
class CascadeRun:
    """A cascade run whole, one input after the other.

    Args:
        answers: (N,) the classes that it chose.
        forwarded: (N,) which inputs the dear policy ran as well.
        seconds: (N,) wall time of each input, both runs and the decision between them.
    """

    answers: npt.NDArray[np.int64]
    forwarded: BoolArray
    seconds: FloatArray


def run_cascade(
    cascade: Cascade,
    cheap: Run,
    dear: Run,
    inputs: Sequence[Any],
    *,
    clock: Clock = time.perf_counter,
) -> CascadeRun:
    """Run a cascade as it would be deployed, and time each input.

    Args:
        cascade: the threshold.
        cheap: runs an input through the exported cheap policy.
        dear: through the dear one.
        inputs: N inputs, as the two take them.
        clock: seconds; for tests.
    """
    answers = np.empty(len(inputs), np.int64)
    forwarded = np.zeros(len(inputs), bool)
    seconds = np.empty(len(inputs))
    for i, given in enumerate(inputs):
        began = clock()
        logits = cheap(given)
        if cascade.forwards(logits.reshape(1, -1))[0]:
            logits, forwarded[i] = dear(given), True
        answers[i] = logits.argmax()
        seconds[i] = clock() - began
    return CascadeRun(answers, forwarded, seconds)


def _check(stages: Sequence[Stage], labels: Labels) -> None:
    names = [stage.name for stage in stages]
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f"a cascade chooses among two policies or more, not {', '.join(names)}")
    for stage in stages:
        if len(stage.logits) != len(labels):
            raise DataError(f"{stage.name}: {len(stage.logits)} logits, {len(labels)} labels")


def _share(which: BoolArray) -> Interval:
    return Interval.wilson(int(which.sum()), len(which))
