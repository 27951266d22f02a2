"""How far predictions are from measurements, whoever made either."""

from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray

_NEAR = 0.1


@dataclass(frozen=True)
class PredictionError:
    """How far predictions are from measurements.

    Args:
        mean_absolute: mean of ``|predicted / measured - 1|``.
        near: share of policies within 10 %.
        rank_correlation: Spearman's; None where all are equal.
    """

    mean_absolute: float
    near: float
    rank_correlation: float | None

    @classmethod
    def of(cls, predicted: FloatArray, measured: FloatArray) -> "PredictionError":
        """Compare predictions and measurements, (N,) each, N at least 1."""
        from scipy.stats import spearmanr

        off = np.abs(predicted / measured - 1)
        varied = len(off) > 1 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
        rank = float(spearmanr(predicted, measured).statistic) if varied else None
        return cls(float(off.mean()), float((off <= _NEAR).mean()), rank)
