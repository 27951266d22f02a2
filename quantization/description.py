"""What the nodes and values of a prepared graph are: layers, glue and tensors."""

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from quantization import passes
from quantization.errors import ModelError
from quantization.network import LAYER_KINDS, OUTPUT, Glue, Layer, Tensor
from quantization.operators import FUSABLE_ACTIVATIONS, GLUE, GlueTraits


@dataclass(frozen=True)
class _Values:
    """What is known about the values of a graph.

    Args:
        constants: shape of each initializer.
        shapes: shape of each activation.
        types: element type of constants and activations, as far as known.
        counts: how often each value is read.
    """

    constants: dict[str, tuple[int, ...]]
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, np.dtype]
    counts: Counter[str]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> "_Values":
        types = passes.element_types(graph)
        types |= {
            tensor.name: onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            for tensor in graph.initializer
        }
        return cls(
            {tensor.name: tuple(tensor.dims) for tensor in graph.initializer},
            passes.static_shapes(graph),
            types,
            passes.consumer_counts(graph),
        )

    def is_real(self, name: str) -> bool:
        """Whether `name` holds float32; values of unknown types are taken to."""
        return self.types.get(name, np.dtype(np.float32)) == np.float32

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a constant or an activation.

        Raises:
            ModelError: if it is not known.
        """
        for known in (self.constants, self.shapes):
            if name in known:
                return known[name]
        raise ModelError(f"the shape of {name!r} is not known; export with fixed shapes")


def describe(
    graph: onnx.GraphProto,
) -> tuple[tuple[Layer, ...], tuple[Glue, ...], tuple[Tensor, ...]]:
    """Return layers, glue and tensors of a prepared graph whose shapes are inferred.

    Raises:
        ModelError: if a shape is not known, a value is a sequence, or a weight is not float32 or
            does not fit what it is applied to.
    """
    _reject_sequences(graph)
    values = _Values.of(graph)
    layers: dict[str, Layer] = {}
    glue: dict[str, Glue] = {}
    for node in graph.node:
        layer = _layer(node, values)
        if layer is None:
            continue
        weight = values.constants.get(node.input[1], ())
        if layer.has_weights and layer.weight_count != math.prod(weight):
            raise ModelError(
                f"layer {node.name!r}: its weight has shape {weight}, which does "
                f"not fit {layer.in_channels} input and {layer.out_channels} output channels"
            )
        layers[node.name] = layer
    integer_producers = {
        node.output[0]: node.name
        for node in graph.node
        if node.name in layers
        or (
            node.op_type in ("Add", "Mul")
            and not any(name in values.constants for name in node.input)
        )
    }
    for node in graph.node:
        if node.name not in layers:
            glue[node.name] = _glue(node, graph, values, integer_producers)
    return tuple(layers.values()), tuple(glue.values()), _tensors(graph, values)


def _reject_sequences(graph: onnx.GraphProto) -> None:
    sequences = {v.name for v in graph.value_info if v.type.HasField("sequence_type")}
    for node in graph.node:
        if sequences & set(node.output):
            raise ModelError(
                f"{node.op_type} {node.name!r} makes a sequence, which is not supported; "
                "export the model with tensors only (Split makes several)"
            )


def _tensors(graph: onnx.GraphProto, values: _Values) -> tuple[Tensor, ...]:
    consumers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            if name and name not in values.constants:
                consumers.setdefault(name, []).append(node.name)
    for value in graph.output:
        consumers.setdefault(value.name, []).append(OUTPUT)
    produced: list[tuple[str, str | None]] = [(v.name, None) for v in graph.input]
    produced += [(name, node.name) for node in graph.node for name in node.output if name]
    return tuple(
        Tensor(name, values.shape(name), producer, tuple(consumers[name]))
        for name, producer in produced
        # Nobody reads some outputs, such as the mask of a max pooling.
        if name in consumers and values.is_real(name)
    )


def _glue(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    values: _Values,
    integer_producers: dict[str, str],
) -> Glue:
    standard = node.domain in ("", "ai.onnx")
    traits = GLUE.get(node.op_type) if standard else None
    known = traits is not None
    traits = traits or GlueTraits()
    read = [name for name in dict.fromkeys(node.input) if name and name not in values.constants]
    inputs = tuple(name for name in read if values.is_real(name))
    written = [name for name in node.output if values.counts[name]]
    outputs = tuple(name for name in written if values.is_real(name))
    has_constant = any(name in values.constants for name in node.input)
    fused = (
        node.op_type in FUSABLE_ACTIVATIONS
        and bool(inputs)
        and inputs[0] in integer_producers
        and values.counts[inputs[0]] == 1
        and _clamp_spans_zero(node, graph)
    )
    integer = traits.integer and (traits.takes_constants or not has_constant)
    return Glue(
        name=node.name,
        kind=node.op_type,
        inputs=inputs,
        outputs=outputs,
        # An integer kernel has one kind of results: no mask beside the values.
        integer=fused or (integer and len(outputs) == len(written)),
        moves_only=traits.moves_only and node.input[0] in inputs,
        fused=fused,
        known=known,
        macs=_uncovered_macs(node, values) if standard and node.op_type in LAYER_KINDS else 0,
    )


def _uncovered_macs(node: onnx.NodeProto, values: _Values) -> int:
    """Multiply-accumulates of a convolution or matrix product that is no layer."""
    source, weight = values.shape(node.input[0]), values.shape(node.input[1])
    if node.op_type == "ConvTranspose":
        return math.prod(source) * math.prod(weight[1:])
    target = math.prod(values.shape(node.output[0]))
    if node.op_type == "Conv":
        return target * math.prod(weight[1:])
    return target * source[0 if passes.attribute(node, "transA", 0) else -1]


def clamp_bounds(node: onnx.NodeProto, graph: onnx.GraphProto) -> tuple[float, float] | None:
    """Return the bounds to which a Relu or Clip clamps, or None if they are not constant."""
    if node.op_type == "Relu":
        return 0.0, math.inf
    wanted = set(node.input[1:])
    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in wanted}
    bounds = [-math.inf, math.inf]
    for index in (1, 2):
        if len(node.input) > index and node.input[index]:
            if node.input[index] not in found:
                return None
            bounds[index - 1] = float(found[node.input[index]].item())
    return bounds[0], bounds[1]


def _clamp_spans_zero(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """A quantized range always holds zero, so only such a clamp can be taken over by it."""
    bounds = clamp_bounds(node, graph)
    return bounds is not None and bounds[0] <= 0 <= bounds[1]


def _layer(node: onnx.NodeProto, values: _Values) -> Layer | None:
    """Describe `node` as a layer, or return None if it is none (such as a Conv without weights)."""
    if node.op_type not in LAYER_KINDS or node.domain not in ("", "ai.onnx"):
        return None
    activations = tuple(name for name in node.input[:2] if name not in values.constants)
    if not activations or activations[0] != node.input[0]:
        return None
    if any(name and name not in values.constants for name in node.input[2:]):
        return None
    if not all(map(values.is_real, node.input[:2])):
        _reject_other_floats(node, values)
        return None
    if any(name not in values.shapes for name in (node.input[0], node.output[0])):
        raise ModelError(f"the shapes around {node.name!r} are not known; export with fixed shapes")
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(node, values) if len(activations) == 1 else None
    return _product(node, activations, values)


def _reject_other_floats(node: onnx.NodeProto, values: _Values) -> None:
    kind = values.types[node.input[1]]
    if node.input[1] in values.constants and kind.kind not in "iub":
        raise ModelError(
            f"layer {node.name!r} has {kind.name} weights; export the model in float32"
        )


def _convolution(node: onnx.NodeProto, values: _Values) -> Layer:
    weight = values.constants[node.input[1]]
    source, target = values.shapes[node.input[0]], values.shapes[node.output[0]]
    kernel = tuple(weight[2:])
    stride: tuple[int, ...] = tuple(passes.attribute(node, "strides", [1] * len(kernel)))
    return Layer(
        name=node.name,
        kind=node.op_type,
        in_channels=source[1],
        out_channels=target[1],
        kernel=kernel,
        stride=stride,
        groups=int(passes.attribute(node, "group", 1)),
        in_size=source[2:],
        out_size=target[2:],
        batch=source[0],
        inputs=(node.input[0],),
        output=node.output[0],
        bias_count=_bias_count(node, values.constants),
    )


def _product(node: onnx.NodeProto, activations: tuple[str, ...], values: _Values) -> Layer | None:
    source, target = values.shapes[node.input[0]], values.shapes[node.output[0]]
    other = values.shape(node.input[1])
    if len(source) < 2 or len(other) < 2:
        return None  # a product with a vector
    if node.op_type == "Gemm":
        if len(activations) == 2:
            return None
    elif len(activations) == 1 and len(other) != 2:
        return None
    *leading, rows, out_channels = target  # the factors may be broadcast along leading extents
    return Layer(
        name=node.name,
        kind=node.op_type,
        in_channels=source[-1],
        out_channels=out_channels,
        kernel=(),
        stride=(),
        groups=1,
        in_size=(rows,),
        out_size=(rows,),
        batch=math.prod(leading),
        inputs=activations,
        output=node.output[0],
        bias_count=_bias_count(node, values.constants),
        factor_counts=(math.prod(source), math.prod(other)) if len(activations) == 2 else None,
    )


def _bias_count(node: onnx.NodeProto, constants: dict[str, tuple[int, ...]]) -> int:
    has_bias = len(node.input) > 2 and node.input[2] != ""
    return math.prod(constants[node.input[2]]) if has_bias else 0
