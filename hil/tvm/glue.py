"""Which kernel of ours runs a glue operator, and with which constants."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch

from hil.tvm.elementwise import (
    TABLE,
    Lookup,
    ScaledProduct,
    ScaledSum,
    product_factors,
    sum_factors,
)
from hil.tvm.layouts import Concat, concat_table
from hil.tvm.orders import IMAGE, Layout, channel_axis, elements, kernel_layout
from hil.tvm.pooling import (
    AveragePool,
    GlobalAveragePool,
    MaxPool,
    average_factors,
    mean_factors,
)
from hil.tvm.program import Kernel
from hil.tvm.shapes import Convolution, channel_step
from quantization.quantizer import AffineGrid
from quantization.torch_operators import Attributes, attributes, operator
from quantization.torch_windows import pads_of

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Grids = Mapping[str, AffineGrid]


@dataclass(frozen=True, eq=False)
class GlueKernel:
    """A kernel with what it is run on.

    Args:
        kernel: what is run.
        inputs: names of tensors, in the kernel's order.
        constants: parameters behind them.
        layout: of inputs and output.
    """

    kernel: Kernel
    inputs: tuple[str, ...]
    constants: tuple[Array, ...]
    layout: Layout


def glue_kernel(
    node: onnx.NodeProto,
    shapes: Mapping[str, Shape],
    output: str,
    grids: Grids | None,
    *,
    shuffles: bool = False,
) -> GlueKernel | None:
    """Return the kernel of a glue operator; None if none of ours runs it.

    Args:
        node: the operator.
        shapes: of the tensors that it reads and writes.
        output: under whose name the result is stored.
        grids: of what is read and stored; None if the operator runs on floats.
        shuffles: whether the processor looks bytes up with the instructions of AVX512-VBMI.
    """
    if node.op_type in ("Add", "Mul") and grids is not None:
        return _pair(node, shapes, output, grids)
    if node.op_type in ("Sigmoid", "LeakyRelu") and grids is not None:
        return _table(node, shapes, output, grids, shuffles)
    if node.op_type == "Concat":
        return _concat(node, shapes, output, grids, shuffles)
    if node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool"):
        return _pool(node, shapes, output, grids)
    return None


def _pair(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], output: str, grids: Grids
) -> GlueKernel | None:
    if not all(name in shapes for name in node.input):
        return None
    first, second = sorted(node.input, key=lambda name: -math.prod(shapes[name]))
    large, small = shapes[first], shapes[second]
    layout = kernel_layout(large)
    channels = 0
    if large != small:
        per_channel = (1, large[1], 1, 1)
        if len(large) != IMAGE or large[0] != 1 or small != per_channel:
            return None
        channels = channel_step(large[1])
    else:  # in the order of the operator, which rounding depends on
        first, second = node.input
    count = elements(large, layout)
    given = grids[first], grids[second], grids[output]
    if node.op_type == "Add":
        return GlueKernel(
            ScaledSum(count, channels), (first, second), (sum_factors(*given),), layout
        )
    return GlueKernel(
        ScaledProduct(count, channels), (first, second), (product_factors(*given),), layout
    )


def _table(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], output: str, grids: Grids, shuffles: bool
) -> GlueKernel:
    [name] = node.input
    layout = kernel_layout(shapes[name])
    levels = grids[name].dequantize(np.arange(TABLE, dtype=np.int32))
    made = operator(node.op_type)([torch.from_numpy(levels)], attributes(node))
    assert isinstance(made, torch.Tensor)
    table = grids[output].quantize(made.numpy()).astype(np.uint8)
    kernel = Lookup(elements(shapes[name], layout), "uint8", shuffles)
    return GlueKernel(kernel, (name,), (table,), layout)


def _concat(
    node: onnx.NodeProto,
    shapes: Mapping[str, Shape],
    output: str,
    grids: Grids | None,
    shuffles: bool,
) -> GlueKernel | None:
    if not all(name in shapes for name in node.input):
        return None
    shape = shapes[node.output[0]]
    layout = kernel_layout(shape)
    axis = attributes(node)["axis"] % len(shape)
    if axis != channel_axis(shape, layout):
        return None
    channels = tuple(shapes[name][axis] for name in node.input)
    pixels = math.prod(shape) // shape[axis]
    if grids is None:
        kernel = Concat(pixels, channels, (False,) * len(channels), "float32")
        return GlueKernel(kernel, tuple(node.input), (), layout)
    mapped = tuple(grids[name] != grids[output] for name in node.input)
    tables = [concat_table(grids[name], grids[output]) for name in node.input]
    constants = tuple(table for table, used in zip(tables, mapped, strict=True) if used)
    kernel = Concat(pixels, channels, mapped, "uint8", shuffles)
    return GlueKernel(kernel, tuple(node.input), constants, layout)


def _pool(
    node: onnx.NodeProto, shapes: Mapping[str, Shape], output: str, grids: Grids | None
) -> GlueKernel | None:
    name = node.input[0]
    shape = shapes[name]
    if len(shape) != IMAGE or shape[0] != 1:
        return None
    content: Literal["uint8", "float32"] = "float32" if grids is None else "uint8"
    factors: tuple[Array, ...] = ()
    kernel: Kernel
    if node.op_type == "GlobalAveragePool":
        pixels = math.prod(shape[2:])
        kernel = GlobalAveragePool(pixels, channel_step(shape[1]), content)
        if grids is not None:
            factors = (mean_factors(grids[name], grids[output], pixels),)
    else:
        window = _window(attributes(node), shape, shapes[node.output[0]])
        if node.op_type == "MaxPool":
            if grids is not None and grids[name] != grids[output]:
                return None
            kernel = MaxPool(window, content)
        else:
            counted = bool(attributes(node).get("count_include_pad", 0))
            kernel = AveragePool(window, counted, content)
            if grids is not None:
                factors = (average_factors(grids[name], grids[output]),)
    return GlueKernel(kernel, (name,), factors, Layout.IMAGES)


def _window(given: Attributes, shape: Shape, made: Shape) -> Convolution:
    """Geometry of a pool; pads behind the image reach as far as its last window."""
    kernel = tuple(given["kernel_shape"])
    strides, dilations = (tuple(given.get(name, (1, 1))) for name in ("strides", "dilations"))
    pads = pads_of(shape[2:], kernel, strides, dilations, given)
    ends = [
        max(
            0,
            (made[2 + i] - 1) * strides[i]
            + dilations[i] * (kernel[i] - 1)
            + 1
            - shape[2 + i]
            - pads[i],
        )
        for i in range(2)
    ]
    return Convolution(
        shape[2],
        shape[3],
        shape[1],
        shape[1],
        _two(kernel),
        _two(strides),
        (pads[0], pads[1], ends[0], ends[1]),
        _two(dilations),
        depthwise=True,
    )


def _two(values: Sequence[int]) -> tuple[int, int]:
    down, across = values
    return down, across
