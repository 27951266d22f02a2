"""From an ONNX file to a `Network`."""

import math
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import shape_inference, version_converter

from quantization import folding, passes, rewriting
from quantization.description import describe
from quantization.errors import ModelError
from quantization.network import Network

OPSET = 21
"""Opset of prepared and exported models; newer ones keep their own. 21 brought 4-bit types."""

_IR_VERSION = 10
_LARGE = 1024
"""Values of a tensor that are no shape, no scales and no axes of anything."""
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})
_QUANTIZED = frozenset(
    {
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"),
        *("QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulNBits"),
    }
)


def read_network(model: str | Path | onnx.ModelProto, *, batch: int = 1) -> Network:
    """Read an ONNX model and prepare it for quantization.

    Constants and batch-norms are folded, `Identity` aliases resolved, matrix products and splits
    written in their plain form, shapes inferred, and each layer gets its own weight and bias.

    Args:
        model: a path, or a model in memory (which is not changed).
        batch: what a symbolic first dimension of an input becomes.

    Returns:
        The network; `Network.folded` counts what was changed.

    Raises:
        ModelError: if the file is missing, truncated, no ONNX model, already quantized, has control
            flow, inputs or weights that are not float32, or shapes that cannot be known.
    """
    prepared = _load(model)
    graph = prepared.graph
    passes.name_nodes(graph)
    passes.drop_constant_inputs(graph)
    unused_inputs = passes.drop_unused_inputs(graph)
    _reject_unsupported(graph)
    _fix_input_shapes(graph, batch)
    counts = {
        "Constant": folding.inline_constants(graph),
        "Identity": passes.resolve_identities(graph),
    }
    prepared = _to_opset(prepared)
    passes.name_nodes(prepared.graph)  # raising the opset adds nodes without names, and constants
    counts["Constant"] += folding.inline_constants(prepared.graph)
    prepared = _infer_shapes(prepared)
    counts |= {"folded": 0, "SplitToSequence": 0}
    while True:
        folded = folding.fold_constants(prepared)
        split = rewriting.split_sequences(prepared.graph)
        if not folded + split:
            break
        counts["folded"] += folded
        counts["SplitToSequence"] += split
        prepared = _infer_shapes(prepared)
    graph = prepared.graph
    counts["Gemm"] = rewriting.plain_gemms(graph)
    counts["Add"] = rewriting.bias_products(graph)
    counts["BatchNormalization"] = folding.fold_batch_norms(graph)
    counts["ReduceMean"] = rewriting.pool_means(graph)
    passes.drop_unused(graph)
    counts["shared parameters"] = passes.own_parameters(graph)
    passes.drop_unused(graph)
    counts["unused inputs"] = unused_inputs + passes.drop_unused_inputs(graph)
    prepared = _infer_shapes(prepared)
    layers, glue, tensors = describe(prepared.graph)
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
    for value in graph.input:
        kind = value.type.tensor_type.elem_type  # 0 for what is no tensor
        if kind != onnx.TensorProto.FLOAT:
            name = onnx.helper.tensor_dtype_to_np_dtype(kind).name if kind else "no tensor"
            raise ModelError(f"input {value.name!r} is {name}; export the model in float32")


def _fix_input_shapes(graph: onnx.GraphProto, batch: int) -> None:
    for value in graph.input:
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
    weights = _without_weights(model.graph)
    try:
        inferred = shape_inference.infer_shapes(model, check_type=True, data_prop=True)
    except (shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError) as error:
        raise ModelError(f"shapes could not be inferred: {_one_line(error)}") from None
    for position, content in weights.items():
        inferred.graph.initializer[position].raw_data = content
    return inferred


def _without_weights(graph: onnx.GraphProto) -> dict[int, bytes]:
    """Take the contents of large float tensors out; return them by position.

    Shapes depend on their dimensions only, and inference writes and reads the model as a file.
    """
    taken = {}
    for position, tensor in enumerate(graph.initializer):
        large = math.prod(tensor.dims) > _LARGE and tensor.data_type == onnx.TensorProto.FLOAT
        if large and tensor.HasField("raw_data"):
            taken[position] = tensor.raw_data
            tensor.ClearField("raw_data")
    return taken


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
