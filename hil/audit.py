"""Does the file hold the bits that were asked for, and does the runtime execute them?

For each layer: asked bits (the policy), stored bits (the weight tensor in the file), executed
kernel (the graph that a default session makes of the file, traced by the layer's parameters, since
fused nodes lose their names). Every difference has a reason or makes the audit fail.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hil.ort import optimized_graph
from quantization import packing
from quantization.bits import BitWidths
from quantization.errors import QuantmeterError
from quantization.export import ExportOptions, parameter_names, stored_name
from quantization.network import Layer, Network
from quantization.policy import Policy

INTEGER_KERNELS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger"}
)
FLOAT_KERNELS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
FLOAT_KERNELS |= {"ConvTranspose"}


class AuditError(QuantmeterError):
    """The file, or its execution, is not what was asked for."""


@dataclass(frozen=True)
class LayerAudit:
    """What became of one layer.

    Args:
        name: the layer.
        asked: bits of the policy.
        stored: such as ``int4 (bit planes)``, ``int8``, ``float32``.
        executed: the kernel, such as ``QLinearConv``; ``absent`` if none was found.
        ok: whether all three agree, or a difference has a permitted reason.
        reason: why they differ; empty if they do not.
    """

    name: str
    asked: str
    stored: str
    executed: str
    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Audit:
    """The audit of a file.

    Args:
        layers: one entry per layer.
        size_bytes: bytes of the file.
        predicted_bytes: what the exporter's layout predicts.
    """

    layers: tuple[LayerAudit, ...]
    size_bytes: int
    predicted_bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing differs without a permitted reason."""
        return self.size_bytes == self.predicted_bytes and all(a.ok for a in self.layers)

    @property
    def problems(self) -> tuple[str, ...]:
        """One line per difference that is not permitted."""
        lines = [f"layer {a.name!r}: {a.reason}" for a in self.layers if not a.ok]
        if self.size_bytes != self.predicted_bytes:
            lines.append(
                f"the file has {self.size_bytes} bytes, {self.predicted_bytes} were predicted"
            )
        return tuple(lines)

    def require(self) -> None:
        """Raise unless `ok`.

        Raises:
            AuditError: names the first problem and how many there are.
        """
        if not self.ok:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise AuditError(f"audit failed: {self.problems[0]}{more}")

    def to_dict(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "ok": self.ok,
            "size_bytes": self.size_bytes,
            "predicted_bytes": self.predicted_bytes,
            "problems": list(self.problems),
            "layers": [asdict(a) for a in self.layers],
        }


def audit(
    network: Network,
    policy: Policy,
    model: bytes,
    predicted_bytes: int,
    options: ExportOptions | None = None,
) -> Audit:
    """Audit an exported model.

    Args:
        network: what was exported.
        policy: what was asked for.
        model: the file's bytes.
        predicted_bytes: `quantization.export.Exporter.size_bytes` of the policy.
        options: with which it was exported; they permit some differences.
    """
    given = options or ExportOptions()
    stored = StoredWeights(onnx.load_model_from_string(model))
    kernels = executed_kernels(network, optimized_graph(model))
    layers = tuple(
        _judge(layer, policy[layer.name], stored, kernels[layer.name], given)
        for layer in network.layers
    )
    return Audit(layers, len(model), predicted_bytes)


def _judge(
    layer: Layer, bits: BitWidths, stored: "StoredWeights", kernel: str, options: ExportOptions
) -> LayerAudit:
    width, how = stored.of(layer)
    integer = not bits.reads.is_float
    expected = INTEGER_KERNELS if integer else FLOAT_KERNELS
    asked_width = bits.weights if layer.has_weights else width
    faults: list[str] = []
    notes: list[str] = []
    if kernel not in expected:
        wanted = "an integer kernel" if integer else "a float kernel"
        what = "was re-quantized at load" if kernel in INTEGER_KERNELS else "runs otherwise"
        faults.append(f"asked for {wanted}, executed {kernel}: the layer {what}")
    if width != asked_width:
        planes = not options.pack and bits.weights < 8 and width == 8
        (notes if planes else faults).append(
            f"asked for {asked_width}-bit weights, stored {width}-bit"
            + (" (packing is off)" if planes else "")
        )
    reduced = options.reduce_range and layer.has_weights and bits.weights == 8
    allowed = 7 if reduced else bits.weights
    if layer.has_weights and integer and (found := stored.used_bits(layer)) > allowed:
        faults.append(f"weights use {found} bits, asked for {allowed}")
    if reduced:
        notes.append("8-bit weights use 7-bit values: this CPU saturates without VNNI")
    reason = "; ".join((*faults, *notes))
    return LayerAudit(layer.name, str(bits), how, kernel, not faults, reason)


