"""Linear quantizer arithmetic: the one that accuracy is scored with and exported files execute.

Rounding is half to even everywhere, as `QuantizeLinear` of ONNX rounds. Weights are symmetric per
output channel on the grid -2^(b-1) .. 2^(b-1)-1; activations are affine on 0 .. 2^b-1 with zero
exactly on the grid; biases are int32 at the product of both scales.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from quantization.errors import DataError

Float32Array = npt.NDArray[np.float32]
WeightMethod = Literal["minmax", "mse"]
WEIGHT_METHODS: tuple[WeightMethod, ...] = ("mse", "minmax")
"""The first one is the default."""

_MSE_SHARES = np.linspace(0.3, 1.0, 36)
"""Shares of the largest magnitude that the search for the least squared error tries."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Weights on an integer grid: ``weight ~ values * scale`` along `axis`.

    Args:
        values: int8 (int16 above 8 bits), in the shape of the weight.
        scale: (channels,) float32, positive.
        axis: the axis that runs over output channels.
        bits: width of the grid.
    """

    values: npt.NDArray[np.int8] | npt.NDArray[np.int16]
    scale: Float32Array
    axis: int
    bits: int

    def dequantize(self) -> Float32Array:
        """Return ``values * scale`` in float32."""
        return self.values.astype(np.float32) * _along(self.scale, self.values.ndim, self.axis)


@dataclass(frozen=True)
class AffineGrid:
    """The grid of an activation: ``real = (integer - zero_point) * scale``.

    Args:
        scale: distance of two levels, positive.
        zero_point: the integer that stands for zero.
        bits: width; integers run over 0 .. 2^bits - 1.
    """

    scale: float
    zero_point: int
    bits: int

    @classmethod
    def of_range(cls, low: float, high: float, bits: int) -> "AffineGrid":
        """Return the grid that spans [low, high] and zero.

        Raises:
            DataError: if the range is not finite or reversed.

        >>> AffineGrid.of_range(0.0, 6.375, 8)
        AffineGrid(scale=0.02500000037252903, zero_point=0, bits=8)
        """
        return _grid_of_range(low, high, bits)

    def quantize(self, real: Float32Array) -> npt.NDArray[np.int32]:
        """Return the integers of `real`: divide, round half to even, shift, saturate."""
        ratio = np.rint(real / np.float32(self.scale)) + self.zero_point
        integer: npt.NDArray[np.int32] = np.clip(ratio, 0, 2**self.bits - 1).astype(np.int32)
        return integer

    def dequantize(self, integer: npt.NDArray[np.int32]) -> Float32Array:
        """Return the real values of `integer` in float32."""
        return (integer - self.zero_point).astype(np.float32) * np.float32(self.scale)


@lru_cache(maxsize=4096, typed=True)  # float32 limits are rounded otherwise than equal float64
def _grid_of_range(low: float, high: float, bits: int) -> AffineGrid:
    """See `AffineGrid.of_range`; simulating a policy asks for the same grids again and again."""
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise DataError(f"an activation's range is [{low}, {high}]; check the input data")
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    # A tensor that is always zero still needs a positive scale.
    scale = np.float32(max(high - low, 1e-8) / levels)
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, levels))
    return AffineGrid(float(scale), zero_point, bits)


def quantize_weight(
    weight: Float32Array,
    bits: int,
    axis: int,
    method: WeightMethod = "mse",
    smallest_scale: Float32Array | None = None,
) -> QuantizedWeight:
    """Quantize a weight per output channel.

    Args:
        weight: float32 of any shape.
        bits: width of the grid, 1..8 or 16.
        axis: the axis that runs over output channels.
        method: ``minmax`` covers the largest magnitude; ``mse`` takes, per channel, the share of it
            that leaves the least squared error.
        smallest_scale: (channels,), below which no scale goes: the bias is stored in multiples of
            the scale, and those are limited.

    Returns:
        The integers and their scales.

    Raises:
        DataError: if a weight is not finite or `bits` is no such width.
    """
    if not (1 <= bits <= 8 or bits == 16):
        raise DataError(f"weights are quantized to 1..8 or 16 bits, not {bits}")
    if not np.isfinite(weight).all():
        raise DataError("a weight is not finite")
    low, high = -(2 ** (bits - 1)), max(2 ** (bits - 1) - 1, 0)
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float32)
    # The grid reaches one step further down than up; the larger of both demands sets the scale.
    full = np.maximum(rows.max(1) / max(high, 1), -rows.min(1) / -low)
    floor = np.float32(1e-12) if smallest_scale is None else np.maximum(smallest_scale, 1e-12)
    scale = np.maximum(full, floor).astype(np.float32)
    if method == "mse":
        scale = np.maximum(_least_squared_error(rows, scale, low, high), floor).astype(np.float32)
    spread = _along(scale, weight.ndim, axis)
    values = np.clip(np.rint(weight / spread), low, high)
    values = values.astype(np.int8 if bits <= 8 else np.int16)
    return QuantizedWeight(values, scale, axis, bits)


def _least_squared_error(
    rows: Float32Array, full: Float32Array, low: int, high: int
) -> Float32Array:
    best = full.copy()
    least = np.full(len(rows), np.inf, np.float32)
    for share in _MSE_SHARES:
        scale = full * np.float32(share)
        error = np.clip(np.rint(rows / scale[:, None]), low, high) * scale[:, None] - rows
        loss = np.einsum("ij,ij->i", error, error)
        better = loss < least
        best[better], least[better] = scale[better], loss[better]
    return best


def quantize_bias(
    bias: Float32Array, input_scale: float, weight_scale: Float32Array
) -> npt.NDArray[np.int32]:
    """Return the int32 bias, (channels,), at scale ``input_scale * weight_scale``; saturates."""
    ratio = bias.astype(np.float64) / (np.float32(input_scale) * weight_scale)
    limits = np.iinfo(np.int32)
    return np.clip(np.rint(ratio), limits.min, limits.max).astype(np.int32)


def _along(scale: Float32Array, ndim: int, axis: int) -> Float32Array:
    shape = [1] * ndim
    shape[axis] = -1
    return scale.reshape(shape)
