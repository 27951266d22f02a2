"""Rescales a calibrated device to another one, of which only a few whole networks were measured.

Three ways are tried: nothing at all, one factor for everything, and a factor for each group of
rows, drawn towards the one factor. Each is judged by leaving out one network at a time, and the
simplest that is as good as the best is taken: a few networks may not tell four factors. Only
undisturbed whole runs count; a profile of another machine would have to be mended first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from costmodels.calibrated.device_model import DeviceModel, groups_of
from costmodels.calibrated.interval import LEVEL, NetworkInterval
from costmodels.calibrated.samples import Sample
from costmodels.calibrated.textbook import Textbook
from costmodels.cells import FloatArray, TextArray
from costmodels.errors import BackendError
from costmodels.measurement import Device
from costmodels.prediction_error import PredictionError

LEAST_PROBES = 5
_WAYS = ("as it was", "one factor", "a factor for each group")
_DRAWN, _LEAST_S = 0.05, 1e-6
"""How strongly a group's factor is drawn to that of all: an e-fold costs what 5 % of error does."""


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
        model as it was, ``total`` that of the way that was taken, ``ways`` those of all.

    Raises:
        BackendError: if there are fewer than `LEAST_PROBES` probes.
    """
    names = list(dict.fromkeys(sample.network for sample in samples))
    if len(names) < LEAST_PROBES:
        raise BackendError(
            f"{len(names)} probes were measured; {LEAST_PROBES} are needed to rescale a device"
        )
    spent = np.array([_by_group(model, sample) for sample in samples])
    truth = np.array([sample.total_s for sample in samples])
    networks = np.array([sample.network for sample in samples])
    judged = {}
    for way in _WAYS:
        apart = np.empty(len(truth))
        for name in names:
            left = networks == name
            factors, constant = _fitted(way, spent[~left], truth[~left], model.constant_s)
            apart[left] = constant + spent[left] @ factors
        judged[way] = apart
    errors = {way: PredictionError.of(apart, truth) for way, apart in judged.items()}
    best = _simplest(judged, truth, networks)
    factors, constant = _fitted(best, spent, truth, model.constant_s)
    parts = {
        name: replace(part, scale=part.scale * float(factor))
        for (name, part), factor in zip(model.parts.items(), factors, strict=True)
    }
    interval = NetworkInterval.of(judged[best], truth, networks.tolist())
    before = model.constant_s + spent.sum(axis=1)
    validation: dict[str, Any] = {
        "policies": len(truth),
        "networks": len(names),
        "total": asdict(errors[best]),
        "before": asdict(PredictionError.of(before, truth)),
        "ways": {way: error.mean_absolute for way, error in errors.items()},
        "interval": None if interval is None else interval.to_dict(),
        "level": LEVEL,
    }
    return replace(
        model,
        parts=parts,
        constant_s=constant,
        device=device,
        threads=threads,
        textbook=Textbook.of(samples),
        validation=validation,
        half_widths={},
        source={
            "transferred_from": {"device": model.device.to_dict(), "threads": model.threads},
            "probes": len(names),
            "way": best,
            "scales": {name: part.scale for name, part in parts.items()},
        },
    )


def _simplest(judged: Mapping[str, FloatArray], truth: FloatArray, networks: TextArray) -> str:
    """The simplest way that is within one standard error of the best (decision 5), by network."""
    off = {
        way: np.array(
            [np.abs(apart / truth - 1)[networks == name].mean() for name in np.unique(networks)]
        )
        for way, apart in judged.items()
    }
    best = min(off.values(), key=lambda each: float(each.mean()))
    more = {way: off[way] - best for way in _WAYS}
    return next(w for w, m in more.items() if m.mean() <= m.std(ddof=1) / np.sqrt(len(m)))


def _by_group(model: DeviceModel, sample: Sample) -> list[float]:
    """Seconds that the model predicts for each group of a sample's rows."""
    seconds = model.seconds(sample.items, sample.integer)
    group = groups_of(sample.items, sample.integer)
    return [float(seconds[group == name].sum()) for name in model.parts]


def _fitted(
    way: str, spent: FloatArray, truth: FloatArray, constant_s: float
) -> tuple[FloatArray, float]:
    """Return a factor for each group, (4,), and the constant, in seconds.

    Args:
        way: one of `_WAYS`.
        spent: (P, 4) predicted seconds by group.
        truth: (P,) measured seconds.
        constant_s: of the model.
    """
    groups = spent.shape[1]
    whole = float(np.median(np.log(truth / (constant_s + spent.sum(axis=1)))))
    if way == _WAYS[0]:
        return np.ones(groups), constant_s
    if way == _WAYS[1]:
        return np.full(groups, np.exp(whole)), constant_s * float(np.exp(whole))
    about = np.append(np.full(groups, whole), np.log(max(constant_s, _LEAST_S)) + whole)

    def residuals(logs: FloatArray) -> FloatArray:
        predicted = np.exp(logs[-1]) + spent @ np.exp(logs[:-1])
        drawn = _DRAWN * np.sqrt(len(truth)) * (logs - about)
        return np.concatenate([np.log(predicted / truth), drawn])

    found = least_squares(residuals, about, loss="soft_l1", f_scale=0.1).x
    return np.exp(found[:-1]), float(np.exp(found[-1]))
