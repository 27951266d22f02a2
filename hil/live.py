"""The backend ``ort``: latency measured on this machine through ONNX Runtime.

`table` calibrates a network in context (`hil.calibration`); `total` builds and times the quantized
networks themselves. Choices that execute the same kernel share one measurement, hence one number.
"""

from collections.abc import Sequence

import numpy as np

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.table import Cells, CostTable, FloatArray, Provenance
from costmodels.units import Metric, Unit
from hil.audit import executed_kernels
from hil.calibration import INTEGER, Calibration, as_policy, calibrate_network
from hil.device import detect
from hil.ort import Runner, one_feed, optimized_graph, random_inputs, recorded_options
from hil.timing import TimingOptions, time_interleaved
from quantization.bits import BitWidths, Format, formats_of
from quantization.export import Exporter, ExportOptions, not_deployable
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import collect_ranges, made_up_ranges

STATISTIC = "p10"


class OrtLive:
    """Measures latency through ONNX Runtime's CPU provider.

    Args:
        context: threads, time for a table, real inputs, seed.
    """

    name = "ort"
    metrics = frozenset({Metric.LATENCY})

    def __init__(self, context: BackendContext) -> None:
        self._context = context
        self._device = detect()
        self._exporters: dict[str, Exporter] = {}
        self._tables: dict[str, CostTable] = {}
        self._totals: dict[tuple[str, bytes], float] = {}

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Calibrate `network` for `BackendContext.seconds`; once per network.

        Raises:
            BackendError: if another metric is asked for, or the time is too short.
        """
        self._require(metric)
        if network.digest not in self._tables:
            found = calibrate_network(
                self._exporter(network),
                self._inputs(network),
                seconds=self._context.seconds,
                threads=self._context.threads,
                seed=self._context.seed,
                progress=self._context.progress,
            )
            self._tables[network.digest] = self._as_table(network, found)
        return _spread(self._tables[network.digest], network, choices)

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Build and time each policy, paired with the float network; (P,) seconds, p10.

        Raises:
            BackendError: if another metric is asked for.
            UnsupportedChoiceError: if a policy uses bits that do not run here.
        """
        self._require(metric)
        totals = []
        for position in range(len(policies)):
            policy = policies[position]
            for layer in network.layers:
                if reason := not_deployable(layer, policy[layer.name]):
                    raise UnsupportedChoiceError(
                        f"policy {position}: layer {layer.name!r} at {policy[layer.name]}: {reason}"
                    )
            totals.append(self._time(network, policy))
        return np.array(totals, np.float64)

    def _time(self, network: Network, policy: Policy) -> float:
        integer = np.array([not policy[n].reads.is_float for n in network.layer_names])
        key = network.digest, integer.tobytes()
        reference = network.digest, b"float"
        if key not in self._totals:
            exporter, feed = self._exporter(network), one_feed(network, self._inputs(network))
            runs = {
                name: Runner(exporter.build(given), self._context.threads, feed)
                for name, given in (("float", Policy({})), ("policy", as_policy(network, integer)))
            }
            found = time_interleaved(runs, TimingOptions(blocks=10, seed=self._context.seed))
            base = self._totals.setdefault(reference, found["float"].p10_s)
            self._totals[key] = base * found["policy"].p10_s / found["float"].p10_s
        return self._totals[key]

    def _inputs(self, network: Network) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
        given = self._context.inputs
        return random_inputs(network, 4, self._context.seed) if given is None else given

    def _exporter(self, network: Network) -> Exporter:
        if network.digest not in self._exporters:
            real = self._context.inputs is not None
            ranges = (
                collect_ranges(network, self._inputs(network)[:64])
                if real
                else made_up_ranges(network)
            )
            options = ExportOptions(
                weight_method="minmax", pack=False, reduce_range=self._device.saturates
            )
            self._exporters[network.digest] = Exporter(network, ranges, options)
        return self._exporters[network.digest]

    def _as_table(self, network: Network, found: Calibration) -> CostTable:
        """A table over {w8a8, w32a32}; `_spread` copies its integer column to other widths."""
        choices = (INTEGER, BitWidths(32, 32))
        known = formats_of(choices)
        effect = found.fit.coefficients * found.float_s
        spread = found.fit.deviations * found.float_s
        layers, glue = len(network.layers), len(found.effects.glue)
        share = np.array([found.float_shares.get(n, 0.0) for n in network.layer_names])
        base = share * found.float_s
        integer = np.maximum(base + effect[:layers], 0.0)
        masked = [bool(not_deployable(layer, INTEGER)) for layer in network.layers]
        unary = np.stack([np.where(masked, np.inf, integer), base], axis=1)
        deviation = np.stack([spread[:layers], np.zeros(layers)], axis=1)
        glue_value, glue_spread = np.zeros((2, len(network.glue), len(known)))
        position = {g.name: i for i, g in enumerate(network.glue)}
        code = {f: i for i, f in enumerate(known)}
        for name, place in position.items():
            glue_value[place] = found.float_shares.get(name, 0.0) * found.float_s
        for name, value, sd in zip(
            found.effects.glue, effect[layers:], spread[layers:], strict=False
        ):
            glue_value[position[name], code[Format.INT8]] += value
            glue_spread[position[name], code[Format.INT8]] = sd
        conversion, conversion_spread = np.zeros((2, len(network.tensors), len(known), len(known)))
        row = {t.name: i for i, t in enumerate(network.tensors)}
        for (tensor, target), value, sd in zip(
            found.effects.conversions,
            effect[layers + glue :],
            spread[layers + glue :],
            strict=True,
        ):
            source = Format.FLOAT32 if target is Format.INT8 else Format.INT8
            where = row[tensor], code[source], code[target]
            conversion[where], conversion_spread[where] = value, sd
        assigned = sum(found.float_shares.values())
        return CostTable(
            Metric.LATENCY,
            Unit.SECONDS,
            STATISTIC,
            network.digest,
            network.layer_names,
            choices,
            tuple(position),
            tuple(row),
            Cells.of(
                unary,
                Provenance.MEASURED,
                kernel=self._kernels(network),
                uncertainty=deviation,
            ),
            Cells.of(glue_value, Provenance.CALIBRATED, uncertainty=glue_spread),
            Cells.of(conversion, Provenance.CALIBRATED, uncertainty=conversion_spread),
            constant=found.float_s * (1.0 - assigned),
            source=self._source(found),
            measurements=[
                {
                    "integer_layers": [bool(b) for b in t.pattern],
                    "ratio_to_float": t.ratio,
                    "policy": t.measurement.to_dict(),
                    "float": t.reference.to_dict(),
                }
                for t in found.timed
            ],
        )

    def _kernels(self, network: Network) -> "np.ndarray[tuple[int, ...], np.dtype[np.str_]]":
        exporter = self._exporter(network)
        free = [not not_deployable(layer, INTEGER) for layer in network.layers]
        columns = [
            executed_kernels(network, optimized_graph(exporter.build(policy)))
            for policy in (as_policy(network, free), Policy({}))
        ]
        return np.array([[c[name] for c in columns] for name in network.layer_names])

    def _source(self, found: Calibration) -> dict[str, object]:
        return {
            "backend": self.name,
            "method": "whole-network timings of designed policies, paired with float, fitted",
            "device": self._device.to_dict(),
            "runtime": recorded_options(self._context.threads),
            "seconds": self._context.seconds,
            "seed": self._context.seed,
            "inputs": "random" if self._context.inputs is None else "given",
            "policies": len(found.timed),
            "held_out_policies": found.held_out,
            "held_out_mean_absolute_error": found.held_out_error,
        }

    def _require(self, metric: Metric) -> None:
        if metric not in self.metrics:
            raise BackendError(
                f"{self.name} measures latency, not {metric.value}; "
                "for energy use analytical:PRESET; size always comes from the exporter"
            )


