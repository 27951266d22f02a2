"""Two small networks for Fashion-MNIST, MobileNetV2-style and ResNet-style, trained and shipped."""

from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from benchmarks.fashion.data import CLASSES, SIZE
from benchmarks.training import MobileNet
from quantization.errors import ModelError

_STEM_CHANNELS = 16
_HEAD_CHANNELS = 128
# (expansion, out_channels, stride)
_MOBILE_BLOCKS = ((3, 24, 1), (3, 24, 1), (3, 32, 2), (3, 32, 1), (3, 48, 1))
_RESNET_BLOCKS = ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1))  # (out_channels, stride)


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


class FashionMobileNet(MobileNet):
    """Stem, five inverted residuals, head and classifier: 18 layers, 34,256 weights."""

    def __init__(self) -> None:
        super().__init__(_STEM_CHANNELS, _MOBILE_BLOCKS, _HEAD_CHANNELS, CLASSES)


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
