import numpy as np
import pytest

from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.units import Metric
from quantization.errors import BudgetError, PolicyError
from search.problem import Problem
from tests.search.networks import (
    CHOICES,
    branches,
    chain,
    every_policy,
    problem,
    random_loss,
    random_table,
    residual,
)


def made(**changes):
    network = chain()
    tables = {Metric.LATENCY: random_table(network, Metric.LATENCY, 0)}
    fields = {
        "network": network,
        "choices": CHOICES,
        "tables": tables,
        "budgets": {Metric.LATENCY: 1.0},
        "loss": random_loss(network, 0),
    }
    return Problem(**{**fields, **changes})


def test_a_table_of_another_network_is_refused():
    with pytest.raises(TableError, match="another network"):
        made(tables={Metric.LATENCY: random_table(branches(), Metric.LATENCY, 0)})


def test_a_table_of_other_choices_is_refused():
    with pytest.raises(TableError, match="restrict it"):
        made(choices=CHOICES[1:], loss=random_loss(chain(), 0)[:, 1:])


def test_a_table_under_the_wrong_metric_is_refused():
    with pytest.raises(TableError, match="prices latency"):
        made(tables={Metric.SIZE: random_table(chain(), Metric.LATENCY, 0)}, budgets={})


def test_a_budget_needs_a_table_and_a_positive_value():
    with pytest.raises(BudgetError, match="needs a size table"):
        made(budgets={Metric.SIZE: 1.0})
    with pytest.raises(BudgetError, match="not positive"):
        made(budgets={Metric.LATENCY: 0.0})


def test_losses_are_checked_where_they_are_allowed_only():
    loss = random_loss(chain(), 0)
    with pytest.raises(PolicyError, match="shape"):
        made(loss=loss[:, 1:])
    with pytest.raises(PolicyError, match="negative"):
        made(loss=loss - 1)
    masked = random_table(chain(), Metric.LATENCY, 0, masked=1.0)
    loss[:, :-1] = np.nan
    assert np.isinf(made(tables={Metric.LATENCY: masked}, loss=loss).loss[:, :-1]).all()


def test_a_layer_without_a_choice_is_named():
    table = random_table(chain(), Metric.LATENCY, 0)
    unary = table.unary.value.copy()
    unary[2] = np.inf
    broken = type(table)(**{**vars(table), "unary": type(table.unary).of(unary, "assumed")})
    with pytest.raises(UnsupportedChoiceError, match="'c'"):
        made(tables={Metric.LATENCY: broken})


def test_the_mask_is_what_every_table_supports():
    tables = {
        m: random_table(residual(), m, seed, masked=0.4)
        for seed, m in enumerate((Metric.LATENCY, Metric.ENERGY))
    }
    given = Problem(residual(), CHOICES, tables, {}, random_loss(residual(), 0))
    expected = tables[Metric.LATENCY].supported & tables[Metric.ENERGY].supported
    np.testing.assert_array_equal(given.allowed, expected)
    index = every_policy(given)
    allowed = given.allowed[np.arange(index.shape[1]), index].all(1)
    np.testing.assert_array_equal(given.feasible(index), allowed)
    np.testing.assert_array_equal(np.isfinite(given.proxy_loss(index)), allowed)


def test_ties_are_decided_together():
    tied = residual().tied([("d", "a"), ("b", "c")])
    given = problem(tied, 0, {Metric.LATENCY: 2.0}, masked=0.2)
    assert [group.tolist() for group in given.groups] == [[0, 3], [1, 2], [4]]
    np.testing.assert_array_equal(given.decision_of, [0, 1, 1, 0, 2])
    np.testing.assert_array_equal(given.allowed_decisions[0], given.allowed[0] & given.allowed[3])
    index = given.expand(np.array([[1, 2, 0]], np.uint8))
    np.testing.assert_array_equal(index, [[1, 2, 2, 1, 0]])
    np.testing.assert_array_equal(given.decide(index), [[1, 2, 0]])
    torn = np.full((1, 5), 2, np.uint8)
    assert given.feasible(torn)[0]
    torn[0, 0] = 1
    assert not given.feasible(torn)[0]


def test_violation_is_zero_exactly_where_a_policy_is_within():
    given = problem(branches(), 1, {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}, unsupported=0.2)
    costs = given.costs(every_policy(given))
    violation = given.violation(costs)
    np.testing.assert_array_equal(violation == 0, given.within(costs))
    assert (violation >= 0).all()


def test_a_problem_without_tables_is_only_about_loss():
    given = made(tables={}, budgets={})
    assert given.feasible(every_policy(given)).all()
    assert given.proxy_loss(given.lowest_loss)[0] == 0.0
