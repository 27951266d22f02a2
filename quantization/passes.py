"""Graph passes that put an ONNX model into the one shape that the rest of the project reads.

Each pass changes a `GraphProto` in place and returns how many nodes or initializers it changed.
After all of them: no Identity, no Constant node, nothing that only depends on constants, no
batch-norm behind a convolution, unique node names, and for each layer its own weight and bias
called ``{layer}.weight`` and ``{layer}.bias``.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from quantization.network import LAYER_KINDS

_LOG = logging.getLogger(__name__)

_MAX_FOLDED_ELEMENTS = 1 << 24
"""A fold that makes a larger constant than this is left to run time: it would bloat the file."""

_NEVER_FOLDED = frozenset(
    {"RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout"}
)


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of attribute `name` of `node`, or `default`."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def initializer_arrays(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Return every initializer of `graph` as an array, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def consumer_counts(graph: onnx.GraphProto) -> Counter[str]:
    """Count how often each value is read; an output of the graph counts as one more reader."""
    counts = Counter(name for node in graph.node for name in node.input if name)
    counts.update(value.name for value in graph.output)
    return counts


def name_nodes(graph: onnx.GraphProto) -> int:
    """Give every node without a name, or with one that occurred before, the name ``{op}_{index}``.

    The index is the position in the file as read, so the name does not depend on other passes.
    """
    taken = {node.name for node in graph.node if node.name}
    seen: set[str] = set()
    changed = 0
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{index}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
            changed += 1
        seen.add(node.name)
    return changed


def inline_constants(graph: onnx.GraphProto) -> int:
    """Turn Constant nodes into initializers."""
    constants = [node for node in graph.node if node.op_type == "Constant"]
    for node in constants:
        [value] = ReferenceEvaluator(node).run(None, {})
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), node.output[0]))
        graph.node.remove(node)
    return len(constants)


def _rename_reads(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    def resolve(name: str) -> str:
        while name in renamed:
            name = renamed[name]
        return name

    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = resolve(name)


def resolve_identities(graph: onnx.GraphProto) -> int:
    """Remove Identity and inference-time Dropout nodes; their readers read the original value.

    One that makes an output of the graph hands the output's name, which is part of the model's
    interface, to the node before it. It stays if that is an input, a constant or another output.
    """
    outputs = {value.name for value in graph.output}
    aliases = [node for node in graph.node if node.op_type in ("Identity", "Dropout")]
    inner = [node for node in aliases if not outputs & set(node.output)]
    for node in inner:
        graph.node.remove(node)
    _rename_reads(graph, {node.output[0]: node.input[0] for node in inner})
    last = [node for node in aliases if outputs & set(node.output)]
    return len(inner) + sum(_hand_name_back(graph, node, outputs) for node in last)


def _hand_name_back(graph: onnx.GraphProto, alias: onnx.NodeProto, outputs: set[str]) -> bool:
    """Remove `alias`, which makes an output, if the node before it can make that output."""
    old, new = alias.input[0], alias.output[0]
    producer = next((node for node in graph.node if old in node.output), None)
    if producer is None or old in outputs or len([name for name in alias.output if name]) > 1:
        return False
    graph.node.remove(alias)
    producer.output[list(producer.output).index(old)] = new
    _rename_reads(graph, {old: new})
    return True


def fold_constants(model: onnx.ModelProto) -> int:
    """Evaluate every node that depends on constants, or on static shapes, alone.

    Shapes must have been inferred before, for `Shape` nodes to fold.
    """
    graph = model.graph
    arrays = initializer_arrays(graph)
    shapes = static_shapes(graph)
    types = _element_types(graph)
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


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.value_info, *graph.output)


def _element_types(graph: onnx.GraphProto) -> dict[str, np.dtype]:
    """The element types of values whose type numpy has."""
    return {
        value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in _values(graph)
        if value.type.tensor_type.elem_type
    }


def static_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """Return the fully known shapes of inputs, outputs and inferred values."""
    shapes = {}
    for value in _values(graph):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = tuple(d.dim_value for d in kind.shape.dim)
    return shapes


def pool_means(graph: onnx.GraphProto) -> int:
    """Write each mean over both image axes as GlobalAveragePool, which has an integer kernel.

    A mean without kept axes gets a Flatten behind it.
    """
    arrays = initializer_arrays(graph)
    shapes = static_shapes(graph)
    changed = 0
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if node.op_type != "ReduceMean" or len(shapes.get(node.input[0], ())) != 4:
            continue
        axes = arrays.get(node.input[1]) if len(node.input) > 1 else None
        if axes is None or {int(axis) % 4 for axis in axes} != {2, 3}:
            continue
        pool = onnx.NodeProto(op_type="GlobalAveragePool", name=node.name, input=node.input[:1])
        if attribute(node, "keepdims", 1):
            pool.output.extend(node.output)
            graph.node[position].CopyFrom(pool)
        else:
            pool.output.append(f"{node.output[0]}.pooled")
            flatten = onnx.helper.make_node(
                "Flatten", [pool.output[0]], node.output, name=f"{node.name}.flatten"
            )
            graph.node[position].CopyFrom(pool)
            graph.node.insert(position + 1, flatten)
        changed += 1
    return changed


def fold_batch_norms(graph: onnx.GraphProto) -> int:
    """Fold each BatchNormalization behind a convolution or a Gemm into its weight and bias.

    With scale g, shift h, mean m, variance v:  ``W' = W g / sqrt(v + eps)`` per output channel and
    ``b' = (b - m) g / sqrt(v + eps) + h``. In float64, rounded once.
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
    if _has_bias(layer) and math.prod(arrays[layer.input[2]].shape[:-1]) != 1:
        return None  # another bias for each row
    plain = attribute(layer, "alpha", 1.0) == 1.0 and attribute(layer, "beta", 1.0) == 1.0
    return (0 if attribute(layer, "transB", 0) else 1) if plain else None


