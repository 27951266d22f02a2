"""What a layer asks of a kernel, and the kernels that may do it."""

from dataclasses import dataclass

import numpy as np

from hil.tvm.arithmetic import InstructionSet
from hil.tvm.bitserial import BITS, BitSerialKernel
from hil.tvm.dense import DenseKernel
from hil.tvm.depthwise import DepthwiseKernel
from hil.tvm.kernel import ConvolutionKernel
from hil.tvm.packing import WIDTHS
from hil.tvm.shapes import CHANNELS, Convolution
from hil.tvm.tiles import (
    MOST,
    Registers,
    Tile,
    counting_tiles,
    dense_tiles,
    depthwise_tiles,
)


@dataclass(frozen=True)
class Operation:
    """What a layer asks of a kernel.

    Args:
        shape: what is computed.
        weights: bits of the weights.
        activations: bits of the inputs.
    """

    shape: Convolution
    weights: int
    activations: int

    @property
    def width(self) -> int:
        """Bits at which the kernel holds weights: the least of `WIDTHS` that serve."""
        least = max(self.weights, self.activations if self.activations > 8 else 0)
        return next(width for width in WIDTHS if width >= least)

    @property
    def counts(self) -> bool:
        """Whether bits may be counted instead of numbers multiplied."""
        return max(self.weights, self.activations) <= BITS and not self.shape.depthwise

    def kernel(self, instructions: InstructionSet, tile: Tile) -> ConvolutionKernel:
        """Return the kernel that is cut in some way."""
        if tile.counts:
            return BitSerialKernel(self.shape, BITS, instructions, tile)
        kind = DepthwiseKernel if self.shape.depthwise else DenseKernel
        return kind(self.shape, self.width, instructions, tile)

    def kernels(self, instructions: InstructionSet) -> tuple[ConvolutionKernel, ...]:
        """Return the kernels that are worth timing, those first of which most is expected."""
        if self.shape.depthwise:
            tiles = depthwise_tiles(self.shape)
        else:
            first = self.kernel(instructions, Tile(1))
            size = first.weight_count * np.dtype(first.arithmetic.content).itemsize
            tiles = dense_tiles(self.shape, _registers(first), size)
        if self.counts:
            tiles = (*counting_tiles(self.shape), *tiles[: MOST // 2])
        return tuple(self.kernel(instructions, tile) for tile in tiles)


def _registers(kernel: ConvolutionKernel) -> Registers:
    use, packing, bytes_ = kernel.arithmetic, kernel.packing, kernel.instructions.register_bytes
    sums = CHANNELS * use.partial * np.dtype(use.sums).itemsize
    packed = kernel.bits < 8
    return Registers(
        kernel.instructions.registers,
        sums=-(-sums // bytes_),
        weights=packing.vectors + packed,
        groups=packing.groups,
        unpacking=(5 if kernel.bits == 6 else 2) * packed,
    )
