"""Cost backends beside each other: how well each agrees with what was measured.

Three questions, from the strictest to what a search needs:

    error              are its seconds right?
    rank correlation   does it order policies as the measurement does?
    regret             how much slower than the best is the policy that it would have picked?

A backend that is off by a constant factor, or that counts in another unit, orders policies as well
as before. So the error is also told after one factor, which is fitted to the same policies.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.errors import BackendError, CostError, UnsupportedChoiceError
from costmodels.model import CostModel, unit_of
from costmodels.prediction_error import PredictionError
from costmodels.size import ExportedSize
from costmodels.table import FloatArray
from costmodels.units import SI_UNIT, Metric, Unit
from quantization.errors import QuantmeterError
from quantization.network import Network
from quantization.policy import PolicyBatch

MACS_BITS = "MACs x bits"
_TIED = 1e-9
"""Predictions that differ relatively by no more are equal: sums in another order may."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What one backend, or one simple number, says of P policies.

    Args:
        name: who says so.
        values: (P,), lower is better.
        unit: of the values; None where they are no cost in any unit.

    Raises:
        BackendError: if a value is not positive and finite, which no factor makes comparable.
    """

    name: str
    values: FloatArray
    unit: Unit | None

    def __post_init__(self) -> None:
        wrong = np.flatnonzero(~((self.values > 0) & np.isfinite(self.values)))
        if self.values.ndim != 1 or len(wrong):
            what = f"policy {wrong[0]} costs {self.values[wrong[0]]:g}" if len(wrong) else "no row"
            raise BackendError(f"{self.name}: one positive cost for each policy expected; {what}")

    def take(self, kept: npt.NDArray[np.intp]) -> "Prediction":
        """Return the prediction for the policies at the positions `kept` only."""
        return Prediction(self.name, self.values[kept], self.unit)


@dataclass(frozen=True, eq=False)
class Agreement:
    """How well one prediction agrees with P measurements.

    Args:
        prediction: who predicts what.
        error: of the values as they are; None where their unit is not that of the measurement.
        scale: the factor f that makes ``f * predicted`` fit best: the exponential of the median of
            ``log(measured / predicted)``, which minimises the mean distance of logarithms.
        scaled: error after that factor, which is fitted to the policies that it is judged by.
        picked: positions of the policies that are predicted to cost least: one, or all that tie.
        picked_cost: what they were measured to cost; the mean over those that tie.
        regret: ``picked_cost`` over the least measured cost, minus 1; never negative.
    """

    prediction: Prediction
    error: PredictionError | None
    scale: float
    scaled: PredictionError
    picked: tuple[int, ...]
    picked_cost: float
    regret: float

    @classmethod
    def of(cls, prediction: Prediction, measured: FloatArray, metric: Metric) -> "Agreement":
        """Compare a prediction with measurements.

        Args:
            prediction: of P policies.
            measured: (P,) in the SI unit of `metric`.
            metric: what was measured.

        Raises:
            CostError: if the measurements are not P positive numbers, or P is below 2.
        """
        predicted = prediction.values
        check_measured(measured, len(predicted))
        scale = float(np.exp(np.median(np.log(measured / predicted))))
        comparable = prediction.unit is SI_UNIT[metric]
        picked = np.flatnonzero(predicted <= predicted.min() * (1 + _TIED))
        cost = float(measured[picked].mean())
        return cls(
            prediction,
            PredictionError.of(predicted, measured) if comparable else None,
            scale,
            PredictionError.of(scale * predicted, measured),
            tuple(picked.tolist()),
            cost,
            cost / float(measured.min()) - 1,
        )

    @property
    def name(self) -> str:
        """Who predicts."""
        return self.prediction.name

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's; None where all predictions, or all measurements, are equal."""
        return self.scaled.rank_correlation

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        unit = self.prediction.unit
        return {
            "name": self.name,
            "unit": None if unit is None else unit.value,
            "predicted": self.prediction.values.tolist(),
            "error": None if self.error is None else _error(self.error),
            "scale": self.scale,
            "scaled": _error(self.scaled),
            "rank_correlation": self.rank_correlation,
            "picked": list(self.picked),
            "picked_cost": self.picked_cost,
            "regret": self.regret,
        }