def _spread(table: CostTable, network: Network, choices: Sequence[BitWidths]) -> CostTable:
    """Write the measured columns out over `choices`: the same kernel, the same number."""
    known = formats_of(choices)
    held = table.formats
    masked = [[bool(not_deployable(layer, c)) for c in choices] for layer in network.layers]
    column = [
        table.choices.index(BitWidths(32, 32) if c.reads.is_float else INTEGER) for c in choices
    ]
    unary = table.unary.value[:, column].copy()
    unary[np.array(masked)] = np.inf
    uncertainty = table.unary.uncertainty
    glue = np.full((len(table.glue_names), len(known)), np.inf)
    conversion = np.full((len(table.tensors), len(known), len(known)), np.inf)
    for i, f in enumerate(known):
        conversion[:, i, i] = 0.0
        if f not in held:
            continue
        glue[:, i] = table.glue.value[:, held.index(f)]
        for j, g in enumerate(known):
            if g in held and g != f:
                conversion[:, i, j] = table.conversion.value[:, held.index(f), held.index(g)]
    return CostTable(
        table.metric,
        table.unit,
        table.statistic,
        table.network,
        table.layers,
        tuple(choices),
        table.glue_names,
        table.tensors,
        Cells.of(
            unary,
            Provenance.MEASURED,
            kernel=table.unary.kernel[:, column],
            uncertainty=None if uncertainty is None else uncertainty[:, column],
        ),
        Cells.of(glue, Provenance.CALIBRATED),
        Cells.of(conversion, Provenance.CALIBRATED),
        table.constant,
        table.source,
        table.measurements,
    )


def create(argument: str, context: BackendContext) -> OrtLive:
    """Make the live backend; it takes no argument.

    Raises:
        BackendError: if one is given.
    """
    if argument:
        raise BackendError(f"the backend ort takes no argument, not {argument!r}")
    return OrtLive(context)
