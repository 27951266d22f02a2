"""The identity of a prepared model's structure: everything that decides what its nodes cost."""

import hashlib
from collections.abc import Collection
from typing import Any

import onnx
from onnx import numpy_helper

_EXPONENTS_AND_FACTORS = frozenset({"Pow", "Resize"})
"""Operators whose float constants decide which code runs, and are never trained."""


def structure_digest(model: onnx.ModelProto, layers: Collection[str], described: str) -> str:
    """Return the SHA-256 of everything in `model` that decides what it costs.

    Of each node: name, operator, attributes and wiring. Of constants: type and shape, and also the
    values of glue's integers (axes, pads, target shapes) and of exponents and scale factors. Not
    the values of layers' weights and of float constants that training changes (the scale of a
    normalization, say), so that a cost table stays valid for the retrained network.

    Args:
        model: the prepared model.
        layers: names of the nodes that are layers.
        described: what else decides, as text.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    hashed = hashlib.sha256(described.encode())

    def add(*parts: Any) -> None:
        hashed.update(repr(parts).encode())

    add(sorted((entry.domain, entry.version) for entry in model.opset_import))
    add(sorted(function.SerializeToString(deterministic=True) for function in model.functions))
    for value in (*graph.input, *graph.output):
        add(value.name, value.type.SerializeToString(deterministic=True))
    for node in graph.node:
        add(node.name, node.domain, node.op_type, list(node.output))
        add(sorted(entry.SerializeToString(deterministic=True) for entry in node.attribute))
        for name in node.input:
            if name not in constants:
                add(name)
                continue
            constant = constants[name]
            add(constant.data_type, list(constant.dims))
            if node.name not in layers and _by_value(node, constant):
                add(numpy_helper.to_array(constant).tobytes())
    return hashed.hexdigest()


def _by_value(node: onnx.NodeProto, constant: onnx.TensorProto) -> bool:
    kind = onnx.helper.tensor_dtype_to_np_dtype(constant.data_type).kind
    return kind in "iub" or node.op_type in _EXPONENTS_AND_FACTORS
