"""The kernel of convolutions of two bits: it counts bits of planes instead of multiplying.

The kernel first turns the activations into bit planes, in a buffer of its own: of each pixel, words
of 32 inputs, one for the low and one for the high bits. Weights come as bit planes already. A
product of an activation ``a = 2 a1 + a0`` and a weight ``w = w0 - 2 w1`` takes three counts instead
of the four of all pairs of planes:

    a w = a0 w0 + 2 (w0 if a1 else w1) + 2 (1 - a0 if w1 else a1) - 2 a1 - 4 w1

Each of the first three terms is one logic instruction for many inputs, if low bits of activations
are kept inverted. What is taken off is counted once for each pixel and each output channel.

Which input takes which bit of a word is free, as long as activations and weights agree. 64 bits
hold 8 inputs, one a byte; four such groups lie over each other, shifted by two bits each. Then even
bits are one plane and odd bits the other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from hil.tvm.kernel import ConvolutionKernel, Parameters, tiles_of
from hil.tvm.shapes import CHANNELS
from hil.tvm.vectors import (
    Buffer,
    Expression,
    cast,
    constant,
    load,
    named,
    reinterpret,
    scratch,
    store,
)

BITS = 2
"""Of weights and of activations; fewer do as well."""
WORD = 32
"""Inputs of a word."""
_VECTOR = CHANNELS * WORD // 8
_LOW_BITS = 0x0303_0303_0303_0303
_EVEN_BITS = 0x5555_5555_5555_5555


@dataclass(frozen=True)
class BitSerialKernel(ConvolutionKernel):
    """A matrix product or a convolution that sees all channels, of activations from 0 to 3.

    Words are whole for each pixel, so it is slow where channels are much fewer than 32.
    """

    def __post_init__(self) -> None:
        if self.bits != BITS:
            raise ValueError(f"weights have to be of {BITS} bits, not {self.bits}")

    @property
    def words(self) -> int:
        """Words of one plane of a pixel."""
        return -(-self.shape.in_channels // WORD)

    @property
    def overrun(self) -> int:
        """Elements that the last word reads beyond its pixel."""
        return max(0, self.words * WORD - self.shape.in_step)

    @property
    def weight_count(self) -> int:
        """Bytes of the packed weights."""
        return self.shape.out_step // CHANNELS * (1 + self._steps * BITS) * _VECTOR

    def packed(self, weights: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return weights (out_channels, height, width, in_channels) as the kernel reads them.

        For every `blocks` times 16 channels, these are int32 numbers (blocks, 16) that counts begin
        with, and words of 32 bits, (height * width * words, blocks, planes, 16); all as bytes.
        """
        shape, blocks = self.shape, self.tile.blocks
        room = np.zeros((shape.out_step, *shape.kernel, self.words * WORD), np.int8)
        room[: shape.out_channels, :, :, : shape.in_channels] = weights
        ordered = room.reshape(-1, 4, self._lanes, 2, 4).transpose(0, 2, 4, 1, 3)
        bits = np.stack([ordered & 1, ordered >> 1 & 1])
        words = np.packbits(bits.reshape(-1, WORD), axis=1, bitorder="little").view(np.int32)
        laid = words.reshape(BITS, -1, blocks, CHANNELS, self._steps).transpose(1, 4, 2, 0, 3)
        firsts = -2 * (room < 0).sum((1, 2, 3), dtype=np.int32).reshape(len(laid), -1)
        return np.hstack([firsts, laid.reshape(len(laid), -1)]).view(np.int8).reshape(-1)

    @property
    def _steps(self) -> int:
        """Words of one plane of a window."""
        return self.shape.kernel[0] * self.shape.kernel[1] * self.words

    @property
    def _lanes(self) -> int:
        """Words that are made at once."""
        return next(lanes for lanes in (8, 4, 2, 1) if self.words % lanes == 0)

    @property
    def _pixel(self) -> int:
        """Words of a pixel: low bits, inverted, and high bits, and how many of these are set."""
        return self.words * BITS + 1

    @property
    def sum_count(self) -> int:
        """Sums of a tile."""
        return self.tile.pixels * self.tile.blocks * 2 * CHANNELS

    def _at(self, pixel: int, block: int) -> tuple[int, int]:
        """Where a block's counts begin, and those that count twice."""
        at = (pixel * self.tile.blocks + block) * 2 * CHANNELS
        return at, at + CHANNELS

    def emit_tiles(self, given: Buffer, width: int, to: Parameters, sums: Buffer) -> None:
        """See `ConvolutionKernel`."""
        tile, shape = self.tile, self.shape
        planes = self._emit_planes(given, shape.padded[0] * width)
        with tiles_of(shape, tile) as (block, row, first, across):
            line = row * shape.stride[0] * width + first * shape.stride[1]
            start = named(block * (tile.blocks * (1 + self._steps * BITS) * _VECTOR))
            self._emit_counts(planes, width, to.weights, sums, named(line * self._pixel), start)
            for pixel in range(tile.pixels):
                for each in range(tile.blocks):
                    channel = (block * tile.blocks + each) * CHANNELS
                    place = row * across + first + pixel
                    self.emit_result(to, sums, list(self._at(pixel, each)), channel, place)

    def _emit_planes(self, given: Buffer, pixels: int) -> Buffer:
        """Turn the input into a new buffer of words, see `_pixel`, and return that."""
        room, lanes = scratch(pixels * self._pixel, "int32"), self._lanes
        with T.serial(pixels) as pixel:
            base = named(pixel * self._pixel)
            with T.serial(self.words // lanes) as part:
                start = pixel * self.shape.in_step + part * (WORD * lanes)
                over = named(self._overlaid(given, start))
                low, high = (_even_bits(T.shift_right(over, T.int64(i)), lanes) for i in (0, 1))
                for plane, words in enumerate((T.bitwise_not(low), high)):
                    at = base + plane * self.words + part * lanes
                    place = at if lanes == 1 else T.ramp(at, 1, lanes)
                    T.buffer_store(room, words, [place])
            last = base + self.words * BITS
            T.buffer_store(room, T.int32(0), [last])
            with T.serial(self.words) as word:
                count = T.popcount(room[base + self.words + word])
                T.buffer_store(room, room[last] + count, [last])
        return room

    def _overlaid(self, given: Buffer, start: Expression) -> Expression:
        """Return the inputs from `start` on, four in each byte: 64 bits for every word to come."""
        lanes, found = self._lanes, T.int64(0)
        for group in range(4):
            few = load(given, start + group * 8 * lanes, "uint8", 8 * lanes)
            kept = T.bitwise_and(reinterpret(few, "int64", lanes), T.int64(_LOW_BITS))
            found = T.bitwise_or(found, T.shift_left(kept, T.int64(BITS * group)))
        return found

    def _emit_counts(
        self,
        planes: Buffer,
        width: int,
        weights: Buffer,
        sums: Buffer,
        origin: Expression,
        start: Expression,
    ) -> None:
        shape, tile = self.shape, self.tile
        down, across = shape.kernel
        for block in range(tile.blocks):
            first = self._vector(weights, start, block)
            for pixel in range(tile.pixels):
                once, twice = self._at(pixel, block)
                store(sums, once, constant(0, CHANNELS), CHANNELS)
                store(sums, twice, first, CHANNELS)
        with T.grid(down, across) as (row, column):
            line = row * shape.dilation[0] * width + column * shape.dilation[1]
            base = named(origin + line * self._pixel)
            bases = [base + pixel * shape.stride[1] * self._pixel for pixel in range(tile.pixels)]
            for pixel, place in enumerate(bases):
                off = named(T.broadcast(0 - planes[place + self.words * BITS], CHANNELS))
                for block in range(tile.blocks):
                    self._emit_sum(sums, self._at(pixel, block)[1], off)
            with T.serial(self.words) as word:
                step = (row * across + column) * self.words + word
                vector = named(start + (1 + step * BITS) * (tile.blocks * _VECTOR))
                loaded = [self._vector(weights, vector, i) for i in range(tile.blocks * BITS)]
                for pixel, place in enumerate(bases):
                    self._emit_word(planes, place + word, loaded, sums, pixel)

    def _emit_word(
        self, planes: Buffer, place: Expression, loaded: list[Expression], sums: Buffer, pixel: int
    ) -> None:
        """Count a word of a pixel with the weights of all blocks."""
        inverted_low = named(T.broadcast(planes[place], CHANNELS))
        high = named(T.broadcast(planes[place + self.words], CHANNELS))
        for block in range(self.tile.blocks):
            low_weights, high_weights = loaded[block * BITS : (block + 1) * BITS]
            both = T.bitwise_and(T.bitwise_not(inverted_low), low_weights)
            once, twice = self._at(pixel, block)
            self._emit_sum(sums, once, T.popcount(both))
            for bits in (
                _select(high, low_weights, high_weights),
                _select(high_weights, inverted_low, high),
            ):
                self._emit_sum(sums, twice, T.popcount(bits))

    def _vector(self, weights: Buffer, start: Expression, number: int) -> Expression:
        """Return the int32 of a vector: 16 channels of a plane, or of what counts begin with."""
        few = load(weights, start + number * _VECTOR, "int8", _VECTOR)
        return named(reinterpret(few, "int32", CHANNELS))

    def _emit_sum(self, sums: Buffer, at: int, count: Expression) -> None:
        """Add a number of each channel to the counts that begin at `at`."""
        store(sums, at, load(sums, at, "int32", CHANNELS) + count, CHANNELS)

    def total(self, sums: Buffer, starts: list[int]) -> Expression:
        """See `ConvolutionKernel`: counts, and those that count twice."""
        once, twice = (load(sums, start, "int32", CHANNELS) for start in starts)
        return once + twice + twice


def _select(which: Expression, one: Expression, zero: Expression) -> Expression:
    """Return the bits of `one` where `which` has ones, and else those of `zero`."""
    return T.bitwise_or(T.bitwise_and(which, one), T.bitwise_and(T.bitwise_not(which), zero))


def _even_bits(overlaid: Expression, lanes: int) -> Expression:
    """Return the 32 even bits of 64 as a word: those of the upper half between the lower ones."""
    kept = named(T.bitwise_and(overlaid, T.int64(_EVEN_BITS)))
    return cast(T.bitwise_or(kept, T.shift_right(kept, T.int64(31))), "int32", lanes)
