import ctypes
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import milp

from costmodels.errors import UnsupportedChoiceError
from costmodels.size import ExportedSize
from costmodels.sketch import example_network
from costmodels.units import Metric, parse_quantity
from quantization.bits import DEFAULT_CHOICES, FLOAT32, BitWidths, parse_choices
from quantization.errors import BudgetError, QuantmeterError
from quantization.policy import Policy, PolicyBatch
from search.exact import DisagreementError, Exact, Solver, solve
from search.greedy import greedy_policy
from search.problem import Problem
from search.program import build
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
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("once", [0.3, 3.0])
def test_the_milp_equals_enumeration_with_a_cost_that_is_paid_once(network, seed, once):
    assert_optimal(problem(network(), seed, LOOSE, negative=True, masked=0.1, once=once))


def test_the_milp_equals_enumeration_with_ties_and_a_cost_that_is_paid_once():
    tied = residual().tied([("a", "d"), ("b", "c")])
    for seed in range(4):
        assert_optimal(problem(tied, seed, LOOSE, once=1.0))


@pytest.mark.parametrize("network", NETWORKS)
def test_a_budget_between_a_policy_and_what_it_would_pay_once_is_solved_exactly(network):
    """Policies that do and that do not bring the cost about lie on both sides of the budget."""
    free = problem(network(), 1, {Metric.SIZE: 1.0}, once=1.0)
    table = free.tables[Metric.SIZE]
    index = every_policy(free)
    [cost] = free.costs(index).values()
    pays = table.once.cells[np.arange(index.shape[1]), index].any(1)
    cheapest = cost[~pays].min()
    for share in (-0.5, 0.0, 0.5, 1.0):
        budget = {Metric.SIZE: float(cheapest + share * table.once.value)}
        assert_optimal(Problem(free.network, free.choices, free.tables, budget, free.loss))


def test_each_table_pays_its_own_cost_once():
    given = problem(residual(), 0, LOOSE, once=2.0)
    marked = [table.once.cells for table in given.tables.values()]
    assert (marked[0] != marked[1]).any()
    solution = solve(given)
    index = solution.index[None]
    for metric, table in given.tables.items():
        bare = type(table)(**{**vars(table), "once": None})
        alone = Problem(given.network, CHOICES, {metric: bare}, {}, given.loss)
        due = table.once.cells[np.arange(index.shape[1]), index[0]].any()
        expected = alone.costs(index)[metric][0] + due * table.once.value
        assert solution.costs[metric] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", ["w8a8,w32a32", "w2a8,w3a8,w4a8,w6a8,w8a8,w32a32"])
def test_a_size_budget_of_exactly_uniform_w8a8_is_met(text):
    choices, network = parse_choices(text), example_network()
    policy = Policy.uniform(network, BitWidths(8, 8))
    given = sized(network, choices, policy)
    # no other policy of these losses fits, unless it is smaller and better
    index = every_policy(given)
    exact = ExportedSize().total(
        network, PolicyBatch(network.layer_names, choices, index), Metric.SIZE
    )
    fits = exact <= given.budgets[Metric.SIZE]
    assert fits[(index == choices.index(BitWidths(8, 8))).all(1)].all()
    solution = solve(given)
    assert solution.proven
    assert solution.loss == pytest.approx(given.proxy_loss(index)[fits].min(), rel=1e-9)


@pytest.mark.parametrize("text", ["w8a8,w32a32", "w2a8,w3a8,w4a8,w6a8,w8a8,w32a32"])
def test_a_size_budget_of_exactly_the_float_file_keeps_everything_float(text):
    choices, network = parse_choices(text), example_network()
    given = sized(network, choices, Policy.uniform(network, FLOAT32))
    assert (solve(given).index == choices.index(FLOAT32)).all()


@pytest.mark.parametrize("text", ["w8a8,w32a32", "w2a8,w3a8,w4a8,w6a8,w8a8,w32a32"])
@pytest.mark.parametrize("bits", [BitWidths(8, 8), FLOAT32])
def test_the_size_of_a_uniform_file_of_the_shipped_network_is_a_budget_that_it_meets(
    digits, text, bits
):
    choices = parse_choices(text)
    policy = Policy.uniform(digits.network, bits)
    given = sized(digits.network, choices, policy)
    index = np.full((1, len(digits.network.layers)), choices.index(bits), np.uint8)
    assert given.feasible(index).all()
    solution = solve(given)
    assert solution.proven
    assert solution.loss <= given.proxy_loss(index)[0]
    built = ExportedSize().total(
        digits.network,
        PolicyBatch(digits.network.layer_names, choices, solution.index[None]),
        Metric.SIZE,
    )
    assert solution.costs[Metric.SIZE] == built[0] <= given.budgets[Metric.SIZE]


