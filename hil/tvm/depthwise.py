"""The kernel of depthwise convolutions: each output channel sees its own input channel.

The products of one channel are those of the window's rows, as many as stand side by side in the
arithmetic, so the instructions of matrix products serve here too. A column of the window is put
together once and meets all output pixels of the tile that see it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from hil.tvm.kernel import ConvolutionKernel, Parameters
from hil.tvm.shapes import CHANNELS, round_up
from hil.tvm.vectors import Buffer, Expression, cast, constant, load, named, reinterpret

_WORDS = {1: "uint8", 2: "uint16"}


@dataclass(frozen=True)
class DepthwiseKernel(ConvolutionKernel):
    """A depthwise convolution; its tiles have one block."""

    @property
    def parts(self) -> int:
        """How many times `depth` rows a column has."""
        return -(-self.shape.kernel[0] // self.packing.depth)

    @property
    def taps(self) -> int:
        """Vectors' groups of a window: columns by parts."""
        return self.shape.kernel[1] * self.parts

    @property
    def weight_count(self) -> int:
        """Elements of the packed weights."""
        packing = self.packing
        steps = -(-self.taps // packing.groups)
        return self.shape.out_step // CHANNELS * steps * packing.vectors * packing.vector

    def packed(self, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return weights (channels, height, width) as the kernel reads them."""
        shape, depth = self.shape, self.packing.depth
        room = np.zeros((shape.out_step, shape.kernel[1], self.parts * depth), weights.dtype)
        room[: shape.out_channels, :, : shape.kernel[0]] = weights.transpose(0, 2, 1)
        count = self.taps * depth
        filled = np.zeros((shape.out_step, round_up(count, self.packing.inputs)), weights.dtype)
        filled[:, :count] = room.reshape(shape.out_step, -1)
        return self.packing.pack(filled, 1)

    @property
    def overrun(self) -> int:
        """Elements that the vector of a last pixel of few channels reads beyond it."""
        return max(0, CHANNELS - self.shape.in_step)

    @property
    def _tile(self) -> int:
        return min(self.tile.pixels, self.shape.output[1])

    @property
    def _block_sums(self) -> int:
        return CHANNELS * self.arithmetic.partial

    @property
    def sum_count(self) -> int:
        """Sums of a tile."""
        return self._tile * self._block_sums

    def emit_tiles(self, given: Buffer, width: int, to: Parameters, sums: Buffer) -> None:
        """See `ConvolutionKernel`."""
        shape, use = self.shape, self.arithmetic
        down, across = shape.output
        pixels = self._tile
        tiles, rest = -(-across // pixels), across % pixels
        # Rows first: what all channels read of some rows stays in the first cache.
        with T.grid(down, shape.out_step // CHANNELS) as (row, block):
            weights = [self._loaded(to.weights, block, chunk) for chunk in range(use.chunks)]
            with T.serial(tiles) as tile:
                first = tile * pixels
                first = named(T.min(first, across - pixels) if rest else first)
                line = row * shape.stride[0] * width + first * shape.stride[1]
                base = named(line * shape.in_step + block * CHANNELS)
                self.emit_zeros(sums)
                for chunk in range(use.chunks):
                    self._emit_products(given, base, width, chunk, weights[chunk], sums)
                for pixel in range(pixels):
                    starts = [pixel * self._block_sums]
                    place = row * across + first + pixel
                    self.emit_result(to, sums, starts, block * CHANNELS, place)

    def _loaded(self, weights: Buffer, block: Expression, chunk: int) -> list[Expression]:
        """A chunk of a block's weights, unpacked, by tap."""
        packing = self.packing
        steps, size = -(-self.taps // packing.groups), packing.vectors * packing.vector
        found: list[Expression] = []
        for step in range(steps):
            loads = self.load_weights(weights, block * (steps * size) + step * size, 1, chunk)
            groups = min(packing.groups, self.taps - step * packing.groups)
            found += [self.unpacked(loads, group) for group in range(groups)]
        return found

    def _emit_products(
        self,
        given: Buffer,
        base: Expression,
        width: int,
        chunk: int,
        weights: list[Expression],
        sums: Buffer,
    ) -> None:
        shape, use = self.shape, self.arithmetic
        seen: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(self._tile):
            for tap in range(shape.kernel[1]):
                column = pixel * shape.stride[1] + tap * shape.dilation[1]
                seen.setdefault(column, []).append((pixel, tap))
        for column, met in sorted(seen.items()):
            for part in range(self.parts):
                inputs = named(self._column(given, base, width, column, part, chunk))
                for pixel, tap in met:
                    at = pixel * self._block_sums + chunk * use.chunk_sums
                    self.emit_product(sums, at, inputs, weights[tap * self.parts + part])

    def _column(
        self, given: Buffer, base: Expression, width: int, column: int, part: int, chunk: int
    ) -> Expression:
        """Return some rows of one column of the window, side by side for each channel."""
        shape, use, depth = self.shape, self.arithmetic, self.packing.depth
        lanes = use.chunk // depth
        loads = []
        for place in range(min(depth, shape.kernel[0] - part * depth)):
            row = (part * depth + place) * shape.dilation[0]
            offset = (row * width + column) * shape.in_step + chunk * lanes
            loads.append(load(given, base + offset, use.inputs, lanes))
        if depth == 1:
            return loads[0]
        size = 4 // depth
        found: Expression = None
        for place, each in enumerate(loads):
            unsigned = reinterpret(each, _WORDS[size], lanes) if size > 1 else each
            wide = cast(unsigned, "int32", lanes)
            if place:
                wide = T.shift_left(wide, constant(8 * size * place, lanes))
            found = T.bitwise_or(found, wide) if place else wide
        return reinterpret(found, use.inputs, use.chunk)
