"""The backend ``calibrated:DEVICE.json``: latency of any network on a device measured once."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from costmodels.calibrated.device_model import LEVEL_SIGMAS, DeviceModel
from costmodels.calibrated.items import Items, NetworkItems, items_of
from costmodels.errors import BackendError
from costmodels.model import BackendContext, TableBackend
from costmodels.spread import INTEGER, spread_table
from costmodels.table import BoolArray, Cells, CostTable, FloatArray, Provenance, TextArray
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
    """The table of a network over `INTEGER` and float32."""
    _require_known(backend, network)
    model, items = backend.model, items_of(network)
    parts = (items.layers, items.layers, items.glue, items.glue, items.quantize, items.dequantize)
    reads = (True, False, True, False, True, False)
    integer = np.concatenate([np.full(len(p), r) for p, r in zip(parts, reads, strict=True)])
    rows = Items.joined(parts)
    seconds = model.seconds(rows, integer)
    spread = seconds * model.spread(rows, integer) / LEVEL_SIGMAS
    edges = np.cumsum([len(part) for part in parts])[:-1]
    values, spreads = np.split(seconds, edges), np.split(spread, edges)
    layers, glue = np.stack(values[:2], axis=1), np.stack(values[2:4], axis=1)
    layers[[bool(not_deployable(layer, INTEGER)) for layer in network.layers], 0] = np.inf
    outside = {
        "layer": model.domain.outside(items.layers),
        "operator": model.domain.outside(items.glue),
        "conversion of": model.domain.outside(items.quantize),
    }
    listed = {
        "layer": network.layer_names,
        "operator": tuple(each.name for each in network.glue),
        "conversion of": tuple(tensor.name for tensor in network.tensors),
    }
    known = {
        what: np.where(beyond, Provenance.ASSUMED.value, Provenance.CALIBRATED.value)
        for what, beyond in outside.items()
    }
    return CostTable(
        Metric.LATENCY,
        Unit.SECONDS,
        "p10",
        network.digest,
        network.layer_names,
        (INTEGER, FLOAT32),
        listed["operator"],
        listed["conversion of"],
        _block(layers, np.stack(spreads[:2], axis=1), known["layer"]),
        _block(glue, np.stack(spreads[2:4], axis=1), known["operator"]),
        _crossings(values[4:], spreads[4:], known["conversion of"]),
        constant=model.constant_s,
        source={
            "backend": backend.name,
            "method": "a device calibrated on other networks",
            "device": model.device.to_dict(),
            "threads": model.threads,
            "validation": dict(model.validation),
            **{k: model.source[k] for k in ("created_s", "runtime") if k in model.source},
            "notes": _notes(model, items, outside, listed),
        },
    )


def _block(values: FloatArray, spread: FloatArray, known: TextArray) -> Cells:
    """Cells of layers or glue, as integers and as floats: (N, 2)."""
    return Cells.of(values, np.broadcast_to(known[:, None], values.shape), uncertainty=spread)


def _crossings(
    values: Sequence[FloatArray], spreads: Sequence[FloatArray], known: TextArray
) -> Cells:
    """Cells of conversions, (T, 2, 2), from those to integers and those to floats, (T,) each."""
    value, spread = np.zeros((2, len(known), 2, 2))
    told = np.full(value.shape, Provenance.EXACT.value, "U16")  # zero by definition
    for place, each, deviation in zip(((1, 0), (0, 1)), values, spreads, strict=True):
        value[:, *place], spread[:, *place], told[:, *place] = each, deviation, known
    return Cells.of(value, told, uncertainty=spread)


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
    items: NetworkItems,
    outside: Mapping[str, BoolArray],
    listed: Mapping[str, Sequence[str]],
) -> list[str]:
    notes = []
    if model.interval:
        how = "each left out once" if "transferred_from" in model.source else "never fitted"
        count = model.validation["networks"]
        notes.append(f"90 % interval of a whole run: by {count} random networks, {how}")
    if model.domain.larger(items.layers):
        notes.append("the network as a whole is far larger than any that was measured")
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
