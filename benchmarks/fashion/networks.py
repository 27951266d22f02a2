"""Two small networks for Fashion-MNIST, MobileNetV2-style and ResNet-style, trained and shipped."""

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.fashion.data import CLASSES, SIZE
from quantization.errors import ModelError

_STEM_CHANNELS = 16
_HEAD_CHANNELS = 128
# (expansion, out_channels, stride)
_MOBILE_BLOCKS = ((3, 24, 1), (3, 24, 1), (3, 32, 2), (3, 32, 1), (3, 48, 1))
_RESNET_BLOCKS = ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1))  # (out_channels, stride)


class InvertedResidual(nn.Module):
    """Expansion 1x1, depthwise 3x3, projection 1x1 (M. Sandler et al., CVPR 2018)."""

    def __init__(self, channels: int, expansion: int, out_channels: int, stride: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.expand = nn.Conv2d(channels, hidden, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(hidden)
        self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(out_channels)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y = torch.relu(self.expand_norm(self.expand(x)))
        y = torch.relu(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x.add(y) if self.residual else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes (K. He et al.)."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out_channels, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        y = torch.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(y))
        shortcut: torch.Tensor = self.shortcut(x)
        return torch.relu(shortcut.add(y))


class FashionMobileNet(nn.Module):
    """Stem 3x3, five inverted residuals, head 1x1, pool, classifier: 18 layers, 34,256 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, _STEM_CHANNELS, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(_STEM_CHANNELS)
        channels = _STEM_CHANNELS
        blocks = []
        for expansion, out_channels, stride in _MOBILE_BLOCKS:
            blocks.append(InvertedResidual(channels, expansion, out_channels, stride))
            channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, _HEAD_CHANNELS, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(_HEAD_CHANNELS)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_HEAD_CHANNELS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to logits (N, 10)."""
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.head_norm(self.head(self.features(x))))
        logits: torch.Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


class FashionResNet(nn.Module):
    """ResNet-14 of 16, 32 and 64 channels, two blocks each; its stem halves the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, _STEM_CHANNELS, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(_STEM_CHANNELS)
        channels = _STEM_CHANNELS
        blocks = []
        for out_channels, stride in _RESNET_BLOCKS:
            blocks.append(BasicBlock(channels, out_channels, stride))
            channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to logits (N, 10)."""
        x = self.features(torch.relu(self.stem_norm(self.stem(x))))
        logits: torch.Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet": FashionMobileNet,
    "resnet": FashionResNet,
}


def model_path(name: str) -> Path:
    """Return where the trained network `name` lies as ONNX, its batch-norms separate nodes."""
    return Path(__file__).parent / f"{name}.onnx"


def example() -> torch.Tensor:
    """Return an input that networks are exported with, (1, 1, 28, 28)."""
    return torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def load_network(name: str) -> nn.Module:
    """Rebuild the trained torch module `name`, in evaluation mode, from its ONNX file.

    Raises:
        ModelError: if the file holds other parameters than the module.
    """
    module = NETWORKS[name]()
    initializers = onnx.load(model_path(name)).graph.initializer
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in initializers}
    for key, value in module.state_dict().items():
        if key.endswith("num_batches_tracked"):  # counts training steps; no figure depends on it
            continue
        if key not in arrays or arrays[key].shape != tuple(value.shape):
            raise ModelError(f"{model_path(name)} does not hold {key}; train the network again")
        value.copy_(torch.from_numpy(arrays[key].copy()))  # the module's own memory
    return module.eval()
