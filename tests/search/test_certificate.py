import json
from dataclasses import replace

import numpy as np
import pytest

from costmodels.deciders import split
from costmodels.table import Cells, Provenance
from costmodels.units import Metric
from quantization.bits import FLOAT32, parse_choices
from quantization.errors import BudgetError
from search.certificate import certify
from search.exact import Solver, UnsolvedError, solve
from search.layer_costs import layer_costs
from search.problem import Problem
from search.sampling import random_policies
from search.searcher import Trial
from search.slope import measured_slope
from tests.search.networks import (
    NETWORKS,
    RICH_CHOICES,
    chain,
    every_policy,
    problem,
    random_loss,
    random_table,
    residual,
)

LATENCY, SIZE = Metric.LATENCY, Metric.SIZE
TWO = {LATENCY: 0.7, SIZE: 0.65}


def least(given: Problem, budgets: dict[Metric, float]) -> float | None:
    index = every_policy(given)
    costs = given.costs(index)
    met = np.logical_and.reduce([costs[m] <= b * (1 + 1e-9) for m, b in budgets.items()])
    return float(given.proxy_loss(index)[met].min()) if met.any() else None


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_price_of_a_budget_is_that_of_all_policies_at_the_moved_budget(network, seed):
    given = problem(network(), seed, TWO, negative=True)
    made = certify(given, solve(given), step=0.08)
    assert [price.metric for price in made.prices] == [LATENCY, SIZE]
    for price in made.prices:
        budget = given.budgets[price.metric]
        assert price.step == pytest.approx(0.08 * budget)
        wide = {**given.budgets, price.metric: 1.08 * budget}
        tight = {**given.budgets, price.metric: 0.92 * budget}
        assert price.looser == pytest.approx(least(given, wide), rel=1e-9, abs=1e-12)
        assert price.tighter == pytest.approx(least(given, tight), rel=1e-9, abs=1e-12)
        assert price.bought == pytest.approx(made.optimum - price.looser)
        assert price.given_up == pytest.approx(price.tighter - made.optimum)
        assert price.proven


def test_a_price_that_is_not_found_in_time_leaves_the_rest(monkeypatch):
    given = problem(residual(), 0, TWO)
    solution = solve(given)
    whole = certify(given, solution)
    original = Solver.optimum_within

    def slow(solver, limits):
        if limits[SIZE] != given.budgets[SIZE]:
            raise UnsolvedError("no policy was found within 60 s")
        return original(solver, limits)

    monkeypatch.setattr(Solver, "optimum_within", slow)
    made = certify(given, solution)
    assert made.prices == whole.prices[:1]
    assert made.unsolved == {SIZE: "no policy was found within 60 s"}
    told = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert told["budgets"]["size"] is None
    assert told["budgets"]["latency"] == whole.to_dict()["budgets"]["latency"]
    assert told["unsolved"] == {"size": "no policy was found within 60 s"}


def test_a_budget_that_binds_has_a_price_and_one_that_does_not_has_none():
    given = problem(residual(), 0, {LATENCY: 0.6, SIZE: 5.0})
    tight, loose = certify(given, solve(given), step=0.1).prices
    assert tight.bought > 0
    assert tight.given_up > 0
    assert loose.bought == loose.given_up == 0.0


def test_what_is_out_of_reach_a_step_below_is_told_with_the_minimum():
    free = problem(chain(), 0, {LATENCY: 1.0})
    cheapest = float(free.costs(every_policy(free))[LATENCY].min())
    given = replace(free, budgets={LATENCY: 1.01 * cheapest})
    [price] = certify(given, solve(given)).prices
    assert price.tighter is None
    assert price.given_up is None
    assert price.reachable == pytest.approx(cheapest)


def test_the_gap_is_that_of_the_judged_policy():
    given = problem(residual(), 1, TWO)
    solution = solve(given)
    assert certify(given, solution).gap == 0.0
    index = every_policy(given)
    index = index[given.feasible(index)]
    losses = given.proxy_loss(index)
    worst = index[losses.argmax()]
    made = certify(given, solution, worst)
    assert made.loss == losses.max()
    assert made.gap == pytest.approx(losses.max() / losses.min() - 1)
    assert made.gap_at_most >= made.gap - 1e-9
    unproven = certify(given, replace(solution, proven=False, bound=solution.bound / 2), worst)
    assert unproven.gap_at_most == pytest.approx(2 * losses.max() / losses.min() - 1, rel=1e-6)
    assert not any(price.proven for price in unproven.prices)
    stopped = certify(given, replace(solution, proven=False, bound=-np.inf), worst)
    assert (stopped.bound, stopped.gap_at_most) == (0.0, None)
    json.dumps(stopped.to_dict(), allow_nan=False)
    assert replace(made, optimum=0.0, bound=0.0).gap is None


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("once", [0.0, 0.5])
def test_the_costs_of_all_layers_are_those_of_the_policy(network, once):
    given = problem(network(), 3, TWO, choices=RICH_CHOICES, negative=True, once=once)
    rng = np.random.default_rng(0)
    for metric, table in given.tables.items():
        terms = split(given.network, given.choices, np.arange(len(table.layers)), [table])
        for index in random_policies(given, 20, rng):
            costs = layer_costs(given, index, metric)
            paid = once and table.once.due(index[None])[0] and table.once.value
            total = sum(cost.cost for cost in costs) + terms.constant[0] + paid
            assert total == pytest.approx(given.costs(index[None])[metric][0], rel=1e-12)
            own = table.unary.value[np.arange(len(costs)), index]
            assert [cost.unary for cost in costs] == own.tolist()
            assert [cost.bits for cost in costs] == [str(given.choices[k]) for k in index]


