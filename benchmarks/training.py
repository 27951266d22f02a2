"""What the scripts that train small networks share: blocks, the training loop, and reading."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]
"""Changes images, (N, channels, H, W), at random."""


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


class MobileNet(nn.Module):
    """Stem 3x3 of stride 2, inverted residuals, head 1x1, global average pool, linear classifier.

    Args:
        stem: output channels of the stem, which reads one channel.
        blocks: expansion, output channels and stride of each inverted residual.
        head: output channels of the head.
        classes: logits.
    """

    def __init__(
        self, stem: int, blocks: Sequence[tuple[int, int, int]], head: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, stem, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        channels = stem
        features = []
        for expansion, out_channels, stride in blocks:
            features.append(InvertedResidual(channels, expansion, out_channels, stride))
            channels = out_channels
        self.features = nn.Sequential(*features)
        self.head = nn.Conv2d(channels, head, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, H, W) to logits (N, classes)."""
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.head_norm(self.head(self.features(x))))
        logits: torch.Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def fit(
    network: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    augment: Augment,
    *,
    epochs: int,
    batch: int,
    peak_learning_rate: float,
    weight_decay: float = 0.0,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `network` in place and leave it in evaluation mode.

    Nesterov SGD (momentum 0.9) under a one-cycle schedule, on images changed at random.

    Args:
        network: takes images, gives logits.
        images: (N, channels, H, W).
        labels: (N,).
        augment: changes the images of a step.
        epochs: passes over the images.
        batch: images per step.
        peak_learning_rate: highest learning rate of the cycle.
        weight_decay: of every parameter.
        seed: draws the order of the images and the augmentation.
        on_epoch: called after every epoch with its number, from 1, and its mean loss.

    Returns:
        Mean cross-entropy of every epoch, in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    network.train()
    all_images, all_labels = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(
        network.parameters(),
        peak_learning_rate,
        momentum=0.9,
        nesterov=True,
        weight_decay=weight_decay,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_learning_rate, total_steps=epochs * math.ceil(len(images) / batch)
    )
    losses = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            x = augment(all_images[chosen], generator)
            logits = network(x.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits, all_labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        losses.append(total / len(images))
        if on_epoch is not None:
            on_epoch(epoch, losses[-1])
    network.eval()
    return losses


def predict(network: nn.Module, images: NDArray[np.float32], batch: int = 64) -> NDArray[np.int64]:
    """Return the class that `network`, in evaluation mode, reads in each image, (images,)."""
    # Small channels-last batches stay in the cache: about twice as fast as one large batch.
    with torch.inference_mode():
        logits = [
            network(part.contiguous(memory_format=torch.channels_last))
            for part in torch.from_numpy(images).split(batch)  # type: ignore[no-untyped-call]
        ]
        return np.asarray(torch.cat(logits).argmax(1).numpy(), dtype=np.int64)
