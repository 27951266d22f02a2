"""Graph passes that fold what is constant: constant expressions, and batch-norms into weights."""

import logging

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from quantization.passes import (
    attribute,
    consumer_counts,
    element_types,
    initializer_arrays,
    static_shapes,
)

_LOG = logging.getLogger(__name__)

_MAX_FOLDED_ELEMENTS = 1 << 24
"""A fold that makes a larger constant than this is left to run time: it would bloat the file."""

_NEVER_FOLDED = frozenset(
    {"RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


def inline_constants(graph: onnx.GraphProto) -> int:
    """Turn Constant nodes into initializers."""
    constants = [node for node in graph.node if node.op_type == "Constant"]
    for node in constants:
        [value] = ReferenceEvaluator(node).run(None, {})
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), node.output[0]))
        graph.node.remove(node)
    return len(constants)


def fold_constants(model: onnx.ModelProto) -> int:
    """Evaluate every node that depends on constants, or on static shapes, alone.

    Shapes must have been inferred before, for `Shape` nodes to fold.
    """
    graph = model.graph
    arrays = initializer_arrays(graph)
    shapes = static_shapes(graph)
    types = element_types(graph)
    outputs = {value.name for value in graph.output}
    folded = []
    for node in graph.node:
        value: np.ndarray | None = None
        if node.op_type == "Shape" and node.input[0] in shapes:
            start = attribute(node, "start", 0)
            end = attribute(node, "end")
            value = np.array(shapes[node.input[0]], np.int64)[slice(start, end)]
        elif node.op_type == "CastLike" and node.input[0] in arrays and node.input[1] in types:
            value = arrays[node.input[0]].astype(types[node.input[1]])
        elif _is_constant(node, arrays):
            value = _evaluate(node, arrays, model)
        if value is None or value.size > _MAX_FOLDED_ELEMENTS or outputs & set(node.output):
            continue
        arrays[node.output[0]] = value
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    return len(folded)


def _is_constant(node: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> bool:
    if len(node.output) != 1 or node.op_type in _NEVER_FOLDED or node.domain not in ("", "ai.onnx"):
        return False
    return bool(node.input) and all(name in arrays for name in node.input if name)


def _evaluate(
    node: onnx.NodeProto, arrays: dict[str, np.ndarray], model: onnx.ModelProto
) -> np.ndarray | None:
    names = [name for name in dict.fromkeys(node.input) if name]
    info = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(arrays[name].dtype), arrays[name].shape
        )
        for name in names
    ]
    output = onnx.helper.make_empty_tensor_value_info(node.output[0])
    graph = onnx.helper.make_graph([node], "fold", info, [output])
    single = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    try:
        [value] = ReferenceEvaluator(single).run(None, {name: arrays[name] for name in names})
    except Exception as error:  # operators of the reference evaluator raise errors of any kind
        _LOG.debug("%s %r is left to run time: %s", node.op_type, node.name, error)
        return None
    return np.asarray(value)


def fold_batch_norms(graph: onnx.GraphProto) -> int:
    """Fold each BatchNormalization behind a convolution or a Gemm into its weight and bias.

    With scale g, shift h, mean m, variance v:  ``W' = W g / sqrt(v + eps)`` per output channel and
    ``b' = (b - m) g / sqrt(v + eps) + h``. In float64, rounded once. Gemms must be plain, as
    `rewriting.plain_gemms` leaves them.
    """
    arrays = initializer_arrays(graph)
    counts = consumer_counts(graph)
    producers = {node.output[0]: node for node in graph.node}
    folded = []
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or len(norm.output) != 1:
            continue
        if attribute(norm, "training_mode", 0):
            continue
        layer = producers.get(norm.input[0])
        if layer is None or counts[norm.input[0]] != 1:
            continue
        axis = _output_axis(layer, arrays)
        if axis is None or any(name not in arrays for name in norm.input[1:]):
            continue
        scale, shift, mean, variance = (arrays[n].astype(np.float64) for n in norm.input[1:])
        factor = scale / np.sqrt(variance + float(attribute(norm, "epsilon", 1e-5)))
        weight = arrays[layer.input[1]]
        column = [1] * weight.ndim
        column[axis] = -1
        bias = arrays[layer.input[2]].astype(np.float64).ravel() if _has_bias(layer) else 0.0
        new_weight = (weight.astype(np.float64) * factor.reshape(column)).astype(weight.dtype)
        new_bias = ((bias - mean) * factor + shift).astype(weight.dtype)
        names = (f"{norm.name}.folded.weight", f"{norm.name}.folded.bias")
        graph.initializer.append(numpy_helper.from_array(new_weight, names[0]))
        graph.initializer.append(numpy_helper.from_array(new_bias, names[1]))
        del layer.input[1:]
        layer.input.extend(names)
        layer.output[0] = norm.output[0]
        producers[norm.output[0]] = layer
        folded.append(norm)
    for norm in folded:
        graph.node.remove(norm)
    return len(folded)


def _output_axis(layer: onnx.NodeProto, arrays: dict[str, np.ndarray]) -> int | None:
    """The axis of the weight that runs over output channels, if a scale can be folded there."""
    constants = [name for name in layer.input[1:] if name]
    if layer.op_type not in ("Conv", "Gemm") or any(name not in arrays for name in constants):
        return None
    if layer.op_type == "Conv":
        return 0
    return 0 if attribute(layer, "transB", 0) else 1


def _has_bias(layer: onnx.NodeProto) -> bool:
    return len(layer.input) > 2 and layer.input[2] != ""
