"""From sums to what a kernel writes: 16 output channels of one pixel at a time."""

from tvm.script.ir_builder import tirx as T

from hil.tvm.arithmetic import Content
from hil.tvm.shapes import CHANNELS
from hil.tvm.vectors import Buffer, Expression, cast, constant, load

LIMITS = {"uint8": (0, 255), "int16": (-32768, 32767)}
"""Least and largest value of integer activations."""


def clamped_sums(total: Expression, limits: Buffer) -> Expression:
    """Return floats between ``limits[0]`` and ``limits[1]``."""
    low, high = (T.broadcast(limits[i], CHANNELS) for i in range(2))
    return T.min(T.max(total, low), high)


def requantized(
    total: Expression, factors: Expression, zero_point: Expression, content: str
) -> Expression:
    """Return ``clip(round(total * factors) + zero_point)``, as ONNX Runtime requantizes.

    The product is in float32, and rounded half to even.

    Args:
        total: sums of 16 channels.
        factors: of these, float32.
        zero_point: of the output, an integer.
        content: type of the output.
    """
    scaled = T.nearbyint(cast(total, "float32", CHANNELS) * factors)
    shifted = scaled + T.broadcast(T.Cast("float32", zero_point), CHANNELS)
    low, high = (constant(limit, CHANNELS, "float32") for limit in LIMITS[content])
    return cast(T.max(T.min(shifted, high), low), content, CHANNELS)


def block_total(sums: Buffer, starts: list[int], partial: int, content: str) -> Expression:
    """Add up what was kept apart of 16 channels.

    Args:
        sums: buffer of a tile.
        starts: where sums of the channels begin.
        partial: sums of each channel that lie side by side.
        content: type of the sums.
    """
    if partial == 1:
        parts = [load(sums, start, content, CHANNELS) for start in starts]
    else:
        lanes = [(start + part) for start in starts for part in range(partial)]
        parts = [sums[T.ramp(lane, partial, CHANNELS)] for lane in lanes]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def unscaled(total: Expression, content: Content, bits: int) -> Expression:
    """Take away the factor that weights at the top of their bytes bring into sums."""
    if content != "int8" or bits == 8:
        return total
    return T.shift_right(total, constant(8 - bits, CHANNELS))
