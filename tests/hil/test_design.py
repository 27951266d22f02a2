"""Which policies are timed."""

import itertools

import numpy as np
import pytest

from hil.design import MIXTURE, Pattern, mixture, patterns


def _take(free: Pattern, seed: int, count: int) -> list[Pattern]:
    return list(itertools.islice(patterns(free, seed), count))


def _judges(free: Pattern, seed: int, count: int) -> list[Pattern]:
    return list(itertools.islice(mixture(free, seed), count))


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


def test_the_mixture_that_judges_is_drawn_apart_from_the_design() -> None:
    free = np.ones(60, np.bool_)
    for seed in range(5):
        fitted = {p.tobytes() for p in _take(free, seed, 600)}
        judging = _judges(free, seed, 300)
        independent = {p.tobytes() for p in judging[::3]}
        assert not fitted & independent
        # Runs and near-uniform ones may coincide: there are few that change their mind once.
        assert len(fitted & {p.tobytes() for p in judging}) < 40


def test_the_mixture_follows_its_seed_and_has_the_same_shares_for_every_one() -> None:
    free = np.ones(40, np.bool_)
    np.testing.assert_array_equal(_judges(free, 5, 30), _judges(free, 5, 30))
    shares = []
    for seed in range(8):
        assert not np.array_equal(_judges(free, seed, 30), _judges(free, seed + 1, 30))
        shares.append(np.mean(_judges(free, seed, 600)))
    assert max(abs(share - 0.5) for share in shares) < 0.06


def test_three_of_the_mixture_are_independent_layers_long_runs_and_near_uniform() -> None:
    assert MIXTURE == ("independent", "runs", "near-uniform")
    drawn = np.array(_judges(np.ones(64, np.bool_), 3, 900)).reshape(300, 3, 64)
    swapped = np.minimum(drawn.sum(axis=2), (~drawn).sum(axis=2))
    assert swapped[:, 2].min() == 1
    assert swapped[:, 2].max() == 64 // 8 + 1
    assert set(swapped[:, 2]) == set(range(1, 10))
    changes = np.array([[_changes(p) for p in kinds] for kinds in drawn]).mean(axis=0)
    assert changes[1] < changes[0] / 2
    assert swapped[:, 0].mean() > 2 * swapped[:, 2].mean()


@pytest.mark.parametrize("layers", [1, 2, 3, 7, 8, 20])
def test_near_uniform_patterns_swap_at_most_an_eighth_of_the_layers_and_one(layers: int) -> None:
    free = np.ones(layers, np.bool_)
    near = np.array(_judges(free, 0, 300))[2::3]
    swapped = np.minimum(near.sum(axis=1), (~near).sum(axis=1))
    assert swapped.max() <= max(1, layers // 8) + 1


def test_masked_layers_are_integer_in_no_judging_pattern() -> None:
    free = np.ones(20, np.bool_)
    free[[0, 7, 19]] = False
    drawn = np.array(_judges(free, 0, 300))
    assert not drawn[:, ~free].any()
    assert drawn[:, free].any(axis=0).all()
    assert not drawn[:, free].all(axis=0).any()
