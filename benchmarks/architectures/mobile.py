"""Architectures of depthwise convolutions, most of them within inverted residuals."""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.architectures.blocks import Classifier, Residual, SqueezeExcite, conv, divisible


def mobilenet_v1(classes: int = 1000) -> nn.Module:
    """Howard et al., 2017, table 1, width 1.0.

    The last depthwise convolution has stride 1: the table says 2, but keeps the size.
    """
    rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
    blocks: list[nn.Module] = [*conv(3, 32, 3, 2), nn.ReLU()]
    channels = 32
    for outputs, stride in (*rows, (1024, 2), (1024, 1)):
        blocks += [*conv(channels, channels, 3, stride, channels), nn.ReLU()]
        blocks += [*conv(channels, outputs, 1), nn.ReLU()]
        channels = outputs
    return Classifier(blocks, nn.Linear(1024, classes))


def inverted_residual(
    inputs: int,
    hidden: int,
    outputs: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    activation: Callable[[], nn.Module] = nn.ReLU6,
    excite: nn.Module | None = None,
) -> Residual:
    """Return an inverted residual; `excite` stands behind its depthwise convolution.

    Sandler et al., CVPR 2018, figure 4; Howard et al., ICCV 2019, figure 4.
    """
    expand = [*conv(inputs, hidden, 1), activation()] if hidden != inputs else []
    depthwise = [*conv(hidden, hidden, kernel, stride, hidden), activation()]
    gates = [] if excite is None else [excite]
    layers = [*expand, *depthwise, *gates, *conv(hidden, outputs, 1)]
    return Residual(layers, kept=stride == 1 and inputs == outputs)


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """Sandler et al., CVPR 2018, table 2, width 1.0."""
    rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
    rows += [(6, 160, 3, 2), (6, 320, 1, 1)]
    blocks: list[nn.Module] = [*conv(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, repeats, stride in rows:
        for index in range(repeats):
            step = stride if index == 0 else 1
            blocks.append(inverted_residual(channels, channels * expansion, outputs, stride=step))
            channels = outputs
    return Classifier([*blocks, *conv(channels, 1280, 1), nn.ReLU6()], nn.Linear(1280, classes))


def mobilenet_v3_small(classes: int = 1000) -> nn.Module:
    """Howard et al., ICCV 2019, table 2.

    As in the authors' own code, the last convolution has no squeeze-excite, though the table
    marks one; the published number of parameters is that of the code.
    """
    rows = [
        (3, 16, 16, True, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 2),
        (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, nn.Hardswish, 2),
        *[(5, 240, 40, True, nn.Hardswish, 1)] * 2,
        (5, 120, 48, True, nn.Hardswish, 1),
        (5, 144, 48, True, nn.Hardswish, 1),
        (5, 288, 96, True, nn.Hardswish, 2),
        *[(5, 576, 96, True, nn.Hardswish, 1)] * 2,
    ]
    blocks: list[nn.Module] = [*conv(3, 16, 3, 2), nn.Hardswish()]
    channels = 16
    for kernel, hidden, outputs, excited, activation, stride in rows:
        excite = SqueezeExcite(hidden, divisible(hidden / 4), nn.ReLU(), nn.Hardsigmoid())
        block = inverted_residual(
            channels,
            hidden,
            outputs,
            kernel=kernel,
            stride=stride,
            activation=activation,
            excite=excite if excited else None,
        )
        blocks.append(block)
        channels = outputs
    classifier = nn.Sequential(nn.Linear(576, 1024), nn.Hardswish(), nn.Linear(1024, classes))
    return Classifier([*blocks, *conv(channels, 576, 1), nn.Hardswish()], classifier)


def efficientnet_b0(classes: int = 1000) -> nn.Module:
    """Tan & Le, ICML 2019, table 1: squeeze-excite to a quarter of a block's *input* channels."""
    rows = [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)]
    rows += [(6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]
    blocks: list[nn.Module] = [*conv(3, 32, 3, 2), nn.SiLU()]
    channels = 32
    for expansion, outputs, repeats, stride, kernel in rows:
        for index in range(repeats):
            hidden = channels * expansion
            block = inverted_residual(
                channels,
                hidden,
                outputs,
                kernel=kernel,
                stride=stride if index == 0 else 1,
                activation=nn.SiLU,
                excite=SqueezeExcite(hidden, channels // 4, nn.SiLU(), nn.Sigmoid()),
            )
            blocks.append(block)
            channels = outputs
    return Classifier([*blocks, *conv(channels, 1280, 1), nn.SiLU()], nn.Linear(1280, classes))


def mnasnet_b1(classes: int = 1000) -> nn.Module:
    """Tan et al., CVPR 2019: the variant without squeeze-excite, depth multiplier 1.0."""
    rows = [(3, 24, 3, 2, 3), (3, 40, 3, 2, 5), (6, 80, 3, 2, 5)]
    rows += [(6, 96, 2, 1, 3), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)]
    blocks: list[nn.Module] = [*conv(3, 32, 3, 2), nn.ReLU()]
    blocks.append(inverted_residual(32, 32, 16, activation=nn.ReLU))
    channels = 16
    for expansion, outputs, repeats, stride, kernel in rows:
        for index in range(repeats):
            block = inverted_residual(
                channels,
                channels * expansion,
                outputs,
                kernel=kernel,
                stride=stride if index == 0 else 1,
                activation=nn.ReLU,
            )
            blocks.append(block)
            channels = outputs
    return Classifier([*blocks, *conv(channels, 1280, 1), nn.ReLU()], nn.Linear(1280, classes))


class ShuffleUnit(nn.Module):
    """Ma et al., ECCV 2018, figure 3c and, where it reduces the image, 3d.

    Half of the channels pass by; a unit that reduces works on all of them twice.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half, self.reduces = outputs // 2, stride > 1
        given = inputs if self.reduces else half
        self.right = nn.Sequential(
            *conv(given, half, 1),
            nn.ReLU(),
            *conv(half, half, 3, stride, half),
            *conv(half, half, 1),
            nn.ReLU(),
        )
        if self.reduces:
            depthwise = conv(inputs, inputs, 3, stride, inputs)
            self.left = nn.Sequential(*depthwise, *conv(inputs, half, 1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride), the halves interleaved."""
        if self.reduces:
            left, right = self.left(x), self.right(x)
        else:
            left, right = x.chunk(2, dim=1)
            right = self.right(right)
        joined = torch.cat([left, right], dim=1)
        count, channels, height, width = joined.shape
        halves = joined.view(count, 2, channels // 2, height, width)
        return halves.transpose(1, 2).reshape(count, channels, height, width)


def shufflenet_v2(classes: int = 1000) -> nn.Module:
    """Ma et al., ECCV 2018, table 5, width 1.0."""
    blocks: list[nn.Module] = [*conv(3, 24, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 24
    for outputs, repeats in ((116, 4), (232, 8), (464, 4)):
        blocks.append(ShuffleUnit(channels, outputs, 2))
        blocks += [ShuffleUnit(outputs, outputs, 1) for _ in range(repeats - 1)]
        channels = outputs
    return Classifier([*blocks, *conv(channels, 1024, 1), nn.ReLU()], nn.Linear(1024, classes))
