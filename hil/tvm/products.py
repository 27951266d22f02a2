"""The kernel of products of two activations: matrices on both sides, one pair after the other."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm.script.ir_builder import tirx as T

from hil.tvm.elementwise import saturated
from hil.tvm.shapes import channel_step
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
    spread,
    store,
)
from quantization.quantizer import AffineGrid, Float32Array

_ROWS = 4
_VECTORS = 2
"""A tile: rows of A times vectors of B."""
_EXACT = 256
"""So many products of differences of bytes sum up to less than 2^24: float32 adds them exactly."""


@dataclass(frozen=True)
class ActivationProduct:
    """``Y = A @ B`` of matrices; of uint8 it is ``QLinearMatMul``.

    Parameters are A content[pairs * rows * step(inner)], B content[pairs * inner * step(columns)],
    F float32[4] of `matrix_factors` if `content` is uint8, and Y
    content[pairs * rows * step(columns)], where step is `hil.tvm.shapes.channel_step`.

    Integers go through floats, which hold their sums exactly, and multiply as quickly.

    Args:
        pairs: of matrices.
        rows: of A.
        inner: columns of A, rows of B.
        columns: of B.
        content: type of the elements.
    """

    pairs: int
    rows: int
    inner: int
    columns: int
    content: Literal["uint8", "float32"]

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``."""
        return function(name, self._emit)

    def _emit(self) -> None:
        rows, inner, content = self.rows, self.inner, self.content
        across, wide = channel_step(inner), channel_step(self.columns)
        first = parameter("A", self.pairs * rows * across, content)
        second = parameter("B", self.pairs * inner * wide, content)
        factors = parameter("F", 4, "float32") if content == "uint8" else None
        made = parameter("Y", self.pairs * rows * wide, content)
        if factors is not None:
            first = _shifted(first, factors[0], self.pairs * rows * across)
            second = _shifted(second, factors[1], self.pairs * inner * wide)
        lanes = min(16, wide)
        height, vectors = min(_ROWS, rows), min(_VECTORS, wide // lanes)
        width = vectors * lanes
        sums = scratch(height * width, "float32")
        totals = scratch(height * width, "int32")
        chunk = inner if factors is None else min(inner, _EXACT)
        places = [(row, vector) for row in range(height) for vector in range(vectors)]
        with T.grid(self.pairs, -(-rows // height), -(-wide // width)) as (pair, tile, block):
            # The last tiles overlap those before.
            top = named(pair * rows + T.min(tile * height, rows - height))
            left = named(T.min(block * width, wide - width))
            if chunk < inner:
                _fill(totals, places, width, lanes, "int32")
            with T.serial(-(-inner // chunk)) as part:
                begin = named(part * chunk)
                _fill(sums, places, width, lanes, "float32")
                with T.serial(T.min(inner - begin, chunk)) as step:
                    at = named((pair * inner + begin + step) * wide + left)
                    row_of = [
                        named(load(second, at + v * lanes, "float32", lanes))
                        for v in range(vectors)
                    ]
                    for row, vector in places:
                        factor = spread(first[(top + row) * across + begin + step], lanes)
                        place = row * width + vector * lanes
                        so_far = load(sums, place, "float32", lanes)
                        store(sums, place, so_far + factor * row_of[vector], lanes)
                if chunk < inner:
                    for row, vector in places:
                        place = row * width + vector * lanes
                        added = cast(load(sums, place, "float32", lanes), "int32", lanes)
                        store(totals, place, load(totals, place, "int32", lanes) + added, lanes)
            for row, vector in places:
                place = row * width + vector * lanes
                total = load(sums, place, "float32", lanes)
                if chunk < inner:
                    total = cast(load(totals, place, "int32", lanes), "float32", lanes)
                if factors is not None:
                    scaled = T.nearbyint(total * spread(factors[2], lanes))
                    total = saturated(scaled + spread(factors[3], lanes), lanes)
                store(made, (top + row) * wide + left + vector * lanes, total, lanes)


def matrix_factors(first: AffineGrid, second: AffineGrid, result: AffineGrid) -> Float32Array:
    """Return the numbers of a uint8 `ActivationProduct`: (4,), as ONNX Runtime computes them.

    Args:
        first: grid of A.
        second: grid of B.
        result: grid of Y.
    """
    scale = np.float32(first.scale) * np.float32(second.scale) / np.float32(result.scale)
    numbers = first.zero_point, second.zero_point, scale, result.zero_point
    return np.array(numbers, np.float32)


def _shifted(given: Buffer, zero_point: Expression, count: int) -> Buffer:
    """Return bytes less their zero point, as floats."""
    made = scratch(count, "float32")
    lanes = 16 if count % 16 == 0 else 4
    with T.serial(count // lanes) as i:
        integer = cast(load(given, i * lanes, "uint8", lanes), "float32", lanes)
        store(made, i * lanes, integer - spread(zero_point, lanes), lanes)
    return made


def _fill(
    sums: Buffer, places: list[tuple[int, int]], width: int, lanes: int, content: str
) -> None:
    """Set the sums of a tile to zero."""
    for row, vector in places:
        store(sums, row * width + vector * lanes, constant(0, lanes, content), lanes)
