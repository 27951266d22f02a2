"""Fashion-MNIST: 70,000 real images of clothes (H. Xiao et al., arXiv:1708.07747) and their split.

The images come from the Debian package ``dataset-fashion-mnist`` and are not shipped here.
"""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from quantization.errors import DataError

CLASSES = 10
SIZE = 28
"""Height and width of an image, in pixels."""
FOLDER_VARIABLE = "FASHION_MNIST"
"""Environment variable that names another folder than the package's."""
PACKAGE_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TRAIN_COUNT, SEARCH_COUNT, HELD_OUT_COUNT = 55_000, 2_000, 3_000
MEAN, DEVIATION = 0.2860, 0.3530
"""Of the pixels of the 60,000 training images, as a share of full intensity."""
SHIFT = 2
"""Pixels by which training images are moved at most."""

_LABELS_MAGIC, _IMAGES_MAGIC = 0x801, 0x803

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FashionImages:
    """The images, standardised: float32 (N, 1, 28, 28); labels int64 (N,) in 0..9.

    Args:
        train: what networks learn from, 55,000.
        search: what searches score on, 2,000.
        held_out: 3,000 of the same source that neither training nor search saw.
        test: the 10,000 test images of the publication.
    """

    train: tuple[Images, Labels]
    search: tuple[Images, Labels]
    held_out: tuple[Images, Labels]
    test: tuple[Images, Labels]


def fashion_folder(folder: str | Path | None = None) -> Path:
    """Return the folder of the images: `folder`, else ``$FASHION_MNIST``, else the package's.

    Raises:
        DataError: if it holds no Fashion-MNIST; says how to get it.
    """
    path = Path(folder or os.environ.get(FOLDER_VARIABLE) or PACKAGE_FOLDER)
    if not (path / "train-images-idx3-ubyte.gz").is_file():
        raise DataError(
            f"no Fashion-MNIST in {path}; apt-get install dataset-fashion-mnist, or set "
            f"{FOLDER_VARIABLE} to its folder"
        )
    return path


def load_fashion(folder: str | Path | None = None, seed: int = 0) -> FashionImages:
    """Read Fashion-MNIST and split its 60,000 training images 55,000 / 2,000 / 3,000.

    Args:
        folder: of the four ``.gz`` files; None takes what `fashion_folder` finds.
        seed: of the split. The shipped networks belong to seed 0.

    Raises:
        DataError: if the files are absent or damaged.
    """
    path = fashion_folder(folder)
    images, labels = _read_pair(path, "train")
    order = np.random.default_rng(seed).permutation(len(images))
    train, search, held_out = np.split(order, [TRAIN_COUNT, TRAIN_COUNT + SEARCH_COUNT])
    return FashionImages(
        train=(images[train], labels[train]),
        search=(images[search], labels[search]),
        held_out=(images[held_out], labels[held_out]),
        test=_read_pair(path, "t10k"),
    )


def _read_pair(folder: Path, part: str) -> tuple[Images, Labels]:
    raw = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", _IMAGES_MAGIC)
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", _LABELS_MAGIC)
    if raw.shape != (len(labels), SIZE, SIZE):
        raise DataError(f"{folder}: {len(labels)} labels do not fit images of {raw.shape}")
    pixels = (raw.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(DEVIATION)
    return pixels[:, None], labels.astype(np.int64)


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    """Read an IDX file: magic number, one extent per axis (big-endian int32), then the bytes."""
    try:
        content = gzip.decompress(path.read_bytes())
        found, *shape = np.frombuffer(content, ">i4", 1 + magic % 256).tolist()
        values = np.frombuffer(content, np.uint8, offset=4 * (1 + magic % 256)).reshape(shape)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if found != magic:
        raise DataError(f"{path} is damaged: it begins with {found:#x}, not {magic:#x}")
    return values


def flip_and_shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image with probability 1/2 and move it by up to 2 pixels along each axis.

    Args:
        images: (N, 1, 28, 28), standardised; what comes in from outside is background.
        generator: draws flips and shifts.

    Returns:
        The same shape.
    """
    count, channels, height, width = images.shape
    background = -MEAN / DEVIATION
    padded = torch.nn.functional.pad(images, (SHIFT,) * 4, value=background)
    shifts = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator)
    flipped = torch.rand(count, 1, generator=generator) < 0.5
    rows = torch.arange(height) + shifts[0]
    columns = torch.where(flipped, torch.arange(width).flip(0), torch.arange(width)) + shifts[1]
    at = (torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None])
    return padded[(*at, rows[:, None, :, None], columns[:, None, None, :])]
