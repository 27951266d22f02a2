"""Train the reference network on scikit-learn's digits and write the shipped model.

    python benchmarks/train_digits.py          # minutes; writes quantmeter/data/digits.onnx
    python benchmarks/train_digits.py --quick  # one epoch; writes only where --output says

The images are not shipped: ``quantmeter.reference_task.load_digits_task`` rebuilds them.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quantmeter.reference_task import (
    SHIPPED_MODEL,
    build_network,
    export_onnx,
    load_digits_task,
    predict,
    train,
)


def main() -> None:
    """Train, report the accuracy on the unseen images, and export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one epoch, to see that it runs")
    parser.add_argument("--epochs", type=int, default=None, help="passes over the images")
    parser.add_argument("--seed", type=int, default=0, help="initial weights and augmentation")
    parser.add_argument("--threads", type=int, default=None, help="torch threads")
    parser.add_argument("--output", type=Path, default=None, help=f"default {SHIPPED_MODEL}")
    arguments = parser.parse_args()

    import torch

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    task = load_digits_task()
    network = build_network(arguments.seed)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{parameters} parameters, {len(task.train_labels)} training images")

    start = time.perf_counter()

    def progress(epoch: int, loss: float) -> None:
        print(f"epoch {epoch:3d}  loss {loss:.4f}  {time.perf_counter() - start:.0f} s", flush=True)

    schedule = {"epochs": 1} if arguments.quick else {}
    if arguments.epochs is not None:
        schedule = {"epochs": arguments.epochs}
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
        export_onnx(network, output)
        print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
