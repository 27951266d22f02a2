"""The kernel of matrix products and of convolutions that see all channels.

A tile is some output pixels times some blocks of 16 output channels, whose sums stay in registers
while the kernel walks through the window and the input channels. Weights come packed; zero points
of the inputs are in the bias already, so pads are filled with the zero point.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from hil.tvm.kernel import ConvolutionKernel, Parameters, tiles_of
from hil.tvm.shapes import CHANNELS, SMALL, round_up
from hil.tvm.vectors import Buffer, Expression, named


@dataclass(frozen=True)
class DenseKernel(ConvolutionKernel):
    """A matrix product or a convolution that sees all channels."""

    @property
    def merged(self) -> bool:
        """Whether a row of the window is one run of elements: no gaps between its pixels."""
        shape = self.shape
        whole = shape.in_channels == shape.in_step or shape.in_step == SMALL
        return whole and shape.dilation[1] == 1

    @property
    def runs(self) -> tuple[int, int]:
        """How many runs of contiguous inputs a window has: down and across."""
        return self.shape.kernel[0], 1 if self.merged else self.shape.kernel[1]

    @property
    def run(self) -> int:
        """Inputs of a run, rounded up to whole steps."""
        shape = self.shape
        inputs = shape.kernel[1] * shape.in_step if self.merged else shape.in_channels
        return round_up(inputs, self.packing.inputs)

    @property
    def overrun(self) -> int:
        """Elements that a run reads beyond its pixels."""
        pixels = self.shape.kernel[1] if self.merged else 1
        return max(0, self.run - pixels * self.shape.in_step)

    @property
    def weight_count(self) -> int:
        """Elements of the packed weights."""
        steps = self.runs[0] * self.runs[1] * self.run // self.packing.inputs
        return self.shape.out_step // CHANNELS * steps * self.packing.vectors * self.packing.vector

    def packed(self, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return weights (out_channels, height, width, in_channels) as the kernel reads them."""
        shape = self.shape
        across = shape.in_step if self.merged else shape.in_channels
        room = np.zeros((shape.out_step, *shape.kernel, across), weights.dtype)
        room[: shape.out_channels, :, :, : shape.in_channels] = weights
        runs = room.reshape(shape.out_step, self.runs[0] * self.runs[1], -1)
        filled = np.zeros((*runs.shape[:2], self.run), weights.dtype)
        filled[:, :, : runs.shape[2]] = runs
        return self.packing.pack(filled.reshape(shape.out_step, -1), self.tile.blocks)

    @property
    def _chains(self) -> int:
        """Sums that are kept apart, so that additions need not wait for each other."""
        return 2 if self.tile.pixels * self.tile.blocks < 8 and self.packing.groups > 1 else 1

    @property
    def _block_sums(self) -> int:
        return CHANNELS * self.arithmetic.partial

    @property
    def sum_count(self) -> int:
        """Sums of a tile."""
        return self.tile.pixels * self.tile.blocks * self._chains * self._block_sums

    def _at(self, pixel: int, block: int, chain: int) -> int:
        """Where a block's sums begin."""
        return ((pixel * self.tile.blocks + block) * self._chains + chain) * self._block_sums

    def emit_tiles(self, given: Buffer, width: int, to: Parameters, sums: Buffer) -> None:
        """See `ConvolutionKernel`."""
        tile, shape = self.tile, self.shape
        with tiles_of(shape, tile) as (block, row, first, across):
            self.emit_zeros(sums)
            line = row * shape.stride[0] * width + first * shape.stride[1]
            self._emit_products(given, width, to.weights, sums, named(line * shape.in_step), block)
            for pixel in range(tile.pixels):
                for each in range(tile.blocks):
                    starts = [self._at(pixel, each, chain) for chain in range(self._chains)]
                    channel = (block * tile.blocks + each) * CHANNELS
                    self.emit_result(to, sums, starts, channel, row * across + first + pixel)

    def _emit_products(
        self,
        given: Buffer,
        width: int,
        weights: Buffer,
        sums: Buffer,
        origin: Expression,
        block: Expression,
    ) -> None:
        shape, packing, tile = self.shape, self.packing, self.tile
        down, across = self.runs
        steps = self.run // packing.inputs
        with T.grid(down, across, steps) as (row, column, step):
            line = row * shape.dilation[0] * width + column * shape.dilation[1]
            base = named(origin + line * shape.in_step + step * packing.inputs)
            walked = ((block * down + row) * across + column) * steps + step
            vector = named(walked * (packing.vectors * tile.blocks * packing.vector))
            for chunk in range(self.arithmetic.chunks):
                self._emit_chunk(given, weights, sums, base, vector, chunk)

    def _emit_chunk(
        self,
        given: Buffer,
        weights: Buffer,
        sums: Buffer,
        base: Expression,
        vector: Expression,
        chunk: int,
    ) -> None:
        use, tile, packing = self.arithmetic, self.tile, self.packing
        loaded = [
            self.load_weights(weights, vector + each * packing.vector, tile.blocks, chunk)
            for each in range(tile.blocks)
        ]
        for group in range(packing.groups):
            unpacked = [self.unpacked(each, group) for each in loaded]
            for pixel in range(tile.pixels):
                step = pixel * self.shape.stride[1] * self.shape.in_step
                inputs = named(use.spread(given, base + (step + group * packing.depth)))
                for each in range(tile.blocks):
                    at = self._at(pixel, each, group % self._chains) + chunk * use.chunk_sums
                    self.emit_product(sums, at, inputs, unpacked[each])
