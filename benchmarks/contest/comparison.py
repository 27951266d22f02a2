"""Whether one method is behind another: over seeds, and over images that no search saw."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from costmodels.table import BoolArray

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Difference:
    """One method less another, in accuracy.

    Args:
        mean: over seeds and images.
        low: of the 95 % interval.
        high: of the 95 % interval.
        p: chance of such a difference, in either direction, if there were none.
        over: what varies: ``seeds and images``, or ``images`` where seeds make no difference.
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
    """Compare two methods whose searches used the same seeds, scored on the same images.

    Seeds and images are both drawn at random, and crossed: each policy is scored on every image.
    With d (k, n) the differences, s2 the variance of its means over images, i2 that of its means
    over seeds and e2 that of what remains, the mean varies by ``s2/k + i2/n - e2/(k n)``, where
    the last term is what the first two both count; it is never taken below either of these.
    Student's t with Satterthwaite's degrees of freedom (F. E. Satterthwaite, Biometrics Bulletin 2,
    1946; images as a second random factor: H. H. Clark, J. Verbal Learning and Verbal Behavior 12,
    1973). Where policies share little it errs to the safe side.

    Where no image tells one seed from another, as for methods without randomness, seeds are no
    sample: then McNemar's exact test over the images on which the two policies disagree
    (Q. McNemar, Psychometrika 12, 1947), and the interval of a mean over images.

    Args:
        ours: (seeds, images) which images are classified right.
        theirs: likewise.
    """
    each = ours.astype(np.int64) - theirs
    if (each == each[0]).all():  # integers: no rounding decides
        return _over_images(each[0])
    seeds, images = each.shape
    by_seed, by_image, mean = each.mean(1), each.mean(0), float(each.mean())
    rest = each - by_seed[:, None] - by_image + mean
    parts = np.array(
        [
            by_seed.var(ddof=1) / seeds,
            by_image.var(ddof=1) / images,
            -(rest**2).sum() / ((seeds - 1) * (images - 1) * seeds * images),
        ]
    )
    variance = max(parts.sum(), parts[0], parts[1])
    freedom = np.array([seeds - 1, images - 1, (seeds - 1) * (images - 1)])
    student = stats.t(variance**2 / (parts**2 / freedom).sum())
    error = np.sqrt(variance)
    p, half = 2 * float(student.sf(abs(mean) / error)), float(student.ppf(0.975) * error)
    return Difference(mean, mean - half, mean + half, p, "seeds and images")


def _over_images(one: npt.NDArray[np.int64]) -> Difference:
    """Compare two policies by their differences on each image, (N,)."""
    mean, half = float(one.mean()), 1.96 * float(one.std()) / np.sqrt(len(one))
    wins, losses = int((one > 0).sum()), int((one < 0).sum())
    p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
    return Difference(mean, mean - half, mean + half, p, "images")
