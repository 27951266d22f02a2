"""Judges a device model by networks that were never fitted, and gives it its intervals.

Intervals are conformal: of the distances between the logarithms of prediction and measurement, the
one that keeps 90 % of a new network's below it (`costmodels.calibrated.device_model` stores it).
Policies of one network are not independent, and networks differ in how many there are; so each
network counts alike, and the level is that of n networks: ``(0.9 (n + 1)) / n``.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.samples import Overhead, Sample
from costmodels.cells import FloatArray
from costmodels.prediction_error import PredictionError

LEVEL = 0.9
LEAST_NETWORKS, LEAST_ROWS = 10, 30
"""Fewer give no interval."""
_TOLD_S = 2e-6
"""Rows that take less are told by whole microseconds only; none is judged by them."""


def totals(model: DeviceModel, samples: Sequence[Sample]) -> FloatArray:
    """Return the predicted seconds of each sample's whole run, (P,)."""
    return np.array(
        [model.constant_s + model.seconds(s.items, s.integer).sum() for s in samples], np.float64
    )


def judged(model: DeviceModel, apart: Sequence[Sample], overhead: Overhead) -> DeviceModel:
    """Return `model` with intervals and a validation by samples that were never fitted.

    Args:
        model: fitted without them.
        apart: the samples.
        overhead: of the profiler.
    """
    predicted = totals(model, apart)
    measured = np.array([sample.total_s for sample in apart])
    error = PredictionError.of(predicted, measured)
    networks = [sample.network for sample in apart]
    width = network_half_width(predicted, measured, networks)
    validation: dict[str, Any] = {
        "policies": len(apart),
        "networks": len(set(networks)),
        "total": asdict(error),
        "textbook": asdict(PredictionError.of(model.textbook.seconds(apart), measured)),
        "half_width": width,
        "level": LEVEL,
    }
    return replace(model, validation=validation, half_widths=_row_widths(model, apart, overhead))


def network_half_width(
    predicted: FloatArray, measured: FloatArray, networks: Sequence[str], level: float = LEVEL
) -> float | None:
    """Return h such that a policy of a new network lies in ``[p / (1 + h), p (1 + h)]`` at `level`.

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
    distance = np.abs(np.log(measured / predicted))
    order = np.argsort(distance)
    weight = np.cumsum((1 / counts[index] / len(names))[order])
    first = int(np.searchsorted(weight, share - 1e-12))
    return float(np.expm1(distance[order[min(first, len(order) - 1)]]))


def _row_widths(
    model: DeviceModel, apart: Sequence[Sample], overhead: Overhead
) -> dict[str, float]:
    """Relative half-width of a row's interval by kind and format, split conformal."""
    distances: dict[str, list[float]] = {}
    for sample in apart:
        seconds = overhead.undisturbed_s(sample)
        predicted = model.seconds(sample.items, sample.integer)
        told = (seconds > _TOLD_S) & (predicted > 0)
        for i in np.flatnonzero(told):
            word = "integer" if sample.integer[i] else "float"
            key = f"{sample.items.kind[i]}, {word}"
            distances.setdefault(key, []).append(abs(math.log(seconds[i] / predicted[i])))
    widths = {}
    for key, found in distances.items():
        rank = math.ceil(LEVEL * (len(found) + 1))
        if len(found) >= LEAST_ROWS and rank <= len(found):
            widths[key] = float(np.expm1(np.sort(found)[rank - 1]))
    return widths
