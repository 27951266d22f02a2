"""Raw ONNX models for the tests of reading."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str] | None


def make_model(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, "np.ndarray[Any, Any]"],
    inputs: Mapping[str, Shape],
    outputs: Mapping[str, Shape],
    *,
    opset: int = 21,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """Put a float model together."""

    def values(shapes: Mapping[str, Shape]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    graph = helper.make_graph(
        list(nodes),
        "graph",
        values(inputs),
        values(outputs),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def node(kind: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    """Make a node from names separated by blanks; ``-`` is an input that is left out."""
    given = ["" if i == "-" else i for i in inputs.split()]
    return helper.make_node(kind, given, outputs.split(), name=name, **attributes)


def normal(*shape: int, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Draw ordinary numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
