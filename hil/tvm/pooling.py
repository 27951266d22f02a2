"""Kernels that take the largest or the mean of a window, channel by channel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hil.tvm.elementwise import fenced, lanes_of, saturated
from hil.tvm.padding import padded_input
from hil.tvm.shapes import Convolution
from hil.tvm.vectors import (
    Buffer,
    Expression,
    cast,
    constant,
    function,
    load,
    named,
    parameter,
    scratch,
    store,
)
from quantization.quantizer import AffineGrid, Float32Array

Content = Literal["uint8", "float32"]
_LEAST = {"uint8": 0, "float32": float(np.finfo(np.float32).min)}
_BYTES = 64


@dataclass(frozen=True)
class MaxPool:
    """The largest element of each window; pads never are.

    Parameters are X and Y, pixels of `hil.tvm.shapes.channel_step` elements of type `content`.

    Args:
        window: depthwise, of the input's and the windows' extents.
        content: type of the elements.
    """

    window: Convolution
    content: Content

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        window, content = self.window, self.content
        given = parameter("X", window.input_count, content)
        made = parameter("Y", pooled_count(window), content)
        given = _padded(given, window, content, tirx.const(_LEAST[content], content))
        lanes = lanes_of(window.in_step)
        if content == "uint8" and window.in_step % _BYTES == 0:
            lanes = _BYTES
        best = scratch(lanes, content)
        down, across = window.output
        with T.grid(down, across, window.in_step // lanes) as (row, column, vector):
            store(best, 0, constant(_LEAST[content], lanes, content), lanes)

            def take(part: Expression) -> None:
                store(best, 0, T.max(load(best, 0, content, lanes), part), lanes)

            _emit_window(given, window, content, lanes, (row, column, vector), take)
            place = _place(window, lanes, row, column, vector)
            store(made, place, load(best, 0, content, lanes), lanes)


@dataclass(frozen=True)
class AveragePool:
    """The mean of each window.

    Parameters are X, F float32[4] of `average_factors` if `content` is uint8, and Y; X and Y are
    pixels of `hil.tvm.shapes.channel_step` elements. Of uint8 it is ``QLinearAveragePool``, which
    adds real numbers up row by row.

    Args:
        window: depthwise, of the input's and the windows' extents.
        count_include_pad: whether the mean counts pads, as zeros; all of the window's. ONNX Runtime
            does so too, but in float pools not those that ``ceil_mode`` adds.
        content: type of the elements.
    """

    window: Convolution
    count_include_pad: bool
    content: Content

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        window, content = self.window, self.content
        integer = content == "uint8"
        given = parameter("X", window.input_count, content)
        factors = parameter("F", 4, "float32") if integer else None
        made = parameter("Y", pooled_count(window), content)
        pad = T.float32(0) if factors is None else named(T.Cast("uint8", factors[1]))
        given = _padded(given, window, content, pad)
        lanes = lanes_of(window.in_step)
        total = scratch(lanes, "float32")
        down, across = window.output
        with T.grid(down, across) as (row, column):
            seen = named(T.Cast("float32", self._seen(row, column)))
            with T.serial(window.in_step // lanes) as vector:
                store(total, 0, constant(0, lanes, "float32"), lanes)

                def add(part: Expression) -> None:
                    if factors is not None:
                        shifted = cast(part, "float32", lanes) - T.broadcast(factors[1], lanes)
                        # Else the product and the sum below become one, rounded once.
                        part = fenced(shifted * T.broadcast(factors[0], lanes), lanes)
                    store(total, 0, load(total, 0, "float32", lanes) + part, lanes)

                _emit_window(given, window, content, lanes, (row, column, vector), add)
                mean = load(total, 0, "float32", lanes) / T.broadcast(seen, lanes)
                if factors is not None:
                    ratio = mean / T.broadcast(factors[2], lanes)
                    mean = saturated(ratio + T.broadcast(factors[3], lanes), lanes)
                store(made, _place(window, lanes, row, column, vector), mean, lanes)

    def _seen(self, row: Expression, column: Expression) -> Expression:
        """How many elements the mean of an output pixel counts."""
        window = self.window
        if self.count_include_pad or not any(window.pads):
            return tirx.const(window.kernel[0] * window.kernel[1], "int32")
        inside = []
        for axis, (place, extent) in enumerate(((row, window.height), (column, window.width))):
            reach, gap = window.kernel[axis], window.dilation[axis]
            start = place * window.stride[axis] - window.pads[axis]
            first = (T.max(-start, 0) + (gap - 1)) // gap
            inside.append(T.min((extent - 1 - start) // gap + 1, reach) - first)
        return inside[0] * inside[1]


@dataclass(frozen=True)
class GlobalAveragePool:
    """The mean of all pixels.

    Parameters are X content[pixels * step], F float32[3] of `mean_factors` if `content` is uint8,
    and Y content[step]. Of uint8 it is ``QLinearGlobalAveragePool``, which scales the sum of
    integers.

    Args:
        pixels: of the input, fewer than 2^23.
        step: elements of a pixel.
        content: type of the elements.
    """

    pixels: int
    step: int
    content: Content

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        content, pixels, step = self.content, self.pixels, self.step
        integer = content == "uint8"
        given = parameter("X", pixels * step, content)
        factors = parameter("F", 3, "float32") if integer else None
        made = parameter("Y", step, content)
        sums = "int32" if integer else "float32"
        lanes = lanes_of(step)
        total = scratch(step, sums)
        start: Expression = T.float32(0)
        if factors is not None:
            start = named(T.Cast("int32", factors[0]) * -pixels)
        with T.serial(step // lanes) as vector:
            store(total, vector * lanes, T.broadcast(start, lanes), lanes)
        with T.grid(pixels, step // lanes) as (pixel, vector):
            at = vector * lanes
            part = cast(load(given, pixel * step + at, content, lanes), sums, lanes)
            store(total, at, load(total, at, sums, lanes) + part, lanes)
        with T.serial(step // lanes) as vector:
            value = load(total, vector * lanes, sums, lanes)
            if factors is None:
                mean = value / constant(pixels, lanes, "float32")
            else:
                scaled = cast(value, "float32", lanes) * T.broadcast(factors[1], lanes)
                shifted = T.nearbyint(scaled) + T.broadcast(factors[2], lanes)
                mean = saturated(shifted, lanes)
            store(made, vector * lanes, mean, lanes)


def average_factors(given: AffineGrid, result: AffineGrid) -> Float32Array:
    """Return the numbers of a uint8 `AveragePool`: (4,), scale and zero point of X and of Y."""
    numbers = given.scale, given.zero_point, result.scale, result.zero_point
    return np.array(numbers, np.float32)


def mean_factors(given: AffineGrid, result: AffineGrid, pixels: int) -> Float32Array:
    """Return the numbers of a uint8 `GlobalAveragePool`: (3,), as ONNX Runtime computes them.

    Args:
        given: grid of X.
        result: grid of Y.
        pixels: of X.
    """
    scale = np.float32(given.scale) / (np.float32(result.scale) * np.float32(pixels))
    return np.array([given.zero_point, scale, result.zero_point], np.float32)


def pooled_count(window: Convolution) -> int:
    """Return how many elements a pool of `window` writes: pixels are as wide as the input's."""
    return window.output[0] * window.output[1] * window.in_step


def _padded(given: Buffer, window: Convolution, content: Content, pad: Expression) -> Buffer:
    return padded_input(given, window, content, pad, 0) if any(window.pads) else given


def _place(
    window: Convolution, lanes: int, row: Expression, column: Expression, vector: Expression
) -> Expression:
    return (row * window.output[1] + column) * window.in_step + vector * lanes


def _emit_window(
    given: Buffer,
    window: Convolution,
    content: Content,
    lanes: int,
    place: tuple[Expression, Expression, Expression],
    take: Callable[[Expression], None],
) -> None:
    """Give `take` all elements of a window, row by row.

    Args:
        given: the input, with its pads.
        window: the extents.
        content: type of the elements.
        lanes: channels of a vector.
        place: row and column of the output, and which vector of a pixel.
        take: what to state with each vector.
    """
    row, column, vector = place
    width = window.padded[1]
    line = row * window.stride[0] * width + column * window.stride[1]
    origin = named(line * window.in_step + vector * lanes)
    with T.serial(window.kernel[0]) as down:
        start = named(origin + down * (window.dilation[0] * width * window.in_step))
        for across in range(window.kernel[1]):
            offset = across * window.dilation[1] * window.in_step
            take(load(given, start + offset, content, lanes))
