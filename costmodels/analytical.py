"""The backend ``analytical:PRESET``: the closed formulas of the field.

With b_w the bits of a weight and b the wider of weight and activation bits:

    size    = params * b_w/8                                   bytes
    latency = alpha * b_w/8 * params + beta * macs * f(b)      seconds
    energy  = b_w/8 * params * e_mem + macs * e_mac(b)         joules

Glue and conversions between formats have no term in them: their cells are 0 because the formula
says so, and the table's `source` repeats it. A measured table is where they get a price.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from costmodels.calibrated.device_model import DeviceModel
from costmodels.errors import BackendError
from costmodels.model import BackendContext, TableBackend
from costmodels.presets import PRESETS, Preset
from costmodels.quantity import Quantity, Reading, WidthCurve
from costmodels.table import BoolArray, Cells, CostTable, FloatArray, Provenance
from costmodels.units import SI_UNIT, Metric
from quantization.bits import BitWidths, formats_of
from quantization.errors import did_you_mean
from quantization.network import Network

FORMULAS = {
    Metric.SIZE: "params * b_w/8",
    Metric.LATENCY: "alpha * b_w/8 * params + beta * macs * f(max(b_w, b_a))",
    Metric.ENERGY: "b_w/8 * params * e_mem + macs * e_mac(max(b_w, b_a))",
}
_NO_TERM = "0, because the formula has no such term"


class Analytical(TableBackend):
    """Prices by formula with the coefficients of one preset.

    Args:
        preset: the coefficients.
    """

    def __init__(self, preset: Preset) -> None:
        self.preset = preset
        self.name = f"analytical:{preset.name}"
        self.metrics = preset.metrics

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Return the table of `network`; a width without a coefficient is not supported.

        Raises:
            BackendError: if the preset has no coefficients for `metric`.
        """
        self.require(metric)
        return _table(self, network, tuple(choices), metric)


def create(argument: str, context: BackendContext) -> Analytical:
    """Price by published numbers, ``analytical:haq``, or by those fitted to a device.

    ``analytical:DEVICE.json`` takes the closed formula that `quantmeter calibrate` fitted to a
    device beside its model: a rival to compare with.

    Raises:
        BackendError: if there is no such preset; names close matches.
        TableError: if the file holds no calibrated device.
    """
    del context  # a formula needs nothing else
    if argument.endswith(".json"):
        device = DeviceModel.read(argument)
        return Analytical(device.textbook.preset(argument, device.device.cpu))
    if argument not in PRESETS:
        raise BackendError(
            f"no analytical preset {argument!r}{did_you_mean(argument, PRESETS)}; "
            f"write {' or '.join(f'analytical:{name}' for name in PRESETS)}"
        )
    return Analytical(PRESETS[argument])


@lru_cache(maxsize=64)
def _table(
    model: Analytical, network: Network, choices: tuple[BitWidths, ...], metric: Metric
) -> CostTable:
    value, assumed, coefficients = _unary(model.preset, network, choices, metric)
    how = np.where(assumed, Provenance.ASSUMED.value, Provenance.ANALYTICAL.value)
    tensors = tuple(tensor.name for tensor in network.tensors)
    f = len(formats_of(choices))
    return CostTable(
        metric=metric,
        unit=SI_UNIT[metric],
        statistic="model",
        network=network.digest,
        layers=network.layer_names,
        choices=choices,
        glue_names=tuple(glue.name for glue in network.glue),
        tensors=tensors,
        unary=Cells.of(value, np.broadcast_to(how, value.shape)),
        glue=Cells.of(np.zeros((len(network.glue), f)), Provenance.ANALYTICAL),
        conversion=Cells.of(np.zeros((len(tensors), f, f)), Provenance.ANALYTICAL),
        source={
            "backend": model.name,
            "preset": model.preset.title,
            "formula": FORMULAS[metric],
            "glue": _NO_TERM,
            "conversion": _NO_TERM,
            "coefficients": {name: entry.to_dict() for name, entry in coefficients.items()},
            "assumed": [str(c) for c, guess in zip(choices, assumed, strict=True) if guess],
            "notes": list(model.preset.notes(metric)),
        },
    )


def _unary(
    preset: Preset, network: Network, choices: tuple[BitWidths, ...], metric: Metric
) -> tuple[FloatArray, BoolArray, dict[str, Quantity]]:
    """Evaluate the formula of `metric`.

    Returns:
        (L, K) costs, infinite where a coefficient is missing; (K,) whether anything that went in
        is assumed; the coefficients by name.
    """
    params = np.array([layer.weight_count for layer in network.layers], np.float64)[:, None]
    macs = np.array([layer.macs for layer in network.layers], np.float64)[:, None]
    weight_bytes = params * (np.array([c.weights for c in choices]) / 8)
    if metric is Metric.ENERGY and preset.energy is not None:
        energy = preset.energy
        e_mac, assumed = _read(energy.e_mac, choices)
        value = weight_bytes * energy.e_mem.value + macs * e_mac
        named = {"e_mem": energy.e_mem, **_prefixed("e_mac", energy.e_mac)}
        return value, assumed | energy.e_mem.is_assumed, named
    if metric is Metric.LATENCY and preset.latency is not None:
        latency = preset.latency
        f, assumed = _read(latency.f, choices)
        value = latency.alpha.value * weight_bytes + latency.beta.value * macs * f
        named = {"alpha": latency.alpha, "beta": latency.beta, **_prefixed("f", latency.f)}
        return value, assumed | latency.alpha.is_assumed | latency.beta.is_assumed, named
    return weight_bytes, np.zeros(len(choices), np.bool_), {}


def _read(curve: WidthCurve, choices: tuple[BitWidths, ...]) -> tuple[FloatArray, BoolArray]:
    """Read `curve` at each choice: (K,) values, infinite where there is none; (K,) assumed."""
    missing = Reading(np.inf, assumed=False)
    readings = [curve.at(bits) or missing for bits in choices]
    return np.array([r.value for r in readings]), np.array([r.assumed for r in readings])


def _prefixed(name: str, curve: WidthCurve) -> dict[str, Quantity]:
    return {f"{name}({operand})": entry for operand, entry in curve.entries.items()}
