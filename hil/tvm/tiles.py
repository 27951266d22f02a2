"""How kernels may be cut, and which cuts are worth timing.

A tile's sums and a step's weights stay in registers. Larger tiles load less for each product, but
the last one of a row may be mostly overlap, and no more than the registers can be held.
"""

from dataclasses import dataclass

from hil.tvm.shapes import CHANNELS, Convolution

MOST = 8
"""Cuts of one kernel that are timed."""

_LIKE = 1.3
_WEIGHTS_FIRST_BYTES = 32 << 10
"""Weights that no longer stay in the first cache beside the activations."""


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut.

    Args:
        pixels: output pixels of a tile.
        blocks: of 16 output channels of a tile; 1 in depthwise kernels.
        weights_first: whether a block's weights meet all pixels before the next block's; else a
            tile's pixels meet all weights first.
        counts: whether bits are counted (`hil.tvm.bitserial`) instead of numbers multiplied.

    >>> str(Tile(4, 3)), str(Tile(2, 6, weights_first=True, counts=True))
    ('4x3', '2x6wc')
    """

    pixels: int
    blocks: int = 1
    weights_first: bool = False
    counts: bool = False

    def __str__(self) -> str:
        return f"{self.pixels}x{self.blocks}{'w' * self.weights_first}{'c' * self.counts}"

    @classmethod
    def parse(cls, text: str) -> "Tile":
        """Read what `str` wrote.

        >>> Tile.parse("2x6wc") == Tile(2, 6, weights_first=True, counts=True)
        True
        """
        pixels, _, blocks = text.rstrip("wc").partition("x")
        return cls(int(pixels), int(blocks), "w" in text, "c" in text)


@dataclass(frozen=True)
class Registers:
    """What decides which tiles fit.

    Args:
        count: vector registers of the processor.
        sums: registers that the sums of 16 channels take.
        weights: registers that a step's weights of 16 channels take.
        groups: of weights that a step unpacks one after the other.
        unpacking: operations that unpack a group.
    """

    count: int
    sums: int
    weights: int
    groups: int = 1
    unpacking: int = 0

    def holds(self, pixels: int, blocks: int) -> bool:
        """Whether a tile fits, with one register for the inputs."""
        return blocks * (pixels * self.sums + self.weights) + 1 <= self.count

    def steps(self, pixels: int, blocks: int) -> float:
        """Operations for each product of a tile, by count."""
        loads = 1 / pixels + 1 / blocks
        return 1 + 0.5 * (loads + self.unpacking / pixels) + 1 / (pixels * blocks * self.groups)


def dense_tiles(shape: Convolution, registers: Registers, weight_bytes: int) -> tuple[Tile, ...]:
    """Return tiles of a kernel that sees all channels, those first of which most is expected.

    Args:
        shape: what is computed.
        registers: of the processor.
        weight_bytes: of the packed weights.
    """
    down, across = shape.output
    row = down * across if shape.pointwise else across
    all_blocks = shape.out_step // CHANNELS
    found: dict[tuple[int, int], float] = {}
    for blocks in (n for n in range(1, 9) if all_blocks % n == 0):
        for pixels in range(1, min(row, 12) + 1):
            if registers.holds(pixels, blocks) or pixels == blocks == 1:
                computed = -(-row // pixels) * pixels / row
                found[pixels, blocks] = computed * registers.steps(pixels, blocks)
    picked = _unlike(sorted(found, key=lambda each: found[each]))
    if weight_bytes <= _WEIGHTS_FIRST_BYTES or row <= picked[0][0]:
        return tuple(Tile(*each) for each in picked)
    few = MOST // 4
    return (
        *(Tile(*each) for each in picked[: MOST - few]),
        *(Tile(*each, weights_first=True) for each in picked[:few]),
    )


def _unlike(best: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out what is much like a better one: the same blocks, and as many pixels or nearly."""
    picked: list[tuple[int, int]] = []
    for pixels, blocks in best:
        alike = [p for p, b in picked if b == blocks and max(p, pixels) < _LIKE * min(p, pixels)]
        if not alike:
            picked.append((pixels, blocks))
    return picked[:MOST]


def counting_tiles(shape: Convolution) -> tuple[Tile, ...]:
    """Return tiles of a kernel that counts bits: each block of a pixel has two sums."""
    all_blocks = shape.out_step // CHANNELS
    across = shape.output[0] * shape.output[1] if shape.pointwise else shape.output[1]
    wanted = ((2, 4), (2, 2), (4, 2), (7, 1), (3, 1), (1, 4), (1, 1))
    fitting = [each for each in wanted if all_blocks % each[1] == 0 and each[0] <= across]
    return tuple(Tile(*each, counts=True) for each in fitting)


def depthwise_tiles(shape: Convolution) -> tuple[Tile, ...]:
    """Return tiles of a depthwise kernel: pixels of a row."""
    across = shape.output[1]
    return tuple(Tile(pixels) for pixels in sorted({min(n, across) for n in (4, 7, 8, 14)}))
