"""The backend ``ort``: latency measured on this machine through ONNX Runtime.

`table` calibrates a network in context (`hil.calibration`); `total` builds and times the quantized
networks themselves. Choices that execute the same kernel share one measurement, hence one number.
"""

from collections.abc import Sequence

import numpy as np

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.table import CostTable, FloatArray, TextArray
from costmodels.units import Metric
from hil.audit import audit
from hil.calibration import INTEGER, Calibration, as_policy, calibrate_network
from hil.device import detect
from hil.ort import Runner, one_feed, optimized_graph, random_inputs, recorded_options
from hil.tables import measured_table, spread_table
from hil.timing import TimingOptions, time_interleaved
from hil.trace import executed_kernels
from quantization.bits import BitWidths
from quantization.deployment import ExportOptions, not_deployable
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.quantizer import Float32Array
from quantization.ranges import check_inputs, collect_ranges, made_up_ranges


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
            AuditError: if the runtime does not execute what a timed policy asks for.
            BackendError: if another metric is asked for, or the time is too short.
            DataError: if the inputs do not fit the network.
            ModelError: if the runtime refuses an exported model.
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
            self._tables[network.digest] = measured_table(
                network, found, self._kernels(network), self._source(found)
            )
        return spread_table(self._tables[network.digest], network, choices)

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Build, audit and time each policy, paired with the float network; (P,) seconds, p10.

        Raises:
            AuditError: if the runtime does not execute what a policy asks for.
            BackendError: if another metric is asked for.
            DataError: if the inputs do not fit the network.
            ModelError: if the runtime refuses an exported model.
            PolicyError: if a policy is of another network.
            UnsupportedChoiceError: if a policy uses bits that do not run here.
        """
        self._require(metric)
        totals = []
        for position in range(len(policies)):
            policy = policies[position]
            policy.check(network)
            for layer in network.layers:
                if reason := not_deployable(layer, policy[layer.name]):
                    raise UnsupportedChoiceError(
                        f"policy {position}: layer {layer.name!r} at {policy[layer.name]}: {reason}"
                    )
            totals.append(self._time(network, policy))
        return np.array(totals, np.float64)

    def _time(self, network: Network, policy: Policy) -> float:
        """Time of one policy: its paired ratio to float, times the float time that came first."""
        integer = np.array([not policy[n].reads.is_float for n in network.layer_names])
        key = network.digest, integer.tobytes()
        reference = network.digest, np.zeros_like(integer).tobytes()
        if key not in self._totals:
            exporter, feed = self._exporter(network), one_feed(network, self._inputs(network))
            runs = {}
            for name, given in (("float", Policy({})), ("policy", as_policy(network, integer))):
                model, expected = exporter.build(given), exporter.size_bytes(given)
                audit(network, given, model, expected, exporter.options).require()
                runs[name] = Runner(model, self._context.threads, feed)
            found = time_interleaved(runs, TimingOptions(blocks=10, seed=self._context.seed))
            base = self._totals.setdefault(reference, found["float"].p10_s)
            ratio = found["policy"].p10_s / found["float"].p10_s
            self._totals.setdefault(key, base * ratio)  # float is the first base itself
        return self._totals[key]

    def _inputs(self, network: Network) -> Float32Array:
        given = self._context.inputs
        inputs = random_inputs(network, 4, self._context.seed) if given is None else given
        check_inputs(network, inputs)
        return inputs

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

    def _kernels(self, network: Network) -> TextArray:
        """(L, 2) executed kernels as integers and as floats, from the optimized graphs."""
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
            "disturbed_policies": found.disturbed,
            "held_out_policies": found.held_out,
            "held_out_mean_absolute_error": found.held_out_error,
        }

    def _require(self, metric: Metric) -> None:
        if metric not in self.metrics:
            raise BackendError(
                f"{self.name} measures latency, not {metric.value}; "
                "for energy use analytical:PRESET; size always comes from the exporter"
            )


def create(argument: str, context: BackendContext) -> OrtLive:
    """Measure through ONNX Runtime on this machine: ``ort``.

    Raises:
        BackendError: if one is given.
    """
    if argument:
        raise BackendError(f"the backend ort takes no argument, not {argument!r}")
    return OrtLive(context)
