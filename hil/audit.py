"""Does the file hold the bits that were asked for, and does the runtime execute them?

For each layer: asked bits (the policy), stored bits (the weight tensor in the file), executed
kernel (the graph that a default session makes of the file, traced by the layer's parameters, since
fused nodes lose their names). Every difference has a reason or makes the audit fail.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from hil.ort import optimized_graph
from hil.trace import FLOAT_KERNELS, INTEGER_KERNELS, executed_kernels
from quantization import packing
from quantization.bits import BitWidths
from quantization.deployment import ExportOptions
from quantization.errors import QuantmeterError
from quantization.network import Layer, Network
from quantization.policy import Policy


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
        _require_none(self.problems)

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

    Raises:
        ModelError: if the runtime refuses the file.
        PolicyError: if the policy does not fit the network.
    """
    policy.check(network)
    given = options or ExportOptions()
    kernels = executed_kernels(network, optimized_graph(model))
    stored = StoredWeights(onnx.load_model_from_string(model))
    layers = tuple(
        _judge(layer, policy[layer.name], stored, kernels[layer.name], given)
        for layer in network.layers
    )
    return Audit(layers, len(model), predicted_bytes)


def require_kernels(network: Network, policy: Policy, graph: onnx.GraphProto) -> None:
    """Raise unless every layer is executed as `policy` asks: by integers, or by floats.

    The part of an audit that needs no more than the graph of a session that is loaded anyway.

    Args:
        network: what was exported.
        policy: what was asked for.
        graph: the optimized graph.

    Raises:
        AuditError: names the first layer that is not, and how many others are not.
    """
    faults = {n: _kernel_fault(policy[n], k) for n, k in executed_kernels(network, graph).items()}
    _require_none([f"layer {name!r}: {fault}" for name, fault in faults.items() if fault])


def _require_none(problems: Sequence[str]) -> None:
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise AuditError(f"audit failed: {problems[0]}{more}")


def _kernel_fault(bits: BitWidths, kernel: str) -> str:
    """What is wrong with executing a layer at `bits` by `kernel`; empty if nothing is."""
    integer = not bits.reads.is_float
    if kernel in (INTEGER_KERNELS if integer else FLOAT_KERNELS):
        return ""
    wanted = "an integer kernel" if integer else "a float kernel"
    what = "was re-quantized at load" if kernel in INTEGER_KERNELS else "runs otherwise"
    return f"asked for {wanted}, executed {kernel}: the layer {what}"


def _judge(
    layer: Layer, bits: BitWidths, stored: "StoredWeights", kernel: str, options: ExportOptions
) -> LayerAudit:
    width, how = stored.of(layer)
    integer = not bits.reads.is_float
    asked_width = bits.weights if layer.has_weights else width
    notes: list[str] = []
    fault = _kernel_fault(bits, kernel)
    faults = [fault] if fault else []
    if width != asked_width:
        planes = not options.pack and bits.weights < 8 and width == 8
        (notes if planes else faults).append(
            f"asked for {asked_width}-bit weights, stored {width}-bit"
            + (" (packing is off)" if planes else "")
        )
    reduced = options.reduce_range and layer.has_weights and bits.weights == 8
    allowed = 7 if reduced else bits.weights
    # No value of a tensor uses more bits than it is stored in; only wider ones need a look.
    look = layer.has_weights and integer and width > allowed
    if look and (found := stored.used_bits(layer)) > allowed:
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
        values = (
            self._unpacked(source)
            if isinstance(source, onnx.NodeProto)
            else numpy_helper.to_array(source)
        ).astype(np.int64)
        high, low = max(int(values.max()), 0), min(int(values.min()), -1)
        return max(high.bit_length(), (~low).bit_length()) + 1

    def _unpacked(self, node: onnx.NodeProto) -> npt.NDArray[np.int8]:
        """The integers that bit planes stand for."""
        planes, shape = (numpy_helper.to_array(self._tensors[name]) for name in node.input)
        return packing.unpack(planes, len(planes), tuple(int(extent) for extent in shape))

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
