"""Weights of 1 to 7 bits stored at their true size in a standard ONNX file.

The integers, shifted to 0 .. 2^b - 1, are cut into b *bit planes*; a plane packs one bit of eight
weights into a byte. A function inside the model (standard operators only) puts them together again:
shift, mask, multiply by powers of two, sum over planes, subtract the offset, cast to int8. All its
inputs are constants, so a runtime folds it when it loads the model and executes plain int8 weights.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "quantmeter"
FUNCTION = "UnpackBitPlanes"


def pack(values: npt.NDArray[np.signedinteger], bits: int) -> npt.NDArray[np.uint8]:
    """Cut integers into bit planes.

    Args:
        values: integers in -2^(bits-1) .. 2^(bits-1)-1, any shape.
        bits: number of planes, 1..8.

    Returns:
        (bits, ceil(count / 8)); plane p holds bit p of the shifted integers, first one lowest.
    """
    shifted = (values.astype(np.int16) + (1 << (bits - 1))).ravel()
    planes = (shifted[None, :] >> np.arange(bits)[:, None] & 1).astype(np.uint8)
    return np.packbits(planes, axis=1, bitorder="little")


def unpack(
    planes: npt.NDArray[np.uint8], bits: int, shape: tuple[int, ...]
) -> npt.NDArray[np.int8]:
    """Invert `pack`."""
    count = int(np.prod(shape))
    raw = np.unpackbits(planes, axis=1, count=count, bitorder="little").astype(np.int16)
    joined = (raw << np.arange(bits)[:, None]).sum(0) - (1 << (bits - 1))
    return np.asarray(joined, np.int8).reshape(shape)


def unpack_function(opset: int) -> onnx.FunctionProto:
    """Return the model-local function ``UnpackBitPlanes(planes, shape) -> int8``."""
    constants: dict[str, npt.NDArray[Any]] = {
        "last": np.array([-1], np.int64),
        "first": np.array([0], np.int64),
        "outer": np.array([1, 2], np.int64),
        "positions": np.arange(8, dtype=np.uint8),
        "one": np.array(1, np.uint8),
        "zero": np.array(0, np.int64),
        "step": np.array(1, np.int64),
        "two": np.array(2, np.float32),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, array in constants.items()
    ]
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        # (b, m) bytes -> (b, m, 8) bits
        ("Unsqueeze", ["planes", "last"], "bytes", {}),
        ("BitShift", ["bytes", "positions"], "moved", {"direction": "RIGHT"}),
        ("BitwiseAnd", ["moved", "one"], "bit", {}),
        ("Cast", ["bit"], "real", {"to": TensorProto.FLOAT}),
        # powers of two, (b, 1, 1), from the number of planes
        ("Shape", ["planes"], "count", {"start": 0, "end": 1}),
        ("Squeeze", ["count"], "planes_count", {}),
        ("Range", ["zero", "planes_count", "step"], "exponent", {}),
        ("Cast", ["exponent"], "exponent_real", {"to": TensorProto.FLOAT}),
        ("Pow", ["two", "exponent_real"], "power", {}),
        ("Unsqueeze", ["power", "outer"], "weight", {}),
        # weighted sum over planes, minus half of the range 2^b
        ("Mul", ["real", "weight"], "product", {}),
        ("ReduceSum", ["product", "first"], "sum", {"keepdims": 0}),
        ("ReduceMax", ["weight"], "offset", {"keepdims": 0}),
        ("Sub", ["sum", "offset"], "signed", {}),
        ("Reshape", ["signed", "last"], "flat", {}),
        ("ReduceProd", ["shape"], "length", {"keepdims": 1}),
        ("Slice", ["flat", "first", "length"], "cut", {}),
        ("Cast", ["cut"], "narrow", {"to": TensorProto.INT8}),
        ("Reshape", ["narrow", "shape"], "values", {}),
    ]
    nodes += [
        helper.make_node(kind, inputs, [output], **attributes)
        for kind, inputs, output, attributes in steps
    ]
    return helper.make_function(
        DOMAIN, FUNCTION, ["planes", "shape"], ["values"], nodes, [helper.make_opsetid("", opset)]
    )
