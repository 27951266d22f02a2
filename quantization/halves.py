"""Layers and glue in half precision: float16 nodes, and a `Cast` wherever the format changes.

Tensor 5 in half precision is ``T5:h``; readers in that format read it under this name. Glue whose
operator has no half precision in ONNX's own definition runs as float32 between casts. Constants
beyond the range of half precision become its limits: masks and bounds of a `Clip` mean the same.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from quantization.errors import PolicyError
from quantization.fragments import fragment
from quantization.network import Glue, Layer

Array = npt.NDArray[np.generic]

_LARGEST = float(np.finfo(np.float16).max)
_PARAMETERS = frozenset({"BatchNormalization"})
"""Operators of which the runtime's kernels want parameters in the format of the data."""
_HALF = "tensor(float16)"


def named(own: str) -> str:
    """Return the name in half precision of the tensor whose short name is `own`."""
    return f"{own}:h"


def to_half(own: str, tensor: str) -> bytes:
    """Return the node that narrows `tensor`, whose short name is `own`."""
    return fragment([_cast(tensor, named(own), TensorProto.FLOAT16)], {})


def to_float(own: str, tensor: str) -> bytes:
    """Return the node that widens the tensor with short name `own` to `tensor`."""
    return fragment([_cast(named(own), tensor, TensorProto.FLOAT)], {})


def layer(
    node: onnx.NodeProto,
    given: Layer,
    own: str,
    tensors: Mapping[str, str],
    arrays: Mapping[str, Array],
) -> bytes:
    """Return a layer that reads, computes and writes half precision.

    Args:
        node: the layer's node in the float model.
        given: the layer.
        own: its short name.
        tensors: short name by tensor.
        arrays: the float model's constants.

    Raises:
        PolicyError: if a parameter is beyond the range of half precision.
    """
    made, stored = onnx.NodeProto(), dict[str, Array]()
    made.CopyFrom(node)
    for at, name in enumerate(node.input):
        if name in given.inputs:
            made.input[at] = named(tensors[name])
        elif name:
            made.input[at] = f"{own}:{'w' if at == 1 else 'b'}"
            stored[made.input[at]] = _parameter(arrays[name], given.name)
    made.output[0] = named(tensors[given.output])
    return fragment([made], stored)


def glue(
    node: onnx.NodeProto,
    given: Glue,
    own: str,
    tensors: Mapping[str, str],
    constants: Mapping[str, Array],
    opset: int,
) -> bytes:
    """Return a glue operator whose inputs and outputs have half precision.

    Args:
        node: the operator's node in the float model.
        given: the operator.
        own: its short name.
        tensors: short name by tensor.
        constants: those of the model that it reads.
        opset: of the model.
    """
    narrowed = _narrowed(node, given, constants, opset)
    made, stored = onnx.NodeProto(), dict[str, Array]()
    made.CopyFrom(node)
    before, after = [], []
    for at, name in enumerate(node.input):
        if name in given.inputs:
            half = named(tensors[name])
            made.input[at] = half if narrowed is not None else f"{own}:f{at}"
            if narrowed is None:
                before.append(_cast(half, made.input[at], TensorProto.FLOAT))
        elif name in constants:
            is_half = narrowed is not None and at in narrowed
            made.input[at] = f"{own}:h{at}" if is_half else f"{own}:k{at}"
            stored[made.input[at]] = _limited(constants[name]) if is_half else constants[name]
    for at, name in enumerate(node.output):
        if name in given.outputs:
            half = named(tensors[name])
            made.output[at] = half if narrowed is not None else f"{own}:g{at}"
            if narrowed is None:
                after.append(_cast(made.output[at], half, TensorProto.FLOAT16))
    if narrowed is not None:
        for attribute in made.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = TensorProto.FLOAT16
    return fragment([*before, made, *after], stored)


def _narrowed(
    node: onnx.NodeProto, given: Glue, constants: Mapping[str, Array], opset: int
) -> frozenset[int] | None:
    """Return which constants, by position, are narrowed too; None if the operator has no half.

    A constant follows if ONNX gives it the type of the data (bounds, operands), not if its type is
    its own (scales of a `Resize`).
    """
    kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    if node.domain not in ("", "ai.onnx") or any(
        a.type in kinds or a.name == "dtype" for a in node.attribute
    ):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        return None
    allowed = {t.type_param_str: set(t.allowed_type_strs) for t in schema.type_constraints}

    def kind(formal: list[onnx.defs.OpSchema.FormalParameter], at: int) -> str:
        return str(formal[min(at, len(formal) - 1)].type_str)

    formals = (list(schema.inputs), list(schema.outputs))
    data = {kind(formals[0], at) for at, name in enumerate(node.input) if name in given.inputs}
    data |= {kind(formals[1], at) for at, name in enumerate(node.output) if name in given.outputs}
    if any(_HALF not in allowed.get(each, ()) for each in data):
        return None
    return frozenset(
        at
        for at, name in enumerate(node.input)
        if name in constants
        and constants[name].dtype == np.float32
        and (kind(formals[0], at) in data or node.op_type in _PARAMETERS)
    )


def _cast(source: str, output: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [output], name=output, to=to)


def _limited(values: Array) -> Array:
    return np.clip(values.astype(np.float32), -_LARGEST, _LARGEST).astype(np.float16)


def _parameter(values: Array, name: str) -> Array:
    largest = float(np.abs(values.astype(np.float32)).max(initial=0.0))
    if not largest <= _LARGEST:
        raise PolicyError(
            f"layer {name!r} has a parameter of {largest:g}, beyond half precision "
            f"({_LARGEST:g}); leave it w32a32"
        )
    return values.astype(np.float16)
