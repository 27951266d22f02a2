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
    L3:i L3:p  integer weights, or their bit planes and their shape L3:d; of channel groups L3:p2,
               L3:d2 and L3:i2 at 2 bits and so on, joined to L3:j, put in order by L3:g (L3:h)
    L3:m L3:o  weight scales and (matrix products only) zero points per channel
    L3:a L3:c  int32 bias, and its scales: the weight's times the input's
    L3:w L3:b  dequantized weight and bias; in half precision, these themselves

How layers and glue in half precision are written is in `quantization/halves.py`.
How tensors leave and enter the integers without ONNX Runtime re-quantizing the float operators
between them is in `quantization/guard.py`.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from quantization import guard, halves
from quantization.bits import BitWidths, Format
from quantization.channel_groups import ChannelGroups
from quantization.deployment import (
    CPU_TARGET,
    Correction,
    Corrections,
    ExportOptions,
    Target,
    not_deployable,
)
from quantization.errors import PolicyError
from quantization.formats import formats
from quantization.fragments import (
    dequantize,
    fragment,
    graph_length_prefix,
    model_header,
    short_names,
    stored_planes,
)
from quantization.network import LAYER_KINDS, Glue, Layer, Network, Tensor
from quantization.parameters import Parameters
from quantization.passes import initializer_arrays
from quantization.policy import Policy
from quantization.quantizer import quantize_bias
from quantization.ranges import Ranges, check_ranges

REVISION = 3
"""Raised whenever the bytes that `Exporter.build` makes change: stored timings are of one revision.

A golden test (tests/quantization/test_revision.py) tells when that is.
"""


def parameter_names(network: Network, layer: str) -> tuple[str, ...]:
    """Return the names by which `layer`'s parameters go in an exported file and in sessions of it.

    First those of the float model, then those of an integer layer.
    """
    node = next(node for node in network.model.graph.node if node.name == layer)
    activations = network.layer(layer).inputs
    own = short_names(network).layers[layer]
    exact = [name for name in node.input[1:] if name and name not in activations]
    groups = [f"{letter}{width}" for width in range(2, 9) for letter in "ipd"]
    return (*exact, *(f"{own}:{name}" for name in (*"ipdmoacwb", *"jgh", *groups)))


def stored_name(network: Network, tensor: str) -> str:
    """Return the name of `tensor` as integers in an exported file."""
    return f"{short_names(network).tensors[tensor]}:q"


def half_name(network: Network, tensor: str) -> str:
    """Return the name of `tensor` in half precision in an exported file."""
    return halves.named(short_names(network).tensors[tensor])


