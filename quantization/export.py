"""Export a policy as a deployable QDQ model.

The file is put together from *fragments*: serialized pieces of a graph, one per layer and width,
per glue operator and format, per tensor and conversion. Protobuf messages merge by concatenation,
so a model is built by joining bytes, and its size is the sum of its fragments and a header. Names
within a fragment do not depend on other choices, which makes that sum exact. Tensor 5 and layer 3
are written as:

    (name)     float value, under its own name
    T5:r       result of an integer operator before requantization
    T5:q       the tensor as uint8, with scale T5:s and zero point T5:z
    L3:x L3:y  dequantized inputs of the layer; every consumer has its own DequantizeLinear
    L3:i L3:p  integer weights, or their bit planes and their shape L3:d
    L3:m L3:o  weight scales and (matrix products only) zero points per channel
    L3:a L3:c  int32 bias, and its scales: the weight's times the input's
    L3:w L3:b  dequantized weight and bias

A float layer between integer neighbours would be re-quantized by ONNX Runtime when it loads the
file. That rewrite wants one scale for the whole input, so a tensor that leaves the integers towards
a layer is dequantized with its scale written once per channel: the same numbers, left alone by the
rewrite (docs/decisions/0002-float-guard.md).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from quantization import packing
from quantization.bits import FLOAT32, BitWidths, Format
from quantization.errors import PolicyError
from quantization.formats import formats
from quantization.network import Glue, Layer, Network, Tensor
from quantization.passes import attribute, initializer_arrays
from quantization.policy import Policy
from quantization.quantizer import (
    Float32Array,
    QuantizedWeight,
    WeightMethod,
    quantize_bias,
    quantize_weight,
)
from quantization.ranges import Ranges

DEPLOYED_FORMATS = (Format.INT8, Format.FLOAT32)
_PRODUCER = "quantmeter"
_GRAPH_TAG = b"\x3a"  # field 7 of ModelProto, length-delimited


@dataclass(frozen=True)
class ExportOptions:
    """What decides the exported file besides the policy.

    Args:
        weight_method: how weight ranges are chosen.
        reduce_range: 8-bit weights use 7-bit values, because products of 8-bit activations and
            weights saturate on x86 processors without VNNI.
        pack: store weights below 8 bits as bit planes; without, as int8 (same execution, for
            timing without the unpacking at load).
        guard_float: keep float layers between integer ones from being re-quantized at load.
    """

    weight_method: WeightMethod = "mse"
    reduce_range: bool = False
    pack: bool = True
    guard_float: bool = True


@dataclass(frozen=True, eq=False)
class Correction:
    """What brings the statistics of a quantized layer's output back: ``y' = gain * y + shift``.

    Args:
        gain: (channels,), folded into the weight scales and the bias.
        shift: (channels,), folded into the bias; zero for a layer without one.
    """

    gain: Float32Array
    shift: Float32Array


Corrections = Mapping[str, Correction]


def not_deployable(layer: Layer, bits: BitWidths) -> str:
    """Say why ONNX Runtime's CPU provider cannot run `layer` at `bits` as asked; "" if it can."""
    if bits == FLOAT32:
        return ""
    if bits.half or bits.weights == 16 or bits.activations == 16:
        return "no 16-bit kernels on the CPU provider"
    if bits.activations == 32:
        return "weights-only quantization of this operator runs as float"
    if bits.activations != 8:
        return "no kernels for activations below 8 bits"
    if layer.kind == "ConvTranspose":
        return "no integer kernel for ConvTranspose"
    return ""


