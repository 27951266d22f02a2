"""Published architectures, built from their papers, with random but realistic weights.

No pre-trained weights: timings need numbers of ordinary size, not knowledge. Weights are
He-initialised; scales, shifts and biases are distinct and none is zero. On one random batch the
outputs of every layer get a variance near 1: by the statistics of the batch-norm behind it, or by
its own weights where none is.

    python benchmarks/networks.py                     # all of them, into runs/networks
    python benchmarks/networks.py resnet18 --out DIR
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import onnx
import torch
from torch import nn

from benchmarks.architectures import classic, mobile, tokens
from quantization.torch_export import export_module

SIZE = 224
"""Height and width of the images that all of them were published for."""

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "deit_tiny": tokens.deit_tiny,
    "densenet121": classic.densenet121,
    "efficientnet_b0": mobile.efficientnet_b0,
    "mixer_s32": tokens.mixer_s32,
    "mnasnet_b1": mobile.mnasnet_b1,
    "mobilenet_v1": mobile.mobilenet_v1,
    "mobilenet_v2": mobile.mobilenet_v2,
    "mobilenet_v3_small": mobile.mobilenet_v3_small,
    "resnet18": classic.resnet18,
    "resnet50": classic.resnet50,
    "shufflenet_v2": mobile.shufflenet_v2,
    "squeezenet1_1": classic.squeezenet1_1,
    "vgg11": classic.vgg11,
}


def build_module(name: str, *, size: int = SIZE, seed: int = 0) -> nn.Module:
    """Build network `name` in evaluation mode, with random weights from `seed`.

    Args:
        name: one of `NETWORKS`.
        size: height and width of the images that the batch-norm statistics are taken from.
        seed: of the weights and those images.
    """
    torch.manual_seed(seed)
    module = NETWORKS[name]()
    hooks = []
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:  # no batch-norm behind it
                nn.init.normal_(part.bias, 0, 0.1)
                hooks.append(part.register_forward_hook(_normalise))
        elif isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.8, 1.2)
            nn.init.normal_(part.bias, 0, 0.1)
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
    module.train()
    # As many pixels of small images as of large ones: the deepest layers see one of each.
    images = 16 * max(1, SIZE // size) ** 2
    with torch.no_grad():
        module(torch.randn(images, 3, size, size))
    for hook in hooks:
        hook.remove()
    return module.eval()


def _normalise(
    layer: nn.Conv2d | nn.Linear, _given: tuple[torch.Tensor, ...], made: torch.Tensor
) -> torch.Tensor:
    """Scale a layer's weights so that what it made has a variance near 1; return that.

    An image's channels are scaled and shifted one by one, as by a batch-norm: without one, more
    and more channels of a deep random network are below zero everywhere, and dead behind a ReLU.
    Single values are scaled all alike (Mishkin & Matas, ICLR 2016, sets all layers so).
    """
    if made.dim() == 4 and made.shape[2] > 1:
        deviation, mean = torch.std_mean(made, (0, 2, 3))
        scale = torch.empty_like(mean).uniform_(0.8, 1.2) / deviation
        shift = layer.bias - mean * scale
        layer.weight.mul_(scale.view(-1, 1, 1, 1))
        layer.bias.mul_(scale).add_(shift)
        return made * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    scale = 1 / made.std()
    layer.weight.mul_(scale)
    layer.bias.mul_(scale)
    return made * scale


def build(name: str, *, size: int = SIZE, seed: int = 0) -> onnx.ModelProto:
    """Build network `name` for images of 3 x size x size as ONNX; see `build_module`."""
    module = build_module(name, size=size, seed=seed)
    return export_module(module, torch.randn(1, 3, size, size))


def main() -> None:
    """Write the named networks as ONNX files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=sorted(NETWORKS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/networks"))
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - NETWORKS.keys():
        parser.error(f"no network {min(unknown)!r}; there are {', '.join(sorted(NETWORKS))}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        path = arguments.out / f"{name}.onnx"
        path.write_bytes(build(name).SerializeToString(deterministic=True))
        print(path)


if __name__ == "__main__":
    main()
