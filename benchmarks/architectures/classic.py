"""Architectures of full convolutions: VGG, ResNet, SqueezeNet and DenseNet."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.architectures.blocks import Classifier, conv


def vgg11(classes: int = 1000) -> nn.Module:
    """Simonyan & Zisserman, ICLR 2015, table 1, column A; no batch-norms; images of 224x224."""
    layers: list[nn.Module] = []
    channels = 3
    for outputs, repeats in ((64, 1), (128, 1), (256, 2), (512, 2), (512, 2)):
        for _ in range(repeats):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.ReLU()]
            channels = outputs
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 7 * 7, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes))


class Shortcut(nn.Module):
    """The Relu of what layers make plus their input; a 1x1 convolution where the shape changes."""

    def __init__(self, layers: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = layers
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y: torch.Tensor = self.activation(self.layers(x) + self.shortcut(x))
        return y


def basic_block(inputs: int, width: int, stride: int) -> Shortcut:
    """Return two 3x3 convolutions with a shortcut; gives `width` channels."""
    layers = nn.Sequential(*conv(inputs, width, 3, stride), nn.ReLU(), *conv(width, width, 3))
    return Shortcut(layers, inputs, width, stride)


def bottleneck(inputs: int, width: int, stride: int) -> Shortcut:
    """Return a 3x3 convolution between two 1x1 ones with a shortcut; gives 4 `width` channels."""
    reduce, wide = conv(inputs, width, 1), conv(width, width, 3, stride)
    layers = nn.Sequential(*reduce, nn.ReLU(), *wide, nn.ReLU(), *conv(width, 4 * width, 1))
    return Shortcut(layers, inputs, 4 * width, stride)


def _resnet(
    block: Callable[[int, int, int], Shortcut], expansion: int, repeats: Sequence[int], classes: int
) -> nn.Module:
    blocks: list[nn.Module] = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(repeats):
        width = 64 * 2**stage
        for index in range(count):
            blocks.append(block(channels, width, 2 if stage and not index else 1))
            channels = expansion * width
    return Classifier(blocks, nn.Linear(channels, classes))


def resnet18(classes: int = 1000) -> nn.Module:
    """He et al., CVPR 2016, table 1, with projections where the shape changes (option B)."""
    return _resnet(basic_block, 1, (2, 2, 2, 2), classes)


def resnet50(classes: int = 1000) -> nn.Module:
    """He et al., CVPR 2016, table 1; as is usual, the 3x3 convolutions reduce, not the 1x1 ones.

    That is the variant of Goyal et al., 2017, with 8 % more multiply-accumulates than the paper's.
    """
    return _resnet(bottleneck, 4, (3, 4, 6, 3), classes)


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


def _norm_conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    """A convolution behind the batch-norm and activation of its inputs."""
    made = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(), made]


class DenseLayer(nn.Module):
    """Appends `growth` channels, computed from all before, to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        narrow = _norm_conv(inputs, 4 * growth, 1)
        self.layers = nn.Sequential(*narrow, *_norm_conv(4 * growth, growth, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, inputs + growth, H, W)."""
        return torch.cat([x, self.layers(x)], 1)


def densenet121(classes: int = 1000) -> nn.Module:
    """Huang et al., CVPR 2017, table 1, growth 32; half of the channels behind each dense block."""
    blocks: list[nn.Module] = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            blocks += [*_norm_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        blocks += [DenseLayer(channels + 32 * index, 32) for index in range(count)]
        channels += 32 * count
    blocks += [nn.BatchNorm2d(channels), nn.ReLU()]
    return Classifier(blocks, nn.Linear(channels, classes))
