"""How the elements of a tensor lie, and how many that makes."""

import math
from collections.abc import Sequence
from enum import StrEnum

from hil.tvm.shapes import channel_step

IMAGE = 4
"""Axes of an image with its batch."""


class Layout(StrEnum):
    """How the elements of a tensor lie."""

    IMAGES = "images"
    """The second axis last, padded."""
    ROWS = "rows"
    """The last axis last, padded."""
    PLAIN = "plain"
    """As in ONNX."""


def elements(shape: Sequence[int], layout: Layout) -> int:
    """Return how many elements a tensor has in memory.

    >>> elements((1, 3, 8, 8), Layout.IMAGES), elements((1, 3, 8, 8), Layout.ROWS)
    (256, 384)
    """
    if layout is Layout.PLAIN or not shape:
        return math.prod(shape)
    axis = channel_axis(shape, layout)
    return math.prod(shape) // shape[axis] * channel_step(shape[axis])


def channel_axis(shape: Sequence[int], layout: Layout) -> int:
    """Return the axis that lies last."""
    return 1 if layout is Layout.IMAGES and len(shape) > 1 else len(shape) - 1


def kernel_layout(shape: Sequence[int]) -> Layout:
    """Return the layout that kernels want a tensor in: images channels last, else rows."""
    return Layout.IMAGES if len(shape) == IMAGE else Layout.ROWS


def plainest(shape: Sequence[int], layout: Layout) -> Layout:
    """Return the first of plain, rows and images in which the elements lie as in `layout`.

    >>> plainest((1, 64, 1, 1), Layout.IMAGES), plainest((1, 10), Layout.IMAGES)
    (<Layout.PLAIN: 'plain'>, <Layout.ROWS: 'rows'>)
    """
    if layout is Layout.PLAIN or not shape:
        return Layout.PLAIN
    axis = channel_axis(shape, layout)
    last = math.prod(shape[axis + 1 :]) == 1
    if last and shape[axis] == channel_step(shape[axis]):
        return Layout.PLAIN
    return Layout.ROWS if axis == len(shape) - 1 else layout
