"""Which glue on floats is a `FloatChain`, and in which layout its operands fit together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from hil.tvm.channelwise import OPERATORS, Extent
from hil.tvm.orders import Layout, channel_axis
from hil.tvm.shapes import channel_step
from quantization.quantizer import Float32Array
from quantization.torch_operators import attributes

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

_BATCH_AXES = 4
"""Axes of images; a batch norm of anything else is left to the import."""


@dataclass(frozen=True, eq=False)
class Chain:
    """What an operator computes element by element.

    Args:
        operands: names of tensors, and constants.
        operators: between them, from the left.
    """

    operands: tuple[str | Array, ...]
    operators: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """A layout in which the operands of a chain fit together.

    Args:
        layout: of the result and of all operands that are tensors.
        extents: of the operands.
    """

    layout: Layout
    extents: tuple[Extent, ...]


def chain_of(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Chain | None:
    """Return an operator on floats as a chain; None if it is none.

    Args:
        node: the operator.
        constants: values of its inputs that are no tensors, and more.
    """
    operands = tuple(constants.get(name, name) for name in node.input)
    if node.op_type in ("Relu", "Clip"):
        return Chain(operands[:1])
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, operands)
    divides = node.op_type == "Div" and isinstance(operands[1], str)
    if node.op_type in OPERATORS and not divides:  # what pads a tensor may be zero
        return Chain(operands, (node.op_type,))
    return None


def limits_of(node: onnx.NodeProto, constants: Mapping[str, Array]) -> Float32Array | None:
    """Return what an activation leaves of all numbers, (2,): all of them if it is no activation.

    None for a ``Clip`` whose limits are no constants.
    """
    limits = [-np.inf, np.inf]
    if node.op_type == "Relu":
        limits[0] = 0.0
    if node.op_type == "Clip":
        for i, name in enumerate(node.input[1:]):
            if name and name not in constants:
                return None
            limits[i] = float(constants[name]) if name else limits[i]
    return np.array(limits, np.float32)


def fit(chain: Chain, shape: Shape, shape_of: Callable[[str], Shape], first: Layout) -> Fit | None:
    """Return the first layout in which all operands have an extent, or None.

    Args:
        chain: the operands.
        shape: of the result.
        shape_of: tells that of a tensor.
        first: the layout that is tried first.
    """
    for layout in (first, Layout.IMAGES, Layout.ROWS):
        extents = [
            _tensor_extent(shape_of(each), shape, layout)
            if isinstance(each, str)
            else _extent(each.shape, shape, layout)
            for each in chain.operands
        ]
        found = tuple(each for each in extents if each is not None)
        if len(found) == len(extents):
            return Fit(layout, found)
    return None


def laid_out(constant: Array, extent: Extent, shape: Shape, layout: Layout, pad: float) -> Array:
    """Return a constant operand as a buffer.

    Args:
        constant: its values.
        extent: what it has for each element of the result.
        shape: of the result.
        layout: of the result.
        pad: what stands for channels that do not exist.
    """
    values = constant.astype(np.float32)
    if extent is Extent.NUMBER or layout is Layout.PLAIN:
        return values.ravel()
    aligned = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    last = np.moveaxis(aligned, channel_axis(shape, layout), -1)
    rows = last.reshape(-1, last.shape[-1])
    room = np.full((len(rows), channel_step(rows.shape[1])), pad, np.float32)
    room[:, : rows.shape[1]] = rows
    return room.ravel()


def _batch_norm(node: onnx.NodeProto, operands: tuple[str | Array, ...]) -> Chain | None:
    given, *rest = operands
    arrays = [each.astype(np.float32) for each in rest if not isinstance(each, str)]
    if len(arrays) != len(rest) or not isinstance(given, str):
        return None
    scale, bias, mean, variance = arrays
    epsilon = np.float32(attributes(node).get("epsilon", 1e-5))
    # In the order of ONNX Runtime, which rounding depends on.
    factor = scale * (np.float32(1) / np.sqrt(variance + epsilon))
    along = (-1,) + (1,) * (_BATCH_AXES - 2)
    shift = bias - mean * factor
    return Chain((given, factor.reshape(along), shift.reshape(along)), ("Mul", "Add"))


def _tensor_extent(shape: Shape, made: Shape, layout: Layout) -> Extent | None:
    """Extent of a tensor, which lies as its own shape says."""
    if len(shape) != len(made):
        return None
    found = _extent(shape, made, layout)
    return None if found is Extent.NUMBER else found


def _extent(shape: Shape, made: Shape, layout: Layout) -> Extent | None:
    """What an operand of some shape has for each element of a result."""
    aligned = (1,) * (len(made) - len(shape)) + shape
    if aligned == made:
        return Extent.WHOLE
    if all(extent == 1 for extent in shape):
        return Extent.NUMBER
    if layout is Layout.PLAIN:
        return None
    axis = channel_axis(made, layout)
    alike = all(extent == (made[i] if i == axis else 1) for i, extent in enumerate(aligned))
    return Extent.PIXEL if alike and len(aligned) == len(made) else None
