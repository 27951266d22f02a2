"""Kernels that make each element of one or two tensors alone, as ONNX Runtime makes them.

Integers go through float32 and are rounded half to even: ``QLinearAdd`` and ``QLinearMul`` bit by
bit. The former fuses its products with what is added to them, the latter rounds in between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm.script.ir_builder import tirx as T

from hil.tvm.vectors import (
    Buffer,
    Expression,
    cast,
    constant,
    function,
    intrinsic,
    load,
    named,
    parameter,
    spread,
    store,
)
from quantization.quantizer import AffineGrid, Float32Array

TABLE = 256
"""Entries of a table, one for each byte."""
_LANES = (16, 4, 1)
_BYTES = 64
_PERMUTE = "llvm.x86.avx512.vpermi2var.qi.512"


@dataclass(frozen=True)
class Lookup:
    """``Y = T[X]``, what any function of one uint8 tensor comes to.

    Parameters are X uint8[count], T content[256] and Y content[count].

    Args:
        count: elements.
        content: type of the results.
        shuffles: whether to look 64 bytes up at a time, with the instructions of AVX512-VBMI.

    Raises:
        ValueError: if `shuffles` is asked for with results that are not bytes.
    """

    count: int
    content: Literal["uint8", "int16", "float32"]
    shuffles: bool = False

    def __post_init__(self) -> None:
        if self.shuffles and self.content != "uint8":
            raise ValueError(f"shuffles look up uint8 only, not {self.content}")

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        given = parameter("X", self.count, "uint8")
        table = parameter("T", TABLE, self.content)
        made = parameter("Y", self.count, self.content)
        emit_lookup(given, table, made, self.count, self.shuffles)


@dataclass(frozen=True)
class ScaledSum:
    """``QLinearAdd``: ``Y = clip(round(A * F[0] + (B * F[1] + F[2])))``, by fused multiply-adds.

    Parameters are A uint8[count], B uint8[count or channels], F float32[3] of `sum_factors`, and
    Y uint8[count].

    Args:
        count: elements of A and Y.
        channels: 0, or elements of B, a pixel that is added to each of A.
    """

    count: int
    channels: int = 0

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        first, second, factors, made = _operands(self.count, self.channels, 3)

        def total(one: Expression, other: Expression, lanes: int) -> Expression:
            scale, other_scale, offset = (spread(factors[i], lanes) for i in range(3))
            return fused(one, scale, fused(other, other_scale, offset, lanes), lanes)

        _emit_pairs(self.count, self.channels, first, second, made, total)


@dataclass(frozen=True)
class ScaledProduct:
    """``QLinearMul``: ``Y = clip(round((A - F[0]) * (B - F[1]) * F[2] + F[3]))``.

    Parameters are A uint8[count], B uint8[count or channels], F float32[4] of `product_factors`,
    and Y uint8[count].

    Args:
        count: elements of A and Y.
        channels: 0, or elements of B, a pixel that each of A is multiplied with.
    """

    count: int
    channels: int = 0

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        first, second, factors, made = _operands(self.count, self.channels, 4)

        def product(one: Expression, other: Expression, lanes: int) -> Expression:
            zero, other_zero, scale, offset = (spread(factors[i], lanes) for i in range(4))
            shifted = (one - zero) * (other - other_zero)  # exact
            return fenced(shifted * scale, lanes) + offset

        _emit_pairs(self.count, self.channels, first, second, made, product)


def sum_factors(first: AffineGrid, second: AffineGrid, result: AffineGrid) -> Float32Array:
    """Return what `ScaledSum` multiplies with and adds: (3,), as ONNX Runtime computes them.

    Args:
        first: grid of A.
        second: grid of B. Where ONNX Runtime adds one value per channel to whole planes, those are
            its B here, in whatever order the operator names them.
        result: grid of Y.
    """
    one, other = (np.float32(each.scale) / np.float32(result.scale) for each in (first, second))
    # Its compiler fuses the first product into the sum; float64 holds all of that.
    fixed = np.float64(one) * first.zero_point + np.float64(other * np.float32(second.zero_point))
    return np.array([one, other, np.float32(result.zero_point) - np.float32(fixed)], np.float32)


def product_factors(first: AffineGrid, second: AffineGrid, result: AffineGrid) -> Float32Array:
    """Return the numbers of `ScaledProduct`: (4,), as ONNX Runtime computes them.

    Args:
        first: grid of A.
        second: grid of B.
        result: grid of Y.
    """
    scale = np.float32(first.scale) * np.float32(second.scale) / np.float32(result.scale)
    points = first.zero_point, second.zero_point
    return np.array([*points, scale, result.zero_point], np.float32)


def lanes_of(count: int) -> int:
    """Return the widest vector, of 16, 4 or 1 elements, that divides `count`."""
    return next(lanes for lanes in _LANES if count % lanes == 0)


def fused(one: Expression, other: Expression, addend: Expression, lanes: int) -> Expression:
    """Return ``one * other + addend`` in float32, rounded once."""
    return intrinsic("llvm.fma", f"float32x{lanes}", one, other, addend)


def fenced(value: Expression, lanes: int) -> Expression:
    """Return the same floats, as a product that the compiler must round before it is added."""
    return intrinsic("llvm.arithmetic.fence", f"float32x{lanes}", value)


def saturated(value: Expression, lanes: int) -> Expression:
    """Return floats rounded half to even, as uint8 between 0 and 255."""
    low, high = (constant(limit, lanes, "float32") for limit in (0, TABLE - 1))
    return cast(T.max(T.min(T.nearbyint(value), high), low), "uint8", lanes)


def emit_lookup(given: Buffer, table: Buffer, made: Buffer, count: int, shuffles: bool) -> None:
    """Write the table's entries of `count` bytes, see `Lookup`."""
    if shuffles and count >= _BYTES:
        _emit_shuffles(given, table, made, count)
        return
    with T.serial(count) as i:
        T.buffer_store(made, table[T.Cast("int32", given[i])], [i])


