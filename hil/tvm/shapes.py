"""What one kernel computes: the extents of a convolution, and how its tensors lie in memory.

Tensors are channels last. Channels are padded to a multiple of 16, so that every vector is whole;
inputs of at most 4 channels (images) to 4.
"""

from dataclasses import dataclass

CHANNELS = 16
"""Output channels that kernels treat as one vector."""

SMALL = 4
"""Elements of a pixel of at most so many channels."""


def round_up(value: int, multiple: int) -> int:
    """Return the least multiple that is no less than `value`."""
    return -(-value // multiple) * multiple


def channel_step(channels: int) -> int:
    """Return how many elements a pixel of so many channels takes."""
    return SMALL if channels <= SMALL else round_up(channels, CHANNELS)


@dataclass(frozen=True)
class Convolution:
    """A convolution of one image; a matrix product is one of 1 x rows pixels with a 1 x 1 kernel.

    Args:
        height: of the input.
        width: of the input.
        in_channels: of the input; equal to `out_channels` if `depthwise`.
        out_channels: of the output.
        kernel: height and width.
        stride: down and right.
        pads: pixels above, left, below and right.
        dilation: down and right.
        depthwise: whether each output channel sees the input channel of its number alone.
    """

    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    depthwise: bool = False

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width with the pads."""
        top, left, bottom, right = self.pads
        return self.height + top + bottom, self.width + left + right

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        down, across = (
            (extent - (kernel - 1) * dilation - 1) // stride + 1
            for extent, kernel, dilation, stride in zip(
                self.padded, self.kernel, self.dilation, self.stride, strict=True
            )
        )
        return down, across

    @property
    def in_step(self) -> int:
        """Elements of an input pixel."""
        return channel_step(self.in_channels)

    @property
    def out_step(self) -> int:
        """Output channels that a kernel computes: whole vectors."""
        return round_up(self.out_channels, CHANNELS)

    @property
    def out_pixel(self) -> int:
        """Elements of an output pixel."""
        return channel_step(self.out_channels)

    @property
    def input_count(self) -> int:
        """Elements of the whole input."""
        return self.height * self.width * self.in_step

    @property
    def output_count(self) -> int:
        """Elements of the whole output."""
        return self.output[0] * self.output[1] * self.out_pixel

    @property
    def pointwise(self) -> bool:
        """Whether each output pixel sees one input pixel, all in order."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and not any(self.pads)
