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

from benchmarks.training import MobileNet, fit, predict
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


class DigitsNetwork(MobileNet):
    """Stem, six inverted residuals, head and classifier, for (N, 1, 32, 32)."""

    def __init__(self) -> None:
        super().__init__(_STEM_CHANNELS, _BLOCKS, _HEAD_CHANNELS, CLASSES)


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

    See `benchmarks.training.fit`; images are shifted and rotated at random.

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
    return fit(
        network,
        images,
        labels,
        _shift_and_rotate,
        epochs=epochs,
        batch=batch,
        peak_learning_rate=peak_learning_rate,
        seed=seed,
        on_epoch=on_epoch,
    )


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
