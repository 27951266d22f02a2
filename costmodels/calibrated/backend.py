"""The backend ``calibrated:DEVICE.json``: latency of any network on a device measured once."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from costmodels.calibrated.device_model import LEVEL_SIGMAS, DeviceModel
from costmodels.calibrated.items import Items, items_of
from costmodels.errors import BackendError
from costmodels.model import BackendContext, TableBackend
from costmodels.spread import INTEGER, spread_table
from costmodels.table import Cells, CostTable, FloatArray, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import FLOAT32, BitWidths
from quantization.deployment import not_deployable
from quantization.network import Network

_NAMED = 3


class Calibrated(TableBackend):
    """Prices by what a device was measured to do.

    Args:
        model: the device.
        name: what to call it.
    """

    metrics = frozenset({Metric.LATENCY})

    def __init__(self, model: DeviceModel, name: str = "calibrated") -> None:
        self.model, self.name = model, name

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Price every layer, glue operator and conversion; nothing is measured.

        What lies outside what the device was measured with is priced, marked ``assumed``, and named
        in the table's notes.

        Raises:
            BackendError: if another metric is asked for, or a layer is of a kind that was never
                measured.
        """
        self.require(metric)
        return spread_table(_table(self, network), network, choices)


@lru_cache(maxsize=64)
def _table(backend: Calibrated, network: Network) -> CostTable:
    model, items = backend.model, items_of(network)
    _require_known(backend, network)
    layers, spread = _both(model, items.layers)
    glue, glue_spread = _both(model, items.glue)
    crossing = np.zeros((len(network.tensors), 2, 2))
    crossing_spread = np.zeros_like(crossing)
    for part, integer, place in ((items.quantize, True, (1, 0)), (items.dequantize, False, (0, 1))):
        values, spreads = _one(model, part, integer)
        crossing[:, *place], crossing_spread[:, *place] = values, spreads
    outside = {
        "layer": model.domain.outside(items.layers),
        "operator": model.domain.outside(items.glue),
        "conversion of": model.domain.outside(items.quantize),
    }
    masked = [bool(not_deployable(layer, INTEGER)) for layer in network.layers]
    layers[masked, 0] = np.inf
    names = tuple(each.name for each in network.glue)
    tensors = tuple(tensor.name for tensor in network.tensors)
    listed = {"layer": network.layer_names, "operator": names, "conversion of": tensors}
    provenance = {
        what: np.where(beyond, Provenance.ASSUMED.value, Provenance.CALIBRATED.value)
        for what, beyond in outside.items()
    }
    crossings = np.full(crossing.shape, Provenance.EXACT.value, "U16")
    crossings[:, 0, 1] = crossings[:, 1, 0] = provenance["conversion of"]
    return CostTable(
        Metric.LATENCY,
        Unit.SECONDS,
        "p10",
        network.digest,
        network.layer_names,
        (INTEGER, FLOAT32),
        names,
        tensors,
        Cells.of(
            layers, np.broadcast_to(provenance["layer"][:, None], layers.shape), uncertainty=spread
        ),
        Cells.of(
            glue,
            np.broadcast_to(provenance["operator"][:, None], glue.shape),
            uncertainty=glue_spread,
        ),
        Cells.of(crossing, crossings, uncertainty=crossing_spread),
        constant=model.constant_s,
        source={
            "backend": backend.name,
            "method": "a device calibrated on other networks",
            "device": model.device.to_dict(),
            "threads": model.threads,
            "validation": dict(model.validation),
            **{key: model.source[key] for key in ("created_s",) if key in model.source},
            "notes": _notes(model, outside, listed),
        },
    )


def _both(model: DeviceModel, items: Items) -> tuple[FloatArray, FloatArray]:
    """Seconds and standard deviations as integers and as floats, (N, 2) each."""
    values = [_one(model, items, integer) for integer in (True, False)]
    return np.stack([v for v, _ in values], axis=1), np.stack([s for _, s in values], axis=1)


def _one(model: DeviceModel, items: Items, integer: bool) -> tuple[FloatArray, FloatArray]:
    reads = np.full(len(items), integer)
    seconds = model.seconds(items, reads)
    return seconds, seconds * model.spread(items, reads) / LEVEL_SIGMAS


def _require_known(backend: Calibrated, network: Network) -> None:
    known = backend.model.domain.knows(items_of(network).layers)
    if not known.all():
        first = int(np.flatnonzero(~known)[0])
        kind = items_of(network).layers.kind[first]
        raise BackendError(
            f"{backend.name} was never measured with a layer such as "
            f"{network.layer_names[first]!r} ({kind}); measure this network itself: "
            "quantmeter calibrate MODEL.onnx --cost ort"
        )


def _notes(
    model: DeviceModel,
    outside: "dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]",
    listed: "dict[str, tuple[str, ...]]",
) -> list[str]:
    notes = []
    if width := model.validation.get("half_width"):
        notes.append(
            f"latency of a whole network: 90 % interval from prediction / {1 + width:.2f} to "
            f"prediction x {1 + width:.2f}, of {model.validation['networks']} random networks "
            "that were never fitted"
        )
    for what, beyond in outside.items():
        if count := int(beyond.sum()):
            names = [listed[what][i] for i in np.flatnonzero(beyond)[:_NAMED]]
            more = f" and {count - _NAMED} more" if count > _NAMED else ""
            notes.append(
                f"outside what the device was measured with, extrapolated: {what} "
                f"{', '.join(names)}{more}"
            )
    return notes


def create(argument: str, context: BackendContext) -> Calibrated:
    """Price by a calibrated device: ``calibrated:DEVICE.json``.

    Raises:
        BackendError: if no file is named.
        TableError: if the file holds no calibrated device.
    """
    del context  # a calibrated device needs nothing else
    if not argument:
        raise BackendError("name the device's file: calibrated:DEVICE.json")
    return Calibrated(DeviceModel.read(argument), f"calibrated:{argument}")
