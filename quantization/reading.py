"""From an ONNX file to a `Network`."""

import math
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper, shape_inference, version_converter

from quantization import passes
from quantization.errors import ModelError
from quantization.network import LAYER_KINDS, OUTPUT, Glue, Layer, Network, Tensor
from quantization.operators import FUSABLE_ACTIVATIONS, GLUE, GlueTraits

OPSET = 21
"""Opset of prepared and exported models; newer ones keep their own. 21 brought 4-bit types."""

_IR_VERSION = 10
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_QUANTIZED = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"),
        *("QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulNBits"),
    }
)


def read_network(model: str | Path | onnx.ModelProto, *, batch: int = 1) -> Network:
    """Read an ONNX model and prepare it for quantization.

    Constants and batch-norms are folded, `Identity` aliases resolved, shapes inferred, and each
    layer gets its own weight and bias.

    Args:
        model: a path, or a model in memory (which is not changed).
        batch: what a symbolic first dimension of an input becomes.

    Returns:
        The network; `Network.folded` counts what was changed.

    Raises:
        ModelError: if the file is missing, truncated, no ONNX model, already quantized, has control
            flow or shapes that cannot be known.
    """
    prepared = _load(model)
    graph = prepared.graph
    passes.name_nodes(graph)
    _reject_unsupported(graph)
    _fix_input_shapes(graph, batch)
    counts = {
        "Constant": passes.inline_constants(graph),
        "Identity": passes.resolve_identities(graph),
    }
    prepared = _to_opset(prepared)
    passes.name_nodes(prepared.graph)  # raising the opset adds nodes without names, and constants
    counts["Constant"] += passes.inline_constants(prepared.graph)
    prepared = _infer_shapes(prepared)
    counts["folded"] = 0
    while n := passes.fold_constants(prepared):
        counts["folded"] += n
        prepared = _infer_shapes(prepared)
    graph = prepared.graph
    counts["BatchNormalization"] = passes.fold_batch_norms(graph)
    counts["ReduceMean"] = passes.pool_means(graph)
    passes.drop_unused(graph)
    counts["shared parameters"] = passes.own_parameters(graph)
    passes.drop_unused(graph)
    prepared = _infer_shapes(prepared)
    layers, glue, tensors = _describe(prepared.graph)
    return Network(prepared, layers, glue, tensors, folded=counts)


def _load(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return copy
    path = Path(model)
    if not path.is_file():
        raise ModelError(f"no such file: {path}")
    try:
        loaded = onnx.load_model(path, format="protobuf")
        onnx.checker.check_model(loaded)
    except DecodeError:
        raise ModelError(f"{path} is no ONNX model, or it is truncated") from None
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise ModelError(f"{path} is no valid ONNX model: {_one_line(error)}") from None
    if not loaded.graph.node:
        raise ModelError(f"{path} is no ONNX model, or it is empty")
    return loaded


def _reject_unsupported(graph: onnx.GraphProto) -> None:
    kinds = {node.op_type for node in graph.node}
    if found := kinds & _CONTROL_FLOW:
        raise ModelError(f"control flow is not supported: {', '.join(sorted(found))}")
    if found := kinds & _QUANTIZED:
        raise ModelError(f"the model is already quantized ({min(found)}); give the float model")


def _fix_input_shapes(graph: onnx.GraphProto, batch: int) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in constants:
            continue
        dims = value.type.tensor_type.shape.dim
        for index, dim in enumerate(dims):
            if dim.dim_value > 0:
                continue
            if index > 0:
                raise ModelError(
                    f"input {value.name!r} has an open dimension {index}; export with fixed shapes"
                )
            dim.dim_value = batch
    for value in graph.output:
        # A symbolic batch here would contradict the fixed one; inference writes it anew.
        value.type.tensor_type.ClearField("shape")
    del graph.value_info[:]


def _to_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    version = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if version < OPSET:
        try:
            model = version_converter.convert_version(model, OPSET)
        except Exception as error:  # the converter raises bare RuntimeErrors of many kinds
            raise ModelError(
                f"opset {version} could not be raised to {OPSET} ({_one_line(error)}); "
                "export the model anew"
            ) from error
    model.ir_version = max(model.ir_version, _IR_VERSION)
    return model


def _infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.value_info[:]
    try:
        return shape_inference.infer_shapes(model, check_type=True, data_prop=True)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        raise ModelError(f"shapes could not be inferred: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _describe(
    graph: onnx.GraphProto,
) -> tuple[tuple[Layer, ...], tuple[Glue, ...], tuple[Tensor, ...]]:
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
