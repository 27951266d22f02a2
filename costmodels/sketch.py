"""Small ONNX graphs in a few lines, and one that holds every wiring a cost model must get right."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from quantization.network import Network
from quantization.reading import OPSET, read_network


class Sketch:
    """An ONNX graph under construction; each method adds a node and returns its output's name.

    Weights are He-normal from `seed`, biases distinct and not zero.

    Args:
        seed: of the weights.
        drawn: how many normal numbers are drawn for a weight at most; a larger one repeats them,
            which is quicker and no matter for timings. None draws all.

    >>> sketch = Sketch()
    >>> y = sketch.conv(sketch.input((1, 3, 8, 8)), 4, kernel=3, name="stem")
    >>> sketch.network(y).layer("stem").macs
    6912
    """

    def __init__(self, seed: int = 0, drawn: int | None = None) -> None:
        self._drawn = drawn
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._channels: dict[str, int] = {}

    def input(self, shape: Sequence[int | str]) -> str:
        """Add an input of the network; a text is a symbolic dimension."""
        name = f"x{len(self._inputs)}" if self._inputs else "x"
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        if len(shape) > 1 and isinstance(shape[1], int):
            self._channels[name] = shape[1]
        return name

    def constant(self, value: "np.ndarray[Any, Any]", name: str | None = None) -> str:
        """Add an initializer."""
        name = name or f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def node(
        self,
        kind: str,
        *inputs: str,
        name: str | None = None,
        channels: int | None = None,
        **attributes: Any,
    ) -> str:
        """Add any node with one output; `channels` are those of the first input unless given."""
        name = f"{kind.lower()}{len(self._nodes)}" if name is None else name
        output = f"v{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        if channels is None and inputs:
            channels = self._channels.get(inputs[0])
        if channels is not None:
            self._channels[output] = channels
        return output

    def conv(
        self,
        x: str,
        channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        name: str | None = None,
    ) -> str:
        """Add a convolution with bias that keeps the spatial extents, over `stride`."""
        shape = (channels, self._channels[x] // groups, kernel, kernel)
        return self.node(
            "Conv",
            x,
            self._weight(shape, fan_in=shape[1] * kernel**2),
            self._bias(channels),
            name=name,
            channels=channels,
            kernel_shape=[kernel, kernel],
            pads=[kernel // 2] * 4,
            strides=[stride, stride],
            group=groups,
        )

    def gemm(self, x: str, in_channels: int, channels: int, *, name: str | None = None) -> str:
        """Add a fully connected layer with bias on (N, in_channels)."""
        weight = self._weight((channels, in_channels), fan_in=in_channels)
        return self.node("Gemm", x, weight, self._bias(channels), name=name, transB=1)

    def concat(self, *inputs: str) -> str:
        """Concatenate along the channels."""
        channels = sum(self._channels[name] for name in inputs)
        return self.node("Concat", *inputs, channels=channels, axis=1)

    def patches(self, x: str, channels: int, patch: int) -> str:
        """Cut an image into patches and project each: kernels that do not overlap."""
        shape = (channels, self._channels[x], patch, patch)
        return self.node(
            "Conv",
            x,
            self._weight(shape, fan_in=shape[1] * patch**2),
            self._bias(channels),
            channels=channels,
            kernel_shape=[patch, patch],
            strides=[patch, patch],
        )

    def matmul(self, x: str, in_channels: int, channels: int) -> str:
        """Multiply the last axis of tokens, (N, rows, in_channels), by a weight; add a bias."""
        product = self.node("MatMul", x, self._weight((in_channels, channels), fan_in=in_channels))
        return self.node("Add", product, self._bias(channels))

    def split(self, x: str, parts: int) -> list[str]:
        """Split the channels into equal parts."""
        channels, name = self._channels[x] // parts, f"split{len(self._nodes)}"
        outputs = [f"v{len(self._nodes)}.{i}" for i in range(parts)]
        extents = self.constant(np.full(parts, channels, np.int64))
        self._nodes.append(helper.make_node("Split", [x, extents], outputs, name=name, axis=1))
        self._channels |= dict.fromkeys(outputs, channels)
        return outputs

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshape to constant extents, the second of which are channels from then on."""
        extents = self.constant(np.array(shape, np.int64))
        return self.node("Reshape", x, extents, channels=shape[1])

    def model(self, *outputs: str) -> onnx.ModelProto:
        """Return the ONNX model with these outputs."""
        last = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self._nodes, "sketch", self._inputs, last, self._constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=10)

    def network(self, *outputs: str) -> Network:
        """Return the network with these outputs."""
        return read_network(self.model(*outputs))

    def _weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        count = math.prod(shape)
        drawn = self._random.standard_normal(min(count, self._drawn or count))
        values = (drawn * np.sqrt(2 / fan_in)).astype(np.float32)
        return self.constant(np.resize(values, shape))

    def _bias(self, channels: int) -> str:
        return self.constant(self._random.uniform(0.05, 0.2, channels).astype(np.float32))


def example_network() -> Network:
    """Return a small network with every wiring that a cost model must get right.

    Fused activations, a depthwise convolution, a residual, a concatenation, glue without an
    integer kernel, a tensor with four consumers, a product of two activations, two outputs.
    """
    sketch = Sketch()
    stem = sketch.node("Relu", sketch.conv(sketch.input((1, 4, 8, 8)), 8, kernel=3, name="stem"))
    depthwise = sketch.conv(stem, 8, kernel=3, groups=8, name="depthwise")
    point = sketch.conv(sketch.node("Relu", depthwise), 8, name="point")
    smooth = sketch.conv(sketch.node("HardSwish", stem), 8, name="smooth")
    both = sketch.concat(sketch.node("Add", stem, point), smooth)
    mixed = sketch.conv(both, 8, name="mix")
    rows = sketch.reshape(mixed, (1, 8, 64))
    columns = sketch.node("Transpose", rows, perm=[0, 2, 1])
    product = sketch.node("MatMul", rows, columns, name="product")
    head = sketch.gemm(sketch.node("Flatten", product, axis=1), 64, 10, name="head")
    side = sketch.node("GlobalAveragePool", sketch.conv(stem, 4, stride=2, name="side"))
    return sketch.network(head, side)
