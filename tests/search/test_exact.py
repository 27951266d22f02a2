import numpy as np
import pytest

from costmodels.errors import UnsupportedChoiceError
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES
from quantization.errors import BudgetError
from search.exact import Exact, Solver, minimum, solve
from search.greedy import greedy_policy
from search.problem import Problem
from search.repair import repair
from search.sampling import random_policies
from tests.search.networks import (
    CHOICES,
    NETWORKS,
    RICH_CHOICES,
    chain,
    deep,
    every_policy,
    gated,
    problem,
    random_loss,
    random_table,
    residual,
)

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}
LOOSE = {Metric.LATENCY: 0.9, Metric.SIZE: 0.95}


def best_by_enumeration(given: Problem) -> float | None:
    index = every_policy(given)
    losses = given.proxy_loss(index)[given.feasible(index)]
    return float(losses.min()) if losses.size else None


def assert_optimal(given: Problem) -> None:
    expected = best_by_enumeration(given)
    if expected is None:
        with pytest.raises((BudgetError, UnsupportedChoiceError)):
            solve(given)
        return
    solution = solve(given)
    assert solution.proven
    assert given.feasible(solution.index[None]).all()
    assert solution.loss == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert solution.bound <= solution.loss * (1 + 1e-9)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("negative", [False, True])
def test_the_milp_equals_enumeration(network, seed, negative):
    assert_optimal(problem(network(), seed, TWO, negative=negative))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
def test_the_milp_equals_enumeration_with_masks_and_unsupported_formats(network, seed):
    given = problem(network(), seed, LOOSE, negative=True, masked=0.1, unsupported=0.1)
    assert_optimal(given)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_milp_equals_enumeration_over_four_formats(network, seed):
    assert_optimal(problem(network(), seed, TWO, choices=RICH_CHOICES, negative=True))


@pytest.mark.parametrize("seed", range(6))
def test_the_milp_equals_enumeration_with_ties(seed):
    tied = residual().tied([("a", "d"), ("b", "c")])
    given = problem(tied, seed, LOOSE, negative=True, masked=0.1)
    assert_optimal(given)
    solution = solve(given)
    assert solution.index[0] == solution.index[3]
    assert solution.index[1] == solution.index[2]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_equals_enumeration(network, seed):
    given = problem(network(), seed, TWO, negative=True)
    index = every_policy(given)
    costs = given.costs(index)
    assert minimum(given, Metric.LATENCY) == pytest.approx(costs[Metric.LATENCY].min(), rel=1e-9)
    small = costs[Metric.SIZE] <= given.budgets[Metric.SIZE]
    least = minimum(given, Metric.LATENCY, within=[Metric.SIZE])
    if small.any():
        assert least == pytest.approx(costs[Metric.LATENCY][small].min(), rel=1e-9)
    else:
        assert least is None


def test_an_unreachable_budget_names_the_minimum():
    given = problem(chain(), 0, {Metric.LATENCY: 0.01})
    least = minimum(given, Metric.LATENCY)
    with pytest.raises(BudgetError) as caught:
        solve(given)
    message = str(caught.value)
    assert message.startswith("latency budget ")
    assert "cannot be met; the minimum reachable is " in message
    assert message.endswith(f"{least * 1e3:.2f} ms")
    assert "\n" not in message


def test_budgets_that_only_clash_are_named_together():
    network = chain()
    tables = {m: random_table(network, m, 3) for m in (Metric.LATENCY, Metric.SIZE)}
    # turn the sizes around: what is fast is large
    size = tables[Metric.SIZE]
    unary = size.unary.value[:, ::-1]
    size = type(size)(
        **{**vars(size), "unary": type(size.unary).of(unary, "assumed")}  # same cells, reversed
    )
    tables[Metric.SIZE] = size
    free = Problem(network, CHOICES, tables, {}, random_loss(network, 3))
    solver = Solver(free)
    budgets = {m: solver.minimum(m) * 1.02 for m in tables}
    with pytest.raises(BudgetError, match=r"together with size budget .* minimum"):
        solve(Problem(network, CHOICES, tables, budgets, free.loss))


def test_an_unsupported_network_is_no_budget_error():
    given = problem(gated(), 0, {Metric.LATENCY: 1.0})
    table = given.tables[Metric.LATENCY]
    glue = np.full_like(table.glue.value, np.inf)
    broken = type(table)(**{**vars(table), "glue": type(table.glue).of(glue, "absent")})
    with pytest.raises(UnsupportedChoiceError):
        solve(Problem(given.network, CHOICES, {Metric.LATENCY: broken}, {}, given.loss))


def test_a_budget_of_exactly_one_policy_admits_it():
    given = problem(residual(), 5, TWO)
    index = every_policy(given)
    costs = given.costs(index)
    target = int(np.argsort(costs[Metric.LATENCY])[40])
    exact = {m: float(cost[target]) for m, cost in costs.items()}
    tight = Problem(given.network, CHOICES, given.tables, exact, given.loss)
    assert tight.feasible(index[target : target + 1]).all()
    assert_optimal(tight)


@pytest.mark.parametrize("seed", range(4))
def test_no_rival_beats_the_proven_optimum_of_a_deeper_network(seed):
    given = problem(deep(), seed, TWO, choices=DEFAULT_CHOICES, negative=True)
    solution = solve(given)
    assert solution.proven
    assert solution.bound == pytest.approx(solution.loss, rel=1e-6)
    found = greedy_policy(given)
    drawn = repair(given, random_policies(given, 500, np.random.default_rng(seed)))
    rivals = np.concatenate([found, drawn.index[~drawn.rejected]])
    assert given.proxy_loss(rivals).min() >= solution.loss * (1 - 1e-9)


def test_a_budget_that_is_missed_by_little_says_by_how_much():
    given = problem(chain(), 0, {Metric.LATENCY: 0.5})
    least = minimum(given, Metric.LATENCY)
    tight = Problem(
        given.network, CHOICES, given.tables, {Metric.LATENCY: least * 0.99999}, given.loss
    )
    with pytest.raises(BudgetError, match=r"minimum reachable is .* ms \(0.001 % more\)"):
        solve(tight)


def test_the_searcher_scores_its_policy_once():
    given = problem(residual(), 1, TWO)
    result = Exact().search(given, lambda i: -given.proxy_loss(i), evaluations=5, seed=0)
    assert result.evaluations == 1
    assert result.log["proven"] == 1.0
    assert result.archive[0].score == -result.log["loss"]
