"""What the nodes and values of a prepared graph are: layers, glue and tensors."""

import math

import onnx
from onnx import numpy_helper

from quantization import passes
from quantization.errors import ModelError
from quantization.network import LAYER_KINDS, OUTPUT, Glue, Layer, Tensor
from quantization.operators import FUSABLE_ACTIVATIONS, GLUE, GlueTraits


def describe(
    graph: onnx.GraphProto,
) -> tuple[tuple[Layer, ...], tuple[Glue, ...], tuple[Tensor, ...]]:
    """Return layers, glue and tensors of a prepared graph whose shapes are inferred.

    Raises:
        ModelError: if a shape is not known, or a weight does not fit what it is applied to.
    """
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    shapes = passes.static_shapes(graph)
    counts = passes.consumer_counts(graph)
    layers: dict[str, Layer] = {}
    glue: dict[str, Glue] = {}
    for node in graph.node:
        layer = _layer(node, constants, shapes)
        if layer is None:
            continue
        if layer.has_weights and layer.weight_count != math.prod(constants[node.input[1]]):
            raise ModelError(
                f"layer {node.name!r}: its weight has shape {constants[node.input[1]]}, which does "
                f"not fit {layer.in_channels} input and {layer.out_channels} output channels"
            )
        layers[node.name] = layer
    integer_producers = {
        node.output[0]: node.name
        for node in graph.node
        if node.name in layers
        or (node.op_type in ("Add", "Mul") and not any(name in constants for name in node.input))
    }
    for node in graph.node:
        if node.name not in layers:
            glue[node.name] = _glue(node, graph, constants, counts, integer_producers)
    tensors = _tensors(graph, constants, shapes)
    return tuple(layers.values()), tuple(glue.values()), tensors


def _tensors(
    graph: onnx.GraphProto,
    constants: dict[str, tuple[int, ...]],
    shapes: dict[str, tuple[int, ...]],
) -> tuple[Tensor, ...]:
    consumers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            if name and name not in constants:
                consumers.setdefault(name, []).append(node.name)
    for value in graph.output:
        consumers.setdefault(value.name, []).append(OUTPUT)
    produced: list[tuple[str, str | None]] = [(v.name, None) for v in graph.input]
    produced += [(name, node.name) for node in graph.node for name in node.output if name]
    tensors = []
    for name, producer in produced:
        if name not in consumers:
            continue  # an output that nobody reads, such as the mask of a max pooling
        if name not in shapes:
            raise ModelError(f"the shape of {name!r} is not known; export with fixed shapes")
        tensors.append(Tensor(name, shapes[name], producer, tuple(consumers[name])))
    return tuple(tensors)


def _glue(
    node: onnx.NodeProto,
    graph: onnx.GraphProto,
    constants: dict[str, tuple[int, ...]],
    counts: dict[str, int],
    integer_producers: dict[str, str],
) -> Glue:
    standard = node.domain in ("", "ai.onnx")
    traits = GLUE.get(node.op_type) if standard else None
    known = traits is not None or (standard and node.op_type in LAYER_KINDS)
    traits = traits or GlueTraits()
    inputs = tuple(name for name in dict.fromkeys(node.input) if name and name not in constants)
    has_constant = any(name in constants for name in node.input)
    fused = (
        node.op_type in FUSABLE_ACTIVATIONS
        and inputs[0] in integer_producers
        and counts[inputs[0]] == 1
        and _clamp_spans_zero(node, graph)
    )
    return Glue(
        name=node.name,
        kind=node.op_type,
        inputs=inputs,
        outputs=tuple(name for name in node.output if counts[name]),
        integer=fused or (traits.integer and (traits.takes_constants or not has_constant)),
        moves_only=traits.moves_only,
        fused=fused,
        known=known,
    )


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


def _layer(
    node: onnx.NodeProto,
    constants: dict[str, tuple[int, ...]],
    shapes: dict[str, tuple[int, ...]],
) -> Layer | None:
    """Describe `node` as a layer, or return None if it is none (such as a Conv without weights)."""
    if node.op_type not in LAYER_KINDS or node.domain not in ("", "ai.onnx"):
        return None
    activations = tuple(name for name in node.input[:2] if name not in constants)
    if not activations or activations[0] != node.input[0]:
        return None
    if any(name and name not in constants for name in node.input[2:]):
        return None
    if any(name not in shapes for name in (node.input[0], node.output[0])):
        raise ModelError(f"the shapes around {node.name!r} are not known; export with fixed shapes")
    if node.op_type in ("Conv", "ConvTranspose"):
        return _convolution(node, constants, shapes) if len(activations) == 1 else None
    return _product(node, activations, constants, shapes)


def _convolution(
    node: onnx.NodeProto,
    constants: dict[str, tuple[int, ...]],
    shapes: dict[str, tuple[int, ...]],
) -> Layer:
    weight = constants[node.input[1]]
    source, target = shapes[node.input[0]], shapes[node.output[0]]
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
        bias_count=_bias_count(node, constants),
    )


def _product(
    node: onnx.NodeProto,
    activations: tuple[str, ...],
    constants: dict[str, tuple[int, ...]],
    shapes: dict[str, tuple[int, ...]],
) -> Layer | None:
    source, target = shapes[node.input[0]], shapes[node.output[0]]
    other = constants.get(node.input[1]) or shapes.get(node.input[1], ())
    if len(source) < 2 or len(other) < 2:
        return None  # a product with a vector
    if node.op_type == "Gemm":
        plain = not passes.attribute(node, "transA", 0) and all(
            passes.attribute(node, name, 1.0) == 1.0 for name in ("alpha", "beta")
        )
        if not plain or len(activations) == 2:
            return None
    elif len(activations) == 1 and len(constants[node.input[1]]) != 2:
        return None
    *leading, rows, out_channels = target  # the source may be broadcast along leading extents
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
        bias_count=_bias_count(node, constants),
    )


def _bias_count(node: onnx.NodeProto, constants: dict[str, tuple[int, ...]]) -> int:
    has_bias = len(node.input) > 2 and node.input[2] != ""
    return math.prod(constants[node.input[2]]) if has_bias else 0