def _has_bias(layer: onnx.NodeProto) -> bool:
    return len(layer.input) > 2 and layer.input[2] != ""


def own_parameters(graph: onnx.GraphProto) -> int:
    """Give each layer its own weight ``{layer}.weight`` and bias ``{layer}.bias``.

    Exporters share equal biases between convolutions; if one sharer is quantized, the bias of the
    others stops being a constant for ONNX Runtime and they lose their fast layout. Returns how
    many parameters were copied because another node reads them too.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    counts = consumer_counts(graph)
    slots = [
        (node, index, role)
        for node in graph.node
        if node.op_type in LAYER_KINDS
        for index, role in ((1, "weight"), (2, "bias"))
        if len(node.input) > index and node.input[index] in constants
    ]
    elsewhere = counts - Counter(node.input[index] for node, index, _ in slots)
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken -= {name for name in constants if not elsewhere[name]}
    copies, copied = [], 0
    for node, index, role in slots:
        name = f"{node.name}.{role}"
        while name in taken:
            name += "_"
        taken.add(name)
        copy = onnx.TensorProto()
        copy.CopyFrom(constants[node.input[index]])
        copy.name = name
        copies.append(copy)
        copied += counts[node.input[index]] > 1
        node.input[index] = name
    kept = [tensor for tensor in graph.initializer if elsewhere[tensor.name]]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *copies])
    return copied


def drop_unused(graph: onnx.GraphProto) -> int:
    """Remove nodes whose outputs nobody reads, then initializers that nobody reads."""
    removed = 0
    while True:
        counts = consumer_counts(graph)
        dead = [node for node in graph.node if not any(counts[name] for name in node.output)]
        for node in dead:
            graph.node.remove(node)
        removed += len(dead)
        if not dead:
            break
    counts = consumer_counts(graph)
    for tensor in [t for t in graph.initializer if not counts[t.name]]:
        graph.initializer.remove(tensor)
    names = {tensor.name for tensor in graph.initializer}
    for value in [v for v in graph.input if v.name in names]:
        graph.input.remove(value)
    return removed
