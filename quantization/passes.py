"""Graph passes that put an ONNX model into the one shape that the rest of the project reads.

Here is what reads a graph, and the passes that name, alias and drop; `folding` and `rewriting`
hold the others. Each pass changes a `GraphProto` in place and returns how many nodes or
initializers it changed. After all of them: no Identity, no Constant node, nothing that only depends
on constants, no batch-norm behind a convolution, no Gemm by a weight that does more than
``x W + b``, unique node names, and for each layer its own weight and bias called
``{layer}.weight`` and ``{layer}.bias``.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from quantization.network import LAYER_KINDS


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


def _values(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*graph.input, *graph.value_info, *graph.output)


def element_types(graph: onnx.GraphProto) -> dict[str, np.dtype]:
    """Return the element types of inputs, outputs and inferred values, as far as known."""
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


def drop_constant_inputs(graph: onnx.GraphProto) -> int:
    """Remove the inputs that only name an initializer, as files before IR version 4 list them."""
    constants = {tensor.name for tensor in graph.initializer}
    named = [value for value in graph.input if value.name in constants]
    for value in named:
        graph.input.remove(value)
    return len(named)


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
    return removed


def drop_unused_inputs(graph: onnx.GraphProto) -> int:
    """Remove inputs that nobody reads."""
    counts = consumer_counts(graph)
    unused = [value for value in graph.input if not counts[value.name]]
    for value in unused:
        graph.input.remove(value)
    return len(unused)