class Exporter:
    """Builds the deployable model of any policy of one network, quickly.

    Args:
        network: the network.
        ranges: its activations' ranges.
        options: see `ExportOptions`.
    """

    def __init__(
        self, network: Network, ranges: Ranges, options: ExportOptions | None = None
    ) -> None:
        self.network = network
        self.ranges = ranges
        self.options = options or ExportOptions()
        self._arrays = initializer_arrays(network.model.graph)
        self._nodes = {node.name: node for node in network.model.graph.node}
        self._layer_id = {name: f"L{i}" for i, name in enumerate(network.layer_names)}
        self._glue_id = {glue.name: f"G{i}" for i, glue in enumerate(network.glue)}
        self._tensor_id = {tensor.name: f"T{i}" for i, tensor in enumerate(network.tensors)}
        self._after = {glue.inputs[0]: glue.outputs[0] for glue in network.glue if glue.fused}
        self._weights: dict[tuple[str, int], QuantizedWeight] = {}
        self._fragments: dict[tuple[object, ...], bytes] = {}
        self._frame = self._graph_frame()

    def weight(self, layer: str, bits: int) -> QuantizedWeight:
        """Return the weights of `layer` on the grid of `bits`; quantized once."""
        key = layer, bits
        if key not in self._weights:
            node = self._nodes[layer]
            transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
            axis = 0 if node.op_type == "Conv" or transposed else 1
            grid = 7 if bits == 8 and self.options.reduce_range else bits
            array = self._arrays[node.input[1]]
            self._weights[key] = quantize_weight(array, grid, axis, self.options.weight_method)
        return self._weights[key]

    def bias(self, layer: str) -> Float32Array:
        """Return the bias of `layer`, (channels,); zeros if it has none."""
        node = self._nodes[layer]
        if len(node.input) > 2 and node.input[2]:
            flat: Float32Array = self._arrays[node.input[2]].astype(np.float32).ravel()
            channels = self.network.layer(layer).out_channels
            return flat if flat.size == channels else np.repeat(flat, channels)
        return np.zeros(self.network.layer(layer).out_channels, np.float32)

    def build(self, policy: Policy, corrections: Corrections | None = None) -> bytes:
        """Return the serialized model of `policy`.

        Raises:
            PolicyError: if the policy does not fit the network or a layer is not deployable.
        """
        parts = list(self._parts(policy, corrections or {}))
        graph = b"".join((*parts, self._frame))
        return b"".join(
            (self._header_for(self._any_packed(policy)), _GRAPH_TAG, _varint(len(graph)), graph)
        )

    def size_bytes(self, policy: Policy) -> int:
        """Return the size of the file that `build` makes, in bytes, without building it.

        Raises:
            PolicyError: as `build`.
        """
        fragments = sum(map(len, self._parts(policy, {})))
        return self.file_bytes(fragments, packed=self._any_packed(policy))

    def layer_bytes(self, layer: str, bits: BitWidths) -> int:
        """Return the bytes that `layer` at `bits` adds to the file."""
        return sum(map(len, self._layer(self.network.layer(layer), bits, None)))

    def glue_bytes(self, glue: Glue, given: Format) -> int:
        """Return the bytes that a glue operator in format `given` adds to the file."""
        return len(self._glue(glue, given))

    def conversion_bytes(self, tensor: Tensor, written: Format, target: Format) -> int:
        """Return the bytes that one conversion adds to the file."""
        return len(self._conversion(tensor, written, target))

    def file_bytes(self, fragments: int, *, packed: bool) -> int:
        """Return the size of a file whose fragments have so many bytes together.

        Args:
            fragments: bytes of the layers', glue's and conversions' fragments.
            packed: whether any layer's weights are stored as bit planes.
        """
        graph = fragments + len(self._frame)
        return len(self._header_for(packed)) + len(_GRAPH_TAG) + len(_varint(graph)) + graph

    @property
    def largest_overhead_bytes(self) -> int:
        """The most that a file has besides its fragments."""
        longest_prefix = 5
        return len(self._header_for(True)) + len(_GRAPH_TAG) + longest_prefix + len(self._frame)

    def is_packed(self, bits: BitWidths) -> bool:
        """Whether weights at `bits` are stored as bit planes."""
        return self.options.pack and bits.weights < 8

    def _parts(self, policy: Policy, corrections: Corrections) -> list[bytes]:
        chosen = formats(self.network, policy)
        conversions: dict[str, list[bytes]] = {}
        for name, written, target in chosen.conversions:
            piece = self._conversion(self.network.tensor_by_name[name], written, target)
            conversions.setdefault(name, []).append(piece)
        parts = [piece for name in self.network.input_names for piece in conversions.get(name, [])]
        for node in self.network.execution_order:
            if isinstance(node, Layer):
                bits = policy[node.name]
                if reason := not_deployable(node, bits):
                    raise PolicyError(f"layer {node.name!r} at {bits} is not deployable: {reason}")
                parts += self._layer(node, bits, corrections.get(node.name))
                outputs: tuple[str, ...] = (node.output,)
            else:
                parts.append(self._glue(node, chosen.reads[node.name]))
                outputs = node.outputs
            parts += [piece for name in outputs for piece in conversions.get(name, [])]
        return parts

    def _layer(
        self, layer: Layer, bits: BitWidths, correction: Correction | None
    ) -> tuple[bytes, ...]:
        if bits.reads.is_float:
            return (self._cached(("float", layer.name), lambda: self._float_node(layer.name)),)
        if not layer.has_weights:
            return (self._cached(("product", layer.name), lambda: self._integer_product(layer)),)
        key = ("weights", layer.name, bits.weights)
        static = self._cached(key, lambda: self._integer_layer(layer, bits))
        if correction is None:
            key = ("parameters", layer.name, bits.weights)
            return static, self._cached(key, lambda: self._parameters(layer, bits, None))
        return static, self._parameters(layer, bits, correction)

    def _cached(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        if key not in self._fragments:
            self._fragments[key] = make()
        return self._fragments[key]

    def _float_node(self, name: str) -> bytes:
        node = self._nodes[name]
        return _fragment([node], {n: self._arrays[n] for n in node.input if n in self._arrays})

    def _integer_layer(self, layer: Layer, bits: BitWidths) -> bytes:
        """The operator with its quantized weights; scales and bias come from `_parameters`."""
        own, source = self._layer_id[layer.name], self._tensor_id[layer.inputs[0]]
        weight = self.weight(layer.name, bits.weights)
        nodes = [_dequantize(source, f"{own}:x")]
        stored: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]
        if self.is_packed(bits):
            stored = {
                f"{own}:p": packing.pack(weight.values, bits.weights),
                f"{own}:d": np.array(weight.values.shape, np.int64),
            }
            nodes.append(
                helper.make_node(
                    packing.FUNCTION, [f"{own}:p", f"{own}:d"], [f"{own}:i"], domain=packing.DOMAIN
                )
            )
        else:
            stored = {f"{own}:i": weight.values}
        inputs = [f"{own}:i", f"{own}:m"]
        if layer.kind != "Conv":
            # ONNX Runtime fuses a matrix product only if its zero points are written out.
            stored[f"{own}:o"] = np.zeros(len(weight.scale), np.int8)
            inputs.append(f"{own}:o")
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{own}:w"], axis=weight.axis))
        operator = self._renamed(layer.name, [f"{own}:x", f"{own}:w"], layer.output)
        if layer.kind != "MatMul":
            nodes.append(helper.make_node("Mul", [f"{source}:s", f"{own}:m"], [f"{own}:c"]))
            nodes.append(
                helper.make_node("DequantizeLinear", [f"{own}:a", f"{own}:c"], [f"{own}:b"], axis=0)
            )
            operator.input.append(f"{own}:b")
        return _fragment([*nodes, operator], stored) + self._requantize(layer.output)

    def _parameters(self, layer: Layer, bits: BitWidths, correction: Correction | None) -> bytes:
        own = self._layer_id[layer.name]
        scale, bias = self.corrected(layer, bits, correction)
        values: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]] = {f"{own}:m": scale}
        if layer.kind != "MatMul":
            input_scale = self.ranges.grid(layer.inputs[0], 8).scale
            values[f"{own}:a"] = quantize_bias(bias, input_scale, scale)
        return _fragment([], values)

    def corrected(
        self, layer: Layer, bits: BitWidths, correction: Correction | None
    ) -> tuple[Float32Array, Float32Array]:
        """Return weight scales and bias, (channels,) each, with the correction folded in."""
        scale, bias = self.weight(layer.name, bits.weights).scale, self.bias(layer.name)
        if correction is None:
            return scale, bias
        corrected_bias = correction.gain * bias + correction.shift
        return (scale * correction.gain).astype(np.float32), corrected_bias.astype(np.float32)

    def _integer_product(self, layer: Layer) -> bytes:
        own = self._layer_id[layer.name]
        names = [f"{own}:x", f"{own}:y"]
        nodes = [
            _dequantize(self._tensor_id[tensor], name)
            for tensor, name in zip(layer.inputs, names, strict=True)
        ]
        nodes.append(self._renamed(layer.name, names, layer.output))
        return _fragment(nodes, {}) + self._requantize(layer.output)

    def _glue(self, glue: Glue, given: Format) -> bytes:
        if given.is_float:
            return self._cached(("float", glue.name), lambda: self._float_node(glue.name))
        return self._cached(("integer", glue.name), lambda: self._integer_glue(glue))

    def _integer_glue(self, glue: Glue) -> bytes:
        if glue.fused:
            return self._requantize(glue.outputs[0])
        own, node = self._glue_id[glue.name], self._nodes[glue.name]
        inputs = {name: f"{own}:{i}" for i, name in enumerate(glue.inputs)}
        nodes = [_dequantize(self._tensor_id[name], new) for name, new in inputs.items()]
        nodes.append(
            self._renamed(glue.name, [inputs.get(n, n) for n in node.input], *glue.outputs)
        )
        constants = {n: self._arrays[n] for n in node.input if n in self._arrays}
        return _fragment(nodes, constants) + b"".join(map(self._requantize, glue.outputs))

    def _renamed(self, name: str, inputs: list[str], *outputs: str) -> onnx.NodeProto:
        """Copy a node with other inputs; its results are still to be requantized."""
        node = onnx.NodeProto()
        node.CopyFrom(self._nodes[name])
        del node.input[:], node.output[:]
        node.input.extend(inputs)
        node.output.extend(f"{self._tensor_id[self._after.get(o, o)]}:r" for o in outputs)
        return node

    def _requantize(self, tensor: str) -> bytes:
        """Quantize an integer operator's result; a fused activation does it for its input."""
        if tensor in self._after:
            return b""
        own = self._tensor_id[tensor]
        return self._quantize(tensor, f"{own}:r")

    def _quantize(self, tensor: str, source: str) -> bytes:
        own, grid = self._tensor_id[tensor], self.ranges.grid(tensor, 8)
        node = helper.make_node("QuantizeLinear", [source, f"{own}:s", f"{own}:z"], [f"{own}:q"])
        scale, zero = np.array(grid.scale, np.float32), np.array(grid.zero_point, np.uint8)
        return _fragment([node], {f"{own}:s": scale, f"{own}:z": zero})

    def _conversion(self, tensor: Tensor, written: Format, target: Format) -> bytes:
        if (written, target) == (Format.FLOAT32, Format.INT8):
            key = ("quantize", tensor.name)
            return self._cached(key, lambda: self._quantize(tensor.name, tensor.name))
        if (written, target) == (Format.INT8, Format.FLOAT32):
            key = ("dequantize", tensor.name)
            return self._cached(key, lambda: self._to_float(tensor))
        raise PolicyError(f"no conversion from {written.label} to {target.label} can be deployed")

    def _to_float(self, tensor: Tensor) -> bytes:
        own = self._tensor_id[tensor.name]
        feeds_layer = any(name in self._layer_id for name in tensor.consumers)
        if not (self.options.guard_float and feeds_layer and len(tensor.shape) > 1):
            return _fragment([_dequantize(own, tensor.name)], {})
        grid, channels = self.ranges.grid(tensor.name, 8), tensor.shape[1]
        node = helper.make_node(
            "DequantizeLinear", [f"{own}:q", f"{own}:S", f"{own}:Z"], [tensor.name], axis=1
        )
        scales = np.full(channels, grid.scale, np.float32)
        zeros = np.full(channels, grid.zero_point, np.uint8)
        return _fragment([node], {f"{own}:S": scales, f"{own}:Z": zeros})

    def _graph_frame(self) -> bytes:
        graph = self.network.model.graph
        frame = onnx.GraphProto(name=graph.name or "network")
        frame.input.extend(graph.input)
        frame.output.extend(graph.output)
        return frame.SerializeToString(deterministic=True)

    def _any_packed(self, policy: Policy) -> bool:
        return any(
            layer.has_weights and self.is_packed(policy[layer.name])
            for layer in self.network.layers
        )

    def _header_for(self, packed: bool) -> bytes:
        opsets = {o.domain: o.version for o in self.network.model.opset_import}
        return _model_header(self.network.model.ir_version, tuple(opsets.items()), packed)


@lru_cache(maxsize=16)
def _model_header(ir_version: int, opsets: tuple[tuple[str, int], ...], packed: bool) -> bytes:
    model = onnx.ModelProto(ir_version=ir_version, producer_name=_PRODUCER)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets]
    if packed:
        imports.append(helper.make_opsetid(packing.DOMAIN, 1))
        model.functions.append(packing.unpack_function(dict(opsets)[""]))
    model.opset_import.extend(imports)
    return model.SerializeToString(deterministic=True)


def _dequantize(tensor: str, output: str) -> onnx.NodeProto:
    inputs = [f"{tensor}:q", f"{tensor}:s", f"{tensor}:z"]
    return helper.make_node("DequantizeLinear", inputs, [output])


def _fragment(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, npt.NDArray[np.generic]],
) -> bytes:
    graph = onnx.GraphProto()
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    return graph.SerializeToString(deterministic=True)


def _varint(value: int) -> bytes:
    """Encode a length as protobuf does: seven bits a byte, lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
