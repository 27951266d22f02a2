"""Forests: the same numbers as the library that grew them; damaged ones are refused."""

import json
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingRegressor

from costmodels.calibrated.fitting import _flat, grow
from costmodels.calibrated.forest import Forest
from costmodels.cells import FloatArray
from costmodels.errors import CostError


def _data(rows: int = 300, columns: int = 5) -> tuple[FloatArray, FloatArray]:
    random = np.random.default_rng(1)
    x = random.normal(0, 3, (rows, columns))
    return x, np.sin(x[:, 0]) + np.abs(x[:, 1]) + 0.1 * random.normal(size=rows)


@pytest.mark.parametrize("depth", [1, 3, 6])
@pytest.mark.parametrize("loss", ["huber", "squared_error"])
def test_a_flat_forest_predicts_what_scikit_learn_predicts(loss: str, depth: int) -> None:
    x, y = _data()
    model = GradientBoostingRegressor(
        loss=loss, n_estimators=20, max_depth=depth, learning_rate=0.3, random_state=0
    ).fit(x, y)
    base = float(np.ravel(model.init_.predict(x[:1]))[0])
    flat = _flat([tree.tree_ for tree in model.estimators_[:, 0]], base, model.learning_rate)
    # Rows that were trained on lie exactly on either side of thresholds; others lie anywhere.
    others = np.random.default_rng(2).normal(0, 5, (500, x.shape[1]))
    for rows in (x, others, others.round()):
        np.testing.assert_allclose(flat.predict(rows), model.predict(rows), rtol=0, atol=1e-6)


def test_rows_are_rounded_to_single_precision_as_scikit_learn_rounds_them() -> None:
    x, y = _data()
    x = x.round()  # thresholds at halves, which single precision holds exactly
    model = GradientBoostingRegressor(n_estimators=5, random_state=0).fit(x, y)
    base = float(np.ravel(model.init_.predict(x[:1]))[0])
    flat = _flat([tree.tree_ for tree in model.estimators_[:, 0]], base, model.learning_rate)
    barely = np.repeat((np.arange(-6, 6) + 0.5)[:, None] * (1 + 1e-10), x.shape[1], axis=1)
    np.testing.assert_allclose(flat.predict(barely), model.predict(barely), rtol=0, atol=1e-6)


def test_a_grown_forest_explains_what_it_was_grown_on() -> None:
    x, y = _data()
    found = grow(x, y, np.ones(len(y)), seed=0).predict(x)
    assert np.corrcoef(found, y)[0, 1] > 0.98


def test_rows_without_weight_do_not_matter() -> None:
    x, y = _data()
    wrong = y.copy()
    wrong[::3] += 50
    weights = np.where(np.arange(len(y)) % 3 == 0, 0.0, 1.0)
    kept = weights > 0
    found = grow(x, wrong, weights, seed=0, trees=60).predict(x[kept])
    assert np.abs(found - y[kept]).mean() < 1


def test_the_same_seed_grows_the_same_forest_and_another_another() -> None:
    x, y = _data(100)
    one, two, other = (grow(x, y, np.ones(100), seed, 10).predict(x) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_a_forest_survives_json_to_five_digits_per_leaf() -> None:
    x, y = _data()
    forest = grow(x, y, np.ones(len(y)), seed=0, trees=30)
    again = Forest.from_dict(json.loads(json.dumps(forest.to_dict(), allow_nan=False)))
    for name in ("feature", "threshold", "left", "right"):
        np.testing.assert_array_equal(getattr(again, name), getattr(forest, name))
    assert (again.base, again.depth) == (forest.base, forest.depth)
    np.testing.assert_allclose(again.value, forest.value, rtol=1e-4)
    np.testing.assert_allclose(again.predict(x), forest.predict(x), atol=1e-4)
    assert again.to_dict() == forest.to_dict(), "a second round trip changes nothing"


def _stump(**changed: Any) -> dict[str, Any]:
    """One tree: column 1 at most 0.5 gives 10, else 20; the base is 1."""
    return {
        "base": 1.0,
        "feature": [[1, 0, 0]],
        "threshold": [[0.5, None, None]],
        "left": [[1, 1, 2]],
        "right": [[2, 1, 2]],
        "value": [[0.0, 10.0, 20.0]],
        "depth": 1,
        **changed,
    }


def test_a_row_at_the_threshold_goes_left() -> None:
    rows = np.array([[9.0, 0.4], [9.0, 0.5], [-9.0, 0.6]])
    assert Forest.from_dict(_stump()).predict(rows).tolist() == [11.0, 11.0, 21.0]


def test_a_tree_that_is_a_single_leaf_adds_its_value() -> None:
    x, _ = _data(40)
    constant = grow(x, np.full(40, 3.0), np.ones(40), seed=0, trees=5)
    np.testing.assert_allclose(constant.predict(x), 3.0)
    leaf = _stump(feature=[[0]], threshold=[[None]], left=[[0]], right=[[0]], value=[[2.5]])
    assert Forest.from_dict({**leaf, "depth": 0}).predict(x).tolist() == [3.5] * 40


def test_no_rows_give_no_predictions() -> None:
    assert Forest.from_dict(_stump()).predict(np.zeros((0, 2))).shape == (0,)


def test_a_forest_without_trees_predicts_its_base() -> None:
    bare = _stump(feature=[], threshold=[], left=[], right=[], value=[])
    forest = Forest.from_dict({**bare, "base": 4.0, "depth": 0})
    assert forest.predict(np.zeros((3, 2))).tolist() == [4.0] * 3


@pytest.mark.parametrize(
    "damage",
    [
        {"left": [[1, 1, 3]]},
        {"right": [[5, 1, 2]]},
        {"left": [[-1, 1, 2]]},
        {"feature": [[-2, 0, 0]]},
    ],
)
def test_a_node_that_points_outside_its_tree_is_an_error(damage: dict[str, Any]) -> None:
    with pytest.raises(CostError, match="outside"):
        Forest.from_dict(_stump(**damage))


def test_arrays_that_differ_in_shape_are_an_error() -> None:
    good = Forest.from_dict(_stump())
    with pytest.raises(CostError, match="shape"):
        Forest(1.0, good.feature[:, :2], good.threshold, good.left, good.right, good.value, 1)
    one = np.zeros(3, np.int32)
    with pytest.raises(CostError, match="shape"):
        Forest(1.0, one, np.zeros(3), one, one, np.zeros(3), 1)


@pytest.mark.parametrize(
    "damage",
    [{"value": [[0.0, 10.0]]}, {"left": [[1, 1]]}, {"feature": [[1, 0, 0, 0]]}],
)
def test_arrays_of_a_file_that_differ_in_length_are_an_error(damage: dict[str, Any]) -> None:
    with pytest.raises((CostError, ValueError)):
        Forest.from_dict(_stump(**damage))
