"""Layers as kernels: what they compute, and their parameters as kernels read them."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.tvm.kernel import ConvolutionKernel
from hil.tvm.layouts import MIDDLE
from hil.tvm.operations import Operation
from hil.tvm.shapes import Convolution
from quantization.bits import BitWidths, Format
from quantization.deployment import Correction
from quantization.export import Exporter
from quantization.network import Layer
from quantization.passes import initializer_arrays
from quantization.quantizer import Float32Array, quantize_bias
from quantization.torch_operators import Attributes, attributes
from quantization.torch_windows import pads_of

Array = npt.NDArray[Any]

_AXES = 2
"""Axes that kernels slide along at most."""


def stored_zero_point(zero_point: int, given: Format) -> int:
    """Return a zero point as kernels hold it."""
    return zero_point - MIDDLE if given is Format.INT16 else zero_point


class LayerKernels:
    """Describes the layers of one network.

    Args:
        exporter: holds network, ranges and quantized parameters.
    """

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._nodes = {node.name: node for node in exporter.network.model.graph.node}
        self._arrays = initializer_arrays(exporter.network.model.graph)

    def operation(self, layer: Layer, bits: BitWidths) -> Operation | None:
        """Return what `layer` asks of a kernel; None if kernels cannot do it."""
        shape = self._shape(layer)
        if shape is None:
            return None
        return Operation(shape, bits.weight_widths[-1], bits.reads.bits)

    def _shape(self, layer: Layer) -> Convolution | None:
        given = attributes(self._nodes[layer.name])
        if not layer.has_weights or layer.kind == "ConvTranspose":
            return None
        if layer.kind != "Conv":
            plain = not given.get("transA", 0) and given.get("alpha", 1.0) == 1.0
            if not plain or given.get("beta", 1.0) != 1.0:
                return None
            rows = layer.batch * math.prod(layer.in_size)
            return Convolution(1, rows, layer.in_channels, layer.out_channels)
        if len(layer.kernel) > _AXES or layer.batch > 1:
            return None
        return _convolution(layer, given)

    def constants(
        self,
        layer: Layer,
        bits: BitWidths,
        kernel: ConvolutionKernel,
        output: str,
        correction: Correction | None,
    ) -> tuple[Array, ...]:
        """Return the parameters of an integer layer, in the order of its kernel's.

        Args:
            layer: the layer.
            bits: its bits.
            kernel: what runs it.
            output: tensor whose grid it writes.
            correction: of its output.
        """
        exporter, shape = self._exporter, kernel.shape
        given, made = bits.reads, bits.writes
        inputs = exporter.ranges.grid(layer.inputs[0], given.bits)
        outputs = exporter.ranges.grid(output, made.bits)
        scale, bias = exporter.parameters.corrected(layer, bits, correction)
        step = np.float32(inputs.scale)
        product = (step * scale).astype(np.float32)
        steps = np.zeros(layer.out_channels, np.int64)
        if layer.kind != "MatMul" and given is Format.INT16:
            steps = np.rint(bias / product).astype(np.int64)
        elif layer.kind != "MatMul":
            steps = quantize_bias(bias, inputs.scale, scale).astype(np.int64)
        weights = self._weights(layer, exporter.parameters.quantized(layer.name, bits).values)
        zero_points = [
            stored_zero_point(grid.zero_point, form)
            for grid, form in ((inputs, given), (outputs, made))
        ]
        steps -= weights.astype(np.int64).sum((1, 2, 3)) * zero_points[0]
        factors = product / np.float32(outputs.scale)
        return (
            self._packed(kernel, weights),
            _filled(steps, shape.out_step, kernel.arithmetic.sums),
            _filled(factors, shape.out_step, "float32"),
            np.array(zero_points, np.int32),
        )

    def float_constants(
        self, layer: Layer, kernel: ConvolutionKernel, limits: tuple[float, float]
    ) -> tuple[Array, ...]:
        """Return the parameters of a float layer whose output is kept within `limits`."""
        weights = self._weights(layer, self._arrays[self._nodes[layer.name].input[1]])
        return (
            self._packed(kernel, weights),
            _filled(self._exporter.parameters.bias(layer.name), kernel.shape.out_step, "float32"),
            np.array(limits, np.float32),
        )

    def _packed(self, kernel: ConvolutionKernel, weights: Array) -> Array:
        content = kernel.arithmetic.content
        last = weights[..., 0] if kernel.shape.depthwise else weights
        return kernel.packed(last.astype(content))

    def _weights(self, layer: Layer, values: Array) -> Array:
        """Weights as (out, height, width, in); of grouped layers with zeros where nothing is."""
        if layer.kind != "Conv":
            transposed = attributes(self._nodes[layer.name]).get("transB", 0)
            matrix = values if transposed else values.T
            return matrix.reshape(layer.out_channels, 1, 1, layer.in_channels)
        if values.ndim == 3:
            values = values[:, :, None]
        last = values.transpose(0, 2, 3, 1)
        if layer.groups == 1 or _is_depthwise(layer):
            return last
        outputs, inputs = layer.out_channels // layer.groups, layer.in_channels // layer.groups
        whole = np.zeros((*last.shape[:3], layer.in_channels), last.dtype)
        for group in range(layer.groups):
            rows = slice(group * outputs, (group + 1) * outputs)
            whole[rows, :, :, group * inputs : (group + 1) * inputs] = last[rows]
        return whole


def _convolution(layer: Layer, given: Attributes) -> Convolution:
    rank = len(layer.kernel)
    lead = (1,) * (_AXES - rank)
    strides, dilations = layer.stride, tuple(given.get("dilations", [1] * rank))
    pads = pads_of(layer.in_size, layer.kernel, strides, dilations, given)
    height, width = (*lead, *layer.in_size)
    down, across = (*lead, *strides)
    top, left, bottom, right = (*(0,) * len(lead), *pads[:rank], *(0,) * len(lead), *pads[rank:])
    return Convolution(
        height,
        width,
        layer.in_channels,
        layer.out_channels,
        _pair((*lead, *layer.kernel)),
        (down, across),
        (top, left, bottom, right),
        _pair((*lead, *dilations)),
        _is_depthwise(layer),
    )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _is_depthwise(layer: Layer) -> bool:
    """Whether it has a kernel of its own: one output channel for each input channel."""
    return layer.is_depthwise and layer.in_channels == layer.out_channels


def _filled(values: Array | Float32Array, count: int, content: str) -> Array:
    """Bring values of channels to the number of channels that kernels have."""
    found = np.zeros(count, content)
    found[: len(values)] = values
    return found
