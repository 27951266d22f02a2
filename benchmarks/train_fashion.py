"""Train a network on Fashion-MNIST and write the model that the benchmarks use.

    python -m benchmarks.train_fashion mobilenet   # minutes; writes mobilenet.onnx in fashion/
    python -m benchmarks.train_fashion resnet
    python -m benchmarks.train_fashion mobilenet --quick   # 20 steps; writes where --output says

Sums in another order (threads, another processor) give other weights of the same quality.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.fashion.data import Images, Labels, flip_and_shift, load_fashion
from benchmarks.fashion.networks import NETWORKS, example, model_path
from quantization.torch_export import export_module

EPOCHS = {"mobilenet": 11, "resnet": 12}
_QUICK_IMAGES = 20 * 128


def train(
    network: nn.Module,
    images: Images,
    labels: Labels,
    *,
    epochs: int,
    batch: int = 128,
    peak_learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train `network` in place and leave it in evaluation mode.

    Nesterov SGD (momentum 0.9) under a one-cycle schedule, on images mirrored and moved at random.

    Args:
        network: takes (N, 1, 28, 28), gives logits (N, 10).
        images: (N, 1, 28, 28).
        labels: (N,).
        epochs: passes over the images.
        batch: images per step.
        peak_learning_rate: highest learning rate of the cycle.
        weight_decay: of every parameter.
        seed: draws the order of the images and the augmentation.
        on_epoch: called after every epoch with its number, from 1, and its mean loss.
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
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            x = flip_and_shift(all_images[chosen], generator)
            logits = network(x.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits, all_labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        if on_epoch is not None:
            on_epoch(epoch, total / len(images))
    network.eval()


def accuracy(network: nn.Module, images: Images, labels: Labels, batch: int = 128) -> float:
    """Return the share of images that `network`, in evaluation mode, reads correctly."""
    with torch.inference_mode():
        parts = torch.from_numpy(images).split(batch)  # type: ignore[no-untyped-call]
        found = [
            network(part.contiguous(memory_format=torch.channels_last)).argmax(1) for part in parts
        ]
    return float(np.mean(torch.cat(found).numpy() == labels))


def main() -> None:
    """Train, report the accuracy on unseen images, and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="20 steps, to see that it runs")
    parser.add_argument("--epochs", type=int, default=None, help="passes over the images")
    parser.add_argument("--seed", type=int, default=0, help="initial weights and augmentation")
    parser.add_argument("--data", type=Path, default=None, help="folder of Fashion-MNIST")
    parser.add_argument("--output", type=Path, default=None, help="default: beside the network")
    arguments = parser.parse_args()

    data = load_fashion(arguments.data)
    torch.manual_seed(arguments.seed)
    network = NETWORKS[arguments.name]()
    images, labels = data.train
    if arguments.quick:
        images, labels = images[:_QUICK_IMAGES], labels[:_QUICK_IMAGES]
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{parameters} parameters, {len(labels)} training images", flush=True)
    start = time.perf_counter()

    def progress(epoch: int, loss: float) -> None:
        print(f"epoch {epoch:3d}  loss {loss:.4f}  {time.perf_counter() - start:.0f} s", flush=True)

    epochs = arguments.epochs or (1 if arguments.quick else EPOCHS[arguments.name])
    train(network, images, labels, epochs=epochs, seed=arguments.seed, on_epoch=progress)
    for part in ("held_out", "test"):
        share = accuracy(network, *getattr(data, part))
        print(f"{part} accuracy: {100 * share:.2f} %", flush=True)
    output = arguments.output or (None if arguments.quick else model_path(arguments.name))
    if output is not None:
        export_module(network, example(), output)
        print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
