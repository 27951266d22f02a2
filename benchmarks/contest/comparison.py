"""Whether one method is behind another: paired over seeds, on images that no search saw."""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from costmodels.table import BoolArray

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """One method less another, in accuracy.

    Args:
        mean: over the seeds.
        low: of the 95 % interval.
        high: of the 95 % interval.
        p: chance of such a difference, in either direction, if there were none.
        over: what the test counts: ``seeds``, or ``images`` where seeds make no difference.
    """

    mean: float
    low: float
    high: float
    p: float
    over: str

    @property
    def verdict(self) -> str:
        """``behind`` or ``ahead`` where that is significant, else ``-``."""
        if self.p >= SIGNIFICANT:
            return "-"
        return "behind" if self.mean < 0 else "ahead"


def compare(ours: BoolArray, theirs: BoolArray) -> Difference:
    """Compare two methods whose searches used the same seeds.

    Student's t-test of the paired differences over seeds. Where all seeds differ by the same, as
    two methods without randomness do, it has no spread to judge by: then McNemar's exact test over
    the images on which the two policies disagree (Q. McNemar, Psychometrika 12, 1947), and the
    interval of a mean over images.

    Args:
        ours: (seeds, images) which images are classified right.
        theirs: likewise.
    """
    each = ours.mean(1) - theirs.mean(1)
    mean = float(each.mean())
    if len(each) > 1 and np.ptp(each) > 0:
        test = stats.ttest_rel(ours.mean(1), theirs.mean(1))
        low, high = test.confidence_interval(0.95)
        return Difference(mean, float(low), float(high), float(test.pvalue), "seeds")
    one = ours[0].astype(float) - theirs[0]
    half = 1.96 * float(one.std()) / np.sqrt(len(one))
    wins, losses = int((one > 0).sum()), int((one < 0).sum())
    p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Difference(mean, mean - half, mean + half, p, "images")
