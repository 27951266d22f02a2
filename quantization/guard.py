"""How tensors leave and enter the integers so that ONNX Runtime keeps float operators float.

A float operator between integer neighbours would be re-quantized when the file is loaded. That
rewrite wants one scale for the whole input, so the scale is written once per channel: the same
numbers, left alone by the rewrite (docs/decisions/0002-float-guard.md).

Where only glue reads the tensor that no rewrite reaches, one scale stays: behind a convolution the
runtime keeps the channels last, and scales repeated along them took 40 % of MobileNetV3-Small at
uniform INT8. Before a layer they cost at most 3 %, no more than a `Clip` to
the whole range or scales repeated along rows, which stop the rewrite as well
(docs/decisions/0006-exporter-choices.md).

On the other side of a float operator, the runtime moves a `QuantizeLinear` with one scale before a
`MaxPool`, which then runs on integers whose channels are not last: ten times slower. Scales
repeated along the channels keep it behind; SqueezeNet's mixed policies take up to 56 % less.
"""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from quantization.fragments import fragment
from quantization.network import Glue, Tensor
from quantization.operators import GLUE
from quantization.quantizer import AffineGrid


def is_exposed(reader: Glue | None) -> bool:
    """Whether the runtime could re-quantize a reader of floats, or what is behind it.

    Glue with an integer kernel reads floats only beside a tensor that was written as floats, and
    then lacks operands for that kernel.

    Args:
        reader: a glue operator; None for a layer.
    """
    if reader is None:
        return True
    return not (reader.integer or (reader.known and GLUE[reader.kind].separates))


def moves_before(producer: onnx.NodeProto | None) -> bool:
    """Whether the runtime would move a quantization before the float operator that it follows.

    It also would before a `Transpose` or a `Reshape`, but that costs less than repeated scales.

    Args:
        producer: what makes the tensor; None if it is an input of the network.
    """
    return producer is not None and producer.op_type == "MaxPool"


def repeated_axis(tensor: Tensor) -> int | None:
    """Return the axis along which a scale is repeated: the channels, or another that has an extent.

    A single repetition would count as one scale, so the axis has more than one element. None if
    there is no such axis.
    """
    axes = sorted(range(len(tensor.shape)), key=lambda axis: (axis != 1, axis == 0))
    return next((axis for axis in axes if tensor.shape[axis] > 1), None)


def dequantize_along(own: str, tensor: Tensor, grid: AffineGrid, axis: int) -> bytes:
    """Return nodes that dequantize with the scale repeated along `axis`.

    Args:
        own: the tensor's short name.
        tensor: what is read as floats, under its own name.
        grid: its grid.
        axis: as `repeated_axis` says.
    """
    names = [f"{own}:q", f"{own}:S", f"{own}:Z"]
    node = helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis)
    scales = np.full(tensor.shape[axis], grid.scale, np.float32)
    zeros = np.full(tensor.shape[axis], grid.zero_point, np.uint8)
    return fragment([node], {f"{own}:S": scales, f"{own}:Z": zeros})


def quantize_along(own: str, tensor: Tensor, grid: AffineGrid, axis: int) -> bytes:
    """Return a node that quantizes with the scale repeated along `axis`; see `dequantize_along`.

    The single scale, which the readers name, is written as well.
    """
    names = [tensor.name, f"{own}:S", f"{own}:Z"]
    node = helper.make_node("QuantizeLinear", names, [f"{own}:q"], axis=axis)
    scale, zero = np.array(grid.scale, np.float32), np.array(grid.zero_point, np.uint8)
    count = tensor.shape[axis]
    stored: dict[str, npt.NDArray[np.generic]] = {
        f"{own}:s": scale,
        f"{own}:z": zero,
        f"{own}:S": np.repeat(scale, count),
        f"{own}:Z": np.repeat(zero, count),
    }
    return fragment([node], stored)


def dequantize_in_steps(own: str, tensor: Tensor, grid: AffineGrid) -> bytes:
    """Return three nodes that dequantize: the same numbers, and a pattern that no rewrite knows.

    For one element there is no axis to repeat the scale along; and ONNX Runtime would make a
    float product of two dequantized tensors an integer one, which fails on repeated scales.

    Args:
        own: the tensor's short name.
        tensor: what is read as floats, under its own name.
        grid: its grid.
    """
    nodes = [
        helper.make_node("Cast", [f"{own}:q"], [f"{own}:u"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sub", [f"{own}:u", f"{own}:Z"], [f"{own}:v"]),
        helper.make_node("Mul", [f"{own}:v", f"{own}:s"], [tensor.name]),
    ]
    return fragment(nodes, {f"{own}:Z": np.array(grid.zero_point, np.float32)})
