"""Building blocks of probe networks: the motifs that published networks are made of, at any width.

Each block takes a `Place` (a tensor and its extents) and returns the place behind it. Widths,
kernels, activations and whether an option is taken are drawn; the ranges are those of published
convolutional networks and transformers, and none of these networks is among the blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from costmodels.sketch import Sketch

_STEPS, _STEP_SHARES = (8, 16, 32, 64, 4, 2), (0.35, 0.2, 0.2, 0.1, 0.1, 0.05)
_MOST_ELEMENTS, _MOST_CHANNELS = 2.5e6, 2304
_ACTIVATIONS = ("Relu", "Clip", "HardSwish", "SiLU", "LeakyRelu", "Gelu", "Sigmoid")
_ACTIVATION_SHARES = (0.38, 0.18, 0.18, 0.16, 0.04, 0.03, 0.03)


@dataclass(frozen=True)
class Place:
    """A tensor of a sketch.

    Args:
        x: its name.
        channels: its channels.
        size: height and width.
    """

    x: str
    channels: int
    size: int

    @property
    def pixels(self) -> int:
        """Height times width."""
        return self.size**2


class Blocks:
    """Draws blocks into a sketch.

    Args:
        sketch: where nodes are added.
        draw: decides all that is open.
        most_macs: multiply-accumulates of one layer, at most.
    """

    def __init__(self, sketch: Sketch, draw: np.random.Generator, most_macs: float) -> None:
        self.sketch, self.draw, self._most_macs = sketch, draw, most_macs
        self.activation = str(draw.choice(_ACTIVATIONS, p=_ACTIVATION_SHARES))
        self._all: dict[str, Callable[[Place, int], Place]] = {
            "plain": self.plain,
            "basic": self.basic,
            "bottleneck": self.bottleneck,
            "inverted": self.inverted,
            "separable": self.separable,
            "branches": self.branches,
            "dense": self.dense,
            "shuffle": self.shuffle,
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the blocks of images."""
        return tuple(self._all)

    def block(self, name: str, at: Place, stride: int = 1) -> Place:
        """Add a block of images."""
        return self._all[name](at, stride)

    def width(self, low: float, high: float) -> int:
        """Draw a number of channels: most are multiples of 8, and many of 32 or 64."""
        value = np.exp(self.draw.uniform(np.log(low), np.log(max(high, low + 1))))
        step = int(self.draw.choice(_STEPS, p=_STEP_SHARES))
        return max(step, round(float(value) / step) * step)

    def conv(
        self,
        at: Place,
        channels: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> Place:
        """Add a convolution, narrower where it would be too large, and its activation."""
        if at.size < 2 * stride:
            stride = 1
        size = -(-at.size // stride)
        if groups == 1 and channels > (most := self._most(at, kernel, stride)):
            channels = max(8, most // 8 * 8)
        x = self.sketch.conv(at.x, channels, kernel=kernel, stride=stride, groups=groups)
        made = Place(x, channels, size)
        return self.activate(made) if active else made

    def _most(self, at: Place, kernel: int = 1, stride: int = 1) -> int:
        """Return the channels behind a convolution that is as large as any may be."""
        pixels = (-(-at.size // stride)) ** 2
        each = at.channels * kernel**2 * pixels
        return int(min(self._most_macs / each, _MOST_ELEMENTS / pixels, _MOST_CHANNELS))

    def activate(self, at: Place, kind: str | None = None) -> Place:
        """Add an activation: the network's own, or another."""
        kind, sketch = kind or self.activation, self.sketch
        if kind == "SiLU":
            return replace(at, x=sketch.node("Mul", at.x, sketch.node("Sigmoid", at.x)))
        if kind == "Clip":
            bounds = [sketch.constant(np.array(v, np.float32)) for v in (0.0, 6.0)]
            return replace(at, x=sketch.node("Clip", at.x, *bounds))
        return replace(at, x=sketch.node(kind, at.x))

    def pool(self, at: Place, stride: int = 2) -> Place:
        """Add a pooling."""
        kind = str(self.draw.choice(["MaxPool", "AveragePool"], p=[0.7, 0.3]))
        kernel = int(self.draw.choice([2, 3]))
        if at.size < 4:
            return at
        pads = [1, 1, 1, 1] if kernel == 3 else [0] * 4
        x = self.sketch.node(kind, at.x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads)
        size = (at.size + 2 * pads[0] - kernel) // stride + 1
        return Place(x, at.channels, size)

    def plain(self, at: Place, stride: int) -> Place:
        """Add one convolution of a drawn kernel."""
        kernel = int(self.draw.choice([1, 3, 5, 7], p=[0.25, 0.55, 0.12, 0.08]))
        return self.conv(at, self._wider(at, stride), kernel, stride=stride)

    def basic(self, at: Place, stride: int) -> Place:
        """Add two 3x3 convolutions with a shortcut."""
        width = self._wider(at, stride)
        first = self.conv(at, width, 3, stride=stride)
        second = self.conv(first, first.channels, 3, active=False)
        return self._shortcut(at, second, stride, "Relu")

    def bottleneck(self, at: Place, stride: int) -> Place:
        """Add a kxk convolution between two 1x1 ones, with a shortcut."""
        narrow = self.width(at.channels / 6 + 4, at.channels / 1.5 + 8)
        first = self.conv(at, narrow, 1)
        groups = 1
        if self.draw.random() < 0.25:
            groups = int(self.draw.choice([2, 4, 8]))
            groups = groups if first.channels % groups == 0 else 1
        middle = self.conv(first, first.channels, 3, stride=stride, groups=groups)
        last = self.conv(middle, self._wider(at, stride), 1, active=False)
        return self._shortcut(at, last, stride, "Relu")

    def inverted(self, at: Place, stride: int) -> Place:
        """Add an expansion, a depthwise convolution, perhaps a gate, and a projection."""
        factor = self.draw.choice([1, 2, 3, 4, 6], p=[0.1, 0.15, 0.2, 0.2, 0.35])
        hidden = at if factor == 1 else self.conv(at, int(at.channels * factor), 1)
        kernel = int(self.draw.choice([3, 5, 7], p=[0.6, 0.35, 0.05]))
        deep = self.conv(hidden, hidden.channels, kernel, stride=stride, groups=hidden.channels)
        if self.draw.random() < 0.4:
            deep = self.gate(deep, max(4, int(deep.channels / self.draw.choice([4, 8, 16, 24]))))
        last = self.conv(deep, self._wider(at, stride), 1, active=False)
        if last.channels == at.channels and last.size == at.size:
            return replace(last, x=self.sketch.node("Add", at.x, last.x))
        return last

    def separable(self, at: Place, stride: int) -> Place:
        """Add a depthwise convolution and a 1x1 one."""
        kernel = int(self.draw.choice([3, 5], p=[0.8, 0.2]))
        deep = self.conv(
            at,
            at.channels,
            kernel,
            stride=stride,
            groups=at.channels,
            active=self.draw.random() < 0.7,
        )
        return self.conv(deep, self._wider(at, stride), 1)

    def branches(self, at: Place, stride: int) -> Place:
        """Add two to four convolutions side by side, behind a narrow one, and join them."""
        narrow = self.conv(at, self.width(at.channels / 8 + 4, at.channels / 2 + 8), 1)
        kernels = self.draw.choice([1, 3, 3, 5], int(self.draw.integers(2, 5)))
        width = self.width(narrow.channels, 4 * narrow.channels)
        made = [self.conv(narrow, width, int(kernel)) for kernel in kernels]
        joined = self.sketch.concat(*(place.x for place in made))
        at = Place(joined, sum(place.channels for place in made), at.size)
        return self.pool(at) if stride > 1 else at

    def dense(self, at: Place, stride: int) -> Place:
        """Append channels that are computed from all before; norms stand before convolutions."""
        if stride > 1:
            at = self.conv(self._norm(at), self.width(at.channels / 2, at.channels), active=False)
            at = self.pool(at)
        growth = self.width(12, 48)
        for _ in range(int(self.draw.integers(1, 4))):
            narrow = self.conv(self._norm(at), 4 * growth, active=False)
            new = self.conv(self._norm(narrow), growth, 3, active=False)
            at = Place(self.sketch.concat(at.x, new.x), at.channels + new.channels, at.size)
        return at

    def shuffle(self, at: Place, stride: int) -> Place:
        """Work on half of the channels, join the halves and interleave them."""
        if at.channels % 2 or stride > 1:
            even = max(8, self.width(at.channels, 2 * at.channels) // 2 * 2)
            at = self.conv(at, even, 3, stride=stride)
        half, sketch = at.channels // 2, self.sketch
        if half > self._most(Place(at.x, half, at.size)):  # it would become narrower than the rest
            return self.separable(at, stride=1)
        kept, worked = sketch.split(at.x, 2)
        place = self.conv(Place(worked, half, at.size), half)
        place = self.conv(place, half, 3, groups=half, active=False)
        place = self.conv(place, half)
        joined = sketch.concat(kept, place.x)
        halves = sketch.reshape(joined, (1, 2, half, at.size, at.size))
        mixed = sketch.node("Transpose", halves, perm=[0, 2, 1, 3, 4])
        flat = sketch.reshape(mixed, (1, at.channels, at.size, at.size))
        return Place(flat, at.channels, at.size)

    def gate(self, at: Place, hidden: int) -> Place:
        """Multiply each channel by a number that is computed from all channels' means."""
        mean = Place(self.sketch.node("GlobalAveragePool", at.x), at.channels, 1)
        inner = self.conv(mean, hidden, active=False)
        kind = str(self.draw.choice(["Relu", "SiLU"], p=[0.6, 0.4]))
        outer = self.conv(self.activate(inner, kind), at.channels, active=False)
        gate = self.activate(outer, str(self.draw.choice(["Sigmoid", "HardSigmoid"])))
        return replace(at, x=self.sketch.node("Mul", at.x, gate.x))

    def head(self, at: Place) -> str:
        """Add a classifier; returns the output."""
        sketch, classes = self.sketch, int(self.draw.choice([10, 100, 1000], p=[0.2, 0.2, 0.6]))
        if at.channels * at.pixels <= 26_000 and self.draw.random() < 0.25:
            x, width = sketch.node("Flatten", at.x), at.channels * at.pixels
        elif self.draw.random() < 0.15:
            wide = self.conv(at, classes)
            return sketch.node("Flatten", sketch.node("GlobalAveragePool", wide.x))
        else:
            if self.draw.random() < 0.5:
                at = self.conv(at, self.width(at.channels, 4 * at.channels))
            x, width = sketch.node("Flatten", sketch.node("GlobalAveragePool", at.x)), at.channels
        for _ in range(int(self.draw.choice([0, 1, 2], p=[0.6, 0.25, 0.15]))):
            hidden = self.width(256, min(4096, 3e7 / width))
            gemm = sketch.gemm(x, width, hidden)
            x, width = self.activate(Place(gemm, hidden, 1)).x, hidden
        return sketch.gemm(x, width, classes)

    def _shortcut(self, at: Place, end: Place, stride: int, kind: str) -> Place:
        """Add what went in to what came out, through a 1x1 convolution if extents differ."""
        if (at.channels, at.size) != (end.channels, end.size):
            at = self.conv(at, end.channels, stride=stride, active=False)
            if at.channels != end.channels:
                return self.activate(end, kind)
        joined = replace(end, x=self.sketch.node("Add", end.x, at.x))
        return self.activate(joined, kind)

    def _norm(self, at: Place) -> Place:
        """Add a batch-norm that no convolution takes over, and an activation."""
        values = [
            self.sketch.constant(self.draw.uniform(*bounds, at.channels).astype(np.float32))
            for bounds in ((0.8, 1.2), (0.05, 0.2), (-0.1, 0.1), (0.8, 1.2))
        ]
        return self.activate(replace(at, x=self.sketch.node("BatchNormalization", at.x, *values)))

    def _wider(self, at: Place, stride: int) -> int:
        """Draw the channels behind a block: the same more often than not, more where it shrinks."""
        if stride == 1 and self.draw.random() < 0.55:
            return at.channels
        return self.width(max(8, 0.7 * at.channels), min(2048, 2.2 * at.channels))