class Exporter:
    """Builds the deployable model of any policy of one network, quickly.

    Args:
        network: the network.
        ranges: its activations' ranges.
        options: see `ExportOptions`.
        target: the provider that is to run the files.
        parameters: the layers' quantized parameters; None quantizes the network's weights.

    Attributes:
        parameters: the layers' quantized parameters.

    Raises:
        DataError: if the ranges belong to another network.
    """

    def __init__(
        self,
        network: Network,
        ranges: Ranges,
        options: ExportOptions | None = None,
        target: Target = CPU_TARGET,
        parameters: Parameters | None = None,
    ) -> None:
        check_ranges(ranges, network)
        self.network = network
        self.ranges = ranges
        self.options = options or ExportOptions()
        self.target = target
        self._arrays = initializer_arrays(network.model.graph)
        self._nodes = {node.name: node for node in network.model.graph.node}
        names = short_names(network)
        self._layer_id, self._glue_id, self._tensor_id = names.layers, names.glue, names.tensors
        self._glue_by_name = {glue.name: glue for glue in network.glue}
        self._after = {glue.inputs[0]: glue.outputs[0] for glue in network.glue if glue.fused}
        self.parameters = parameters or Parameters(network, ranges, self.options)
        self._fragments: dict[tuple[object, ...], bytes] = {}
        opsets = {o.domain.removesuffix("ai.onnx"): o.version for o in network.model.opset_import}
        self._opset = opsets[""]
        self._frame = self._graph_frame()
        self._header = {p: model_header(network.model, packed=p) for p in (False, True)}

    def build(self, policy: Policy, corrections: Corrections | None = None) -> bytes:
        """Return the serialized model of `policy`.

        Raises:
            PolicyError: if the policy does not fit the network or a layer is not deployable.
        """
        graph = b"".join((*self._parts(policy, corrections or {}), self._frame))
        header = self._header[self._any_packed(policy)]
        return b"".join((header, graph_length_prefix(len(graph)), graph))

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
        return len(self._header[packed]) + len(graph_length_prefix(graph)) + graph

    def is_packed(self, bits: BitWidths) -> bool:
        """Whether weights at `bits` are stored as bit planes."""
        return self.options.pack and bits.weight_widths[0] < 8

    def _parts(self, policy: Policy, corrections: Corrections) -> list[bytes]:
        policy.check(self.network)
        chosen = formats(self.network, policy)
        for layer in self.network.layers:
            if reason := not_deployable(layer, bits := policy[layer.name], self.target):
                raise PolicyError(f"layer {layer.name!r} at {bits} is not deployable: {reason}")
        conversions: dict[str, list[bytes]] = {}
        for name, written, target in chosen.conversions:
            piece = self._conversion(self.network.tensor_by_name[name], written, target)
            conversions.setdefault(name, []).append(piece)
        parts = [piece for name in self.network.input_names for piece in conversions.get(name, [])]
        for node in self.network.execution_order:
            if isinstance(node, Layer):
                parts += self._layer(node, policy[node.name], corrections.get(node.name))
                outputs: tuple[str, ...] = (node.output,)
            else:
                parts.append(self._glue(node, chosen.reads[node.name]))
                outputs = node.outputs
            parts += [piece for name in outputs for piece in conversions.get(name, [])]
        return parts

    def _layer(
        self, layer: Layer, bits: BitWidths, correction: Correction | None
    ) -> tuple[bytes, ...]:
        if bits.half:
            return (self._cached(("half", layer.name), lambda: self._half_layer(layer)),)
        if bits.reads.is_float:
            return (self._cached(("float", layer.name), lambda: self._float_layer(layer.name)),)
        if not layer.has_weights:
            return (self._cached(("product", layer.name), lambda: self._integer_product(layer)),)
        if isinstance(bits, ChannelGroups):  # too many to be kept
            return self._integer_layer(layer, bits), self._scales_and_bias(layer, bits, correction)
        key = ("weights", layer.name, bits.weights)
        static = self._cached(key, lambda: self._integer_layer(layer, bits))
        if correction is None:
            key = ("parameters", layer.name, bits.weights)
            return static, self._cached(key, lambda: self._scales_and_bias(layer, bits, None))
        return static, self._scales_and_bias(layer, bits, correction)

    def _cached(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        if key not in self._fragments:
            self._fragments[key] = make()
        return self._fragments[key]

    def _float_layer(self, name: str) -> bytes:
        node = self._nodes[name]
        return fragment([node], {n: self._arrays[n] for n in node.input if n in self._arrays})

    def _half_layer(self, layer: Layer) -> bytes:
        own, node = self._layer_id[layer.name], self._nodes[layer.name]
        return halves.layer(node, layer, own, self._tensor_id, self._arrays)

    def _half_glue(self, glue: Glue) -> bytes:
        own, node = self._glue_id[glue.name], self._nodes[glue.name]
        given = {name: self._arrays[name] for name in node.input if name in self._arrays}
        return halves.glue(node, glue, own, self._tensor_id, given, self._opset)

    def _float_glue(self, name: str) -> bytes:
        node, constants = onnx.NodeProto(), self._glue_constants(name)
        node.CopyFrom(self._nodes[name])
        node.input[:] = [constants.get(n, n) for n in node.input]
        return fragment([node], {new: self._arrays[n] for n, new in constants.items()})

    def _glue_constants(self, name: str) -> dict[str, str]:
        """Constants of a glue operator to their names in the file; glue may share them."""
        constants = [n for n in dict.fromkeys(self._nodes[name].input) if n in self._arrays]
        return {n: f"{self._glue_id[name]}:k{i}" for i, n in enumerate(constants)}

    def _integer_layer(self, layer: Layer, bits: BitWidths) -> bytes:
        """The operator with its quantized weights; scales and bias come from `_scales_and_bias`."""
        own, source = self._layer_id[layer.name], self._tensor_id[layer.inputs[0]]
        weight = self.parameters.quantized(layer.name, bits)
        stored: dict[str, npt.NDArray[np.generic]]
        if self.is_packed(bits):
            makes, stored = stored_planes(own, weight, bits)
        else:
            makes, stored = [], {f"{own}:i": weight.values}
        nodes = [dequantize(source, f"{own}:x"), *makes]
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
        return fragment([*nodes, operator], stored) + self._requantize(layer.output)

    def _scales_and_bias(
        self, layer: Layer, bits: BitWidths, correction: Correction | None
    ) -> bytes:
        own = self._layer_id[layer.name]
        scale, bias = self.parameters.corrected(layer, bits, correction)
        values: dict[str, npt.NDArray[np.generic]] = {f"{own}:m": scale}
        if layer.kind != "MatMul":
            input_scale = self.ranges.grid(layer.inputs[0], 8).scale
            values[f"{own}:a"] = quantize_bias(bias, input_scale, scale)
        return fragment([], values)

    def _integer_product(self, layer: Layer) -> bytes:
        own = self._layer_id[layer.name]
        names = [f"{own}:x", f"{own}:y"]
        nodes = [
            dequantize(self._tensor_id[tensor], name)
            for tensor, name in zip(layer.inputs, names, strict=True)
        ]
        nodes.append(self._renamed(layer.name, names, layer.output))
        return fragment(nodes, {}) + self._requantize(layer.output)

    def _glue(self, glue: Glue, given: Format) -> bytes:
        if given is Format.FLOAT16:
            return self._cached(("half", glue.name), lambda: self._half_glue(glue))
        if given.is_float:
            return self._cached(("float", glue.name), lambda: self._float_glue(glue.name))
        return self._cached(("integer", glue.name), lambda: self._integer_glue(glue))

    def _integer_glue(self, glue: Glue) -> bytes:
        if glue.fused:
            return self._requantize(glue.outputs[0])
        own, node = self._glue_id[glue.name], self._nodes[glue.name]
        inputs = {name: f"{own}:{i}" for i, name in enumerate(glue.inputs)}
        nodes = [dequantize(self._tensor_id[name], new) for name, new in inputs.items()]
        constants = self._glue_constants(glue.name)
        renamed = {**inputs, **constants}
        nodes.append(
            self._renamed(glue.name, [renamed.get(n, n) for n in node.input], *glue.outputs)
        )
        stored = {new: self._arrays[n] for n, new in constants.items()}
        return fragment(nodes, stored) + b"".join(map(self._requantize, glue.outputs))

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
        return fragment([node], {f"{own}:s": scale, f"{own}:z": zero})

    def _conversion(self, tensor: Tensor, written: Format, target: Format) -> bytes:
        if (written, target) == (Format.FLOAT32, Format.INT8):
            key = ("quantize", tensor.name)
            return self._cached(key, lambda: self._to_integers(tensor))
        if (written, target) == (Format.INT8, Format.FLOAT32):
            key = ("dequantize", tensor.name)
            return self._cached(key, lambda: self._to_float(tensor))
        own = self._tensor_id[tensor.name]
        if (written, target) == (Format.FLOAT32, Format.FLOAT16):
            return halves.to_half(own, tensor.name)
        if (written, target) == (Format.FLOAT16, Format.FLOAT32):
            return halves.to_float(own, tensor.name)
        raise PolicyError(f"no conversion from {written.label} to {target.label} can be deployed")

    def _to_integers(self, tensor: Tensor) -> bytes:
        producer = None if tensor.producer is None else self._nodes[tensor.producer]
        axis = guard.repeated_axis(tensor)
        if not (self.options.guard_float and guard.moves_before(producer)) or axis is None:
            return self._quantize(tensor.name, tensor.name)
        own, grid = self._tensor_id[tensor.name], self.ranges.grid(tensor.name, 8)
        return guard.quantize_along(own, tensor, grid, axis)

    def _to_float(self, tensor: Tensor) -> bytes:
        own, grid = self._tensor_id[tensor.name], self.ranges.grid(tensor.name, 8)
        readers = [self._nodes[name] for name in tensor.consumers if name in self._nodes]
        exposed = any(guard.is_exposed(self._glue_by_name.get(node.name)) for node in readers)
        if not (self.options.guard_float and exposed):
            return fragment([dequantize(own, tensor.name)], {})
        second = any(n.op_type in LAYER_KINDS and n.input[1] == tensor.name for n in readers)
        if second or (axis := guard.repeated_axis(tensor)) is None:
            return guard.dequantize_in_steps(own, tensor, grid)
        return guard.dequantize_along(own, tensor, grid, axis)

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
