"""Rescales a calibrated device to another one, of which only a few probes were measured.

Each group of rows gets one factor, the weighted median of measured over predicted times, drawn
towards the factor of whole runs where a group decides little; the constant is that of the probes.
How good that is, is told by leaving out one probe at a time.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from costmodels.calibrated.device_model import GROUPS, DeviceModel, groups_of
from costmodels.calibrated.samples import Overhead, Sample
from costmodels.calibrated.validating import LEVEL, network_half_width, totals
from costmodels.cells import FloatArray
from costmodels.errors import BackendError
from costmodels.measurement import Device
from costmodels.prediction_error import PredictionError

LEAST_PROBES = 5
_DRAWN = 0.02
"""A group that takes this share of the time is drawn halfway to the factor of whole runs."""


def transferred(
    model: DeviceModel, samples: Sequence[Sample], device: Device, threads: int
) -> DeviceModel:
    """Return `model` rescaled to the device that `samples` were measured on.

    Args:
        model: of another device, or of other threads.
        samples: probes on the new device.
        device: the new device.
        threads: of its runtime.

    Returns:
        The model, with a validation by leaving out each probe once: ``before`` is the error of the
        model as it was, ``total`` that of the rescaled one.

    Raises:
        BackendError: if there are fewer than `LEAST_PROBES` probes.
    """
    names = list(dict.fromkeys(sample.network for sample in samples))
    if len(names) < LEAST_PROBES:
        raise BackendError(
            f"{len(names)} probes were measured; {LEAST_PROBES} are needed to rescale a device"
        )
    measured, predicted, order = [], [], []
    for name in names:
        left = [sample for sample in samples if sample.network == name]
        others = [sample for sample in samples if sample.network != name]
        predicted.append(totals(_rescaled(model, others), left))
        measured += [sample.total_s for sample in left]
        order += [name] * len(left)
    apart, truth = np.concatenate(predicted), np.array(measured)
    rescaled = _rescaled(model, samples)
    before = totals(model, samples)
    validation: dict[str, Any] = {
        "policies": len(truth),
        "networks": len(names),
        "total": asdict(PredictionError.of(apart, truth)),
        "before": asdict(
            PredictionError.of(before, np.array([sample.total_s for sample in samples]))
        ),
        "half_width": network_half_width(apart, truth, order),
        "level": LEVEL,
    }
    return replace(
        rescaled,
        device=device,
        threads=threads,
        validation=validation,
        half_widths={},
        source={
            "transferred_from": {"device": model.device.to_dict(), "threads": model.threads},
            "probes": len(names),
            "scales": {name: part.scale for name, part in rescaled.parts.items()},
        },
    )


def _rescaled(model: DeviceModel, samples: Sequence[Sample]) -> DeviceModel:
    """Return the model with the factors that explain `samples`."""
    overhead = Overhead.of(samples)
    found: dict[str, list[tuple[FloatArray, FloatArray]]] = {name: [] for name in GROUPS}
    for sample in samples:
        taken, predicted = (
            overhead.undisturbed_s(sample),
            model.seconds(sample.items, sample.integer),
        )
        group = groups_of(sample.items, sample.integer)
        for name in GROUPS:
            here = (group == name) & (taken > 0) & (predicted > 0)
            found[name].append((taken[here], predicted[here]))
    spent = {name: sum(float(taken.sum()) for taken, _ in pairs) for name, pairs in found.items()}
    ratios = [
        (sample.total_s - overhead.constant_s) / model.seconds(sample.items, sample.integer).sum()
        for sample in samples
    ]
    whole = float(np.log(np.median(ratios)))
    parts = {}
    for name, part in model.parts.items():
        ratio = np.concatenate([np.log(taken / predicted) for taken, predicted in found[name]])
        weight = np.concatenate([taken for taken, _ in found[name]])
        share = spent[name] / sum(spent.values())
        own = _weighted_median(ratio, weight) if len(ratio) else whole
        factor = np.exp((share * own + _DRAWN * whole) / (share + _DRAWN))
        parts[name] = replace(part, scale=part.scale * float(factor))
    return replace(model, parts=parts, constant_s=overhead.constant_s)


def _weighted_median(values: FloatArray, weights: FloatArray) -> float:
    order = np.argsort(values)
    passed = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])