class StoredWeights:
    """Reads the weights of an exported file back, tensor by tensor.

    Args:
        model: the exported model.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = {node.name: node for node in model.graph.node if node.name}
        self._producer = {name: node for node in model.graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def of(self, layer: Layer) -> tuple[int, str]:
        """Return stored width in bits, and how the weight is stored."""
        if not layer.has_weights:
            return 8 if self._is_integer_product(layer) else 32, "activations"
        source = self._weight_source(layer)
        if source is None:
            return 32, "absent"
        if isinstance(source, onnx.NodeProto):
            planes = self._tensors[source.input[0]].dims[0]
            return int(planes), f"int{planes} (bit planes)"
        kind = TensorProto.DataType.Name(source.data_type).lower()
        width = {"float": 32, "float16": 16, "int8": 8, "uint8": 8, "int16": 16}.get(kind, 0)
        return width, {"float": "float32"}.get(kind, kind)

    def used_bits(self, layer: Layer) -> int:
        """Return the width of the smallest signed grid that holds the stored integers."""
        source = self._weight_source(layer)
        if source is None:
            return 0
        if isinstance(source, onnx.NodeProto):
            return int(self._tensors[source.input[0]].dims[0])
        values = numpy_helper.to_array(source).astype(np.int64)
        high, low = max(int(values.max()), 0), min(int(values.min()), -1)
        return max(high.bit_length(), (~low).bit_length()) + 1

    def _is_integer_product(self, layer: Layer) -> bool:
        node = self._nodes.get(layer.name)
        made = self._producer.get(node.input[0]) if node is not None else None
        return made is not None and made.op_type == "DequantizeLinear"

    def _weight_source(self, layer: Layer) -> onnx.NodeProto | onnx.TensorProto | None:
        """The initializer behind a layer's weight, or the node that unpacks it."""
        node = self._nodes.get(layer.name)
        if node is None or len(node.input) < 2:
            return None
        name = node.input[1]
        if name in self._producer and self._producer[name].op_type == "DequantizeLinear":
            name = self._producer[name].input[0]
        made = self._producer.get(name)
        if made is not None and made.op_type == packing.FUNCTION:
            return made
        return self._tensors.get(name)


def executed_kernels(network: Network, graph: onnx.GraphProto) -> dict[str, str]:
    """Trace every layer of `network` in the optimized `graph`; returns layer name to kernel."""
    kinds = {node.name: node.op_type for node in graph.node}
    found = {layer: kinds[node] for node, layer in layer_of(network, graph).items()}
    return {name: found.get(name, "absent") for name in network.layer_names}


def layer_of(network: Network, graph: onnx.GraphProto) -> dict[str, str]:
    """Return for each kernel node of the optimized `graph`, by name, the layer it executes."""
    traces = _Traces.of(network)
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in INTEGER_KERNELS | FLOAT_KERNELS:
            traced = traces.layer(node)
            if traced is not None and traced not in found.values():
                found[node.name] = traced
    return found


@dataclass(frozen=True)
class _Traces:
    """Names by which the runtime may still know a layer, each to the layer.

    Args:
        parameters: weights, scales and biases: the surest, as they belong to one layer only.
        outputs: output tensors, as floats and as integers, and those of activations behind them.
        nodes: the layers' own names.
    """

    parameters: dict[str, str]
    outputs: dict[str, str]
    nodes: dict[str, str]

    @classmethod
    def of(cls, network: Network) -> "_Traces":
        parameters: dict[str, str] = {}
        outputs: dict[str, str] = {}
        behind = {
            glue.inputs[0]: glue
            for glue in network.glue
            if len(glue.inputs) == len(glue.outputs) == 1
        }
        for layer in network.layers:
            names = parameter_names(network, layer.name)
            # What the runtime calls the weights of a float layer that it re-quantizes.
            requantized = (f"{layer.name}_weight_q", f"{layer.name}_bias_int32")
            parameters |= dict.fromkeys((*names, *requantized), layer.name)
            tensor = network.tensor_by_name[layer.output]
            while True:
                outputs[tensor.name] = outputs[stored_name(network, tensor.name)] = layer.name
                # A float convolution takes the activation behind it over, and then its name.
                if len(tensor.consumers) != 1 or tensor.name not in behind:
                    break
                tensor = network.tensor_by_name[behind[tensor.name].outputs[0]]
        return cls(parameters, outputs, {name: name for name in network.layer_names})

    def layer(self, node: onnx.NodeProto) -> str | None:
        """Return the layer that kernel `node` executes; suffixes of the optimizer are removed."""
        stems = [name.split("_token_")[0] for name in (*node.output, node.name)]
        candidates = (
            *(self.parameters.get(name) for name in node.input[1:]),
            *(self.outputs.get(name) for name in node.output),
            # Convolutions in the blocked layout are named after their output.
            *(self.outputs.get(stem[:-6]) for stem in stems if stem.endswith("_nchwc")),
            *(self.nodes.get(stem) for stem in reversed(stems)),
        )
        return next((found for found in candidates if found is not None), None)
