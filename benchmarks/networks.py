"""Published architectures, built from their papers, with random but realistic weights.

No pre-trained weights: timings need numbers of ordinary size, not knowledge. Convolutions are
He-initialised, batch-norm statistics come from one random batch, scales and shifts are distinct.
"""

import argparse
from pathlib import Path

import onnx
import torch
from torch import nn

from quantization.torch_export import export_module


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, linear projection; a residual where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [*_conv(inputs, hidden, 1), nn.ReLU6()] if expansion != 1 else []
        self.layers = nn.Sequential(
            *expand,
            *_conv(hidden, hidden, 3, stride, hidden),
            nn.ReLU6(),
            *_conv(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""
        y: torch.Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Sandler et al., CVPR 2018, table 2, width 1.0."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        rows = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
        rows += [(6, 160, 3, 2), (6, 320, 1, 1)]
        blocks: list[nn.Module] = [*_conv(3, 32, 3, 2), nn.ReLU6()]
        channels = 32
        for expansion, outputs, repeats, stride in rows:
            for index in range(repeats):
                first = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, outputs, first, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks, *_conv(channels, 1280, 1), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, 224, 224) to (N, classes)."""
        y: torch.Tensor = self.classifier(self.pool(self.features(x)).flatten(1))
        return y


NETWORKS = {"mobilenet_v2": MobileNetV2}


def build(name: str, *, size: int = 224, seed: int = 0) -> onnx.ModelProto:
    """Build network `name` for images of 3 x size x size, with random weights from `seed`."""
    torch.manual_seed(seed)
    module = NETWORKS[name]()
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.8, 1.2)
            nn.init.normal_(part.bias, 0, 0.1)
            part.momentum = 1.0
    module.train()
    with torch.no_grad():
        module(torch.randn(4, 3, size, size))
    return export_module(module.eval(), torch.randn(1, 3, size, size))


def main() -> None:
    """Write the named networks as ONNX files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=sorted(NETWORKS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/networks"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        path = arguments.out / f"{name}.onnx"
        path.write_bytes(build(name).SerializeToString(deterministic=True))
        print(path)


if __name__ == "__main__":
    main()
