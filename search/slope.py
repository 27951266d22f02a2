"""What proxy loss is worth: how much score goes with it, measured on trials."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.searcher import Trial

_FEWEST_TRIALS = 10
_NEAREST = 0.5
"""Share of the trials, those of the least proxy loss, that a slope is measured on."""

_MOST_TRIALS = 500
"""Trials a slope is measured on at most: all pairs are looked at."""


@dataclass(frozen=True)
class Slope:
    """How much score goes with proxy loss, measured on trials.

    Args:
        mid: score lost per unit of proxy loss.
        low: lower end of its 95 % interval.
        high: upper end.
        trials: how many it was measured on.
    """

    mid: float
    low: float
    high: float
    trials: int

    @property
    def told(self) -> bool:
        """Whether the interval leaves out 0: else proxy loss and score were not seen to go along.

        A negative slope counts as not told: less proxy loss does not cost accuracy.
        """
        return self.low > 0

    def to_dict(self) -> dict[str, Any]:
        """Return the slope as JSON values."""
        return {
            "score_per_loss": self.mid,
            "interval": [self.low, self.high],
            "trials": self.trials,
            "told": self.told,
        }


def measured_slope(trials: Sequence[Trial]) -> Slope | None:
    """Return how much score goes with proxy loss; None if too few trials tell.

    The Theil-Sen slope (the median of the slopes of all pairs) and its 95 % interval (Sen, Journal
    of the American Statistical Association 63, 1968), over the half of the trials of the least
    proxy loss: near the optimum the relation is not that of policies that fail. Fewer than ten tell
    nothing; nor do more that nearly all have one score and one loss, whose variance by Sen is
    negative.

    Args:
        trials: those whose score is not finite are left out.
    """
    measured = sorted((t for t in trials if np.isfinite(t.score)), key=lambda t: t.loss)
    count = max(_FEWEST_TRIALS, int(np.ceil(_NEAREST * len(measured))))
    nearest = measured[: min(count, _MOST_TRIALS)]
    if len(nearest) < _FEWEST_TRIALS or nearest[0].loss == nearest[-1].loss:
        return None
    from scipy.stats import theilslopes

    with np.errstate(invalid="ignore"):  # the root of a negative variance
        found = theilslopes([t.score for t in nearest], [t.loss for t in nearest])
    slope, _, low, high = map(float, found)
    return Slope(-slope, -high, -low, len(nearest)) if np.isfinite([low, high]).all() else None
