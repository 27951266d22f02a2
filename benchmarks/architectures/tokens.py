"""Architectures that see an image as a row of patches: a vision transformer and an MLP-Mixer."""

import torch
from torch import nn

from benchmarks.architectures.blocks import Residual


class Patches(nn.Module):
    """Cuts an image into patches and projects each; (N, 3, H, W) to (N, patches, width)."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, patches, width)."""
        y: torch.Tensor = self.project(x)
        return y.flatten(2).transpose(1, 2)


def mlp(width: int, hidden: int) -> list[nn.Module]:
    """Return two products with an activation between them."""
    return [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)]


class Attention(nn.Module):
    """Attention of all tokens to all, in several heads: Vaswani et al., NeurIPS 2017."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, width) to the same shape."""
        count, tokens, width = x.shape
        query, key, value = (
            part(x).view(count, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = (query * self.scale @ key.transpose(2, 3)).softmax(dim=-1)
        y: torch.Tensor = self.out((weights @ value).transpose(1, 2).reshape(x.shape))
        return y


class VisionTransformer(nn.Module):
    """Dosovitskiy et al., ICLR 2021: patches, a token for the class, blocks, a product."""

    def __init__(
        self, width: int, heads: int, depth: int, patches: int, patch: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = Patches(width, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, patches + 1, width))
        blocks: list[nn.Module] = []
        for _ in range(depth):
            attention = [nn.LayerNorm(width, 1e-6), Attention(width, heads)]
            products = [nn.LayerNorm(width, 1e-6), *mlp(width, 4 * width)]
            blocks += [Residual(attention, kept=True), Residual(products, kept=True)]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width, 1e-6))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        patches = self.patches(x)
        token = self.class_token.expand(len(patches), -1, -1)
        tokens = self.blocks(torch.cat([token, patches], 1) + self.positions)
        y: torch.Tensor = self.classifier(tokens[:, 0])
        return y


def deit_tiny(classes: int = 1000) -> nn.Module:
    """Touvron et al., ICML 2021, table 1: DeiT-Ti, no distillation token; images of 224x224."""
    return VisionTransformer(192, 3, 12, patches=14 * 14, patch=16, classes=classes)


class Transposed(nn.Module):
    """Layers that work along the tokens instead of the channels."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, width) to the same shape."""
        y: torch.Tensor = self.layers(x.transpose(1, 2))
        return y.transpose(1, 2)


class Mixer(nn.Module):
    """Tolstikhin et al., NeurIPS 2021: products along the tokens, products along the channels."""

    def __init__(
        self, width: int, hidden: tuple[int, int], depth: int, tokens: int, patch: int, classes: int
    ) -> None:
        super().__init__()
        self.patches = Patches(width, patch)
        blocks: list[nn.Module] = []
        for _ in range(depth):
            along_tokens = [nn.LayerNorm(width, 1e-6), Transposed(mlp(tokens, hidden[0]))]
            along_channels = [nn.LayerNorm(width, 1e-6), *mlp(width, hidden[1])]
            blocks += [Residual(along_tokens, kept=True), Residual(along_channels, kept=True)]
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width, 1e-6))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, classes)."""
        y: torch.Tensor = self.classifier(self.blocks(self.patches(x)).mean(1))
        return y


def mixer_s32(classes: int = 1000) -> nn.Module:
    """Tolstikhin et al., NeurIPS 2021, table 1: Mixer-S/32; images of 224x224."""
    return Mixer(512, (256, 2048), 8, tokens=7 * 7, patch=32, classes=classes)
