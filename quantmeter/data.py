"""Images that the network never saw, and their split into ranges, search and test."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantization.errors import DataError
from quantization.quantizer import Float32Array

SHARES = {"ranges": 0.2, "search": 0.4, "test": 0.4}
_FEWEST = 10

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Data:
    """Images and, if known, their classes.

    Args:
        x: (N, ...) float32.
        y: (N,) integer classes, or None.

    Raises:
        DataError: if shapes or types do not fit, or there are too few images to split.
    """

    x: Float32Array
    y: Labels | None

    def __post_init__(self) -> None:
        if self.x.ndim < 2 or self.x.dtype != np.float32:
            raise DataError(f"x must be (N, ...) float32, not {self.x.shape} {self.x.dtype}")
        if not np.isfinite(self.x).all():
            raise DataError("x holds values that are not finite")
        if len(self.x) < _FEWEST:
            raise DataError(f"{len(self.x)} images cannot be split; give at least {_FEWEST}")
        if self.y is not None and (
            self.y.shape != (len(self.x),) or not np.issubdtype(self.y.dtype, np.integer)
        ):
            raise DataError(
                f"y must be ({len(self.x)},) integers, not {self.y.shape} {self.y.dtype}"
            )


@dataclass(frozen=True, eq=False)
class Split:
    """Positions of the images of each part; disjoint, together all."""

    ranges: npt.NDArray[np.int64]
    search: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    seed: int

    @property
    def sizes(self) -> list[int]:
        """Images of the parts, in their order."""
        return [len(getattr(self, name)) for name in SHARES]

    def to_dict(self) -> dict[str, object]:
        """Return the split as JSON values, for the run's record."""
        parts = {name: getattr(self, name).tolist() for name in SHARES}
        return {"seed": self.seed, **parts}


def read_data(path: str | Path) -> Data:
    """Read a ``.npz`` file with `x` and, optionally, `y`.

    Raises:
        DataError: if the file is missing, no archive, or its arrays do not fit; names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in ("x", "y") if key in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception:  # damaged files make zip, zlib and numpy's parser raise almost anything
        raise DataError(f"{path}: not a .npz archive of plain arrays") from None
    if "x" not in arrays:
        raise DataError(f"{path}: holds no array x of images")
    labels = arrays.get("y")
    if labels is not None and np.issubdtype(labels.dtype, np.integer):
        labels = labels.astype(np.int64)
    try:
        return Data(arrays["x"], labels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def split_data(data: Data, seed: int) -> Split:
    """Split images 20 / 40 / 40, each class in proportion, by `seed`.

    Identical images go into one part: what the search saw is never in the test part.
    """
    draw = np.random.default_rng(seed)
    classes = np.zeros(len(data.x), np.int64) if data.y is None else data.y
    bounds = np.cumsum(list(SHARES.values()))[:-1]
    seen: dict[bytes, int] = {}  # an image's bytes to its first position
    first = np.array([seen.setdefault(image.tobytes(), i) for i, image in enumerate(data.x)])
    single = first == np.arange(len(first))
    # Rounding runs on from class to class, so that rare classes do not empty a part.
    order = np.concatenate(
        [
            draw.permutation(np.flatnonzero(single & (classes == c)))
            for c in draw.permutation(np.unique(classes[single]))
        ]
    )
    phase = (np.arange(len(order)) * _GOLDEN) % 1.0
    part_of = np.empty(len(first), np.int64)
    part_of[order] = np.searchsorted(bounds, phase, side="right")
    ranges, search, test = (np.flatnonzero(part_of[first] == part) for part in range(len(SHARES)))
    if min(map(len, (ranges, search, test))) == 0:
        raise DataError(f"only {len(order)} of {len(first)} images differ; a part would be empty")
    return Split(ranges, search, test, seed)


_GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1, fill [0, 1) evenly over any stretch of a sequence."""
