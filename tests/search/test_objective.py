import numpy as np

from costmodels.units import Metric
from search.objective import Penalty
from search.reinforce import Reinforce, ReinforceConfig
from tests.search.networks import CHOICES, deep, problem, residual

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


def costs_of(made, shares):
    return {m: np.array(s) * made.budgets[m] for m, s in zip(made.budgets, shares, strict=True)}


def test_an_excess_of_ten_per_cent_first_costs_one_deviation():
    penalty = Penalty(problem(residual(), 0, TWO), target=0.3, rate=0.0)
    rewards = penalty.take_in(np.array([1.0, 3.0]), costs_of(penalty.problem, ([1.1, 0.9], [1, 1])))
    np.testing.assert_allclose(rewards, [1.0 - 1.0, 3.0], atol=1e-12)


def test_each_weight_follows_the_violations_of_its_own_budget():
    penalty = Penalty(problem(residual(), 0, TWO), target=0.5, rate=1.0)
    costs = costs_of(penalty.problem, ([2.0, 2.0], [0.5, 0.5]))
    penalty.take_in(np.array([0.0, 2.0]), costs)
    np.testing.assert_allclose(penalty.weights, [10 * np.exp(0.5), 10 * np.exp(-0.5)])


def test_what_is_infeasible_as_measured_does_not_set_the_weights():
    penalty = Penalty(problem(residual(), 0, TWO), target=0.5, rate=0.0)
    rewards = penalty.take_in(
        np.array([-np.inf, 1.0, 3.0]), costs_of(penalty.problem, ([1.0] * 3, [2.0] * 3))
    )
    assert rewards[0] == -np.inf
    assert np.isfinite(penalty.weights).all()
    alone = Penalty(penalty.problem, target=0.5, rate=0.0)
    assert alone.take_in(np.array([-np.inf]), costs_of(penalty.problem, ([1.0], [1.0]))) == -np.inf
    assert alone.weights is None


def test_a_soft_budget_is_explored_on_both_sides_and_what_is_returned_keeps_it():
    made = problem(deep(), 2, TWO, choices=CHOICES)
    config = ReinforceConfig(hidden=32, learning_rate=3e-3, constraint="soft")
    result = Reinforce(config).search(made, lambda i: -made.proxy_loss(i), evaluations=300, seed=0)
    met = made.feasible(np.array([trial.index for trial in result.trials]))
    assert 0 < met.sum() < len(met)
    assert result.archive
    assert made.feasible(np.array([trial.index for trial in result.archive])).all()
    half = len(met) // 2
    assert met[half:].mean() > met[:half].mean()  # the penalty pulls back
