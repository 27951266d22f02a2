"""Random networks and tables for property tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.sketch import Sketch
from costmodels.table import Cells, CostTable, FloatArray, Once, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import FLOAT32, BitWidths, Format, formats_of
from quantization.network import Network

_CHANNELS = 4
_STEPS = (
    *("conv", "conv", "conv", "relu", "relu", "add", "add", "concat", "hardswish", "sigmoid"),
    *("product", "pool", "scale", "depthwise"),
)


def random_network(seed: int, steps: int) -> Network:
    """Draw a network whose nodes read any tensors made before them.

    Convolutions, fused and unfused activations, sums, concatenations, glue without an integer
    kernel, products of two activations; tensors with no, one or many consumers; several outputs.
    """
    random = np.random.default_rng(seed)
    sketch = Sketch(seed)
    tensors = [sketch.input((1, _CHANNELS, 2, 2))]
    if random.random() < 0.3:
        tensors.append(sketch.input((1, _CHANNELS, 2, 2)))
    used: set[str] = set()
    tensors.append(sketch.conv(tensors[0], _CHANNELS))
    for _ in range(steps):
        recent = tensors if random.random() < 0.5 else tensors[-3:]
        x, y = (str(random.choice(recent)) for _ in range(2))
        kind = random.choice(_STEPS)
        used |= {x} | ({y} if kind in ("add", "concat", "product") else set())
        tensors.append(_step(sketch, str(kind), x, y))
    inputs = {"x", "x1"}
    outputs = [t for t in tensors if t not in used | inputs] or tensors[-1:]
    also = [t for t in tensors if t in used - inputs and random.random() < 0.1]
    return sketch.network(*dict.fromkeys([*outputs, *also]))


def _step(sketch: Sketch, kind: str, x: str, y: str) -> str:
    single = {"relu": "Relu", "hardswish": "HardSwish", "sigmoid": "Sigmoid"}
    if kind in single:
        return sketch.node(single[kind], x)
    if kind == "pool":
        return sketch.node("MaxPool", x, kernel_shape=[1, 1])
    if kind == "scale":
        return sketch.node("Mul", x, sketch.constant(np.full((1,), 0.5, np.float32)))
    if kind in ("add", "product"):
        return sketch.node({"add": "Add", "product": "MatMul"}[kind], x, y)
    if kind == "concat":  # back to the common shape, without a layer in between
        axes = sketch.constant(np.array([0, _CHANNELS, 0, 0], np.int64))
        ends = sketch.constant(np.array([1, 2 * _CHANNELS, 2, 2], np.int64))
        return sketch.node("Slice", sketch.concat(x, y), axes, ends, channels=_CHANNELS)
    return sketch.conv(x, _CHANNELS, groups=_CHANNELS if kind == "depthwise" else 1)


def random_table(
    network: Network, choices: Sequence[BitWidths], seed: int, unsupported: float = 0.0
) -> CostTable:
    """Draw a table of whole numbers, so that sums in any order are equal to the last bit.

    Glue and conversions may be negative; a share `unsupported` of all cells is masked. Every other
    table charges something once.
    """
    random = np.random.default_rng(seed)
    known = formats_of(choices)

    def draw(*shape: int, low: int) -> FloatArray:
        value = random.integers(low, 1000, shape).astype(np.float64)
        value[random.random(shape) < unsupported] = np.inf
        return value

    tensors = tuple(tensor.name for tensor in network.tensors)
    conversion = draw(len(tensors), len(known), len(known), low=-500)
    conversion[:, range(len(known)), range(len(known))] = 0.0
    unary = draw(len(network.layers), len(choices), low=0)
    marked = random.random(unary.shape) < random.choice([0.05, 0.5])
    once = Once(float(random.integers(1, 5000)), marked) if seed % 2 and marked.any() else None
    # whole numbers, negative as far as the network in float allows
    glue = draw(len(network.glue), len(known), low=-100)
    glue[:, -1] = np.abs(glue[:, -1])
    in_float = np.where(np.isfinite(unary), unary, 0.0)[:, list(choices).index(FLOAT32)].sum()
    constant = max(float(random.integers(-5, 100)), -in_float)
    return CostTable(
        metric=Metric.LATENCY,
        unit=Unit.CYCLES,
        statistic="drawn",
        network=network.digest,
        layers=network.layer_names,
        choices=tuple(choices),
        glue_names=tuple(glue.name for glue in network.glue),
        tensors=tensors,
        unary=Cells.of(unary, Provenance.ASSUMED),
        glue=Cells.of(glue, Provenance.ASSUMED),
        conversion=Cells.of(conversion, Provenance.ASSUMED),
        constant=constant,
        source={"backend": "drawn"},
        once=once,
    )


@dataclass(frozen=True)
class Rule:
    """The format rule once more, written down node by node; checks `quantization.formats`.

    Args:
        reads: node name to the format that it reads.
        writes: tensor name to the format in which it is written.
        conversions: (tensor, written, target).
    """

    reads: dict[str, Format]
    writes: dict[str, Format]
    conversions: set[tuple[str, Format, Format]]


def rule(network: Network, bits: dict[str, BitWidths]) -> Rule:
    """Apply the rule as the module docstring of `quantization.formats` words it."""
    reads: dict[str, Format] = {}
    writes = dict.fromkeys(network.input_names, Format.FLOAT32)
    glue = {g.name: g for g in network.glue}
    for node in network.model.graph.node:
        if node.name in bits:
            wide = bits[node.name]
            reads[node.name] = Format.FLOAT16 if wide.half else Format(wide.activations)
            if reads[node.name].is_float:
                written = reads[node.name]
            else:
                written = Format.INT16 if wide.activations == 16 else Format.INT8
        else:
            sources = [writes[name] for name in glue[node.name].inputs] or [Format.FLOAT32]
            written = max(sources)
            if not glue[node.name].integer and not written.is_float:
                written = Format.FLOAT32
            reads[node.name] = written
        writes.update(dict.fromkeys(node.output, written))
    conversions = set()
    for tensor in network.tensors:
        for consumer in tensor.consumers:
            target = reads.get(consumer, Format.FLOAT32)
            if target != writes[tensor.name]:
                conversions.add((tensor.name, writes[tensor.name], target))
    return Rule(reads, {t.name: writes[t.name] for t in network.tensors}, conversions)
