"""Which operators only move elements, and when that comes to picking channels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from hil.tvm.orders import Layout, channel_axis
from quantization.errors import ModelError
from quantization.torch_operators import attributes, constant, operator

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

MOVES = frozenset(
    (
        *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"),
        *("Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
    )
)
"""Operators that move elements of their first input, and compute none."""
KEEPS_ORDER = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Those that leave them in their order."""
_PICKS = frozenset({*KEEPS_ORDER, "Transpose", "Slice", "Split", "Gather"})
_TO_LAST, _TO_SECOND = [0, 2, 3, 1], [0, 3, 1, 2]


def relabelled(node: onnx.NodeProto) -> tuple[Layout, Layout] | None:
    """Return the layouts of input and output of a ``Transpose`` in which nothing moves, if any."""
    order = attributes(node).get("perm") if node.op_type == "Transpose" else None
    if order == _TO_LAST:
        return Layout.IMAGES, Layout.ROWS
    return (Layout.ROWS, Layout.IMAGES) if order == _TO_SECOND else None


def picked_channels(
    nodes: Sequence[onnx.NodeProto],
    output: str,
    shape: Shape,
    constants: Mapping[str, Array],
    layout: Layout,
) -> tuple[int, ...] | None:
    """Return the channels that operators one behind the other pick of each pixel.

    None if what they do is anything else.

    Args:
        nodes: the operators.
        output: the one of the last that is wanted.
        shape: of the first input of the first.
        constants: values of the other inputs, and more.
        layout: tells which axis is the channels.
    """
    if not all(node.op_type in _PICKS for node in nodes):
        return None
    places = made = torch.arange(math.prod(shape)).reshape(shape)
    for node in nodes:
        others = [constant(constants[name]) for name in node.input[1:]]
        try:
            result = operator(node.op_type)([made, *others], attributes(node))
        except ModelError:  # such as a negative step
            return None
        outputs = result if isinstance(result, tuple) else (result,)
        made = outputs[list(node.output).index(output) if node is nodes[-1] else 0]
    if made.dim() != len(shape):
        return None
    given, found = (_pixels(each.numpy(), layout) for each in (places, made))
    channel_of = {int(place): channel for channel, place in enumerate(given[0])}
    picked = tuple(channel_of.get(int(place), -1) for place in found[0])
    if -1 in picked or len(given) != len(found) or not np.array_equal(given[:, picked], found):
        return None
    return picked


def _pixels(values: Array, layout: Layout) -> Array:
    """View values as (pixels, channels)."""
    axis = channel_axis(values.shape, layout)
    return np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
