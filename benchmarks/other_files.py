"""Files that the exporter could have written instead, for `exporter_choices.py`.

Made from the exporter's own file or by patching one of its rules, so that the exporter holds no
option that nobody needs.
"""

import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from quantization import export, guard
from quantization import formats as rule
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.fragments import short_names
from quantization.network import Network, Tensor
from quantization.passes import initializer_arrays
from quantization.policy import Policy
from quantization.quantizer import Float32Array, quantize_bias, quantize_weight

_MIDDLE = 128
"""What is added to a signed byte to make it unsigned."""


def integer_glue(network: Network) -> tuple[str, ...]:
    """Return the kinds of glue that compute on integers where they can."""
    computing = (g for g in network.glue if g.integer and not g.fused)
    return tuple(sorted({g.kind for g in computing if not g.moves_only or g.kind == "MaxPool"}))


def signed_activations(exporter: Exporter, policy: Policy) -> bytes:
    """The same numbers with int8 activations."""
    model = onnx.load_from_string(exporter.build(policy))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.UINT8 and tensor.name.endswith((":z", ":Z")):
            values = numpy_helper.to_array(tensor).astype(np.int16) - _MIDDLE
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.int8), tensor.name))
    return bytes(model.SerializeToString())


def unsigned_weights(exporter: Exporter, policy: Policy) -> bytes:
    """The same numbers with uint8 weights, whose zero points are 128."""
    model = onnx.load_from_string(exporter.build(policy))
    graph = model.graph
    stored = {t.name: t for t in graph.initializer if t.data_type == TensorProto.INT8}
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        tensor = stored[node.input[0]]
        values = numpy_helper.to_array(tensor).astype(np.int16) + _MIDDLE
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.uint8), tensor.name))
        axis = next(a.i for a in node.attribute if a.name == "axis")
        zeros = np.full(values.shape[axis], _MIDDLE, np.uint8)
        node.input[:] = [*node.input[:2], f"{tensor.name}:zeros"]
        graph.initializer.append(numpy_helper.from_array(zeros, node.input[2]))
    return bytes(model.SerializeToString())


def per_tensor_weights(exporter: Exporter, policy: Policy) -> bytes:
    """One scale for each weight instead of one per channel."""
    network = exporter.network
    model = onnx.load_from_string(exporter.build(policy))
    graph, arrays = model.graph, initializer_arrays(network.model.graph)
    nodes = {node.name: node for node in network.model.graph.node}
    found = {tensor.name: tensor for tensor in graph.initializer}

    def store(name: str, values: "np.ndarray[Any, Any]") -> None:
        if name in found:  # zero points belong to products only, biases to convolutions
            found[name].CopyFrom(numpy_helper.from_array(values, name))

    scalar: set[str] = set()
    for layer in network.layers:
        if not layer.has_weights or policy[layer.name].is_float:
            continue
        own = short_names(network).layers[layer.name]
        weight = arrays[nodes[layer.name].input[1]]
        method = exporter.options.weight_method
        quantized = quantize_weight(weight[None], policy[layer.name].weights, 0, method)
        scale, step = quantized.scale, exporter.ranges.grid(layer.inputs[0], 8).scale
        store(f"{own}:i", quantized.values[0])
        store(f"{own}:m", np.asarray(scale[0]))
        store(f"{own}:o", np.array(0, np.int8))
        store(f"{own}:a", quantize_bias(exporter.parameters.bias(layer.name), step, scale))
        scalar |= {f"{own}:i", f"{own}:a"}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in scalar:
            del node.attribute[:]
    return bytes(model.SerializeToString())


def with_float_glue(kinds: Iterable[str]) -> Callable[[Exporter, Policy], bytes]:
    """Return what leaves glue of `kinds` on floats, by the cheapest guard that lets it fuse."""
    chosen = frozenset(kinds)

    def build(exporter: Exporter, policy: Policy) -> bytes:
        glue = tuple(
            replace(g, integer=False) if g.kind in chosen and not g.fused else g
            for g in exporter.network.glue
        )
        network = replace(exporter.network, glue=glue)
        ranges = replace(exporter.ranges, network=network.digest)
        return clipped(Exporter(network, ranges), policy)

    return build


