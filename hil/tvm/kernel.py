"""What kernels of convolutions have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from hil.tvm import outputs
from hil.tvm.arithmetic import Arithmetic, InstructionSet
from hil.tvm.packing import Packing
from hil.tvm.padding import padded_input
from hil.tvm.shapes import CHANNELS, Convolution
from hil.tvm.tiles import Tile
from hil.tvm.vectors import (
    Buffer,
    Expression,
    constant,
    function,
    load,
    named,
    parameter,
    reinterpret,
    scratch,
    store,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Parameters:
    """Buffers of a kernel, in the order of its arguments.

    Args:
        inputs: the input.
        weights: packed.
        bias: by output channel, in the type of the sums; of integers the inputs' zero point times
            the weights is taken off already.
        factors: by output channel; None of floats.
        limits: zero points of input and output; of floats the limits of the output.
        outputs: the output.
    """

    inputs: Buffer
    weights: Buffer
    bias: Buffer
    factors: Buffer | None
    limits: Buffer
    outputs: Buffer


@dataclass(frozen=True)
class ConvolutionKernel(ABC):
    """A convolution of one image with fused bias, requantization and clamp.

    Args:
        shape: what is computed.
        bits: of the weights, see `hil.tvm.packing.WIDTHS`.
        instructions: of the processor.
        tile: how it is cut.
    """

    shape: Convolution
    bits: int
    instructions: InstructionSet
    tile: Tile

    @property
    def packing(self) -> Packing:
        """Of the weights."""
        return Packing(self.bits)

    @property
    def arithmetic(self) -> Arithmetic:
        """How products are made."""
        return self.instructions.of(self.packing.content)

    @property
    @abstractmethod
    def weight_count(self) -> int:
        """Elements of the packed weights."""

    @abstractmethod
    def packed(self, weights: Array) -> Array:
        """Return weights (out_channels, height, width, in_channels) as the kernel reads them.

        Those of depthwise kernels are (channels, height, width).
        """

    @property
    def overrun(self) -> int:
        """Elements that are read behind the end of the input."""
        return 0

    @property
    @abstractmethod
    def sum_count(self) -> int:
        """Sums of a tile."""

    @abstractmethod
    def emit_tiles(self, given: Buffer, width: int, to: Parameters, sums: Buffer) -> None:
        """State the kernel's loops.

        Args:
            given: the input, with its pads.
            width: pixels of a row of it.
            to: the kernel's parameters.
            sums: room for those of a tile.
        """

    def function(self, name: str = "main") -> Any:
        """Return the kernel as a ``tirx.PrimFunc``, see `Parameters`."""
        return function(name, self._emit)

    def _emit(self) -> None:
        shape, use = self.shape, self.arithmetic
        real = use.content == "float32"
        to = Parameters(
            parameter("X", shape.input_count, use.inputs),
            parameter("W", self.weight_count, use.content),
            parameter("B", shape.out_step, use.sums),
            None if real else parameter("S", shape.out_step, "float32"),
            parameter("Z", 2, "float32" if real else "int32"),
            parameter("Y", shape.output_count, use.inputs),
        )
        given, width = to.inputs, shape.width
        if any(shape.pads) or self.overrun:
            pad = T.float32(0) if real else named(T.Cast(use.inputs, to.limits[0]))
            given = padded_input(given, shape, use.inputs, pad, self.overrun)
            width = shape.padded[1]
        self.emit_tiles(given, width, to, scratch(self.sum_count, use.sums))

    def emit_zeros(self, sums: Buffer) -> None:
        """Set the sums of a tile to zero."""
        for start in range(0, self.sum_count, CHANNELS):
            store(sums, start, constant(0, CHANNELS, self.arithmetic.sums), CHANNELS)

    def emit_product(self, sums: Buffer, at: int, inputs: Expression, weights: Expression) -> None:
        """Add the products of a chunk to the sums that begin at `at`."""
        use = self.arithmetic
        total = load(sums, at, use.sums, use.chunk_sums)
        store(sums, at, use.multiply_add(total, inputs, weights), use.chunk_sums)

    def load_weights(
        self, weights: Buffer, start: Expression, blocks: int, chunk: int
    ) -> list[Expression]:
        """Return a chunk of the vectors of weights that `unpacked` takes.

        Args:
            weights: packed.
            start: of the first vector.
            blocks: how many vectors further the next one of the same groups is.
            chunk: which.
        """
        use, packing = self.arithmetic, self.packing
        offset = chunk * use.chunk
        if self.bits >= 8:
            return [named(load(weights, start + offset, use.content, use.chunk))]
        places = [start + v * blocks * packing.vector + offset for v in range(packing.vectors)]
        loads = [load(weights, place, "int8", use.chunk) for place in places]
        return [named(reinterpret(each, "int32", use.chunk // 4)) for each in loads]

    def unpacked(self, loads: list[Expression], group: int) -> Expression:
        """Return a group of weights out of what `load_weights` returned."""
        if self.bits >= 8:
            return loads[0]
        return named(self.packing.unpack(loads, group, self.arithmetic.chunk // 4))

    def emit_result(
        self,
        to: Parameters,
        sums: Buffer,
        starts: list[int],
        channel: Expression,
        pixel: Expression,
    ) -> None:
        """Write 16 channels of a pixel.

        Args:
            to: the kernel's parameters.
            sums: of a tile.
            starts: where sums of the channels begin that are still to be added up.
            channel: the first one.
            pixel: of the output.
        """
        shape, use = self.shape, self.arithmetic
        total = self.total(sums, starts) + load(to.bias, channel, use.sums, CHANNELS)
        if to.factors is None:
            made = outputs.clamped_sums(total, to.limits)
        else:
            factors = load(to.factors, channel, "float32", CHANNELS)
            made = outputs.requantized(total, factors, to.limits[1], use.inputs)
        if shape.out_pixel % CHANNELS == 0:
            store(to.outputs, pixel * shape.out_pixel + channel, made, CHANNELS)
            return
        whole = scratch(CHANNELS, use.inputs)
        store(whole, 0, made, CHANNELS)
        few = load(whole, 0, use.inputs, shape.out_pixel)
        store(to.outputs, pixel * shape.out_pixel, few, shape.out_pixel)

    def total(self, sums: Buffer, starts: list[int]) -> Expression:
        """Return the sums of 16 channels, without their bias."""
        use = self.arithmetic
        kept = outputs.block_total(sums, starts, use.partial, use.sums)
        return outputs.unscaled(kept, use.content, self.bits)


@contextmanager
def tiles_of(
    shape: Convolution, tile: Tile
) -> Iterator[tuple[Expression, Expression, Expression, int]]:
    """Loop over the tiles of a kernel that sees all channels.

    Yields:
        Which blocks of the output channels, which row of the output, the first of the tile's pixels
        there, and the pixels of a row. Pointwise kernels see one long row.
    """
    down, across = shape.output
    if shape.pointwise:
        down, across = 1, down * across
    tiles, rest = -(-across // tile.pixels), across % tile.pixels
    blocks = shape.out_step // CHANNELS // tile.blocks
    counts = (blocks, down, tiles) if tile.weights_first else (down, tiles, blocks)
    with T.grid(*counts) as places:
        block, row, at = places if tile.weights_first else (places[2], *places[:2])
        first = at * tile.pixels
        if rest:  # the last tile of a row overlaps the one before: same sums, written twice
            first = T.min(first, across - tile.pixels)
        yield block, row, named(first), across
