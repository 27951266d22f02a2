"""Blocks that several architectures share."""

from collections.abc import Sequence

import torch
from torch import nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a padded convolution without bias, and its batch-norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


def divisible(channels: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` next to `channels`, at least 90 % of it.

    The rule of MobileNet's authors for every derived number of channels.

    >>> divisible(18), divisible(72), divisible(11)
    (24, 72, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


class SqueezeExcite(nn.Module):
    """Hu et al., CVPR 2018: each channel times a gate that is computed from all channels' means.

    Args:
        channels: channels in and out.
        hidden: channels between the two products.
        activation: behind the first product.
        gate: behind the second one.
    """

    def __init__(self, channels: int, hidden: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.gates = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            activation,
            nn.Conv2d(hidden, channels, 1),
            gate,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to the same shape."""
        y: torch.Tensor = x * self.gates(x)
        return y


class Residual(nn.Module):
    """What `layers` make of the input, plus the input where `kept`, its shape, is the same."""

    def __init__(self, layers: Sequence[nn.Module], *, kept: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.kept = kept

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) to what the layers make of it."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.kept else y


class Classifier(nn.Module):
    """Features of images, their mean over the image, and products that make scores of it."""

    def __init__(self, features: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        y: torch.Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return y
