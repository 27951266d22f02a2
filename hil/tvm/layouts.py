"""Kernels between ONNX's layout and the kernels' own, between floats and integers, and of joins."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hil.tvm.elementwise import TABLE, emit_lookup, lanes_of, saturated
from hil.tvm.shapes import SMALL, channel_step
from hil.tvm.vectors import (
    Buffer,
    Expression,
    cast,
    constant,
    function,
    load,
    named,
    parameter,
    reinterpret,
    scratch,
    spread,
    store,
)
from quantization.quantizer import AffineGrid, Float32Array

Content = Literal["uint8", "int16", "float32"]
MIDDLE = 2**15
"""What 16-bit activations are less than on their grid: kernels take int16."""

_RUNS = (64, 32, 16, 8, 4, 2)


@dataclass(frozen=True)
class Quantize:
    """``QuantizeLinear``: ``Y = clip(round(X / F[0]) + F[1], F[2], F[3])``.

    Parameters are X float32[count], F float32[4] of `quantize_factors`, and Y content[count].

    Args:
        count: elements.
        content: type of Y.
    """

    count: int
    content: Literal["uint8", "int16"] = "uint8"

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        given = parameter("X", self.count, "float32")
        factors = parameter("F", 4, "float32")
        made = parameter("Y", self.count, self.content)
        lanes = lanes_of(self.count)
        with T.serial(self.count // lanes) as i:
            scale, zero_point, low, high = (spread(factors[j], lanes) for j in range(4))
            real = load(given, i * lanes, "float32", lanes)
            integer = T.nearbyint(real / scale) + zero_point
            kept = T.max(T.min(integer, high), low)
            store(made, i * lanes, cast(kept, self.content, lanes), lanes)


@dataclass(frozen=True)
class Dequantize:
    """``DequantizeLinear``: ``Y = (X - F[1]) * F[0]``.

    Parameters are X content[count], F float32[2] of `grid_factors`, and Y float32[count].

    Args:
        count: elements.
        content: type of X.
    """

    count: int
    content: Literal["uint8", "int16"] = "uint8"

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        given = parameter("X", self.count, self.content)
        factors = parameter("F", 2, "float32")
        made = parameter("Y", self.count, "float32")
        lanes = lanes_of(self.count)
        with T.serial(self.count // lanes) as i:
            integer = load(given, i * lanes, self.content, lanes)
            store(made, i * lanes, dequantized(integer, factors, lanes), lanes)


@dataclass(frozen=True)
class ChannelsLast:
    """From (images, channels, pixels) to pixels of `hil.tvm.shapes.channel_step` elements.

    Parameters are X, F float32[2] of `grid_factors` if `quantized`, and Y. Channels that pad a
    pixel hold zero.

    Args:
        channels: of an image.
        pixels: of an image.
        images: how many.
        content: type of the elements; of Y if `quantized`.
        quantized: whether X is float32 and becomes uint8 on the way.

    Raises:
        ValueError: if `quantized` and the content is not uint8.
    """

    channels: int
    pixels: int
    images: int
    content: Content
    quantized: bool = False

    def __post_init__(self) -> None:
        if self.quantized and self.content != "uint8":
            raise ValueError(f"floats are quantized to uint8 only, not {self.content}")

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        channels, pixels, content = self.channels, self.pixels, self.content
        step = channel_step(channels)
        source = "float32" if self.quantized else content
        given = parameter("X", self.images * channels * pixels, source)
        factors = parameter("F", 2, "float32") if self.quantized else None
        made = parameter("Y", self.images * pixels * step, content)
        zero = tirx.const(0, content)
        if factors is not None:
            zero = named(T.Cast(content, factors[1]))
        lanes = _run_of(pixels)
        with T.grid(self.images, -(-pixels // lanes)) as (image, run):
            first = _overlapping(run, lanes, pixels)

            def values(channel: Expression) -> Expression:
                start = (image * channels + channel) * pixels + first
                value = given[_places(start, 1, lanes)]
                return value if factors is None else quantized(value, factors, lanes)

            origin = named((image * pixels + first) * step)
            if step == SMALL and content == "uint8" and lanes > 1:
                parts = [values(channel) for channel in range(channels)]
                parts += [spread(zero, lanes)] * (step - channels)
                store(made, origin, _interleaved(parts, lanes), step * lanes)
                return
            with T.serial(channels) as channel:
                place = _places(origin + channel, step, lanes)
                T.buffer_store(made, values(channel), [place])
            if step > channels:
                with T.grid(lanes, step - channels) as (pixel, pad):
                    T.buffer_store(made, zero, [origin + pixel * step + channels + pad])


@dataclass(frozen=True)
class ChannelsFirst:
    """From pixels of `hil.tvm.shapes.channel_step` elements to (images, channels, pixels).

    Parameters are X, F float32[2] of `grid_factors` if `dequantized`, and Y.

    Args:
        channels: of an image.
        pixels: of an image.
        images: how many.
        content: type of the elements; of X if `dequantized`.
        dequantized: whether X is uint8 and becomes float32 on the way.

    Raises:
        ValueError: if `dequantized` and the content is not uint8.
    """

    channels: int
    pixels: int
    images: int
    content: Content
    dequantized: bool = False

    def __post_init__(self) -> None:
        if self.dequantized and self.content != "uint8":
            raise ValueError(f"only uint8 is dequantized, not {self.content}")

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        channels, pixels = self.channels, self.pixels
        step = channel_step(channels)
        result = "float32" if self.dequantized else self.content
        given = parameter("X", self.images * pixels * step, self.content)
        factors = parameter("F", 2, "float32") if self.dequantized else None
        made = parameter("Y", self.images * channels * pixels, result)
        lanes = _run_of(pixels)
        with T.grid(self.images, -(-pixels // lanes)) as (image, run):
            first = _overlapping(run, lanes, pixels)
            with T.serial(channels) as channel:
                place = (image * pixels + first) * step + channel
                value = given[_places(place, step, lanes)]
                if factors is not None:
                    value = dequantized(value, factors, lanes)
                start = (image * channels + channel) * pixels + first
                T.buffer_store(made, value, [_places(start, 1, lanes)])


@dataclass(frozen=True)
class Concat:
    """Tensors joined along their channels.

    Parameters are X0, X1 and so on; T0, T1 and so on, uint8[256], of the inputs that are mapped;
    and Y. All are pixels of `hil.tvm.shapes.channel_step` elements; channels that pad a pixel of Y
    hold zero.

    Args:
        pixels: of each tensor.
        channels: of each input.
        mapped: whether each input is looked up in a table of `concat_table` on the way.
        content: type of the elements.
        shuffles: whether to look up with the instructions of AVX512-VBMI.

    Raises:
        ValueError: if there are not as many of each, or what is mapped is not uint8.
    """

    pixels: int
    channels: tuple[int, ...]
    mapped: tuple[bool, ...]
    content: Content
    shuffles: bool = False

    def __post_init__(self) -> None:
        if len(self.channels) != len(self.mapped):
            raise ValueError(f"{len(self.channels)} inputs, and {len(self.mapped)} told if mapped")
        if any(self.mapped) and self.content != "uint8":
            raise ValueError(f"only uint8 is looked up in tables, not {self.content}")

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        content, pixels = self.content, self.pixels
        given = [
            parameter(f"X{i}", pixels * channel_step(channels), content)
            for i, channels in enumerate(self.channels)
        ]
        tables = [
            parameter(f"T{i}", TABLE, "uint8") if mapped else None
            for i, mapped in enumerate(self.mapped)
        ]
        total = sum(self.channels)
        step = channel_step(total)
        made = parameter("Y", pixels * step, content)
        sources = []
        for buffer, table, channels in zip(given, tables, self.channels, strict=True):
            source, count = buffer, pixels * channel_step(channels)
            if table is not None:
                source = scratch(count, content)
                emit_lookup(buffer, table, source, count, self.shuffles)
            sources.append(source)
        with T.serial(pixels) as pixel:
            place = pixel * step
            for source, channels in zip(sources, self.channels, strict=True):
                emit_copy(source, pixel * channel_step(channels), made, place, channels)
                place = place + channels
            for pad in range(step - total):
                T.buffer_store(made, tirx.const(0, content), [place + pad])


def grid_factors(grid: AffineGrid) -> Float32Array:
    """Return the scale of a grid, and its zero point as kernels hold it: (2,)."""
    return np.array([grid.scale, grid.zero_point - _less(grid)], np.float32)


def quantize_factors(grid: AffineGrid) -> Float32Array:
    """Return the scale of a grid, and zero point, least and largest level as kernels hold them."""
    levels = grid.zero_point, 0, 2**grid.bits - 1
    return np.array([grid.scale, *(level - _less(grid) for level in levels)], np.float32)


def _less(grid: AffineGrid) -> int:
    """What integers are less in a kernel than on their grid: int16 have a sign."""
    return MIDDLE if grid.bits > 8 else 0


def concat_table(given: AffineGrid, result: AffineGrid) -> npt.NDArray[np.uint8]:
    """Return the integers of `result` that stand for those of `given`: (256,).

    ``QLinearConcat`` dequantizes and quantizes again, in float32. It has no table for inputs of
    equal grids, whose integers stay.
    """
    real = (np.arange(TABLE) - given.zero_point).astype(np.float32) * np.float32(given.scale)
    integer = np.rint(real / np.float32(result.scale)) + result.zero_point
    table: npt.NDArray[np.uint8] = np.clip(integer, 0, TABLE - 1).astype(np.uint8)
    return table


def quantized(real: Expression, factors: Buffer, lanes: int, first: int = 0) -> Expression:
    """Return floats as uint8 of the grid whose `grid_factors` lie from `first` on."""
    ratio = T.nearbyint(real / spread(factors[first], lanes))
    return saturated(ratio + spread(factors[first + 1], lanes), lanes)


def dequantized(integer: Expression, factors: Buffer, lanes: int, first: int = 0) -> Expression:
    """Return the floats that integers stand for; see `quantized`."""
    shifted = cast(integer, "float32", lanes) - spread(factors[first + 1], lanes)
    return shifted * spread(factors[first], lanes)


def _interleaved(parts: list[Expression], lanes: int) -> Expression:
    """Bytes of four vectors in turn."""
    words = cast(parts[0], "int32", lanes)
    for place, part in enumerate(parts[1:], 1):
        shifted = T.shift_left(cast(part, "int32", lanes), constant(8 * place, lanes))
        words = T.bitwise_or(words, shifted)
    return reinterpret(words, "uint8", SMALL * lanes)


def _places(start: Expression, step: int, lanes: int) -> Expression:
    """Where elements lie, `step` apart from `start` on; there may be but one."""
    return T.ramp(start, step, lanes) if lanes > 1 else start


def _run_of(pixels: int) -> int:
    """Pixels that go at a time."""
    return next((lanes for lanes in _RUNS[2:] if lanes <= pixels), 1)


def _overlapping(run: Expression, lanes: int, pixels: int) -> Expression:
    """First pixel of a run; the last run overlaps the one before: same values, written twice."""
    return named(T.min(run * lanes, pixels - lanes) if pixels % lanes else run * lanes)


def emit_copy(
    given: Buffer, start: Expression, made: Buffer, place: Expression, count: int
) -> None:
    """Copy a run of `count` elements, in the widest vectors that fit."""
    done = 0
    for lanes in (*_RUNS, 1):
        vectors = (count - done) // lanes
        if vectors:
            first = done
            with T.serial(vectors) as i:
                part = given[_places(start + first + i * lanes, 1, lanes)]
                T.buffer_store(made, part, [_places(place + first + i * lanes, 1, lanes)])
        done += vectors * lanes
