"""Boosted regression trees as plain arrays: read from JSON, evaluated without any library.

They are grown by scikit-learn (`costmodels.calibrated.fitting`); a forest that was read back gives
the numbers that the library's own model gives, to rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.cells import FloatArray
from costmodels.errors import CostError

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Forest:
    """A sum of trees over rows of numbers.

    Node n of tree t sends a row to ``left[t, n]`` if its column ``feature[t, n]`` is at most
    ``threshold[t, n]``, else to ``right[t, n]``. A leaf points to itself.

    Args:
        base: what the sum starts from.
        feature: (T, N) columns; 0 in leaves.
        threshold: (T, N); infinite in leaves.
        left: (T, N) nodes.
        right: (T, N) nodes.
        value: (T, N) what a tree adds for rows that end in a node.
        depth: steps after which every row has ended.

    Raises:
        CostError: if shapes differ, or a node points outside its tree.
    """

    base: float
    feature: IntArray
    threshold: FloatArray
    left: IntArray
    right: IntArray
    value: FloatArray
    depth: int

    def __post_init__(self) -> None:
        shape = self.value.shape
        arrays = (self.feature, self.threshold, self.left, self.right)
        if len(shape) != 2 or any(array.shape != shape for array in arrays):
            raise CostError("the arrays of a forest differ in shape")
        if shape[0]:
            lowest = min(int(self.left.min()), int(self.right.min()), int(self.feature.min()))
            if lowest < 0 or max(int(self.left.max()), int(self.right.max())) >= shape[1]:
                raise CostError("a node of a forest points outside its tree")

    def predict(self, rows: FloatArray) -> FloatArray:
        """Return the sum of all trees for each of `rows`, (M, F); (M,)."""
        trees, nodes = self.value.shape
        start = (np.arange(trees, dtype=np.int32) * nodes)[:, None]
        feature, left, right = self.feature.ravel(), self.left + start, self.right + start
        left, right, threshold = left.ravel(), right.ravel(), self.threshold.ravel()
        # Thresholds were found on single precision.
        columns = rows.astype(np.float32).T.ravel()
        first, row = feature * np.int32(len(rows)), np.arange(len(rows), dtype=np.int32)
        at = np.broadcast_to(start, (trees, len(rows)))
        for _ in range(self.depth):
            goes_left = columns.take(first.take(at) + row) <= threshold.take(at)
            at = np.where(goes_left, left.take(at), right.take(at))
        return np.asarray(self.base + self.value.ravel().take(at).sum(axis=0), np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return the trees as JSON values; null stands for the threshold of a leaf."""
        finite = np.isfinite(self.threshold)
        thresholds = np.where(finite, self.threshold, 0.0).astype(object)
        thresholds[~finite] = None
        return {
            "base": self.base,
            "feature": self.feature.tolist(),
            "threshold": thresholds.tolist(),
            "left": self.left.tolist(),
            "right": self.right.tolist(),
            "value": np.vectorize(lambda v: float(f"{v:.5g}"), otypes=[float])(self.value).tolist(),
            "depth": self.depth,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Forest":
        """Read what `to_dict` wrote.

        Raises:
            CostError: if shapes differ, or a node points outside its tree.
        """
        threshold = np.array(
            [[np.inf if v is None else v for v in tree] for tree in values["threshold"]], np.float64
        )
        shape = threshold.shape if threshold.ndim == 2 else (0, 0)
        integers = (
            np.array(values[n], np.int32).reshape(shape) for n in ("feature", "left", "right")
        )
        feature, left, right = integers
        value = np.array(values["value"], np.float64).reshape(shape)
        base, depth = float(values["base"]), int(values["depth"])
        return cls(base, feature, threshold.reshape(shape), left, right, value, depth)
