import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantization.errors import QuantmeterError
from search.dominance import hypervolume, non_dominated

POINTS = st.integers(1, 4).flatmap(
    lambda m: st.lists(st.tuples(*[st.integers(0, 5)] * m), min_size=1, max_size=9)
)


def unit_cells(points: np.ndarray, reference: np.ndarray) -> int:
    """Count the unit cells below the reference that some point of whole numbers dominates."""
    corners = itertools.product(*[range(int(r)) for r in reference])
    return sum(any((p <= c).all() for p in points) for c in map(np.array, corners))


@given(POINTS)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_hypervolume_counts_every_dominated_cell_once(points):
    values = np.array(points, np.float64)
    reference = np.full(values.shape[1], 5.0)
    assert hypervolume(values, reference) == unit_cells(values, reference)


@given(POINTS)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_the_front_is_what_no_point_dominates_each_once(points):
    values = np.array(points, np.float64)
    kept = non_dominated(values)
    front = {tuple(v) for v in values[kept]}
    assert len(front) == kept.sum()
    for value in values:
        beaten = ((values <= value).all(1) & (values < value).any(1)).any()
        assert (tuple(value) in front) is not beaten


def test_many_points_are_compared_across_blocks():
    values = np.random.default_rng(0).random((700, 2))
    values = np.concatenate([values, [[-1.0, -1.0]]])
    np.testing.assert_array_equal(np.flatnonzero(non_dominated(values)), [700])


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_the_hypervolume_is_that_of_optuna(objectives):
    optuna = pytest.importorskip("optuna._hypervolume")
    values = np.random.default_rng(objectives).random((40, objectives))
    reference = np.ones(objectives)
    expected = optuna.compute_hypervolume(values, reference)
    assert hypervolume(values, reference) == pytest.approx(expected, rel=1e-12)


def test_points_that_do_not_dominate_the_reference_count_nothing():
    values = np.array([[1.0, 3.0], [0.0, 4.0], [9.0, -9.0], [np.inf, 0.0]])
    assert hypervolume(values, np.array([4.0, 4.0])) == 3.0
    assert hypervolume(np.empty((0, 2)), np.array([4.0, 4.0])) == 0.0


@pytest.mark.parametrize("reference", [[1.0], [1.0, np.inf]])
def test_a_reference_that_does_not_fit_is_an_error(reference):
    with pytest.raises(QuantmeterError, match="reference"):
        hypervolume(np.zeros((3, 2)), np.array(reference))
