"""Fits how much of its roofline each operator reaches; scikit-learn does the fitting."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.calibrated.device_model import GROUPS, START_S, Executed, Part, groups_of
from costmodels.calibrated.features import columns_of
from costmodels.calibrated.forest import Forest
from costmodels.calibrated.items import Items
from costmodels.calibrated.limits import Limits
from costmodels.calibrated.samples import Overhead, Sample
from costmodels.cells import BoolArray, FloatArray, TextArray
from costmodels.errors import BackendError

_TREES, _FEWER_TREES, _DEPTH, _RATE, _LEAST, _SHARE, _COLUMNS = 250, 100, 5, 0.08, 6, 0.6, 0.4
_FULL_WEIGHT_SHARE, _LEAST_WEIGHT = 0.02, 0.05
"""Rows that take less of their network's run count for less: they decide less."""
_OFTEN = 60
"""A neighbour that is seen in fewer rows has no column of its own."""


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of some samples, one after the other.

    Args:
        items: (N) rows.
        integer: (N,) whether each reads integers.
        seconds: (N,) undisturbed; 0 for what was taken over.
        executed: (N,) whether it was not taken over.
        share: (N,) seconds over those of the whole run.
    """

    items: Items
    integer: BoolArray
    seconds: FloatArray
    executed: BoolArray
    share: FloatArray

    @classmethod
    def of(cls, samples: Sequence[Sample], overhead: Overhead) -> "Rows":
        """Collect the rows of `samples`."""
        seconds = [overhead.undisturbed_s(sample) for sample in samples]
        totals = [sample.total_s for sample in samples]
        return cls(
            Items.joined([sample.items for sample in samples]),
            np.concatenate([sample.integer for sample in samples]),
            np.concatenate(seconds),
            np.concatenate([sample.nodes > 0 for sample in samples]),
            np.concatenate([s / total for s, total in zip(seconds, totals, strict=True)]),
        )


def fit_parts(rows: Rows, limits: Limits, seed: int) -> dict[str, Part]:
    """Fit the trees of every group; see `fit_part`.

    Raises:
        BackendError: if a group has too few rows, or scikit-learn is not installed.
    """
    return {name: fit_part(rows, name, limits, seed) for name in GROUPS}


def fit_part(rows: Rows, name: str, limits: Limits, seed: int) -> Part:
    """Fit the trees of one group.

    Args:
        rows: what was measured, of all groups.
        name: one of `GROUPS`.
        limits: the device's roofline.
        seed: of the shares of rows that trees see.

    Raises:
        BackendError: if it has too few rows, or scikit-learn is not installed.
    """
    near = [*rows.items.maker.tolist(), *rows.items.reader.tolist()]
    names, counts = np.unique(near, return_counts=True)
    neighbours = tuple(str(each) for each in names[counts >= _OFTEN])
    here = (groups_of(rows.items, rows.integer) == name) & rows.executed
    if here.sum() < 2 * _LEAST:
        raise BackendError(f"too little was measured of {name}: give more time")
    items, integer, seconds = rows.items.at(here), rows.integer[here], rows.seconds[here]
    kinds = tuple(sorted(set(items.kind.tolist())))
    target = np.log(seconds / (limits.bound_s(items, integer) + START_S))
    weights = np.clip(rows.share[here] / _FULL_WEIGHT_SHARE, _LEAST_WEIGHT, 1.0)
    columns = columns_of(items, integer, limits, kinds, neighbours)
    return Part(kinds, neighbours, grow(columns, target, weights, seed))


def fit_executed(rows: Rows, parts: Mapping[str, Part], limits: Limits, seed: int) -> Executed:
    """Learn how often operators are executed by themselves.

    Args:
        rows: what was measured.
        parts: as `fit_parts` returned them.
        limits: the device's roofline.
        seed: of the shares of rows that trees see.
    """
    glue = parts[GROUPS[2]]
    near, kind = (_shares(rows, names) for names in (rows.items.near, rows.items.kind))
    here = groups_of(rows.items, rows.integer) == GROUPS[2]
    items, integer, executed = rows.items.at(here), rows.integer[here], rows.executed[here]
    listed = Executed(near, kind, glue.forest).listed(items, integer)
    columns = np.column_stack([glue.columns(items, integer, limits), listed])
    target, weights = executed.astype(np.float64), np.ones(len(items))
    return Executed(near, kind, grow(columns, target, weights, seed, _FEWER_TREES))


def _shares(rows: Rows, names: TextArray) -> dict[str, float]:
    """Share of the rows of a name and format that were executed."""
    words = np.where(rows.integer, "integer", "float")
    seen = defaultdict(list)
    for name, word, executed in zip(names, words, rows.executed, strict=True):
        seen[f"{name}, {word}"].append(executed)
    return {key: round(float(np.mean(found)), 4) for key, found in seen.items()}


def grow(
    rows: FloatArray, target: FloatArray, weights: FloatArray, seed: int, trees: int = _TREES
) -> Forest:
    """Grow boosted trees (Friedman, Annals of Statistics 29, 2001) with Huber's loss.

    Args:
        rows: (N, F).
        target: (N,).
        weights: (N,) of the rows.
        seed: of the shares of rows that trees see.
        trees: how many.

    Raises:
        BackendError: if scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import GradientBoostingRegressor
    except ImportError:
        raise BackendError(
            "calibrating a device needs scikit-learn: pip install 'quantmeter[calibrate]'"
        ) from None
    model = GradientBoostingRegressor(
        loss="huber",
        n_estimators=trees,
        learning_rate=_RATE,
        max_depth=_DEPTH,
        min_samples_leaf=_LEAST,
        subsample=_SHARE,
        max_features=_COLUMNS,
        random_state=seed,
        alpha=0.95,
    )
    model.fit(rows, target, sample_weight=weights)
    base = float(np.asarray(model.init_.predict(rows[:1])).ravel()[0])
    return _flat([tree.tree_ for tree in model.estimators_[:, 0]], base, model.learning_rate)


def _flat(trees: Sequence[Any], base: float, rate: float) -> Forest:
    """Write trees of different sizes into arrays of one shape."""
    most = max(tree.node_count for tree in trees)
    shape = len(trees), most
    feature, left, right = (np.zeros(shape, np.int32) for _ in range(3))
    threshold, value = np.full(shape, np.inf), np.zeros(shape)
    left[:] = right[:] = np.arange(most)
    for t, tree in enumerate(trees):
        count = tree.node_count
        inner = tree.children_left >= 0
        feature[t, :count] = np.where(inner, tree.feature, 0)
        threshold[t, :count] = np.where(inner, tree.threshold, np.inf)
        left[t, :count] = np.where(inner, tree.children_left, np.arange(count))
        right[t, :count] = np.where(inner, tree.children_right, np.arange(count))
        value[t, :count] = rate * tree.value[:, 0, 0]
    depth = max(tree.max_depth for tree in trees)
    return Forest(base, feature, threshold, left, right, value, depth)
