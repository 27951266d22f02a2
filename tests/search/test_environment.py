from dataclasses import replace

import numpy as np
import pytest

from costmodels.table import Once
from costmodels.units import Metric
from search.environment import Environment
from search.features import feature_names, static_features
from search.problem import Problem
from search.sampling import random_policies
from tests.search.networks import (
    CHOICES,
    NETWORKS,
    RICH_CHOICES,
    branches,
    chain,
    every_policy,
    problem,
    residual,
)

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


def assert_costs_add_up(given: Problem) -> None:
    index = every_policy(given)
    rollouts = Environment(given).replay(given.decide(index))
    priced = given.costs(index)
    for column, metric in enumerate(given.budgets):
        np.testing.assert_allclose(rollouts.spent[:, column], priced[metric], rtol=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_cost_so_far_ends_at_the_price(network, seed):
    given = problem(network(), seed, TWO, negative=True, masked=0.1, unsupported=0.1)
    assert_costs_add_up(given)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_cost_so_far_ends_at_the_price_with_half_precision(network):
    assert_costs_add_up(problem(network(), 0, TWO, choices=RICH_CHOICES, negative=True))


def test_the_cost_so_far_ends_at_the_price_with_ties():
    tied = residual().tied([("a", "d"), ("b", "c")])
    assert_costs_add_up(problem(tied, 1, TWO, negative=True))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_cost_so_far_ends_at_the_price_with_a_cost_that_is_paid_once(network, seed):
    assert_costs_add_up(problem(network(), seed, TWO, negative=True, masked=0.1, once=3.0))


def test_the_cost_so_far_ends_at_the_price_with_ties_and_a_cost_that_is_paid_once():
    tied = residual().tied([("a", "d"), ("b", "c")])
    assert_costs_add_up(problem(tied, 1, TWO, once=3.0))


def test_what_is_paid_once_is_charged_at_the_first_decision_that_brings_it_about():
    plain = problem(chain(), 0, {Metric.LATENCY: 0.7})
    table = plain.tables[Metric.LATENCY]
    cells = np.zeros(table.unary.value.shape, bool)
    cells[1:3, 0] = True
    charged = replace(table, once=Once(1.0, cells))
    given = Problem(chain(), CHOICES, {Metric.LATENCY: charged}, plain.budgets, plain.loss)
    row = np.array([[0, 0, 0, 2], [0, 2, 0, 2], [0, 2, 2, 0]], np.uint8)
    both = [Environment(p).begin(3) for p in (plain, given)]
    paid = []
    for choice in row.T:
        for rollouts in both:
            rollouts.step(choice.astype(np.intp))
        paid.append(np.round(both[1].spent[:, 0] - both[0].spent[:, 0], 9).tolist())
    assert paid == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0]]


def test_wide_fans_are_priced_without_a_table(monkeypatch):
    monkeypatch.setattr("search.environment._LARGEST_TABLE", 9)
    assert_costs_add_up(problem(branches(), 2, TWO, negative=True))


def test_a_cost_is_charged_when_its_last_decider_is_decided():
    given = problem(chain(), 0, TWO)
    environment = Environment(given)
    rows = np.array([[0, 2, 0, 0], [0, 2, 1, 2]], np.uint8)
    rollouts = environment.begin(2)
    for choice in rows[:, :2].T:
        rollouts.step(choice.astype(np.intp))
    same_prefix = rollouts.spent.copy()
    assert (same_prefix[0] == same_prefix[1]).all()
    # the conversion of a tensor between `a` and `b` is paid by the second step already
    table = given.tables[Metric.LATENCY]
    known = list(table.formats)
    a, b = (given.network.layer_names.index(name) for name in "ab")
    expected = table.constant + table.unary.value[a, 0] + table.unary.value[b, 2]
    glue = dict(zip(table.glue_names, table.glue.value, strict=True))
    narrow, wide = known.index(CHOICES[0].writes), known.index(CHOICES[2].writes)
    expected += glue["a.relu"][narrow] + glue["b.act"][wide]
    cells = dict(zip(table.tensors, table.conversion.value, strict=True))
    expected += cells["x"][wide, narrow] + cells["a.relu"][narrow, wide]
    assert rollouts.spent[0, 0] == pytest.approx(expected, rel=1e-12)


def test_the_state_shows_previous_choice_and_share_of_the_budget():
    given = problem(chain(), 0, TWO)
    environment = Environment(given)
    rollouts = environment.begin(3)
    choice = np.array([0, 1, 2])
    rollouts.step(choice)
    static = len(feature_names(given))
    state = rollouts.features[1]
    assert state.shape == (3, environment.feature_count)
    np.testing.assert_array_equal(state[:, static : static + 3], np.eye(3, dtype=np.float32))
    share = rollouts.spent / np.array(list(given.budgets.values()))
    np.testing.assert_allclose(state[:, static + 3 :], share, rtol=1e-6)
    assert not rollouts.features[0, :, static : static + 3].any()


def test_static_features_are_standardised_and_blind_to_masked_losses():
    given = problem(residual(), 4, TWO, masked=0.5)
    features = static_features(given)
    assert features.shape == (len(given.groups), len(feature_names(given)))
    losses = features[:, -len(CHOICES) :]
    assert not losses[~given.allowed_decisions].any()
    assert np.isfinite(features).all()
    assert np.abs(features.mean(0)).max() < 1e-5


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_repair_meets_the_budgets_or_says_that_it_did_not(network, seed):
    given = problem(network(), seed, TWO, negative=True, masked=0.2)
    index = random_policies(given, 200, np.random.default_rng(seed))
    before = index.copy()
    outcome = Environment(given).finish(given.decide(index))
    feasible = given.feasible(outcome.index)
    np.testing.assert_array_equal(index, before)
    np.testing.assert_array_equal(feasible, ~outcome.rejected)
    np.testing.assert_array_equal(outcome.repaired, feasible & ~given.feasible(index))
    np.testing.assert_array_equal(outcome.violation > 0, outcome.rejected)
    kept = given.feasible(index) | outcome.rejected
    np.testing.assert_array_equal(outcome.index[kept], index[kept])
    for metric, cost in given.costs(outcome.index).items():
        np.testing.assert_array_equal(outcome.costs[metric], cost)
