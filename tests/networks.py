"""Whole networks for the tests: small ones made here, MobileNetV2 as benchmarks build it."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import onnx

from quantization.bits import BitWidths
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.ranges import collect_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from tests.quantization.graphs import make_model, node

INPUT = "x"


@dataclass(frozen=True, eq=False)
class Subject:
    """A network, images, and what is derived from both.

    Args:
        network: the network.
        calibration: images for ranges and corrections.
        images: other images, to compare on.
        labels: their labels, if they have any.
    """

    network: Network
    calibration: Float32Array
    images: Float32Array
    labels: "np.ndarray[Any, np.dtype[np.int64]] | None" = None

    @cached_property
    def exporter(self) -> Exporter:
        return Exporter(self.network, collect_ranges(self.network, self.calibration))

    @cached_property
    def simulation(self) -> Simulation:
        return Simulation(self.exporter, self.calibration)

    @property
    def output_step(self) -> float:
        """Distance of two levels of the network's first output."""
        return self.exporter.ranges.grid(self.network.output_names[0], 8).scale


def uniform(network: Network, bits: str) -> Policy:
    return Policy.uniform(network, BitWidths.parse(bits))


def random_policy(network: Network, seed: int, choices: str = "w2a8 w4a8 w8a8 w32a32") -> Policy:
    drawn = np.random.default_rng(seed).choice(choices.split(), len(network.layers))
    return Policy({n: BitWidths.parse(b) for n, b in zip(network.layer_names, drawn, strict=True)})


class Builder:
    """Writes nodes with He-initialised weights and distinct biases."""

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray[Any, Any]] = {
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
        }

    def glue(self, kind: str, inputs: str, name: str, **attributes: Any) -> str:
        self.nodes.append(node(kind, inputs, f"{name}.out", name, **attributes))
        return f"{name}.out"

    def parameter(self, name: str, *shape: int, deviation: float) -> str:
        values = self._random.standard_normal(shape) * deviation
        self.constants[name] = values.astype(np.float32)
        return name

    def conv(
        self,
        x: str,
        name: str,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> str:
        fan_in = inputs // groups * kernel * kernel
        shape = (outputs, inputs // groups, kernel, kernel)
        given = [x, self.parameter(f"{name}.w", *shape, deviation=(2 / fan_in) ** 0.5)]
        given += [self.parameter(f"{name}.b", outputs, deviation=0.2)] if bias else []
        pads = [kernel // 2] * 4
        return self.glue(
            "Conv", " ".join(given), name, strides=[stride] * 2, pads=pads, group=groups
        )

    def relu6(self, x: str, name: str) -> str:
        """All of them read the same two constants, as exporters write it."""
        return self.glue("Clip", f"{x} zero six", name)

    def gemm(self, x: str, name: str, inputs: int, outputs: int) -> str:
        weight = self.parameter(f"{name}.w", outputs, inputs, deviation=inputs**-0.5)
        bias = self.parameter(f"{name}.b", outputs, deviation=0.2)
        return self.glue("Gemm", f"{x} {weight} {bias}", name, transB=1)

    def network(self, *shape: int) -> Network:
        """Read what was written; the last node makes the output."""
        self.nodes[-1].output[0] = "y"
        model = make_model(self.nodes, self.constants, {INPUT: shape}, {"y": None})
        return read_network(model)


@lru_cache
def small_mobilenet(size: int = 16) -> Network:
    """Stem, three inverted residuals (one with an addition), head, classifier; 12 layers."""
    b = Builder(0)
    x = b.relu6(b.conv(INPUT, "stem", 3, 16, 3, stride=2), "stem.act")
    channels = 16
    for i, (outputs, stride) in enumerate(((24, 1), (24, 1), (32, 2))):
        hidden = channels * 3
        y = b.relu6(b.conv(x, f"b{i}.expand", channels, hidden), f"b{i}.act1")
        y = b.conv(y, f"b{i}.depthwise", hidden, hidden, 3, stride=stride, groups=hidden)
        y = b.conv(b.relu6(y, f"b{i}.act2"), f"b{i}.project", hidden, outputs)
        residual = stride == 1 and outputs == channels
        x = b.glue("Add", f"{x} {y}", f"b{i}.add") if residual else y
        channels = outputs
    x = b.glue("Relu", b.conv(x, "head", channels, 64), "head.act")
    x = b.glue("Flatten", b.glue("GlobalAveragePool", x, "pool"), "flat")
    b.gemm(x, "classifier", 64, 10)
    return b.network(1, 3, size, size)


@lru_cache
def branching() -> Network:
    """Every integer glue operator: residuals with Relu behind, gates, concatenation, pools."""
    b = Builder(1)
    x = b.glue("Relu", b.conv(INPUT, "stem", 3, 8, 3), "stem.act")
    x = b.glue("MaxPool", x, "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    y = b.conv(b.glue("Relu", b.conv(x, "r1", 8, 8, 3), "r1.act"), "r2", 8, 8, 3, bias=False)
    x = b.glue("Relu", b.glue("Add", f"{x} {y}", "residual"), "residual.act")
    gate = b.glue("Relu", b.conv(b.glue("GlobalAveragePool", x, "squeeze"), "g1", 8, 4), "g1.act")
    gate = b.glue("Sigmoid", b.conv(gate, "g2", 4, 8), "g2.act")
    x = b.glue("Mul", f"{x} {gate}", "scale")
    left = b.glue("LeakyRelu", b.conv(x, "left", 8, 8), "left.act", alpha=0.1)
    right = b.glue("AveragePool", x, "avgpool", kernel_shape=[3, 3], pads=[1] * 4)
    x = b.glue("Concat", f"{left} {right}", "concat", axis=1)
    x = b.glue("Transpose", b.conv(x, "mix", 16, 12), "transpose", perm=[0, 1, 3, 2])
    x = b.glue("Flatten", b.glue("GlobalAveragePool", x, "pool"), "flat")
    b.gemm(x, "classifier", 12, 10)
    return b.network(1, 3, 12, 12)


@lru_cache
def attention() -> Network:
    """One attention head and a classifier: matrix products with weights and of two activations."""
    b = Builder(2)
    for name in "qkv":
        b.glue("MatMul", f"{INPUT} {b.parameter(f'{name}.w', 12, 12, deviation=0.3)}", name)
    b.glue("Transpose", "k.out", "kt", perm=[0, 2, 1])
    b.glue("Softmax", b.glue("MatMul", "q.out kt.out", "scores"), "softmax", axis=-1)
    x = b.glue("MatMul", "softmax.out v.out", "context")
    b.constants["flat"] = np.array([1, -1], np.int64)
    x = b.glue("Reshape", f"{x} flat", "reshape")
    b.gemm(x, "classifier", 8 * 12, 10)
    return b.network(1, 8, 12)


def subject(network: Network, count: int = 64, seed: int = 3) -> Subject:
    """Return `network` with random images; `count` of them to compare on."""
    shape = network.tensor_by_name[network.input_names[0]].shape[1:]
    drawn = np.random.default_rng(seed).standard_normal((32 + count, *shape)).astype(np.float32)
    return Subject(network, drawn[:32], drawn[32:])
