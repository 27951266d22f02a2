"""Kernels of floats that compute each element from those at its place, and that pick channels.

They read integers and write them where that saves a step: each element becomes a float, is
computed with and is rounded again as ``DequantizeLinear``, the operator and ``QuantizeLinear`` do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from hil.tvm.elementwise import fenced
from hil.tvm.layouts import Content, dequantized, emit_copy, quantized
from hil.tvm.shapes import channel_step
from hil.tvm.vectors import (
    Expression,
    function,
    load,
    named,
    parameter,
    spread,
    store,
)

_LANES = (16, 4, 1)
_OPERATORS: dict[str, Callable[[Expression, Expression], Expression]] = {
    "Add": lambda one, other: one + other,
    "Sub": lambda one, other: one - other,
    "Mul": lambda one, other: one * other,
    "Div": lambda one, other: one / other,
}
OPERATORS = frozenset(_OPERATORS)
"""What a `FloatChain` computes."""


class Extent(StrEnum):
    """What an operand has for each element of a result."""

    WHOLE = "whole"
    """One of its own."""
    PIXEL = "pixel"
    """That of its channel."""
    NUMBER = "number"
    """The only one."""


@dataclass(frozen=True)
class Operand:
    """What a `FloatChain` reads.

    Args:
        extent: how much.
        content: its type.
        constant: whether it is a constant.
    """

    extent: Extent = Extent.WHOLE
    content: Literal["uint8", "float32"] = "float32"
    constant: bool = False


@dataclass(frozen=True)
class FloatChain:
    """``Y = min(max((X0 op0 X1) op1 X2, low), high)``, each step rounded to float32.

    Parameters are those X that are no constants, then those that are; F float32[2] of
    `grid_factors` of each operand that is uint8, then low and high, then `grid_factors` of Y if it
    is uint8; and Y.

    Args:
        count: elements of Y.
        pixel: elements of a pixel; `count` if no operand has the extent of one.
        operands: what is read.
        operators: some of `OPERATORS`, one fewer.
        content: type of Y.

    Raises:
        ValueError: if the numbers do not fit.
    """

    count: int
    pixel: int
    operands: tuple[Operand, ...]
    operators: tuple[str, ...] = ()
    content: Literal["uint8", "float32"] = "float32"

    def __post_init__(self) -> None:
        if len(self.operands) != len(self.operators) + 1:
            raise ValueError(f"{len(self.operators)} operators on {len(self.operands)} operands")
        if self.count % self.pixel:
            raise ValueError(f"{self.count} elements are no pixels of {self.pixel}")

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        counts = {Extent.WHOLE: self.count, Extent.PIXEL: self.pixel, Extent.NUMBER: 1}
        given = {
            i: parameter(f"X{i}", counts[each.extent], each.content)
            for constant in (False, True)
            for i, each in enumerate(self.operands)
            if each.constant is constant
        }
        contents = [*(each.content for each in self.operands), self.content]
        integers = contents.count("uint8")
        factors = parameter("F", 2 * integers + 2, "float32")
        made = parameter("Y", self.count, self.content)
        lanes = next(lanes for lanes in _LANES if lanes <= self.pixel)
        with T.grid(self.count // self.pixel, -(-self.pixel // lanes)) as (pixel, vector):
            start = vector * lanes
            if self.pixel % lanes:  # the last vector overlaps the one before
                start = named(T.min(start, self.pixel - lanes))
            places = {Extent.WHOLE: named(pixel * self.pixel + start), Extent.PIXEL: start}
            values, used = [], 0
            for i, operand in enumerate(self.operands):
                buffer = given[i]
                if operand.extent is Extent.NUMBER:
                    value = spread(buffer[0], lanes)
                else:
                    value = load(buffer, places[operand.extent], operand.content, lanes)
                if operand.content == "uint8":
                    value = _rounded(dequantized(value, factors, lanes, used), lanes)
                    used += 2
                values.append(value)
            total = values[0]
            for kind, value in zip(self.operators, values[1:], strict=True):
                total = _rounded(_OPERATORS[kind](total, value), lanes)
            low, high = (spread(factors[used + i], lanes) for i in range(2))
            total = T.min(T.max(total, low), high)
            if self.content == "uint8":
                total = quantized(total, factors, lanes, used + 2)
            store(made, places[Extent.WHOLE], total, lanes)


@dataclass(frozen=True)
class PickChannels:
    """Some of the channels of each pixel, in some order.

    Parameters are X and Y, pixels of `hil.tvm.shapes.channel_step` elements; channels that pad a
    pixel of Y hold zero.

    Args:
        pixels: of both.
        channels: of X.
        picked: the channels of X that become those of Y.
        content: type of the elements.

    Raises:
        ValueError: if X lacks a channel.
    """

    pixels: int
    channels: int
    picked: tuple[int, ...]
    content: Content

    def __post_init__(self) -> None:
        if not self.picked or min(self.picked) < 0 or max(self.picked) >= self.channels:
            raise ValueError(f"no channels {self.picked} among {self.channels}")

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        step, count = channel_step(len(self.picked)), len(self.picked)
        given = parameter("X", self.pixels * channel_step(self.channels), self.content)
        made = parameter("Y", self.pixels * step, self.content)
        rows = _interleaved_rows(self.picked)
        with T.serial(self.pixels) as pixel:
            start, place = named(pixel * channel_step(self.channels)), named(pixel * step)
            if rows is None:
                for first, length, at in _runs(self.picked):
                    emit_copy(given, start + first, made, place + at, length)
            else:
                length = count // len(rows)
                with T.serial(length) as i:
                    for row, first in enumerate(rows):
                        value = given[start + first + i]
                        T.buffer_store(made, value, [place + i * len(rows) + row])
            for pad in range(count, step):
                T.buffer_store(made, tirx.const(0, self.content), [place + pad])


def _rounded(value: Expression, lanes: int) -> Expression:
    """Keep a product apart from what it is added to, which would round both at once."""
    return fenced(value, lanes) if lanes > 1 else value


def _runs(picked: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return runs of neighbours: the first channel, how many, and where they go."""
    starts = [i for i, each in enumerate(picked) if not i or each != picked[i - 1] + 1]
    ends = [*starts[1:], len(picked)]
    return [(picked[i], end - i, i) for i, end in zip(starts, ends, strict=True)]


def _interleaved_rows(picked: tuple[int, ...]) -> list[int] | None:
    """Return where runs begin whose elements are picked in turn; None if that is no pattern."""
    count = len(picked)
    for rows in range(2, math.isqrt(count) + 1):
        first = list(picked[:rows])
        turns = tuple(start + i for i in range(count // rows) for start in first)
        if count % rows == 0 and turns == picked and first[1] != first[0] + 1:
            return first
    return None
