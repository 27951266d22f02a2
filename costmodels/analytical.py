"""The backend ``analytical:NAME``: published numbers in a roofline, or in closed formulas.

An accelerator (`costmodels.accelerator`) is priced by a roofline (`costmodels.roofline`). The
simple formulas that texts print are models of their own (`costmodels.presets`). With b_w the bits
of a weight and b the wider of weight and activation bits:

    size    = params * b_w/8                                   bytes
    latency = alpha * b_w/8 * params + beta * macs * f(b)      seconds
    energy  = b_w/8 * params * e_mem + macs * e_mac(b)         joules

A layer with channel groups costs the sum of its groups (`costmodels.channel_groups`). Glue and
conversions between formats have no term in either: their cells are 0 because the formula says so,
and the table's `source` repeats it. A measured table is where they get a price.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from costmodels.accelerator import Accelerator
from costmodels.accelerator_files import find
from costmodels.calibrated.device_model import DeviceModel
from costmodels.channel_groups import price_parts
from costmodels.model import BackendContext, TableBackend
from costmodels.presets import Preset
from costmodels.quantity import Reading, WidthCurve
from costmodels.roofline import price
from costmodels.table import BoolArray, Cells, CostTable, FloatArray, Provenance
from costmodels.units import SI_UNIT, Metric
from quantization.bits import BitWidths, formats_of
from quantization.network import Layer, Network

CLOSED_FORMULAS = {
    Metric.SIZE: "params * b_w/8",
    Metric.LATENCY: "alpha * b_w/8 * params + beta * macs * f(max(b_w, b_a))",
    Metric.ENERGY: "b_w/8 * params * e_mem + macs * e_mac(max(b_w, b_a))",
}
ROOFLINE = {
    Metric.SIZE: "params * b_w/8",
    Metric.LATENCY: "max(busy * s(b_w, b_a), bits across each memory level / bandwidth)",
    Metric.ENERGY: "macs * e(b_w, b_a) + sum of bits across each memory level * energy per bit",
}
_NO_TERM = "0, because the formula has no such term"


class Analytical(TableBackend):
    """Prices by formula with the numbers of one preset.

    Args:
        preset: an accelerator, or the coefficients of the closed formulas.
    """

    def __init__(self, preset: Preset | Accelerator) -> None:
        self.preset = preset
        self.name = f"analytical:{preset.name}"
        self.metrics = preset.metrics
        self.widths_text = preset.widths_text

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Return the table of `network`; a width that the preset does not have is not supported.

        Raises:
            BackendError: if the preset has no numbers for `metric`.
        """
        self.require(metric)
        return _table(self, network, tuple(choices), metric)


def create(argument: str, context: BackendContext) -> Analytical:
    """Price by published numbers, ``analytical:haq``, or by those of a file or a device.

    ``analytical:MINE.toml`` reads an accelerator of yours (`costmodels.accelerator_files`);
    ``analytical:DEVICE.json`` takes the closed formula that `quantmeter calibrate` fitted to a
    device beside its model: a rival to compare with.

    Raises:
        BackendError: if there is no such preset or file, or the file is wrong.
        TableError: if the JSON file holds no calibrated device.
    """
    del context  # a formula needs nothing else
    if argument.endswith(".json"):
        device = DeviceModel.read(argument)
        return Analytical(device.textbook.preset(argument, device.device.cpu))
    return Analytical(find(argument))


@lru_cache(maxsize=64)
def _table(
    model: Analytical, network: Network, choices: tuple[BitWidths, ...], metric: Metric
) -> CostTable:
    preset = model.preset

    def price_plain(
        layers: Sequence[Layer], widths: Sequence[BitWidths]
    ) -> tuple[FloatArray, BoolArray]:
        if isinstance(preset, Accelerator):
            return price(preset, layers, widths, metric)
        return _closed_formula(preset, layers, widths, metric)

    value, assumed = price_parts(price_plain, network.layers, choices)
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
            "preset": preset.title,
            **_numbers(preset, metric),
            "glue": _NO_TERM,
            "conversion": _NO_TERM,
            "assumed": [str(c) for c, guess in zip(choices, assumed, strict=True) if guess],
            "notes": list(preset.notes(metric)),
        },
    )


def _numbers(preset: Preset | Accelerator, metric: Metric) -> dict[str, Any]:
    """Return the formula of `metric` and the numbers that go in, as JSON values."""
    roofline = isinstance(preset, Accelerator)
    formula = (ROOFLINE if roofline else CLOSED_FORMULAS)[metric]
    given = preset.numbers(metric)
    return {"formula": formula, "coefficients": {name: entry.to_dict() for name, entry in given}}


def _closed_formula(
    preset: Preset, layers: Sequence[Layer], choices: Sequence[BitWidths], metric: Metric
) -> tuple[FloatArray, BoolArray]:
    """Evaluate the closed formula of `metric`.

    Returns:
        (L, K) costs, infinite where a coefficient is missing; (K,) whether anything that went in
        is assumed.
    """
    params = np.array([layer.weight_count for layer in layers], np.float64)[:, None]
    macs = np.array([layer.macs for layer in layers], np.float64)[:, None]
    weight_bytes = params * (np.array([c.weights for c in choices]) / 8)
    if metric is Metric.ENERGY and preset.energy is not None:
        energy = preset.energy
        e_mac, assumed = _read(energy.e_mac, choices)
        value = weight_bytes * energy.e_mem.value + macs * e_mac
        return value, assumed | energy.e_mem.is_assumed
    if metric is Metric.LATENCY and preset.latency is not None:
        latency = preset.latency
        f, assumed = _read(latency.f, choices)
        value = latency.alpha.value * weight_bytes + latency.beta.value * macs * f
        return value, assumed | latency.alpha.is_assumed | latency.beta.is_assumed
    return weight_bytes, np.zeros(len(choices), np.bool_)


def _read(curve: WidthCurve, choices: Sequence[BitWidths]) -> tuple[FloatArray, BoolArray]:
    """Read `curve` at each choice: (K,) values, infinite where there is none; (K,) assumed."""
    missing = Reading(np.inf, assumed=False)
    readings = [curve.at(bits) or missing for bits in choices]
    return np.array([r.value for r in readings]), np.array([r.assumed for r in readings])
