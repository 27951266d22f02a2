import json
from dataclasses import replace

import numpy as np
import pytest

from costmodels.units import Metric
from quantization.errors import BudgetError
from search.pareto import (
    best_within,
    by_tables,
    front_volume,
    pareto_front,
    proxy_front,
    with_trials,
    within_others,
)
from search.problem import Problem
from search.searcher import Evaluate, Trial
from tests.search.networks import NETWORKS, chain, every_policy, problem

LATENCY, SIZE = Metric.LATENCY, Metric.SIZE


def trial(score: float, latency: float, size: float = 1.0, loss: float = 0.0) -> Trial:
    return Trial(np.zeros(1, np.uint8), score, loss, {LATENCY: latency, SIZE: size}, "test")


def by_loss(given: Problem) -> Evaluate:
    return lambda index: -given.proxy_loss(index)


TRIALS = (
    trial(0.9, 5.0, 2.0),
    trial(0.8, 3.0, 3.0),
    trial(0.8, 4.0, 1.0),
    trial(-np.inf, 1.0, 0.1),
    trial(0.7, 4.5, 2.0),
    trial(0.9, 5.0, 2.0),
)


def test_the_front_holds_what_no_trial_beats_cheapest_first():
    assert pareto_front(TRIALS, [LATENCY]) == (TRIALS[1], TRIALS[0])
    assert pareto_front(TRIALS, [LATENCY, SIZE]) == (TRIALS[1], TRIALS[2], TRIALS[0])
    assert pareto_front(TRIALS, [SIZE]) == (TRIALS[2], TRIALS[0])
    assert pareto_front((), [SIZE]) == ()


def test_the_volume_is_that_between_the_front_and_the_worst():
    # 0.3 more accuracy over 2 s less, and a further 0.1 over 1 s less
    volume = front_volume(TRIALS[:2], 0.5, {LATENCY: 6.0})
    assert volume == pytest.approx(0.3 * 3.0 + 0.1 * 1.0)
    assert front_volume(TRIALS, 0.95, {LATENCY: 6.0}) == 0.0


def test_a_run_answers_every_smaller_budget():
    assert best_within(TRIALS, {LATENCY: 5.0}) is TRIALS[0]
    assert best_within(TRIALS, {LATENCY: 4.9}) is TRIALS[1]
    assert best_within(TRIALS, {LATENCY: 4.9, SIZE: 2.0}) is TRIALS[2]
    assert best_within(TRIALS, {LATENCY: 2.0}) is None
    least = replace(TRIALS[0], loss=-1.0)
    assert best_within((*TRIALS, least), {}) is least


def test_a_metric_that_the_trials_lack_is_named():
    with pytest.raises(BudgetError, match="energy"):
        best_within(TRIALS, {Metric.ENERGY: 1.0})
    with pytest.raises(BudgetError, match="energy"):
        pareto_front(TRIALS, [Metric.ENERGY])
    with pytest.raises(BudgetError, match="such as latency"):
        pareto_front(TRIALS, [])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_proxy_front_is_that_of_all_policies(network):
    given = problem(network(), 2, {LATENCY: 1.0, SIZE: 0.8}, negative=True)
    count = 9
    points = proxy_front(given, LATENCY, count)
    index = every_policy(given)
    free = replace(given, budgets={SIZE: given.budgets[SIZE]})
    index = index[free.feasible(index)]
    cost, loss = given.costs(index)[LATENCY], given.proxy_loss(index)
    assert 3 <= len(points) <= count
    assert points[0].solution.costs[LATENCY] == pytest.approx(cost.min())
    assert points[-1].solution.loss == pytest.approx(loss.min())
    costs = [p.solution.costs[LATENCY] for p in points]
    assert costs == sorted(costs)
    for point in points:
        solution = point.solution
        assert solution.proven
        assert solution.costs[LATENCY] <= point.budget * (1 + 1e-9)
        assert solution.loss == pytest.approx(loss[cost <= point.budget * (1 + 1e-9)].min())
        assert not ((cost < solution.costs[LATENCY] * (1 - 1e-9)) & (loss <= solution.loss)).any()


def test_a_front_of_many_budgets_holds_each_policy_once():
    given = problem(chain(), 1, {LATENCY: 1.0})
    points = proxy_front(given, LATENCY, 60)
    assert len({p.solution.index.tobytes() for p in points}) == len(points) < 60
    coarse = proxy_front(given, LATENCY, 4)
    assert len(coarse) <= 4


