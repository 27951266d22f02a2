"""The interval of a whole network's latency: conformal over networks, narrower for longer runs.

Of the distances between the logarithms of prediction and measurement, the one that keeps 90 % of a
new network's below it. Policies of one network are not independent, and networks differ in how many
there are; so each network counts alike, and the level is that of n networks: ``level (n + 1) / n``.

Short runs are predicted worse: what a cache holds or a counter rounds matters more. So distances
are first multiplied by a power of the predicted time (normalized conformal prediction; Papadopoulos
et al., ICANN 2008), found by least squares from the same networks, which makes the level hold
about, not exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from costmodels.cells import BoolArray, FloatArray

LEVEL = 0.9
LEAST_NETWORKS = 10
"""Fewer give no interval."""
_LEAST_FOR_POWER, _LARGEST_POWER = 20, 0.5
_UNIT_S = 1e-3
_LEAST_DISTANCE = 5e-3
"""Smaller ones are luck: their logarithms would decide the power."""


@dataclass(frozen=True)
class NetworkInterval:
    """Interval ``[p / (1 + h), p (1 + h)]`` around a prediction p.

        log(1 + h) = log(1 + at_1ms) * (p / 1 ms) ^ -narrowing

    Args:
        at_1ms: h of a network that is predicted to take one millisecond.
        narrowing: from 0, the same for all, to 0.5.
        judged_s: shortest and longest prediction that judged; beyond them h stays what it is there.
    """

    at_1ms: float
    narrowing: float
    judged_s: tuple[float, float]

    def half_width(self, seconds: FloatArray) -> FloatArray:
        """Return h of predictions in seconds, of their shape."""
        shrunk = np.log1p(self.at_1ms) * (np.clip(seconds, *self.judged_s) / _UNIT_S) ** (
            -self.narrowing
        )
        return np.asarray(np.expm1(shrunk), np.float64)

    def covers(self, predicted: FloatArray, measured: FloatArray) -> BoolArray:
        """Return which measurements, (P,), lie in the intervals of their predictions, (P,)."""
        distance = np.abs(np.log(measured / predicted))
        return np.asarray(distance <= np.log1p(self.half_width(predicted)), np.bool_)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "judged_s": list(self.judged_s)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NetworkInterval":
        """Read what `to_dict` wrote."""
        shortest, longest = map(float, values["judged_s"])
        return cls(float(values["at_1ms"]), float(values["narrowing"]), (shortest, longest))

    @classmethod
    def of(
        cls,
        predicted: FloatArray,
        measured: FloatArray,
        networks: Sequence[str],
        level: float = LEVEL,
    ) -> "NetworkInterval | None":
        """Return the interval that holds for a policy of a new network at `level`.

        Args:
            predicted: (P,) seconds.
            measured: (P,) seconds.
            networks: (P,) which network each is of; each network has the same weight.
            level: the probability.

        Returns:
            None if there are too few networks.
        """
        names, index, counts = np.unique(networks, return_inverse=True, return_counts=True)
        share = level * (len(names) + 1) / len(names) if len(names) else 2.0
        if len(names) < LEAST_NETWORKS or share > 1:
            return None
        weight = 1 / counts[index] / len(names)
        distance = np.abs(np.log(measured / predicted))
        enough = len(names) >= _LEAST_FOR_POWER
        narrowing = _narrowing(predicted, distance, weight) if enough else 0.0
        scaled = distance * (predicted / _UNIT_S) ** narrowing
        order = np.argsort(scaled)
        first = int(np.searchsorted(np.cumsum(weight[order]), share - 1e-12))
        at_1ms = float(np.expm1(scaled[order[min(first, len(order) - 1)]]))
        return cls(at_1ms, narrowing, (float(predicted.min()), float(predicted.max())))


def _narrowing(predicted: FloatArray, distance: FloatArray, weight: FloatArray) -> float:
    """The power of time by which distances fall, by least squares on logarithms."""
    x, y = np.log(predicted), np.log(np.maximum(distance, _LEAST_DISTANCE))
    x = x - np.average(x, weights=weight)
    spread = float(np.sum(weight * x**2))
    if spread < 1e-9:
        return 0.0
    return float(np.clip(-np.sum(weight * x * y) / spread, 0.0, _LARGEST_POWER))