def sized(network, choices, policy):
    """A problem whose one budget is the size of the file of `policy`."""
    size = ExportedSize()
    [budget] = size.total(network, PolicyBatch.of(network, [policy]), Metric.SIZE)
    tables = {Metric.SIZE: size.table(network, choices, Metric.SIZE)}
    loss = random_loss(network, 0, choices)
    return Problem(network, choices, tables, {Metric.SIZE: float(budget)}, loss)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_equals_enumeration(network, seed):
    given = problem(network(), seed, TWO, negative=True)
    index = every_policy(given)
    costs = given.costs(index)
    solver = Solver(given)
    least = solver.minimum(Metric.LATENCY)
    assert least.proven
    assert least.costs[Metric.LATENCY] == pytest.approx(costs[Metric.LATENCY].min(), rel=1e-9)
    small = costs[Metric.SIZE] <= given.budgets[Metric.SIZE]
    within = solver.minimum(Metric.LATENCY, within=[Metric.SIZE])
    if small.any():
        expected = costs[Metric.LATENCY][small].min()
        assert within.costs[Metric.LATENCY] == pytest.approx(expected, rel=1e-9)
    else:
        assert within is None


QUANTITY = r"[0-9.]+ (?:[mµnp]?[sJ]|[kMG]?B)"


def followed(given: Problem) -> tuple[str, Problem]:
    """The message of a problem that cannot be solved, and the problem with what it advises."""
    with pytest.raises(BudgetError) as caught:
        solve(given)
    message = str(caught.value)
    assert "\n" not in message
    budgets = dict(given.budgets)
    if advice := re.search(rf"raise ((?:\w+ to {QUANTITY}(?: and )?)+)$", message):
        for name, text in re.findall(rf"(\w+) to ({QUANTITY})", advice[1]):
            budgets[Metric(name)] = parse_quantity(text, Metric(name))[0]
    else:
        found = re.match(rf"(\w+) budget .* the minimum reachable is ({QUANTITY})$", message)
        budgets[Metric(found[1])] = parse_quantity(found[2], Metric(found[1]))[0]
    return message, Problem(given.network, given.choices, given.tables, budgets, given.loss)


def with_budgets(given: Problem, budgets: dict[Metric, float]) -> Problem:
    return Problem(given.network, given.choices, given.tables, budgets, given.loss)


def least(given: Problem, metric: Metric) -> float:
    return Solver(given).minimum(metric).costs[metric]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("share", [0.01, 0.9, 0.9999, 1 - 1e-6])
def test_a_budget_of_the_minimum_that_was_printed_is_met_by_the_minimum(network, metric, share):
    free = problem(network(), 0, {metric: 1.0})
    smallest = least(free, metric)
    given = with_budgets(free, {metric: smallest * share})
    message, again = followed(given)
    assert message.startswith(f"{metric.value} budget ")
    assert "cannot be met; the minimum reachable is " in message
    # rounded upwards, and not by so much that the advice were a waste
    assert smallest * (1 - 1e-12) <= again.budgets[metric] <= smallest * 1.001
    assert again.feasible(solve(again).index[None]).all()
    assert_optimal(again)


def test_a_minimum_just_above_the_budget_is_printed_with_the_digits_that_tell_them_apart():
    free = problem(chain(), 0, {Metric.LATENCY: 1.0})
    given = with_budgets(free, {Metric.LATENCY: least(free, Metric.LATENCY) * (1 - 1e-7)})
    message, _ = followed(given)
    budget, smallest = (parse_quantity(q, Metric.LATENCY)[0] for q in re.findall(QUANTITY, message))
    assert budget <= given.budgets[Metric.LATENCY] < smallest


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_advised_for_several_budgets_that_none_alone_can_be_met_is_met(network, seed):
    three = dict.fromkeys(Metric, 1.0)
    free = problem(network(), seed, three)
    given = with_budgets(free, {m: 0.9 * least(free, m) for m in Metric})
    message, again = followed(given)
    assert "cannot be met together; raise latency to " in message
    assert again.feasible(solve(again).index[None]).all()


