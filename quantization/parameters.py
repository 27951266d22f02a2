"""The quantized parameters of a network's layers: weights, scales and biases."""

import numpy as np

from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import Correction, ExportOptions
from quantization.network import Layer, Network
from quantization.passes import attribute, initializer_arrays
from quantization.quantizer import Float32Array, QuantizedWeight, quantize_weight
from quantization.ranges import Ranges

_LARGEST_BIAS = 2.0**28
"""Steps of a bias: an eighth of int32's range is left to corrections and to the accumulator."""


class Parameters:
    """Quantizes the parameters of one network, each weight once per width.

    Args:
        network: the network.
        ranges: its activations' ranges.
        options: how weights are quantized.
    """

    def __init__(self, network: Network, ranges: Ranges, options: ExportOptions) -> None:
        self.network = network
        self.ranges = ranges
        self.options = options
        self._arrays = initializer_arrays(network.model.graph)
        self._nodes = {node.name: node for node in network.model.graph.node}
        self._weights: dict[tuple[str, int], QuantizedWeight] = {}

    def weight(self, layer: str, bits: int) -> QuantizedWeight:
        """Return the weights of `layer` on the grid of `bits`; quantized once."""
        key = layer, bits
        if key not in self._weights:
            node = self._nodes[layer]
            transposed = node.op_type == "Gemm" and attribute(node, "transB", 0)
            axis = 0 if node.op_type == "Conv" or transposed else 1
            grid = 7 if bits == 8 and self.options.reduce_range else bits
            self._weights[key] = quantize_weight(
                self._arrays[node.input[1]],
                grid,
                axis,
                self.ranges.weights.get(key, self.options.weight_method),
                self._smallest_scale(layer),
            )
        return self._weights[key]

    def quantized(self, layer: str, bits: BitWidths) -> QuantizedWeight:
        """Return the weights of `layer` at `bits`: of channel groups, each channel on its own grid.

        `QuantizedWeight.bits` is the width of the widest group.
        """
        if not isinstance(bits, ChannelGroups):
            return self.weight(layer, bits.weights)
        each = [(self.weight(layer, width), list(where)) for width, where in bits.groups]
        widest = each[-1][0]
        values, scale = widest.values.copy(), widest.scale.copy()
        rows = np.moveaxis(values, widest.axis, 0)  # a view
        for narrower, channels in each[:-1]:
            rows[channels] = np.moveaxis(narrower.values, widest.axis, 0)[channels]
            scale[channels] = narrower.scale[channels]
        return QuantizedWeight(values, scale, widest.axis, bits.weight_widths[-1])

    def _smallest_scale(self, layer: str) -> Float32Array | None:
        """The weight scales, (channels,), at which the largest int32 bias has been reached.

        A channel whose weights are nearly zero would lose its bias without it.
        """
        described = self.network.layer(layer)
        if not described.bias_count or described.kind == "ConvTranspose":
            return None
        step = self.ranges.grid(described.inputs[0], 8).scale
        return (np.abs(self.bias(layer)) / (step * _LARGEST_BIAS)).astype(np.float32)

    def bias(self, layer: str) -> Float32Array:
        """Return the bias of `layer`, (channels,); zeros if it has none."""
        node, channels = self._nodes[layer], self.network.layer(layer).out_channels
        if len(node.input) < 3 or not node.input[2]:
            return np.zeros(channels, np.float32)
        array: Float32Array = self._arrays[node.input[2]].astype(np.float32)
        return np.array(np.broadcast_to(array.reshape(-1), channels))

    def corrected(
        self, layer: Layer, bits: BitWidths, correction: Correction | None
    ) -> tuple[Float32Array, Float32Array]:
        """Return weight scales and bias, (channels,) each, with the correction folded in."""
        scale, bias = self.quantized(layer.name, bits).scale, self.bias(layer.name)
        # The weights of a grouped ConvTranspose hold the output channels of one group.
        scale = np.tile(scale, layer.out_channels // len(scale))
        if correction is None:
            return scale, bias
        corrected_bias = correction.gain * bias + correction.shift
        return (scale * correction.gain).astype(np.float32), corrected_bias.astype(np.float32)
