"""Chooses the probes that tell most per second of measuring.

What trees do not know cannot be computed, so a linear model of the same columns stands for them:
with rows X, the variance of a new row's prediction is proportional to ``x' (X'X + r I)^-1 x``, and
rows x that are measured too shrink the intervals of all predictions the more, the larger

    gain = sum over rows of log(1 + x' (X'X + r I)^-1 x)

is (D-optimal design; Chaloner and Verdinelli, Statistical Science 10, 1995). It is divided by the
seconds that measuring the probe will take, which the roofline tells well enough.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from costmodels.calibrated.device_model import START_S
from costmodels.calibrated.features import columns_of
from costmodels.calibrated.items import Items
from costmodels.calibrated.limits import Limits
from costmodels.calibrated.samples import Sample
from costmodels.cells import BoolArray, FloatArray
from hil.probe_timer import ProbeJob, items_and_formats
from hil.probes import probe

_RIDGE = 3.0
_SCALE = 10.0
"""Brings logarithms to base 2 of counts to the order of the columns that mark kinds."""
_RUNS, _BUILDING_S, _OFF_ROOF = 40, 0.08, 2.0
"""Runs of a probe under one policy, what else it takes, and seconds over the bound: about."""


class ProbeChoice:
    """Ranks candidates against what was measured.

    Args:
        limits: of the device.
        fitted: what was measured; fixes the kinds that have columns.
    """

    def __init__(self, limits: Limits, fitted: Sequence[Sample]) -> None:
        self._limits = limits
        self._kinds = tuple(sorted({k for s in fitted for k in np.unique(s.items.kind).tolist()}))
        self._gram: FloatArray | float = 0.0
        self.learn(fitted)

    def learn(self, samples: Sequence[Sample]) -> None:
        """Take what was measured since into account."""
        for sample in samples:
            rows = self._columns(sample.items, sample.integer)
            self._gram = self._gram + rows.T @ rows

    def best(self, candidates: Iterable[ProbeJob], count: int) -> list[ProbeJob]:
        """Return the `count` candidates with the largest gain per second."""
        gram = np.asarray(self._gram)
        inverse = np.asarray(np.linalg.inv(gram + _RIDGE * np.eye(len(gram))), np.float64)
        ranked = sorted(candidates, key=lambda job: -self._gain_per_second(job, inverse))
        return ranked[:count]

    def _gain_per_second(self, job: ProbeJob, inverse: FloatArray) -> float:
        gain, cost = 0.0, _BUILDING_S
        for items, integer in items_and_formats(probe(job.seed, whole=job.whole), job):
            new = self._columns(items, integer)
            gain += float(np.log1p(((new @ inverse) * new).sum(axis=1)).sum())
            bound = float((self._limits.bound_s(items, integer) + START_S).sum())
            cost += _BUILDING_S + _RUNS * _OFF_ROOF * bound
        return gain / cost

    def _columns(self, items: Items, integer: BoolArray) -> FloatArray:
        columns = columns_of(items, integer, self._limits, self._kinds, ())
        return np.asarray(columns / _SCALE, np.float64)
