"""Graph passes that write operators in the form that has an integer kernel."""

import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quantization.passes import (
    attribute,
    consumer_counts,
    initializer_arrays,
    resolve_identities,
    static_shapes,
)

Array = np.ndarray[Any, np.dtype[Any]]


class _Names:
    """Makes names that neither a node nor a value of `graph` has yet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._taken = {tensor.name for tensor in graph.initializer}
        self._taken |= {value.name for value in graph.input}
        for node in graph.node:
            self._taken |= {node.name, *node.input, *node.output}

    def fresh(self, name: str) -> str:
        """Return `name`, with underscores behind it if it is taken."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def plain_gemms(graph: onnx.GraphProto) -> int:
    """Write each Gemm with a constant weight as ``y = x W + b`` with one bias per column.

    ``alpha`` is multiplied into the weight and ``beta`` into a constant addend, in float64, rounded
    once. ``transA`` becomes a Transpose before it. An addend that is no bias per column becomes an
    Add behind it; if it is computed and has a ``beta``, the Gemm stays as it is.
    """
    arrays, names = initializer_arrays(graph), _Names(graph)
    nodes: list[onnx.NodeProto] = []
    changed = 0
    for node in graph.node:
        written = _plain_gemm(node, graph, arrays, names) if node.op_type == "Gemm" else None
        changed += written is not None
        nodes += written or [node]
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def _plain_gemm(
    node: onnx.NodeProto, graph: onnx.GraphProto, arrays: dict[str, Array], names: _Names
) -> list[onnx.NodeProto] | None:
    """Return the nodes that stand for `node`; None if it stays."""
    alpha, beta = (float(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    turned = bool(attribute(node, "transA", 0))
    source, weight, addend = (*node.input, "")[:3]
    if weight not in arrays or arrays[weight].dtype != np.float32:
        return None
    if addend and beta != 1 and addend not in arrays:
        return None
    per_column = not addend or (addend in arrays and _is_per_column(arrays[addend]))
    if (alpha, beta, turned, per_column) == (1, 1, False, True):
        return None

    def scaled(name: str, factor: float, role: str) -> str:
        if factor == 1:
            return name
        value = (arrays[name].astype(np.float64) * factor).astype(np.float32)
        new = names.fresh(f"{node.name}.scaled.{role}")
        graph.initializer.append(numpy_helper.from_array(value, new))
        return new

    before, behind = [], []
    if turned:
        straight, name = names.fresh(f"{source}.transposed"), names.fresh(f"{node.name}.transpose")
        before.append(helper.make_node("Transpose", [source], [straight], name=name, perm=[1, 0]))
        source = straight
    inputs, result = [source, scaled(weight, alpha, "weight")], node.output[0]
    if addend and beta != 0:
        addend = scaled(addend, beta, "bias")
        if per_column:
            inputs.append(addend)
        else:
            result, name = names.fresh(f"{result}.product"), names.fresh(f"{node.name}.add")
            behind.append(helper.make_node("Add", [result, addend], node.output, name=name))
    gemm = helper.make_node(
        "Gemm", inputs, [result], name=node.name, transB=attribute(node, "transB", 0)
    )
    return [*before, gemm, *behind]


def _is_per_column(bias: Array) -> bool:
    rows: int = math.prod(bias.shape[:-1])
    return rows == 1


def bias_products(graph: onnx.GraphProto) -> int:
    """Write a MatMul of a matrix by a weight, and an Add of a bias per column behind it, as a Gemm.

    Only where the left factor has two axes, as a Gemm's must: what a MatMul with leading axes is
    added to stays an Add.
    """
    arrays, shapes = initializer_arrays(graph), static_shapes(graph)
    counts = consumer_counts(graph)
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    folded = []
    for add in graph.node:
        if add.op_type != "Add":
            continue
        for result, bias in (tuple(add.input), tuple(reversed(add.input))):
            product = products.get(result)
            if product is None or counts[result] != 1 or bias not in arrays:
                continue
            weight = arrays.get(product.input[1])
            if weight is None or weight.ndim != 2 or len(shapes.get(product.input[0], ())) != 2:
                continue
            shape = arrays[bias].shape
            fits = len(shape) <= 2 and (not shape or shape[-1] in (1, weight.shape[1]))
            if fits and _is_per_column(arrays[bias]):
                product.op_type = "Gemm"
                product.input.append(bias)
                product.output[0] = add.output[0]
                folded.append(add)
                break
    for add in folded:
        graph.node.remove(add)
    return len(folded)


def split_sequences(graph: onnx.GraphProto) -> int:
    """Write each SplitToSequence whose parts are read at fixed positions as a Split.

    What torch exports for ``chunk`` and ``split``.
    """
    arrays, shapes = initializer_arrays(graph), static_shapes(graph)
    names, counts = _Names(graph), consumer_counts(graph)
    changed = 0
    for node in graph.node:
        if node.op_type != "SplitToSequence":
            continue
        sizes = _part_sizes(node, arrays, shapes)
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        fixed = all(
            reader.op_type == "SequenceAt"
            and reader.input[1] in arrays
            and -len(sizes) <= int(arrays[reader.input[1]]) < len(sizes)
            for reader in readers
        )
        if not fixed or counts[node.output[0]] != len(readers):
            continue
        parts = [names.fresh(f"{node.output[0]}.{i}") for i in range(len(sizes))]
        for reader in readers:
            part = parts[int(arrays[reader.input[1]])]
            alias = helper.make_node("Identity", [part], reader.output, name=reader.name)
            reader.CopyFrom(alias)
        extents = names.fresh(f"{node.name}.sizes")
        graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), extents))
        axis = attribute(node, "axis", 0)
        split = helper.make_node("Split", [node.input[0], extents], parts, node.name, axis=axis)
        node.CopyFrom(split)
        changed += 1
    if changed:
        resolve_identities(graph)
    return changed


def _part_sizes(
    node: onnx.NodeProto, arrays: dict[str, Array], shapes: dict[str, tuple[int, ...]]
) -> list[int]:
    """The extents of the parts of a SplitToSequence; empty if they are not known."""
    shape, given = shapes.get(node.input[0]), (*node.input, "")[1]
    if shape is None or (given and given not in arrays):
        return []
    if given and arrays[given].ndim:
        return [int(size) for size in arrays[given]]
    if not given and not attribute(node, "keepdims", 1):
        return []  # parts of size 1 whose axis is removed
    size = int(arrays[given]) if given else 1
    extent = shape[attribute(node, "axis", 0)]
    return [min(size, extent - start) for start in range(0, extent, size)]


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
