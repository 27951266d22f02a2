"""Train a network on Fashion-MNIST and write the model that the benchmarks use.

    python -m benchmarks.train_fashion mobilenet   # minutes; writes mobilenet.onnx in fashion/
    python -m benchmarks.train_fashion resnet
    python -m benchmarks.train_fashion mobilenet --quick   # 20 steps; writes where --output says

Sums in another order (threads, another processor) give other weights of the same quality.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.fashion.data import Images, Labels, flip_and_shift, load_fashion
from benchmarks.fashion.networks import NETWORKS, example, model_path
from benchmarks.training import fit, predict
from quantization.torch_export import export_module

EPOCHS = {"mobilenet": 11, "resnet": 12}
_QUICK_IMAGES = 20 * 128


def accuracy(network: nn.Module, images: Images, labels: Labels) -> float:
    """Return the share of images that `network`, in evaluation mode, reads correctly."""
    return float(np.mean(predict(network, images) == labels))


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
    fit(
        network,
        images,
        labels,
        flip_and_shift,
        epochs=epochs,
        batch=128,
        peak_learning_rate=0.1,
        weight_decay=5e-4,
        seed=arguments.seed,
        on_epoch=progress,
    )
    for part in ("held_out", "test"):
        share = accuracy(network, *getattr(data, part))
        print(f"{part} accuracy: {100 * share:.2f} %", flush=True)
    output = arguments.output or (None if arguments.quick else model_path(arguments.name))
    if output is not None:
        export_module(network, example(), output)
        print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
