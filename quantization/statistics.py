"""Statistics of layers' outputs, and corrections towards those of the float network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quantization.bits import BitWidths
from quantization.deployment import Correction
from quantization.export import Exporter
from quantization.network import Layer

_GAIN_LIMIT = 4.0
"""A channel that lost nearly all of its variance is not blown up further than this."""


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Of a layer's output before its activation, over images and positions.

    Args:
        mean: (channels,) float32.
        deviation: (channels,) float32, standard deviation.
    """

    mean: torch.Tensor
    deviation: torch.Tensor


def channel_statistics(layer: Layer, blocks: Sequence[torch.Tensor]) -> ChannelStatistics:
    """Return the statistics of `layer`'s results, cut into blocks of images."""
    total, squares, count = torch.zeros(()).double(), torch.zeros(()).double(), 0
    for block in blocks:
        if layer.kind in ("Conv", "ConvTranspose"):
            rows = block.flatten(2)
        else:
            rows = block.reshape(-1, block.shape[-1], 1)
        # Sums of rows in float32, sums of these in float64: torch.std_mean takes 16 times as long,
        # and torch.linalg.vector_norm as much where channels come last in memory.
        total = total + rows.sum(2).double().sum(0)
        squares = squares + rows.square().sum(2).double().sum(0)
        count += rows.shape[0] * rows.shape[2]
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0.0).sqrt()
    return ChannelStatistics(mean.float(), deviation.float())


def match(
    exporter: Exporter,
    layer: Layer,
    bits: BitWidths,
    summed: ChannelStatistics,
    float_network: ChannelStatistics,
) -> Correction:
    """Return what gives a quantized layer the mean and deviation that it has in the float network.

    Args:
        exporter: holds the layer's scales and bias.
        layer: a layer with weights.
        bits: what it is quantized to.
        summed: of its sums of products.
        float_network: of its output in the float network.
    """
    scale, bias = (torch.from_numpy(a) for a in exporter.parameters.corrected(layer, bits, None))
    if not bits.reads.is_float:
        scale = scale * exporter.ranges.grid(layer.inputs[0], bits.reads.bits).scale
    mean, deviation = summed.mean * scale + bias, summed.deviation * scale
    tiny = 1e-6 * float_network.deviation.mean().clamp_min(1e-12)
    gain = (float_network.deviation + tiny) / (deviation + tiny)
    gain = gain.clamp(1 / _GAIN_LIMIT, _GAIN_LIMIT)
    if layer.kind == "MatMul":  # it has no bias that could take a shift
        return Correction(gain.numpy(), torch.zeros_like(gain).numpy())
    return Correction(gain.numpy(), (float_network.mean - gain * mean).numpy())
