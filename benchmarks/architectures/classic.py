"""Architectures of full convolutions: ResNet and SqueezeNet."""

import torch
from torch import nn

from benchmarks.architectures.blocks import Classifier, conv


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *conv(inputs, outputs, 3, stride), nn.ReLU(), *conv(outputs, outputs, 3)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y: torch.Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return y


def resnet18(classes: int = 1000) -> nn.Module:
    """He et al., CVPR 2016, table 1, with projections where the shape changes (option B)."""
    blocks: list[nn.Module] = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [BasicBlock(channels, outputs, stride), BasicBlock(outputs, outputs, 1)]
        channels = outputs
    return Classifier(blocks, nn.Linear(512, classes))


class Fire(nn.Module):
    """A squeezing 1x1 convolution; 1x1 and 3x3 ones, side by side, that expand again."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, squeezed, 1), nn.ReLU())
        self.expand1 = nn.Sequential(nn.Conv2d(squeezed, expanded, 1), nn.ReLU())
        self.expand3 = nn.Sequential(nn.Conv2d(squeezed, expanded, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, 2 * expanded, H, W)."""
        y = self.squeeze(x)
        return torch.cat([self.expand1(y), self.expand3(y)], 1)


def squeezenet1_1(classes: int = 1000) -> nn.Module:
    """Iandola et al., 2016, version 1.1 of the authors' repository; no batch-norms.

    The authors' pools round sizes up; for images of 224 or 64 nothing is there to be rounded.
    """
    blocks: list[nn.Module] = [nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    blocks += [Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2)]
    blocks += [Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2)]
    blocks += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return Classifier([*blocks, nn.Conv2d(512, classes, 1), nn.ReLU()], nn.Identity())
