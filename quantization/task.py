"""A task of one's own: a torch module and the images that it is trained, searched and tested on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from quantization.errors import DataError
from quantization.quantizer import Float32Array

if TYPE_CHECKING:
    import torch

Labels = npt.NDArray[np.int64]
Augment = Callable[["torch.Tensor", "torch.Generator"], "torch.Tensor"]
"""Changes a batch of training images at random, drawn from the generator; same shape."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Images and their classes.

    Args:
        images: (N, ...) float32.
        labels: (N,) int64, classes from 0.

    Raises:
        DataError: if there are none, types or numbers do not fit, or a value is not finite.
    """

    images: Float32Array
    labels: Labels

    def __post_init__(self) -> None:
        if self.images.ndim < 2 or self.images.dtype != np.float32 or not len(self.images):
            found = f"{self.images.shape} {self.images.dtype}"
            raise DataError(f"images must be (N, ...) float32, at least one, not {found}")
        if not np.isfinite(self.images).all():
            raise DataError("images hold values that are not finite")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            found = f"{self.labels.shape} {self.labels.dtype}"
            raise DataError(f"labels must be ({len(self.images)},) int64, not {found}")
        if self.labels.min() < 0:
            raise DataError("classes are numbered from 0; a label is negative")

    @classmethod
    def of(cls, given: "Examples | tuple[Any, Any] | Iterable[tuple[Any, Any]]") -> "Examples":
        """Take a pair of arrays or tensors, or gather what a loader yields, batch by batch.

        A loader is read once: what it draws at random stays as drawn (see `Task.augment`).

        Raises:
            DataError: if it is none of these, or the arrays do not fit.
        """
        if isinstance(given, Examples):
            return given
        try:
            if isinstance(given, tuple):
                images, labels = (np.asarray(part) for part in given)
            else:
                pairs = [(np.asarray(x), np.asarray(y)) for x, y in given]
                images, labels = (np.concatenate(part) for part in zip(*pairs, strict=True))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"give (images, labels), or a loader of such batches: {error}"
            ) from None
        if images.dtype.kind == "f":
            images = images.astype(np.float32)
        if labels.dtype.kind in "iu":
            labels = labels.astype(np.int64)
        return cls(np.ascontiguousarray(images), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def drawn(self, count: int, seed: int) -> "Examples":
        """Return `count` of the examples (all, if there are fewer), drawn by `seed`."""
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return Examples(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class Task:
    """A classifier as a torch module, and its images.

    Args:
        module: takes (N, ...) images, gives logits (N, classes).
        train: what quantization-aware training learns from, and ranges come from.
        search: what searches score on.
        test: what results are reported on; neither training nor search sees it.
        augment: changes a batch of training images at random; None changes nothing.
        name: of the task, for reports.

    Raises:
        DataError: if the parts' images differ in shape.
    """

    module: "torch.nn.Module"
    train: Examples
    search: Examples
    test: Examples
    augment: Augment | None = None
    name: str = "task"

    def __post_init__(self) -> None:
        shapes = {part.images.shape[1:] for part in (self.train, self.search, self.test)}
        if len(shapes) > 1:
            raise DataError(f"images of the parts differ in shape: {sorted(shapes)}")
