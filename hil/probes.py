"""Random networks that a device is measured by: drawn from where published networks live.

A *probe* is a piece of a network: a few blocks (`hil.probe_blocks`) at a drawn resolution and
width, sometimes with a stem or a classifier. A *whole* probe goes from an image, or a row of
patches, to classes. Resolutions are those that images of 96 to 288 pixels pass through; widths are
drawn log-uniformly, most of them multiples of 8; every seed gives one network.

Probes measure operators where they stand in networks, with the neighbours that decide layouts,
fusions and what the caches hold. Whole probes judge: they are what predictions are for.
"""

from collections.abc import Sequence

import numpy as np

from costmodels.sketch import Sketch
from hil.probe_blocks import Blocks, Place
from quantization.network import Network

REVISION = 3
"""Raised whenever a seed gives another network than before: stored measurements are of one."""

_DRAWN = 1 << 13
_TOKENS_SHARE = 0.12
_SIZES = (112, 96, 80, 64, 56, 48, 40, 32, 28, 24, 20, 16, 14, 12, 10, 8, 7)
_MOST_INPUTS = 1.2e6
_MOST_MACS, _LARGE_MACS, _LARGE_SHARE = 3e8, 1.9e9, 0.1
"""Of a layer: most networks have none above the first, VGG's largest is near the second."""


def probe(seed: int, *, whole: bool = False) -> Network:
    """Return the probe of a seed.

    Args:
        seed: any number from 0 on; whole probes of the same seeds are others.
        whole: whether it is a whole network.

    >>> probe(3).digest == probe(3).digest
    True
    """
    draw = np.random.default_rng([seed, int(whole), REVISION])
    sketch = Sketch(seed, drawn=_DRAWN)
    if draw.random() < _TOKENS_SHARE:
        return sketch.network(_tokens(sketch, draw, whole))
    most = _LARGE_MACS if not whole and draw.random() < _LARGE_SHARE else _MOST_MACS
    blocks = Blocks(sketch, draw, most)
    return sketch.network(_whole(blocks) if whole else _piece(blocks))


def _piece(blocks: Blocks) -> str:
    """Draw one to four blocks of any kinds, behind a stem or an input in the midst of a network."""
    draw, sketch = blocks.draw, blocks.sketch
    if draw.random() < 0.2:
        at = _stem(blocks)
    else:
        size = int(draw.choice(_SIZES))
        channels = blocks.width(8, min(1536.0, _MOST_INPUTS / size**2, 40_000 / size))
        at = Place(sketch.input((1, channels, size, size)), channels, size)
    for _ in range(int(draw.integers(1, 5))):
        stride = 2 if draw.random() < 0.25 else 1
        if draw.random() < 0.08:
            at = blocks.pool(at)
        at = blocks.block(str(draw.choice(blocks.names)), at, stride)
    if draw.random() < 0.3:
        return blocks.head(at)
    return at.x


def _stem(blocks: Blocks, sizes: Sequence[int] = (96, 128, 160, 192, 224, 256, 288)) -> Place:
    """Draw the first convolution of an image."""
    draw, sketch = blocks.draw, blocks.sketch
    size = int(draw.choice(sizes))
    image = Place(sketch.input((1, 3, size, size)), 3, size)
    kernel = int(draw.choice([3, 5, 7], p=[0.65, 0.1, 0.25]))
    stride = 1 if size <= 128 and draw.random() < 0.3 else 2
    at = blocks.conv(image, blocks.width(16, 72), kernel, stride=stride)
    return blocks.pool(at) if draw.random() < 0.4 else at


def _whole(blocks: Blocks) -> str:
    """Draw a network of four or five stages of one or two kinds of blocks."""
    draw = blocks.draw
    at = _stem(blocks, (160, 192, 224, 256))
    kinds = draw.choice(blocks.names, int(draw.choice([1, 2], p=[0.75, 0.25])), replace=False)
    for _ in range(int(draw.integers(4, 6))):
        if at.size < 6:
            break
        stride = 2
        for _ in range(int(draw.integers(1, 5))):
            at = blocks.block(str(draw.choice(kinds)), at, stride)
            stride = 1
    return blocks.head(at)


def _tokens(sketch: Sketch, draw: np.random.Generator, whole: bool) -> str:
    """Draw a row of patches and blocks of attention or of products along either axis."""
    heads = int(draw.integers(2, 9))
    width = heads * int(draw.choice([16, 32, 48, 64]))
    side = int(draw.choice([7, 8, 10, 12, 14, 16]))
    tokens = side**2
    if whole or draw.random() < 0.4:
        patch = int(draw.choice([8, 14, 16, 32]))
        image = sketch.input((1, 3, side * patch, side * patch))
        cut = sketch.patches(image, width, patch)
        rows = sketch.reshape(cut, (1, width, tokens))
        x = sketch.node("Transpose", rows, perm=[0, 2, 1])
    else:
        x = sketch.input((1, tokens, width))
    attends = draw.random() < 0.65
    for _ in range(int(draw.integers(4, 11) if whole else draw.integers(1, 3))):
        if attends:
            x = sketch.node(
                "Add", x, _attention(sketch, _norm(sketch, x, width), tokens, width, heads)
            )
        else:
            turned = sketch.node("Transpose", _norm(sketch, x, width), perm=[0, 2, 1])
            mixed = _products(sketch, draw, turned, tokens)
            x = sketch.node("Add", x, sketch.node("Transpose", mixed, perm=[0, 2, 1]))
        x = sketch.node("Add", x, _products(sketch, draw, _norm(sketch, x, width), width))
    if not whole and draw.random() < 0.7:
        return x
    axes = sketch.constant(np.array([1], np.int64))
    mean = sketch.node("ReduceMean", _norm(sketch, x, width), axes, keepdims=0)
    return sketch.gemm(mean, width, 1000)


def _norm(sketch: Sketch, x: str, width: int) -> str:
    scale, shift = (sketch.constant(np.full(width, v, np.float32)) for v in (1.1, 0.05))
    return sketch.node("LayerNormalization", x, scale, shift, axis=-1)


def _products(sketch: Sketch, draw: np.random.Generator, x: str, width: int) -> str:
    """Two products with an activation between them, on the last axis of `width`."""
    hidden = max(16, int(width * draw.choice([1, 2, 3, 4])))
    inner = sketch.node("Gelu", sketch.matmul(x, width, hidden))
    return sketch.matmul(inner, hidden, width)


def _attention(sketch: Sketch, x: str, tokens: int, width: int, heads: int) -> str:
    each = width // heads
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        made = sketch.reshape(sketch.matmul(x, width, width), (1, tokens, heads, each))
        parts.append(sketch.node("Transpose", made, perm=perm))
    query, key, value = parts
    scale = sketch.constant(np.array(each**-0.5, np.float32))
    weights = sketch.node("MatMul", sketch.node("Mul", query, scale), key)
    seen = sketch.node("MatMul", sketch.node("Softmax", weights, axis=-1), value)
    back = sketch.reshape(sketch.node("Transpose", seen, perm=[0, 2, 1, 3]), (1, tokens, width))
    return sketch.matmul(back, width, width)
