"""Train the reference network on scikit-learn's digits and write the shipped model.

    python benchmarks/train_digits.py          # minutes; writes quantmeter/data/digits.onnx
    python benchmarks/train_digits.py --quick  # one epoch; writes only where --output says

The images are not shipped: ``quantmeter.reference_task.load_digits_task`` rebuilds them. Sums in
another order (threads, another processor) give other weights of the same quality.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quantization.torch_export import export_module
from quantmeter.reference_task import CLASSES, IMAGE_SIZE, SHIPPED_MODEL, load_digits_task

_STEM_CHANNELS = 48
_HEAD_CHANNELS = 192
# (expansion, out_channels, stride). Wide and shallow at 16x16: the pointwise convolutions, where
# INT8 pays, carry 94 % of the multiply-accumulates; depthwise INT8 is no faster than float.
_BLOCKS = (
    (2, 64, 1),
    (2, 64, 1),
    (3, 80, 2),
    (3, 80, 1),
    (3, 80, 1),
    (3, 96, 1),
)


class InvertedResidual(nn.Module):
    """Expansion 1x1, depthwise 3x3, projection 1x1; a residual where the shape is kept."""

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


class DigitsNetwork(nn.Module):
    """Stem 3x3, six inverted residuals, head 1x1, global average pool, linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, _STEM_CHANNELS, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(_STEM_CHANNELS)
        channels = _STEM_CHANNELS
        blocks = []
        for expansion, out_channels, stride in _BLOCKS:
            blocks.append(InvertedResidual(channels, expansion, out_channels, stride))
            channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, _HEAD_CHANNELS, 1, bias=False)
        self.head_norm = nn.BatchNorm2d(_HEAD_CHANNELS)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(_HEAD_CHANNELS, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 32, 32) to logits (N, 10)."""
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = torch.relu(self.head_norm(self.head(self.features(x))))
        logits: torch.Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


def train(
    network: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    epochs: int = 34,
    batch: int = 50,
    peak_learning_rate: float = 0.0065,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``network`` in place and leave it in evaluation mode.

    Nesterov SGD (momentum 0.9) under a one-cycle schedule, on images shifted and rotated at random.

    Args:
        network: A `DigitsNetwork`.
        images: Float32, shape (images, 1, 32, 32).
        labels: Int64, shape (images,).
        epochs: Passes over the images.
        batch: Images per step.
        peak_learning_rate: Highest learning rate of the cycle.
        seed: Draws the order of the images and the augmentation.
        on_epoch: Called after every epoch with its number, from 1, and its mean loss.

    Returns:
        Mean cross-entropy of every epoch, in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    network.train()
    all_images, all_labels = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(
        network.parameters(), peak_learning_rate, momentum=0.9, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_learning_rate, total_steps=epochs * math.ceil(len(images) / batch)
    )
    losses = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            x = _shift_and_rotate(all_images[chosen], generator)
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


def _shift_and_rotate(
    images: torch.Tensor, generator: torch.Generator, *, pixels: float = 1.0, degrees: float = 5.0
) -> torch.Tensor:
    """Move every image by up to ``pixels`` and turn it by up to ``degrees``, at random."""

    def uniform(bound: float) -> torch.Tensor:
        return (torch.rand(len(images), generator=generator) * 2.0 - 1.0) * bound

    angle = uniform(math.radians(degrees))
    # affine_grid measures in half images.
    shift_x, shift_y = uniform(2.0 * pixels / IMAGE_SIZE), uniform(2.0 * pixels / IMAGE_SIZE)
    rows = (
        torch.stack([angle.cos(), -angle.sin(), shift_x], 1),
        torch.stack([angle.sin(), angle.cos(), shift_y], 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # Border padding continues the illumination; zeros would draw a black edge no image has.
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def predict(network: nn.Module, images: NDArray[np.float32], batch: int = 64) -> NDArray[np.int64]:
    """Return the digit that ``network`` reads in each image, int64, shape (images,)."""
    # Small channels-last batches stay in the cache: about twice as fast as one large batch.
    with torch.inference_mode():
        logits = [
            network(part.contiguous(memory_format=torch.channels_last))
            for part in torch.from_numpy(images).split(batch)  # type: ignore[no-untyped-call]
        ]
        return np.asarray(torch.cat(logits).argmax(1).numpy(), dtype=np.int64)


def main() -> None:
    """Train, report the accuracy on the unseen images, and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one epoch, to see that it runs")
    parser.add_argument("--epochs", type=int, default=None, help="passes over the images")
    parser.add_argument("--seed", type=int, default=0, help="initial weights and augmentation")
    parser.add_argument("--learning-rate", type=float, default=None, help="peak of the cycle")
    parser.add_argument("--threads", type=int, default=None, help="torch threads")
    parser.add_argument("--output", type=Path, default=None, help=f"default {SHIPPED_MODEL}")
    arguments = parser.parse_args()

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    task = load_digits_task()
    torch.manual_seed(arguments.seed)
    network = DigitsNetwork()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{parameters} parameters, {len(task.train_labels)} training images")

    start = time.perf_counter()

    def progress(epoch: int, loss: float) -> None:
        print(f"epoch {epoch:3d}  loss {loss:.4f}  {time.perf_counter() - start:.0f} s", flush=True)

    epochs = 1 if arguments.quick and arguments.epochs is None else arguments.epochs
    given = {"epochs": epochs, "peak_learning_rate": arguments.learning_rate}
    schedule: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    train(
        network,
        task.train_images,
        task.train_labels,
        seed=arguments.seed,
        on_epoch=progress,
        **schedule,
    )

    correct = int(np.sum(predict(network, task.unseen_images) == task.unseen_labels))
    count = len(task.unseen_labels)
    print(f"{correct} of {count} unseen images read correctly: {100 * correct / count:.2f} %")

    output = arguments.output or (None if arguments.quick else SHIPPED_MODEL)
    if output is not None:
        export_module(network, torch.rand(1, 1, IMAGE_SIZE, IMAGE_SIZE), output)
        print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
