"""Operators in torch whose windows slide over an image: convolutions and pools."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

from quantization.errors import ModelError

Tensor = torch.Tensor


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, given: Mapping[str, Any]) -> Tensor:
    """Conv: (N, in, *size) to (N, out, *size)."""
    x, strides, padding, dilations = windows(x, weight.shape[2:], given)
    run = (F.conv1d, F.conv2d, F.conv3d)[len(strides) - 1]
    return run(x, weight, bias, strides, padding, dilations, given.get("group", 1))


def windows(
    x: Tensor, kernel: Sequence[int], given: Mapping[str, Any], zero: int = 0
) -> tuple[Tensor, list[int], list[int], list[int]]:
    """Return what a convolution slides over, and its strides, padding and dilations.

    Args:
        x: (N, channels, *size); asymmetric padding is padded explicitly.
        kernel: extents.
        given: attributes of the ONNX operator.
        zero: what stands for zero in `x`.
    """
    rank = x.dim() - 2
    strides = given.get("strides", [1] * rank)
    dilations = given.get("dilations", [1] * rank)
    pads = pads_of(x.shape[2:], kernel, strides, dilations, given)
    if pads[:rank] == pads[rank:]:
        return x, strides, pads[:rank], dilations
    return F.pad(x, torch_padding(pads), value=zero), strides, [0] * rank, dilations


def pads_of(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    given: Mapping[str, Any],
) -> list[int]:
    """Return the pads of a window: all begins, then all ends.

    Args:
        size: extents of the image.
        kernel: extents of the window.
        strides: along each axis.
        dilations: along each axis.
        given: attributes of the ONNX operator.
    """
    mode = given.get("auto_pad", b"NOTSET").decode()
    if mode in ("NOTSET", ""):
        return list(given.get("pads", [0] * (2 * len(size))))
    if mode == "VALID":
        return [0] * (2 * len(size))
    begin, end = [], []
    for extent, k, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((math.ceil(extent / stride) - 1) * stride + dilation * (k - 1) + 1 - extent, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return begin + end


def torch_padding(pads: Sequence[int]) -> list[int]:
    """Return ONNX's `pads` as torch wants them.

    ONNX lists all begins, then all ends; torch lists pairs, last axis first.
    """
    rank = len(pads) // 2
    return [pads[i + side * rank] for i in reversed(range(rank)) for side in (0, 1)]


def convolve_transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, given: Mapping[str, Any]
) -> Tensor:
    """ConvTranspose: (N, in, *size) to (N, out, *size).

    Raises:
        ModelError: if its padding is automatic, asymmetric or follows from a given output shape.
    """
    rank = x.dim() - 2
    pads = list(given.get("pads", [0] * (2 * rank)))
    automatic = given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID")
    if automatic or "output_shape" in given or pads[:rank] != pads[rank:]:
        raise ModelError("only ConvTranspose with given, symmetric padding is simulated")
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return run(
        x,
        weight,
        bias,
        given.get("strides", [1] * rank),
        pads[:rank],
        given.get("output_padding", [0] * rank),
        given.get("group", 1),
        given.get("dilations", [1] * rank),
    )


def pool(x: Tensor, given: Mapping[str, Any], *, largest: bool) -> Tensor:
    """MaxPool if `largest`, else AveragePool: (N, channels, *size) to the same with other extents.

    Raises:
        ModelError: if it is not over two axes, or an average with dilations or ``ceil_mode``.
    """
    kernel = given["kernel_shape"]
    rank = len(kernel)
    strides = given.get("strides", [1] * rank)
    dilations = given.get("dilations", [1] * rank)
    pads = pads_of(x.shape[2:], kernel, strides, dilations, given)
    ceil = bool(given.get("ceil_mode", 0))
    if rank != 2 or (not largest and (ceil or set(dilations) != {1})):
        raise ModelError(
            "only pooling over two axes, averages without ceil_mode and dilations, is simulated"
        )
    if largest:
        # With ceil_mode, ONNX has no window that begins in the padding behind the image.
        begun = [math.ceil((x.shape[2 + i] + pads[i]) / strides[i]) for i in range(2)]
        x = F.pad(x, torch_padding(pads), value=-math.inf)
        made: Tensor = F.max_pool2d(x, kernel, strides, 0, dilations, ceil_mode=ceil)
        return made[:, :, : begun[0], : begun[1]] if ceil else made
    padded = F.pad(x, torch_padding(pads))
    summed = F.avg_pool2d(padded, kernel, strides, divisor_override=1)
    elements: Tensor | int = math.prod(kernel)
    if not given.get("count_include_pad", 0):
        ones = F.pad(torch.ones_like(x[:1, :1]), torch_padding(pads))
        elements = F.avg_pool2d(ones, kernel, strides, divisor_override=1)
    return torch.div(summed, elements)