def _error(error: PredictionError) -> dict[str, float]:
    return {"mean_absolute": error.mean_absolute, "near": error.near}


def compare(
    network: Network,
    policies: PolicyBatch,
    measured: FloatArray,
    models: Mapping[str, CostModel],
    metric: Metric = Metric.LATENCY,
) -> tuple[Agreement, ...]:
    """Compare cost models on the same policies with what these were measured to cost.

    Args:
        network: the network.
        policies: P of them, at least 2.
        measured: (P,) in the SI unit of `metric`.
        models: by the name that errors and results use.
        metric: what was measured.

    Returns:
        One per model, in their order.

    Raises:
        BackendError: if a model cannot price the policies; names it.
        CostError: if the measurements are not P positive numbers, or P is below 2.
        UnsupportedChoiceError: if a policy uses bits that a model does not support; names it.
    """
    check_measured(measured, len(policies))
    predictions = predict(network, policies, models, metric)
    return tuple(Agreement.of(prediction, measured, metric) for prediction in predictions)


def predict(
    network: Network,
    policies: PolicyBatch,
    models: Mapping[str, CostModel],
    metric: Metric,
    progress: Callable[[str], None] = lambda _name: None,
) -> tuple[Prediction, ...]:
    """Ask each model for the cost of each policy.

    Args:
        network: the network.
        policies: P of them.
        models: by the name that errors and results use.
        metric: what to price.
        progress: called with the name of each model before it is asked.

    Raises:
        BackendError: if a model cannot price the policies; names it.
        UnsupportedChoiceError: if a policy uses bits that a model does not support; names it.
    """
    found = []
    for name, model in models.items():
        progress(name)
        try:
            values = model.total(network, policies, metric)
            unit = unit_of(model, network, policies.choices, metric)
        except UnsupportedChoiceError as error:
            raise UnsupportedChoiceError(
                f"{name}: {error}; policies are compared beside float, which it must price too"
            ) from error
        except QuantmeterError as error:
            raise BackendError(f"{name}: {error}") from error
        if values.shape != (len(policies),):
            raise BackendError(
                f"{name}: one cost for each of {len(policies)} policies expected, "
                f"not {values.shape}"
            )
        found.append(Prediction(name, values, unit))
    return tuple(found)


def check_measured(measured: FloatArray, policies: int) -> None:
    """Raise unless `measured` holds one positive number for each policy, and these are two or more.

    Raises:
        CostError: says what it holds instead.
    """
    if measured.shape != (policies,):
        raise CostError(f"{policies} policies need as many measurements, not {measured.shape}")
    if policies < 2:
        raise CostError("one policy leaves nothing to pick from; measure at least two")
    if not ((measured > 0) & np.isfinite(measured)).all():
        raise CostError("every measurement must be positive and finite")


def macs_bits(network: Network, policies: PolicyBatch) -> FloatArray:
    """Return the sum over layers of MACs times weight bits times activation bits, (P,)."""
    macs = np.array([layer.macs for layer in network.layers], np.float64)
    bits = np.array([c.mean_weights * c.activations for c in policies.choices], np.float64)
    return bits[policies.index] @ macs


def rivals(network: Network, policies: PolicyBatch) -> tuple[Prediction, ...]:
    """Return what needs no backend: MACs x bits, and the size of the exported file.

    The size is missing where a policy cannot be exported: there is no file then.
    """
    found = [Prediction(MACS_BITS, macs_bits(network, policies), None)]
    exported = ExportedSize()
    try:
        sizes = exported.total(network, policies, Metric.SIZE)
    except UnsupportedChoiceError:
        return tuple(found)
    return (*found, Prediction(exported.name, sizes, Unit.BYTES))
