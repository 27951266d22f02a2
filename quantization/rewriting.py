"""Graph passes that write operators in the form that has an integer kernel."""

import onnx

from quantization.passes import attribute, initializer_arrays, static_shapes


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
