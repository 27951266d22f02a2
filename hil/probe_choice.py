"""Chooses the probes that tell most per second of measuring.

What the trees do not know cannot be computed, so a linear model of the same columns stands for
them: with rows X and noise s, its coefficients have the covariance ``(X'X / s^2 + I)^-1``, and new
rows x would shrink the intervals of all predictions the more, the larger

    gain = sum over rows of log(1 + x' (X'X + s^2 I)^-1 x)

is (D-optimal design; Chaloner and Verdinelli, Statistical Science 10, 1995). It is divided by the
seconds that measuring the probe will take, which the roofline tells about well enough.
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
_RUNS, _BUILDING_S = 40, 0.08
"""Runs of a probe under one policy, and what else it takes: about."""


class ProbeChoice:
    """Ranks candidates.

    Args:
        limits: of the device.
        seed: decides nothing yet; candidates come in a fixed order.
    """

    def __init__(self, limits: Limits, seed: int) -> None:
        self._limits, self._seed = limits, seed

    def best(
        self, fitted: Sequence[Sample], candidates: Iterable[ProbeJob], count: int
    ) -> list[ProbeJob]:
        """Return the `count` candidates with the largest gain per second.

        Args:
            fitted: what was measured.
            candidates: probes.
            count: how many.
        """
        kinds = tuple(sorted({kind for s in fitted for kind in s.items.kind.tolist()}))
        rows = np.concatenate([self._columns(s.items, s.integer, kinds) for s in fitted])
        inverse = np.linalg.inv(rows.T @ rows + _RIDGE * np.eye(rows.shape[1]))
        ranked = []
        for job in candidates:
            gain, cost = 0.0, _BUILDING_S
            for items, integer in items_and_formats(probe(job.seed, whole=job.whole), job):
                new = self._columns(items, integer, kinds)
                gain += float(np.log1p(np.einsum("nd,de,ne->n", new, inverse, new)).sum())
                bound = self._limits.bound_s(items, integer) + START_S
                cost += _BUILDING_S + _RUNS * 2 * float(bound.sum())
            ranked.append((gain / cost, job))
        ranked.sort(key=lambda pair: -pair[0])
        return [job for _, job in ranked[:count]]

    def _columns(self, items: Items, integer: BoolArray, kinds: Sequence[str]) -> FloatArray:
        columns = columns_of(items, integer, self._limits, kinds, ())
        return np.asarray(columns / 10.0)