def _operands(count: int, channels: int, factors: int) -> list[Buffer]:
    return [
        parameter("A", count, "uint8"),
        parameter("B", channels or count, "uint8"),
        parameter("F", factors, "float32"),
        parameter("Y", count, "uint8"),
    ]


def _emit_pairs(
    count: int,
    channels: int,
    first: Buffer,
    second: Buffer,
    made: Buffer,
    of: Callable[[Expression, Expression, int], Expression],
) -> None:
    """Write what `of` two vectors of floats and their lanes gives, rounded, for all elements."""
    run = channels or count
    lanes = lanes_of(run)
    with T.grid(count // run, run // lanes) as (pixel, vector):
        at, place = vector * lanes, named(pixel * run + vector * lanes)
        one, other = (
            cast(load(buffer, start, "uint8", lanes), "float32", lanes)
            for buffer, start in ((first, place), (second, at))
        )
        store(made, place, saturated(of(one, other, lanes), lanes), lanes)


def _emit_shuffles(given: Buffer, table: Buffer, made: Buffer, count: int) -> None:
    content = f"uint8x{_BYTES}"
    parts = [named(load(table, start, "uint8", _BYTES)) for start in range(0, TABLE, _BYTES)]
    with T.serial(-(-count // _BYTES)) as i:
        start = i * _BYTES
        if count % _BYTES:  # the last vector overlaps the one before
            start = named(T.min(start, count - _BYTES))
        places = named(load(given, start, "uint8", _BYTES))
        low = intrinsic(_PERMUTE, content, parts[0], places, parts[1])
        high = intrinsic(_PERMUTE, content, parts[2], places, parts[3])
        upper = places >= constant(TABLE // 2, _BYTES, "uint8")
        store(made, start, T.Select(upper, high, low), _BYTES)
