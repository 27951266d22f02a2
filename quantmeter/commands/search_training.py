"""The options of ``quantmeter search`` that train, and how it tells what training found."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

from quantmeter.commands.options import positive, table

if TYPE_CHECKING:
    from quantmeter.trained import Trained
    from quantmeter.training import Training


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what is trained, and how long."""
    parser.add_argument(
        "--oracle",
        default="ptq",
        choices=("ptq", "qat"),
        help="what finds the accuracy of a policy: ptq, post-training quantization with statistics "
        "corrections (default), or qat, quantization-aware training of each policy; needs --task",
    )
    parser.add_argument(
        "--fine-tune",
        type=positive,
        default=0,
        metavar="K",
        help="train the K best policies found at length, and export the best of them with its "
        "trained weights and scales, as trained.onnx; needs --task",
    )
    parser.add_argument(
        "--qat-epochs", type=positive, metavar="N", help="of training, for each policy (default 5)"
    )
    parser.add_argument(
        "--fine-tune-epochs",
        type=positive,
        metavar="N",
        help="more of them, for each of the K best (default 50)",
    )
    parser.add_argument(
        "--qat-images",
        type=positive,
        metavar="N",
        help="training images of an epoch, drawn anew for each (default all)",
    )
    parser.add_argument(
        "--qat-learning-rate",
        type=float,
        metavar="X",
        help="at the start of training (default 0.01); falls to 0 along half a cosine",
    )


def training_of(arguments: argparse.Namespace) -> "Training":
    """Return what the arguments of `add_training` ask for beside the oracle."""
    from quantmeter.training import Training

    return Training(
        arguments.fine_tune,
        arguments.qat_epochs,
        arguments.fine_tune_epochs,
        arguments.qat_images,
        arguments.qat_learning_rate,
    )


def trained_lines(trained: "Trained") -> Iterator[str]:
    """Say how good the best trained network is, and what its file is."""
    best, test, floats = trained.best, trained.found.test_accuracy, trained.floats
    assert test is not None  # `train_best` tests what it returns
    epochs = " + ".join(str(count) for count in trained.epochs if count)
    which = "the best policy" if best.rank == 1 else f"policy {best.rank} of the search"
    yield f"training ({epochs} epochs): {which}, {best.accuracy:.2%} on the search images"
    said = "simulated" if best.model is None else "the exported file"
    yield (
        f"accuracy on the test images: {test.share:.2%} [{test.low:.2%}, {test.high:.2%}] trained "
        f"({said}), {floats.share:.2%} [{floats.low:.2%}, {floats.high:.2%}] float"
    )


def candidates_table(trained: "Trained") -> Table:
    """Return the candidates with their accuracies on the search images."""
    rows = table("Fine-tuned", "policy", "after phase 1", "after phase 2")
    for one in trained.candidates:
        mark = "*" if one is trained.best else " "
        later = "" if one.second is None else f"{one.second:.2%}"
        rows.add_row(f"{mark} {one.rank}", f"{one.first:.2%}", later)
    return rows
