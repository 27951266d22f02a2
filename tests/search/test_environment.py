from dataclasses import replace

import numpy as np
import pytest

from costmodels.table import Once
from costmodels.units import Metric
from search.environment import Environment
from search.features import static_features
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
    replayed,
    residual,
)

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


def assert_costs_add_up(given: Problem) -> None:
    index = every_policy(given)
    rollouts = replayed(Environment(given), given.decide(index))
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
    monkeypatch.setattr("search.settling._LARGEST_TABLE", 9)
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


def test_the_state_shows_previous_choice_and_shares_of_each_budget():
    given = problem(chain(), 0, TWO)
    environment = Environment(given)
    rollouts = environment.begin(3)
    choice = np.array([0, 1, 2])
    rollouts.step(choice)
    static = static_features(given).shape[1]
    state = rollouts.features[1]
    assert state.shape == (3, environment.feature_count)
    np.testing.assert_array_equal(state[:, static : static + 3], np.eye(3, dtype=np.float32))
    limits = np.array(list(given.budgets.values()))
    latency, energy, size = np.split(state[:, static + 3 :], 3, axis=1)
    assert not energy.any()  # no such budget
    for at, shown in enumerate((latency, size)):
        assert (shown[:, 0] == 1.0).all()
        spent = rollouts.spent[:, at] / limits[at]
        needed = environment.needed[1, at] / limits[at]
        np.testing.assert_allclose(shown[:, 1], spent, rtol=1e-6)
        np.testing.assert_allclose(shown[:, 2], needed, rtol=1e-6)
    assert not rollouts.features[0, :, static : static + 3].any()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("once", [0.0, 1.0])
def test_no_policy_pays_less_than_what_is_still_needed_at_best(network, seed, once, monkeypatch):
    if seed == 3:  # wide fans are bounded too
        monkeypatch.setattr("search.settling._LARGEST_TABLE", 9)
    given = problem(network(), seed, TWO, negative=True, masked=0.1, unsupported=0.05, once=once)
    environment = Environment(given)
    index = given.expand(given.decide(every_policy(given)))
    index = index[given.allowed[np.arange(index.shape[1]), index].all(1)]
    rollouts = environment.begin(len(index))
    total = replayed(environment, given.decide(index)).spent
    for step, choice in enumerate(given.decide(index).T):
        least = rollouts.spent + environment.needed[step]
        assert (least <= total * (1 + 1e-9) + 1e-12).all()
        rollouts.step(choice.astype(np.intp))
    assert not environment.needed[-1].any()


@pytest.mark.parametrize("seed", range(3))
def test_without_conversions_the_bound_is_reached(seed):
    given = plain(problem(residual(), seed, {Metric.SIZE: 0.6}))
    environment = Environment(given)
    [cost] = given.costs(every_policy(given)).values()
    constant = given.tables[Metric.SIZE].constant
    assert constant + environment.needed[0, 0] == pytest.approx(cost.min(), rel=1e-12)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_masking_never_excludes_a_feasible_policy(network, seed):
    given = problem(network(), seed, TWO, negative=True, masked=0.1)
    index = every_policy(given)
    index = index[given.feasible(index)]
    rollouts = Environment(given, "mask").begin(len(index))
    for choice in given.decide(index).T:
        allowed = rollouts.allowed()
        assert allowed[np.arange(len(index)), choice].all()
        rollouts.step(choice.astype(np.intp))


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_converts_what_the_mask_leaves_is_feasible(seed):
    given = plain(problem(residual(), seed, {Metric.SIZE: 0.6}))
    rng = np.random.default_rng(seed)
    rollouts = Environment(given, "mask").begin(100)
    hidden = 0
    for step in range(len(given.groups)):
        allowed = rollouts.allowed()
        assert not (allowed & ~given.allowed_decisions[step]).any()
        hidden += int((given.allowed_decisions[step] & ~allowed).sum())
        rollouts.step((rng.random(allowed.shape) * allowed).argmax(1))
    assert hidden > 0
    assert given.feasible(given.expand(rollouts.decisions)).all()


def plain(given: Problem) -> Problem:
    """The same problem without glue and conversions."""
    tables = {
        metric: replace(
            table,
            glue=type(table.glue).of(np.zeros_like(table.glue.value), "assumed"),
            conversion=type(table.glue).of(np.zeros_like(table.conversion.value), "assumed"),
        )
        for metric, table in given.tables.items()
    }
    free = Problem(given.network, given.choices, tables, {}, given.loss)
    widest = np.full((1, len(given.network.layers)), len(given.choices) - 1, np.uint8)
    share = {m: b / given.costs(widest)[m][0] for m, b in given.budgets.items()}
    budgets = {m: float(s * free.costs(widest)[m][0]) for m, s in share.items()}
    return Problem(given.network, given.choices, tables, budgets, given.loss)


def test_features_are_finite_and_blind_to_masked_losses():
    given = problem(residual(), 4, TWO, masked=0.5)
    features = static_features(given)
    assert features.shape == (len(given.groups), 10 + 2 * len(given.choices))
    of_choices = features[:, -2 * len(CHOICES) :]
    assert not of_choices[np.tile(~given.allowed_decisions, 2)].any()
    assert np.isfinite(features).all()
    assert np.abs(features).max() <= 5


def test_features_mean_the_same_in_other_units_and_with_other_budgets():
    given = problem(residual(), 0, {Metric.LATENCY: 0.7})
    other = problem(residual(), 0, {Metric.LATENCY: 0.6, Metric.SIZE: 0.9})
    louder = Problem(other.network, CHOICES, other.tables, other.budgets, 100 * given.loss)
    assert Environment(given).feature_count == Environment(louder).feature_count
    np.testing.assert_allclose(static_features(given), static_features(louder), rtol=1e-6)


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
