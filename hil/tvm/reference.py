"""What a kernel has to compute, by the quantizer's arithmetic: exact sums, one factor, rounding.

Sums of integers are exact in float64 below 2^53. They are turned into float32, multiplied by one
factor per channel, rounded half to even and saturated, as `quantization.execution` does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hil.tvm.kernel import ConvolutionKernel
from hil.tvm.outputs import LIMITS

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Operands:
    """What a kernel is run on, without padding of channels.

    Args:
        inputs: (height, width, in_channels), in the type of the kernel's activations.
        weights: (out_channels, kernel height, width, in_channels, or 1 of depthwise layers).
        bias: (out_channels,), integers of integer kernels; without the inputs' zero point.
        factors: (out_channels,) float32 of integer kernels; None of float ones.
        zero_points: of input and output, or the limits of a float output.
    """

    inputs: Array
    weights: Array
    bias: Array
    factors: Array | None
    zero_points: tuple[float, float]

    def laid_out(self, kernel: ConvolutionKernel) -> list[Array]:
        """Return the kernel's parameters but the output, in the order of its source."""
        shape, use = kernel.shape, kernel.arithmetic
        room = np.zeros((shape.height, shape.width, shape.in_step), use.inputs)
        room[..., : shape.in_channels] = self.inputs
        bias = np.zeros(shape.out_step, use.sums)
        bias[: shape.out_channels] = self.bias
        last = self.weights[..., 0] if shape.depthwise else self.weights
        packed = kernel.packed(last.astype(use.content))
        if self.factors is None:
            return [room.reshape(-1), packed, bias, np.array(self.zero_points, np.float32)]
        summed = self.weights.astype(np.int64).sum((1, 2, 3))
        bias[: shape.out_channels] -= (summed * int(self.zero_points[0])).astype(use.sums)
        factors = np.zeros(shape.out_step, np.float32)
        factors[: shape.out_channels] = self.factors
        points = np.array(self.zero_points, np.int32)
        return [room.reshape(-1), packed, bias, factors, points]


def expected(kernel: ConvolutionKernel, given: Operands) -> Array:
    """Return the output, (height, width, out_channels)."""
    shape = kernel.shape
    zero = 0.0 if given.factors is None else given.zero_points[0]
    image = torch.from_numpy(given.inputs.astype(np.float64) - zero).permute(2, 0, 1)[None]
    top, left, bottom, right = shape.pads
    image = torch.nn.functional.pad(image, (left, right, top, bottom))
    summed = torch.nn.functional.conv2d(
        image,
        torch.from_numpy(given.weights.astype(np.float64)).permute(0, 3, 1, 2),
        stride=shape.stride,
        dilation=shape.dilation,
        groups=shape.out_channels if shape.depthwise else 1,
    )
    sums = summed[0].permute(1, 2, 0).numpy() + given.bias
    if given.factors is None:
        return sums.clip(*given.zero_points)
    scaled = np.rint(sums.astype(np.float32) * given.factors) + np.float32(given.zero_points[1])
    content = kernel.arithmetic.inputs
    return scaled.clip(*LIMITS[content]).astype(content)


def random_operands(
    kernel: ConvolutionKernel, activations: int | None = None, seed: int = 0
) -> Operands:
    """Return operands that use the whole range of inputs, weights and outputs.

    Args:
        kernel: what is to be run on them.
        activations: bits of the inputs; None for those of their type.
        seed: of what is drawn.
    """
    shape, draw = kernel.shape, np.random.default_rng(seed)
    kind = (shape.out_channels, *shape.kernel, 1 if shape.depthwise else shape.in_channels)
    extent = (shape.height, shape.width, shape.in_channels)
    if kernel.bits == 32:
        parts = [draw.standard_normal(size).astype(np.float32) for size in (extent, kind)]
        bias = draw.standard_normal(shape.out_channels).astype(np.float32)
        return Operands(parts[0], parts[1], bias, None, (-np.inf, np.inf))
    content = np.iinfo(kernel.arithmetic.inputs)
    high = content.max if activations is None else content.min + 2**activations - 1
    inputs = draw.integers(content.min, high + 1, extent)
    most = 2 ** (kernel.bits - 1)
    weights = draw.integers(-most, most, kind)
    products = np.prod(kind[1:])
    points = (content.min + (high - content.min) // 7, 11)
    middle = products * (inputs.mean() - points[0]) / 2  # weights are half a step below zero
    steps = draw.integers(-1000, 1000, shape.out_channels) + int(middle)
    spread = np.sqrt(products) * most / 2 * (high - content.min) / 4
    wanted = (content.max - content.min) / 4
    factors = ((draw.random(shape.out_channels) + 0.5) * wanted / spread).astype(np.float32)
    return Operands(inputs.astype(content.dtype), weights, steps, factors, points)
