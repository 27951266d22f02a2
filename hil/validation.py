"""How well predictions hold on policies that were never fitted, and an interval for the next one.

The interval is split conformal: of n policies from the mixture that the next one comes from, the
ceil(0.9 (n + 1))-th smallest distance between prediction and measurement holds for the next with
probability 0.9 at least (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005;
Lei et al., Journal of the American Statistical Association 113, 2018, theorem 2.2).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from costmodels.prediction_error import PredictionError
from costmodels.table import FloatArray

__all__ = [
    "LEAST_POLICIES",
    "LEVEL",
    "PredictionError",
    "Validation",
    "half_width",
    "ratios_covered",
]

LEVEL = 0.9
LEAST_POLICIES = 30
"""Fewer give no interval: it would rest on the largest two or three distances."""


def half_width(predicted: FloatArray, measured: FloatArray, level: float = LEVEL) -> float | None:
    """Return h such that a new measurement lies in ``[p / (1 + h), p (1 + h)]`` at `level`.

    Args:
        predicted: (N,) of policies that were not fitted.
        measured: (N,) of the same.
        level: the probability.

    Returns:
        None if there are fewer than `LEAST_POLICIES`, or too few for the level.
    """
    rank = math.ceil(level * (len(predicted) + 1))
    if len(predicted) < LEAST_POLICIES or rank > len(predicted):
        return None
    return float(np.expm1(np.sort(np.abs(np.log(measured / predicted)))[rank - 1]))


@dataclass(frozen=True)
class Validation:
    """What policies that were never fitted say of a calibration.

    Args:
        policies: how many there are.
        total: error of the predictions that know the neighbours.
        table: error of the table alone.
        half_width: relative, of the 90 % interval of a new policy; None if they are too few.
    """

    policies: int
    total: PredictionError
    table: PredictionError
    half_width: float | None

    @classmethod
    def of(cls, total: FloatArray, table: FloatArray, measured: FloatArray) -> "Validation":
        """Compare both predictions with the measurements, (N,) each."""
        return cls(
            len(measured),
            PredictionError.of(total, measured),
            PredictionError.of(table, measured),
            half_width(total, measured),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "level": LEVEL}


def ratios_covered(predicted: FloatArray, measured: FloatArray, width: float) -> Sequence[bool]:
    """Return which measurements lie in the interval of relative half-width `width`."""
    return [bool(c) for c in np.abs(np.log(measured / predicted)) <= np.log1p(width)]