def test_only_the_budgets_that_must_be_raised_are_named():
    free = problem(residual(), 1, dict.fromkeys(Metric, 1.0))
    budgets = {m: 0.9 * least(free, m) for m in Metric}
    budgets[Metric.ENERGY] = free.budgets[Metric.ENERGY] * 2
    message, again = followed(with_budgets(free, budgets))
    assert "energy" not in message.partition("raise")[2]
    solve(again)


def test_the_minimum_of_a_size_budget_of_1_kb_is_the_size_of_a_file():
    choices, network = parse_choices("w4a8,w8a8,w32a32"), example_network()
    tables = {Metric.SIZE: ExportedSize().table(network, choices, Metric.SIZE)}
    loss = random_loss(network, 0, choices)
    given = Problem(network, choices, tables, {Metric.SIZE: 1000.0}, loss)
    _, again = followed(given)
    index = solve(again).index[None]
    batch = PolicyBatch(network.layer_names, choices, index)
    [built] = ExportedSize().total(network, batch, Metric.SIZE)
    assert built <= again.budgets[Metric.SIZE] <= built * 1.001


def limited(monkeypatch, stopped):
    """Let solves that minimise a cost stop as `stopped` says: the time limit, without waiting."""

    def stopping(*arguments, **options):
        result = milp(*arguments, **options)
        return stopped(result) if result.status == 0 else result

    monkeypatch.setattr("search.exact.milp", stopping)


def test_a_minimum_that_the_time_did_not_prove_is_not_called_the_minimum(monkeypatch):
    free = problem(chain(), 0, {Metric.LATENCY: 1.0})
    given = with_budgets(free, {Metric.LATENCY: least(free, Metric.LATENCY) / 2})

    def unproven(result):
        result.status = 1
        return result

    limited(monkeypatch, unproven)
    assert not Solver(given).minimum(Metric.LATENCY).proven
    with pytest.raises(BudgetError) as caught:
        Solver(given, seconds=5.0).optimum()
    message = str(caught.value)
    assert "minimum reachable is" not in message
    found = re.search(
        rf"cannot be met; ({QUANTITY}) is reachable, not proven to be the minimum within 5 s",
        message,
    )
    solve(with_budgets(given, {Metric.LATENCY: parse_quantity(found[1], Metric.LATENCY)[0]}))


def test_a_budget_is_known_to_be_out_of_reach_even_if_no_minimum_was_found_in_time(monkeypatch):
    free = problem(chain(), 0, {Metric.LATENCY: 1.0})
    given = with_budgets(free, {Metric.LATENCY: least(free, Metric.LATENCY) / 2})

    def empty(result):
        result.status, result.x = 1, None
        return result

    limited(monkeypatch, empty)
    with pytest.raises(BudgetError, match=r"latency budget .* cannot be met; .* within 5 s"):
        Solver(given, seconds=5.0).optimum()
    with pytest.raises(BudgetError, match="no policy was found within 5 s"):
        Solver(free, seconds=5.0).optimum()


def test_a_program_that_prices_otherwise_than_the_table_is_an_error_of_quantmeter(monkeypatch):
    given = problem(chain(), 0, LOOSE)

    def dearer(problem, tables):
        program = build(problem, tables)
        return replace(program, constant=program.constant * 1.01)

    monkeypatch.setattr("search.exact.build", dearer)
    with pytest.raises(DisagreementError, match="please report") as caught:
        solve(given)
    assert isinstance(caught.value, QuantmeterError)
    assert "\n" not in str(caught.value)


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
    budgets = {m: least(free, m) * 1.02 for m in tables}
    message, again = followed(with_budgets(free, budgets))
    assert "cannot be met together with size budget " in message
    solve(again)


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


def test_what_the_solver_prints_by_itself_does_not_reach_the_standard_output(capfd, monkeypatch):
    """HiGHS prints through C, past `sys.stdout` and late: after the JSON of a command."""
    libc = ctypes.CDLL(None)

    def noisy(*arguments, **options):
        libc.printf(b"HighsMipSolverData::transformNewIntegerFeasibleSolution\n")
        return milp(*arguments, **options)

    libc.printf(b"before\n")
    monkeypatch.setattr("search.exact.milp", noisy)
    assert solve(problem(chain(), 0, LOOSE)).proven
    libc.printf(b"after\n")
    libc.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"


def test_the_searcher_scores_its_policy_once():
    given = problem(residual(), 1, TWO)
    result = Exact().search(given, lambda i: -given.proxy_loss(i), evaluations=5, seed=0)
    assert result.evaluations == 1
    assert result.log["proven"] == 1.0
    assert result.archive[0].score == -result.log["loss"]
