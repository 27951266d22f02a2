"""Which policies are timed."""

import itertools

import numpy as np
import pytest

from hil.design import Pattern, patterns


def _take(free: Pattern, seed: int, count: int) -> list[Pattern]:
    return list(itertools.islice(patterns(free, seed), count))


def _changes(pattern: Pattern) -> int:
    return int(np.count_nonzero(pattern[1:] != pattern[:-1]))


def test_patterns_follow_the_seed() -> None:
    free = np.ones(20, np.bool_)
    np.testing.assert_array_equal(_take(free, 5, 30), _take(free, 5, 30))
    assert not np.array_equal(_take(free, 5, 30), _take(free, 6, 30))


def test_a_masked_layer_is_never_an_integer() -> None:
    free = np.ones(20, np.bool_)
    free[[0, 7, 19]] = False
    drawn = np.array(_take(free, 0, 300))
    assert not drawn[:, ~free].any()
    assert drawn[:, free].any(axis=0).all()


def test_every_layer_is_soon_both_float_and_integer() -> None:
    for seed in range(10):
        drawn = np.array(_take(np.ones(53, np.bool_), seed, 24))
        assert drawn.any(axis=0).all()
        assert not drawn.all(axis=0).any()


def test_six_patterns_hold_three_of_runs_two_independent_and_one_single_swap() -> None:
    free = np.ones(60, np.bool_)
    drawn = np.array(_take(free, 1, 600)).reshape(100, 6, 60)
    swapped = drawn.sum(axis=2)
    assert np.isin(swapped[:, 5], (1, 59)).all()
    changes = np.array([[_changes(p) for p in kinds] for kinds in drawn])
    runs, independent = changes[:, [0, 2, 4]].mean(), changes[:, [1, 3]].mean()
    assert runs < independent / 2


def test_shares_of_integer_layers_are_balanced() -> None:
    drawn = np.array(_take(np.ones(40, np.bool_), 2, 600))
    assert 0.4 < drawn.mean() < 0.6
    assert (np.abs(drawn.mean(axis=0) - 0.5) < 0.12).all()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_networks_of_few_layers_have_patterns(layers: int) -> None:
    drawn = np.array(_take(np.ones(layers, np.bool_), 0, 60))
    assert drawn.shape == (60, layers)
    assert drawn.any()
    assert not drawn.all()
