"""Layers in training: weights on a learned grid, and a live normalization behind convolutions."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody uses
from torch import nn

from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.execution import along
from quantization.export import Exporter
from quantization.network import Layer
from quantization.passes import initializer_arrays
from quantization.qat.fake_quantize import fake_quantize
from quantization.quantizer import quantize_bias
from quantization.torch_operators import Attributes, constant, operator

EPSILON = 1e-5
"""Added to variances, as batch-norms do."""
_SMALLEST = 1e-3
"""Of what a step or a gain was at first: the least that it may become."""


class TrainedLayer(nn.Module):
    """A layer with weights, as it is trained at one width.

    A convolution with a bias is followed by a live batch normalization, whether or not it had one
    before batch-norms were folded: ``y = gain * (conv(x, w) - mean) / deviation + shift``, which
    folds back into the scales of the weights and the bias.

    Args:
        layer: what the layer is.
        bits: its widths.
        exporter: holds its weights, and their scales at first.
        given: attributes of its ONNX node.
        momentum: by which the running statistics follow those of each batch.
    """

    def __init__(
        self, layer: Layer, bits: BitWidths, exporter: Exporter, given: Attributes, momentum: float
    ) -> None:
        super().__init__()
        self.layer, self.bits, self.momentum = layer, bits, momentum
        self._given = given
        names = next(n.input for n in exporter.network.model.graph.node if n.name == layer.name)
        arrays = initializer_arrays(exporter.network.model.graph)
        self.weight = nn.Parameter(constant(arrays[names[1]]))
        has_bias = len(names) > 2 and bool(names[2])
        self.bias = nn.Parameter(constant(arrays[names[2]])) if has_bias else None
        self.axis = 0
        self.step: nn.Parameter | None = None
        if not bits.is_float:
            fixed = exporter.parameters.quantized(layer.name, bits)
            self.axis = fixed.axis
            self.step = nn.Parameter(torch.from_numpy(fixed.scale.copy()))
            self.register_buffer("_least_step", self.step.detach() * _SMALLEST)
            self.register_buffer("_highest", self._along_weight(_highest(layer, bits, exporter)))
        self.normalized = layer.kind == "Conv" and self.bias is not None
        if self.normalized:
            ones = torch.ones(layer.out_channels)
            self.gain = nn.Parameter(ones.clone())
            self.register_buffer("mean", torch.zeros_like(ones))
            self.register_buffer("variance", ones.clone())
            self.register_buffer("_least_gain", ones * _SMALLEST)

    mean: torch.Tensor
    variance: torch.Tensor
    _least_gain: torch.Tensor
    _least_step: torch.Tensor
    _highest: torch.Tensor

    def forward(self, x: torch.Tensor, input_step: float | None) -> torch.Tensor:
        """(N, ...) input reals to output reals, before they are quantized.

        In evaluation mode, the bias is rounded to its int32 steps as in the exported file: those of
        coarse weights are coarse as well.

        Args:
            x: what the layer reads.
            input_step: the step of `x`; None for floats, to which a bias is added as it is.
        """
        weight = self.quantized_weight()
        if self.training or self.step is None or input_step is None:
            return self.with_weight(x, weight)
        summed, (factor, bias) = self.sum_of_products(x, weight), self.folded()
        if factor is not None:
            summed = summed * self._along(factor, summed)
        if bias is None:
            return summed
        scale = self.step.detach() if factor is None else self.step.detach() * factor
        unit = (torch.tensor(input_step) * scale).numpy()
        steps = quantize_bias(bias.numpy(), input_step, scale.numpy()).astype(np.float32)
        return summed + self._along(torch.from_numpy(steps * unit), summed)

    def with_weight(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the layer's output on `x` with other weights."""
        summed = self.sum_of_products(x, weight)
        if self.bias is None:
            return summed
        if not self.normalized:
            return summed + self._along(self.bias, summed)
        statistics = (self.mean, self.variance)
        affine = (self.gain, self.bias)
        return F.batch_norm(summed, *statistics, *affine, self.training, self.momentum, EPSILON)

    def _along(self, per_channel: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if self.layer.kind not in ("Conv", "ConvTranspose"):
            return per_channel  # broadcasts against the columns, whatever its shape
        return along(per_channel, result, self.layer)

    def sum_of_products(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the layer's result on `x` without a bias."""
        made = operator(self.layer.kind)([x, weight], self._given)
        assert isinstance(made, torch.Tensor)
        return made

    def quantized_weight(self) -> torch.Tensor:
        """Return the weights on their grid, as reals; gradients pass."""
        if self.step is None:
            return self.weight.half().float() if self.bits.half else self.weight
        count, step = self.weight.numel() // len(self.step), self._along_weight(self.step)
        return fake_quantize(self.weight, step, -self._highest - 1, self._highest, count)

    @torch.no_grad()
    def levels(self) -> torch.Tensor:
        """Return the integers of the weights."""
        assert self.step is not None
        ratio = self.weight / self._along_weight(self.step)
        return ratio.round_().clamp_(-self._highest - 1, self._highest)

    def _along_weight(self, per_channel: torch.Tensor) -> torch.Tensor:
        shape = [1] * self.weight.dim()
        shape[self.axis] = -1
        return per_channel.view(shape)

    @torch.no_grad()
    def start_normalization(self, x: torch.Tensor) -> None:
        """Make the normalization leave the float layer as it is, from its results on `x`."""
        if not self.normalized or self.bias is None:
            return
        summed = self.sum_of_products(x, self.weight)
        others = [axis for axis in range(summed.dim()) if axis != 1]
        variance, mean = torch.var_mean(summed, others, correction=0)
        self.mean.copy_(mean)
        self.variance.copy_(variance)
        self.gain.copy_((variance + EPSILON).sqrt())
        self.bias.add_(mean)  # becomes the mean of what comes out
        self._least_gain.copy_(self.gain * _SMALLEST)

    @torch.no_grad()
    def stay_positive(self) -> None:
        """Push steps and gains that training brought to zero or below back above it."""
        if self.step is not None:
            self.step.copy_(torch.maximum(self.step, self._least_step))
        if self.normalized:
            self.gain.copy_(torch.maximum(self.gain, self._least_gain))

    @torch.no_grad()
    def folded(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the normalization's factor, (channels,), and the bias that folds it; else None."""
        if not self.normalized or self.bias is None:
            return None, None if self.bias is None else self.bias.detach().clone()
        factor = self.gain / (self.variance + EPSILON).sqrt()
        return factor, self.bias - factor * self.mean


def _highest(layer: Layer, bits: BitWidths, exporter: Exporter) -> torch.Tensor:
    """The highest level of each channel's weights: channel groups have grids of their own."""

    def of_width(width: int) -> float:
        grid = exporter.parameters.weight(layer.name, width).bits  # 7 at 8 bits, where those suffer
        return float(2 ** (grid - 1) - 1)

    if not isinstance(bits, ChannelGroups):
        channels = len(exporter.parameters.weight(layer.name, bits.weights).scale)
        return torch.full((channels,), of_width(bits.weights))
    highest = torch.empty(layer.out_channels)
    for width, where in bits.groups:
        highest[list(where)] = of_width(width)
    return highest