def test_a_conversion_is_paid_in_equal_parts_by_the_layers_on_both_sides():
    choices = parse_choices("w8a8,w32a32")
    network = chain()
    table = random_table(network, LATENCY, 0, choices=choices)
    cells = np.zeros_like(table.conversion.value)
    cells[table.tensors.index("c"), 0, 1] = 8.0  # between the layers c and d: int8 to float32
    quiet = Cells.of(np.zeros_like(table.glue.value), Provenance.ASSUMED)
    table = replace(table, conversion=Cells.of(cells, Provenance.ASSUMED), glue=quiet)
    given = Problem(network, choices, {LATENCY: table}, {}, random_loss(network, 0, choices))
    assert choices[1] == FLOAT32
    mixed = layer_costs(given, np.array([1, 1, 0, 1], np.uint8), LATENCY)
    assert [cost.beside for cost in mixed] == pytest.approx([0.0, 0.0, 4.0, 4.0])
    same = layer_costs(given, np.array([1, 1, 1, 1], np.uint8), LATENCY)
    assert [cost.beside for cost in same] == [0.0] * 4


def test_the_dearest_layers_come_first():
    given = problem(residual(), 0, TWO)
    made = certify(given, solve(given))
    for metric in TWO:
        costs = [layer.cost for layer in made.layers[metric]]
        assert costs == sorted(costs, reverse=True)
        assert len(costs) == 5
        assert made.totals[metric] == pytest.approx(solve(given).costs[metric])


def trials(scores, losses) -> list[Trial]:
    return [
        Trial(np.zeros(1, np.uint8), float(s), float(x), {}, "test")
        for s, x in zip(scores, losses, strict=True)
    ]


def test_the_slope_is_that_of_the_nearest_half_whatever_failed_policies_do():
    loss = np.arange(40) / 10
    score = np.where(loss < 2, 0.9 - 0.05 * loss, 0.1)
    score[3] = -np.inf  # infeasible as measured
    found = measured_slope(trials(score, loss))
    assert found.trials == 20
    assert found.mid == pytest.approx(0.05)
    assert found.told


def test_a_slope_that_noise_hides_is_not_told():
    rng = np.random.default_rng(0)
    loss = rng.random(60)
    hidden = measured_slope(trials(0.9 + 0.01 * rng.standard_normal(60), loss))
    assert hidden.low < 0 < hidden.high
    assert not hidden.told
    assert measured_slope(trials(0.9 - loss[:9], loss[:9])) is None
    assert measured_slope(trials(np.full(30, 0.9), np.full(30, 1.0))) is None
    rising = measured_slope(trials(loss, loss))
    assert rising.mid == pytest.approx(-1.0)
    assert not rising.told


def test_trials_that_are_nearly_all_alike_tell_no_slope(recwarn):
    assert measured_slope(trials([0.9] * 9 + [0.8], [1.0] * 9 + [2.0])) is None
    assert not recwarn


def test_a_step_is_worth_its_loss_times_the_slope():
    given = problem(residual(), 0, {LATENCY: 0.6})
    index = every_policy(given)
    losses = given.proxy_loss(index)
    tried = trials(0.95 - 0.5 * losses, losses)
    made = certify(given, solve(given), trials=tried, step=0.1)
    [price] = made.prices
    expected = 0.5 * price.bought
    assert made.score_of(price.bought) == pytest.approx((expected, expected, expected))
    content = made.to_dict()["budgets"]["latency"]
    assert content["score_that_a_step_buys"]["mid"] == pytest.approx(expected)
    assert content["saved_per_unit"] == pytest.approx(price.bought / price.step)
    bare = certify(given, solve(given)).to_dict()
    assert bare["slope"] is None
    assert bare["budgets"]["latency"]["score_that_a_step_buys"] is None


def test_a_step_is_a_share():
    given = problem(chain(), 0, {LATENCY: 0.8})
    with pytest.raises(BudgetError, match="between 0 and 1"):
        certify(given, solve(given), step=1.0)
