"""Judges a device model by networks that were never fitted, and gives it its intervals."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.interval import LEVEL, NetworkInterval
from costmodels.calibrated.samples import Overhead, Sample
from costmodels.cells import FloatArray
from costmodels.prediction_error import PredictionError

LEAST_ROWS = 30
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
    interval = NetworkInterval.of(predicted, measured, networks)
    validation: dict[str, Any] = {
        "policies": len(apart),
        "networks": len(set(networks)),
        "total": asdict(error),
        "textbook": asdict(PredictionError.of(model.textbook.seconds(apart), measured)),
        "interval": None if interval is None else interval.to_dict(),
        "level": LEVEL,
    }
    return replace(model, validation=validation, half_widths=_row_widths(model, apart, overhead))


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
