"""The reference task: read 1,797 real handwritten digits with a small MobileNetV2-style network.

The images are scikit-learn's bundled digits, so the task needs no download. A network that reads
these digits with ease still does so with three-bit weights, which leaves a search for bit widths
nothing to find. Two things make bits matter, without favouring any way to spend them:

- The digits are photographed badly: reduced contrast, with sensor noise, under an illumination
  whose gradient across an image (a third of full intensity on average) is about as strong as
  the ink. This is part of the task's definition, fixed by a seed, and the same for training
  and for unseen images.
- The learning rate is low (0.0065). The weights stay near their random start, so that what they
  learned is in small differences, which coarse rounding erases.

Contrast and learning rate were chosen by the accuracy of float and of 3-bit weights on the unseen
images; no search method was looked at.

``benchmarks/train_digits.py`` holds the network, trains it and exports it with its batch
normalisations as separate nodes, as training toolkits leave them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantization.errors import DataError

CLASSES = 10
IMAGE_SIZE = 32
"""Height and width of an image, in pixels."""
TRAIN_COUNT = 900
"""Images the network learns from; the other 897 are the search's, unseen in training."""
CONTRAST = 0.4
"""Difference between ink and paper, as a share of the full intensity range [0, 1]."""
ILLUMINATION = 1.0
"""Peak-to-peak range of the illumination over all images and positions, in the same unit."""
NOISE = 0.02
"""Standard deviation of the sensor noise, as a share of the intensity range."""
SHIPPED_MODEL = Path(__file__).parent / "data" / "digits.onnx"
"""The trained network, written by ``benchmarks/train_digits.py``."""


@dataclass(frozen=True)
class DigitsTask:
    """Images and labels of the reference task.

    Images are float32 in [0, 1], shape (images, 1, 32, 32); labels are int64, shape (images,),
    in 0..9.
    """

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    unseen_images: NDArray[np.float32]
    unseen_labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        for images, labels in (
            (self.train_images, self.train_labels),
            (self.unseen_images, self.unseen_labels),
        ):
            if images.shape != (len(labels), 1, IMAGE_SIZE, IMAGE_SIZE):
                raise ValueError(f"{len(labels)} labels do not fit images of {images.shape}")


def load_digits_task(seed: int = 0) -> DigitsTask:
    """Rebuild the task from scikit-learn's digits; the same seed gives the same images.

    The 8x8 intensities are scaled to [0, 1] and enlarged to 32x32 bilinearly (pixel centres
    aligned, edges repeated). Image i is then

        x = 1/2 + ILLUMINATION * plane_i / 2 + CONTRAST * (digit_i - 1/2) + NOISE * normal,

    clipped to [0, 1], where plane_i = (a u + b v + c) / 3 with a, b, c uniform in [-1, 1] and
    u, v the pixel's position in (-1, 1).

    Args:
        seed: Draws illumination, noise and the split. The shipped network belongs to seed 0.

    Returns:
        900 training and 897 unseen images, split with the same share of every digit.

    Raises:
        DataError: if scikit-learn, which holds the digits, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise DataError(
            "the reference task needs scikit-learn: pip install 'quantmeter[demo]'"
        ) from None

    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    enlarge = bilinear_matrix(digits.images.shape[1], IMAGE_SIZE)
    clean = enlarge @ (np.asarray(digits.images) / 16.0) @ enlarge.T

    generator = np.random.default_rng(seed)
    a, b, c = generator.uniform(-1.0, 1.0, (3, len(clean), 1, 1))
    position = (np.arange(IMAGE_SIZE) + 0.5) * 2.0 / IMAGE_SIZE - 1.0
    plane = (a * position[:, None] + b * position[None, :] + c) / 3.0
    noise = generator.standard_normal(clean.shape)
    lit = 0.5 + ILLUMINATION * plane / 2.0 + CONTRAST * (clean - 0.5) + NOISE * noise
    images = np.clip(lit, 0.0, 1.0).astype(np.float32)[:, None]

    train, unseen = train_test_split(
        np.arange(len(labels)), train_size=TRAIN_COUNT, stratify=labels, random_state=seed
    )
    return DigitsTask(images[train], labels[train], images[unseen], labels[unseen])


def bilinear_matrix(size: int, target: int) -> NDArray[np.float64]:
    """Return the matrix that resamples ``size`` pixels to ``target`` by linear interpolation.

    Pixel centres are aligned and the edge pixels repeated, as in ``align_corners=False``.

    Returns:
        Shape (target, size); every row sums to 1.

    >>> bilinear_matrix(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    centre = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    left = np.floor(centre).astype(int)
    right = np.minimum(left + 1, size - 1)
    matrix = np.zeros((target, size))
    rows = np.arange(target)
    matrix[rows, left] += 1.0 - (centre - left)
    matrix[rows, right] += centre - left
    return matrix