def test_budgets_that_are_not_swept_bind_and_the_swept_one_does_not():
    tight = problem(chain(), 0, {LATENCY: 1e-3, SIZE: 0.5})
    points = proxy_front(tight, LATENCY, 5)
    assert all(p.solution.costs[SIZE] <= tight.budgets[SIZE] * (1 + 1e-9) for p in points)
    assert points[0].solution.costs[LATENCY] > tight.budgets[LATENCY]


def test_each_budget_of_the_front_gets_the_best_trial_within_it():
    given = problem(chain(), 0, {LATENCY: 1.0})
    points = proxy_front(given, LATENCY, 6)
    index = every_policy(given)
    costs, loss = given.costs(index)[LATENCY], given.proxy_loss(index)
    trials = [
        Trial(row, -float(value), float(value), {LATENCY: float(cost)}, "all")
        for row, value, cost in zip(index, loss, costs, strict=True)
    ]
    for point in with_trials(points, trials, LATENCY, by_loss(given)):
        assert point.trial is not None
        assert point.trial.loss == pytest.approx(point.solution.loss)
    assert with_trials(points, trials[-1:], LATENCY, by_loss(given))[0].trial is None


def test_each_budget_gets_the_optimum_of_the_proxy_where_no_trial_scores_higher():
    given = problem(chain(), 0, {LATENCY: 1.0})
    points = proxy_front(given, LATENCY, 6)
    dearest, cheapest = points[-1].solution, points[0].solution
    left_over = Trial(cheapest.index, -100.0, 100.0, cheapest.costs, "worse than its optimum")
    better = Trial(cheapest.index, 1.0, 0.0, dearest.costs, "better than the dearest optimum")
    found = with_trials(points, [left_over, better], LATENCY, by_loss(given))
    assert [point.score for point in found] == [-point.solution.loss for point in points]
    assert found[0].trial is left_over
    assert found[0].index is points[0].solution.index
    assert found[-1].trial is better
    assert found[-1].index is better.index
    assert points[0].index is points[0].solution.index


def test_trials_cost_what_the_tables_say_whatever_else_priced_them():
    given = problem(chain(), 0, {LATENCY: 1.0})
    index = every_policy(given)[:3]
    trials = [Trial(row, 0.0, 0.0, {LATENCY: 1e9}, "measured elsewhere") for row in index]
    costs = [trial.costs[LATENCY] for trial in by_tables(given, trials)]
    assert costs == given.costs(index)[LATENCY].tolist()
    assert by_tables(given, ()) == ()


def test_only_the_budget_that_is_swept_may_be_exceeded():
    given = problem(chain(), 0, {LATENCY: 0.6, SIZE: 0.7})
    index = every_policy(given)
    costs = given.costs(index)
    # What a trial says that it costs may be measured, in another unit; the tables decide.
    trials = [Trial(row, 0.0, 0.0, {}, "all") for row in index]
    kept = within_others(given, trials, LATENCY)
    met = costs[SIZE] <= given.budgets[SIZE] * (1 + 1e-9)
    assert 0 < met.sum() < len(index)
    assert [t.index.tolist() for t in kept] == index[met].tolist()
    assert within_others(given, (), LATENCY) == ()


def test_a_point_names_its_layers_bits_and_trial():
    given = problem(chain(), 0, {LATENCY: 1.0})
    [point, *_] = proxy_front(given, LATENCY, 3)
    content = json.loads(json.dumps(point.to_dict(given), allow_nan=False))
    bits = [str(given.choices[k]) for k in point.solution.index]
    assert content["layers"] == dict(zip(given.network.layer_names, bits, strict=True))
    assert content["costs"] == {"latency": point.solution.costs[LATENCY]}
    assert content["best_trial"] is None
    tried = Trial(point.solution.index, 0.5, 1.0, point.solution.costs, "test")
    [with_trial] = with_trials([point], [tried], LATENCY, by_loss(given))
    assert with_trial.to_dict(given)["score"] == -point.solution.loss
    told = with_trial.to_dict(given)["best_trial"]
    assert told["score"] == 0.5
    assert told["layers"] == content["layers"]


def test_a_front_needs_a_table_and_two_budgets():
    given = problem(chain(), 0, {LATENCY: 1.0})
    with pytest.raises(BudgetError, match="needs a size table"):
        proxy_front(given, SIZE, 5)
    with pytest.raises(BudgetError, match="at least 2"):
        proxy_front(given, LATENCY, 1)
    with pytest.raises(BudgetError, match="minimum reachable"):
        proxy_front(problem(chain(), 0, {LATENCY: 1.0, SIZE: 1e-3}), LATENCY, 5)
