"""From a calibration to a cost table of two columns."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from costmodels.table import Cells, CostTable, FloatArray, Provenance, TextArray
from costmodels.units import Metric, Unit
from hil.calibration import Calibration
from quantization.bits import FLOAT32, Format
from quantization.deployment import CPU_TARGET, Target, not_deployable
from quantization.network import Network

STATISTIC = "p10"


def measured_table(
    network: Network,
    found: Calibration,
    source: Mapping[str, object],
    target: Target = CPU_TARGET,
) -> CostTable:
    """Return the table over {w8a8, w32a32}, or {fp16, w32a32}; `costmodels.spread` has others.

    Args:
        network: what was calibrated.
        found: what calibrating it gave.
        source: who measured, and how.
        target: the provider that executed the policies.
    """
    narrow = target.narrow
    layers = len(network.layers)
    base = found.shares * found.float_s
    effect = found.model.coefficients * found.float_s
    spread = found.model.fit.deviations * found.float_s
    integer = base[:layers] + effect[:layers]
    masked = [bool(not_deployable(layer, narrow, target)) for layer in network.layers]
    unary = np.stack([np.where(masked, np.inf, integer), base[:layers]], axis=1)
    deviation = np.stack([spread[:layers], np.zeros(layers)], axis=1)
    kernels = np.array([[k[name] for k in found.kernels] for name in network.layer_names])
    return CostTable(
        Metric.LATENCY,
        Unit.SECONDS,
        STATISTIC,
        network.digest,
        network.layer_names,
        (narrow, FLOAT32),
        tuple(glue.name for glue in network.glue),
        tuple(tensor.name for tensor in network.tensors),
        Cells.of(unary, Provenance.CALIBRATED, kernel=kernels, uncertainty=deviation),
        _glue_cells(network, found, base[layers:]),
        _conversion_cells(network, found),
        constant=0.0,  # all of the float network's time is shared out among layers and glue
        source=source,
        measurements=[
            {
                "half_layers" if narrow.half else "integer_layers": [bool(b) for b in t.pattern],
                "ratio_to_float": t.ratio,
                "policy": t.measurement.to_dict(),
                "float": t.reference.to_dict(),
                "judged": bool(judges),
            }
            for t, judges in zip(found.timed, found.judged, strict=True)
        ],
        context=found.model.context.scaled(found.float_s),
    )


def _glue_cells(network: Network, found: Calibration, base: FloatArray) -> Cells:
    """(G, 2): glue in the narrow format and as floats.

    Operators without an integer kernel never run as integers; what that would cost is assumed.
    """
    value, spread = np.stack([base, base], axis=1), np.zeros((len(base), 2))
    position = {glue.name: i for i, glue in enumerate(network.glue)}
    rows = [position[name] for name in found.model.effects.glue]
    first = len(network.layers)
    fitted = slice(first, first + len(rows))
    value[rows, 0] += found.model.coefficients[fitted] * found.float_s
    spread[rows, 0] = found.model.fit.deviations[fitted] * found.float_s
    known = np.full(value.shape, Provenance.CALIBRATED)
    known[:, 0] = Provenance.ASSUMED
    known[rows, 0] = _provenance(found.paid[fitted])
    return Cells.of(value, known, uncertainty=spread)


def _conversion_cells(network: Network, found: Calibration) -> Cells:
    """(T, 2, 2): what a tensor costs that is written in the first format and read in the second."""
    value, spread = np.zeros((2, len(network.tensors), 2, 2))
    known = np.full(value.shape, Provenance.EXACT, "U16")  # the diagonal is zero by definition
    row = {tensor.name: i for i, tensor in enumerate(network.tensors)}
    first = len(network.layers) + len(found.model.effects.glue)
    for column, (tensor, target) in enumerate(found.model.effects.conversions, start=first):
        written, read = (0, 1) if target is Format.FLOAT32 else (1, 0)
        value[row[tensor], written, read] = found.model.coefficients[column] * found.float_s
        spread[row[tensor], written, read] = found.model.fit.deviations[column] * found.float_s
        known[row[tensor], written, read] = _provenance(found.paid[column])
    return Cells.of(value, known, uncertainty=spread)


def _provenance(paid: npt.ArrayLike) -> TextArray:
    """What fitted cells are called: times tell nothing of what no timed policy ever paid."""
    return np.where(paid, Provenance.CALIBRATED, Provenance.ASSUMED)