def narrowest(exporter: Exporter, policy: Policy) -> bytes:
    """Integer glue runs on integers as soon as one of its inputs was written so."""

    class Narrow:
        """numpy, but for the one function that the rule decides by."""

        maximum = staticmethod(np.minimum)

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

    with mock.patch.object(rule, "np", Narrow()):
        return exporter.build(policy)


def by_ort_quantizer(images: Float32Array) -> Callable[[Exporter, Policy], bytes]:
    """Return what quantizes by ONNX Runtime's quantizer, with ranges from `images`."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # its classes have no types
        """Gives one image after the other."""

        def __init__(self, name: str) -> None:
            self._feeds = iter([{name: image[None]} for image in images])

        def get_next(self) -> dict[str, Float32Array] | None:
            """Return the next feed."""
            return next(self._feeds, None)

    def build(exporter: Exporter, policy: Policy) -> bytes:
        network = exporter.network
        logging.disable(logging.WARNING)
        with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
            before, behind = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
            onnx.save_model(network.model, before)
            reader = Reader(network.input_names[0])
            quantize_static(
                before,
                behind,
                reader,
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=[n for n in network.layer_names if policy[n].is_float],
            )
            logging.disable(logging.NOTSET)
            return behind.read_bytes()

    return build


def always_repeated(exporter: Exporter, policy: Policy) -> bytes:
    """Scales are repeated per channel for every reader, also where no rewrite reaches."""
    with mock.patch.object(guard, "is_exposed", return_value=True):
        return _again(exporter, policy)


def repeated_along_rows(exporter: Exporter, policy: Policy) -> bytes:
    """Scales are repeated along the rows of images instead of the channels."""

    def axis(tensor: Tensor) -> int | None:
        return 2 if len(tensor.shape) == 4 and tensor.shape[2] > 1 else channels(tensor)

    channels = guard.repeated_axis
    with mock.patch.object(guard, "repeated_axis", axis):
        return _again(exporter, policy)


def in_steps(exporter: Exporter, policy: Policy) -> bytes:
    """Where scales would be repeated, `Cast`, `Sub` and `Mul` dequantize."""
    with mock.patch.object(guard, "repeated_axis", return_value=None):
        return _again(exporter, policy)


def clipped(exporter: Exporter, policy: Policy) -> bytes:
    """One scale, and behind it a `Clip` that changes no number but stops the rewrite."""
    bare = Exporter(exporter.network, exporter.ranges, ExportOptions(guard_float=False))
    model = onnx.load_from_string(bare.build(policy))
    graph = model.graph
    constants = initializer_arrays(graph)
    tensors = {tensor.name for tensor in exporter.network.tensors}
    tensors -= {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "DequantizeLinear" or node.output[0] not in tensors:
            continue
        name, scale = node.output[0], constants[node.input[1]]
        node.output[0] = f"{name}:whole"
        bounds = (_bound(scale, constants[node.input[2]], level) for level in (0, 255))
        for side, bound in zip(("low", "high"), bounds, strict=True):
            graph.initializer.append(numpy_helper.from_array(bound, f"{name}:{side}"))
        nodes.append(helper.make_node("Clip", [f"{name}:{x}" for x in _CLIP], [name]))
    del graph.node[:]
    graph.node.extend(nodes)
    return bytes(model.SerializeToString())


_CLIP: Sequence[str] = ("whole", "low", "high")


def _bound(scale: Float32Array, zero: "np.ndarray[Any, Any]", level: int) -> Float32Array:
    return np.asarray(np.float32(level - int(zero)) * scale, np.float32)


def _again(exporter: Exporter, policy: Policy) -> bytes:
    """Build by an exporter that has no fragments yet, as they were made by other rules."""
    return export.Exporter(exporter.network, exporter.ranges, exporter.options).build(policy)
