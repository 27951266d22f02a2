"""Examples and tasks: what is taken, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from quantization.errors import DataError
from quantization.task import Examples, Task

IMAGES = np.arange(24, dtype=np.float32).reshape(6, 4)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.mark.parametrize(
    "given",
    [
        (IMAGES, LABELS),
        (IMAGES.astype(np.float64), LABELS.astype(np.uint8)),
        (torch.from_numpy(IMAGES), torch.from_numpy(LABELS)),
        DataLoader(TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)), 4),
    ],
    ids=["arrays", "other types", "tensors", "loader"],
)
def test_arrays_tensors_and_loaders_give_the_same_examples(given: Any) -> None:
    examples = Examples.of(given)
    np.testing.assert_array_equal(examples.images, IMAGES)
    np.testing.assert_array_equal(examples.labels, LABELS)
    assert (examples.images.dtype, examples.labels.dtype) == (np.float32, np.int64)
    assert Examples.of(examples) is examples


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((IMAGES, LABELS[1:]), r"\(6,\) int64"),
        ((IMAGES, LABELS.astype(np.float32)), "int64"),
        ((IMAGES, LABELS - 1), "negative"),
        ((np.full_like(IMAGES, np.inf), LABELS), "finite"),
        ((IMAGES[:0], LABELS[:0]), "at least one"),
        ((LABELS, LABELS), "float32"),
        ((IMAGES, LABELS, LABELS), r"\(images, labels\)"),
        (7, "loader"),
        ([], "loader"),
    ],
)
def test_what_does_not_fit_is_refused(given: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Examples.of(given)


def test_examples_are_drawn_by_the_seed_without_repetition() -> None:
    examples = Examples(IMAGES, LABELS)
    drawn = examples.drawn(4, 0)
    assert len({image.tobytes() for image in drawn.images}) == 4
    for image, label in zip(drawn.images, drawn.labels, strict=True):
        assert LABELS[int(image[0]) // 4] == label
    np.testing.assert_array_equal(drawn.images, examples.drawn(4, 0).images)
    assert len(examples.drawn(100, 0)) == 6


def test_a_task_whose_parts_differ_in_shape_is_refused() -> None:
    small, wide = Examples(IMAGES, LABELS), Examples(IMAGES.repeat(2, 1), LABELS)
    with pytest.raises(DataError, match="differ in shape"):
        Task(torch.nn.Linear(4, 3), small, small, wide)
