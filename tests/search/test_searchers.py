import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.errors import UnsupportedChoiceError
from costmodels.units import Metric
from quantization.errors import BudgetError
from search.archive import Archive, Ledger
from search.exact import Exact, solve
from search.greedy import Greedy
from search.reinforce import Reinforce, ReinforceConfig
from search.sampling import RandomSearch
from search.searcher import Trial
from search.uniform import Uniform, uniform_policy
from tests.search.networks import (
    CHOICES,
    NETWORKS,
    branches,
    every_policy,
    problem,
    random_loss,
    residual,
)

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}
SMALL_AGENT = Reinforce(ReinforceConfig(episodes=20, rollouts=5, hidden=8))
SEARCHERS = (Exact(), Greedy(), Uniform(), RandomSearch(), SMALL_AGENT)


def proxy(problem_):
    return lambda index: -problem_.proxy_loss(index)


@given(
    network=st.sampled_from(NETWORKS),
    seed=st.integers(0, 10**6),
    latency=st.floats(0.3, 1.2),
    size=st.floats(0.3, 1.2),
    masked=st.sampled_from([0.0, 0.2]),
    unsupported=st.sampled_from([0.0, 0.1]),
    tied=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_searcher_returns_an_infeasible_policy(
    network, seed, latency, size, masked, unsupported, tied
):
    wired = network().tied([("a", "c")]) if tied else network()
    fractions = {Metric.LATENCY: latency, Metric.SIZE: size}
    try:
        made = problem(
            wired, seed, fractions, negative=True, masked=masked, unsupported=unsupported
        )
    except UnsupportedChoiceError:
        return
    index = every_policy(made)
    feasible = {row.tobytes() for row in index[made.feasible(index)]}
    for searcher in SEARCHERS:
        try:
            result = searcher.search(made, proxy(made), evaluations=20, seed=seed)
        except (BudgetError, UnsupportedChoiceError):
            assert not feasible
            continue
        assert {trial.index.tobytes() for trial in result.trials} <= feasible
        assert searcher.name != "exact" or result.best is not None


@pytest.mark.parametrize("searcher", SEARCHERS, ids=lambda s: s.name)
def test_the_same_seed_finds_the_same_policies(searcher):
    made = problem(residual(), 1, TWO)
    first, second = (searcher.search(made, proxy(made), evaluations=15, seed=7) for _ in range(2))
    assert [t.index.tolist() for t in first.trials] == [t.index.tolist() for t in second.trials]
    assert [t.score for t in first.trials] == [t.score for t in second.trials]
    assert first.log == second.log


@pytest.mark.parametrize("searcher", SEARCHERS, ids=lambda s: s.name)
def test_trials_are_recorded_once_as_they_are_made(searcher):
    made = problem(residual(), 1, TWO)
    recorded: list[Trial] = []
    shares: list[float] = []
    asked: list[bytes] = []

    def evaluate(index):
        asked.extend(row.tobytes() for row in index)
        return -made.proxy_loss(index)

    result = searcher.search(
        made,
        evaluate,
        evaluations=15,
        seed=0,
        record=recorded.append,
        progress=lambda share, _text: shares.append(share),
    )
    assert tuple(recorded) == result.trials
    assert [trial.index.tobytes() for trial in recorded] == asked
    assert len(asked) == len(set(asked)) == result.evaluations <= 15
    assert shares == sorted(shares)
    assert all(0 < share <= 1 for share in shares)
    for trial in result.trials:
        costs = made.costs(trial.index[None])
        assert trial.costs == {m: cost[0] for m, cost in costs.items()}
        assert trial.loss == made.proxy_loss(trial.index[None])[0]
    best = max(trial.score for trial in result.trials)
    assert result.archive[0].score == best
    assert result.best is result.archive[0].index


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_close_to_the_optimum(network, seed):
    made = problem(network(), seed, {Metric.LATENCY: 0.7, Metric.SIZE: 0.65})
    result = Greedy().search(made, proxy(made), evaluations=1, seed=0)
    assert result.log["found"] == 1.0
    optimum = solve(made).loss
    assert optimum * (1 - 1e-9) <= result.archive[0].loss <= 3 * optimum + 1e-9


def test_greedy_without_budgets_keeps_the_lowest_loss():
    made = problem(residual(), 0, {Metric.LATENCY: 100.0})
    result = Greedy().search(made, proxy(made), evaluations=1, seed=0)
    np.testing.assert_array_equal(result.best, made.lowest_loss[0])


def test_uniform_policies_fall_back_where_they_are_masked():
    made = problem(branches(), 3, {Metric.LATENCY: 100.0}, masked=0.4)
    assert not made.allowed.all()
    for choice in range(len(CHOICES)):
        index, differ = uniform_policy(made, choice)
        expected = np.where(made.allowed[:, choice], choice, len(CHOICES) - 1)
        np.testing.assert_array_equal(index[0], expected)
        assert differ == (~made.allowed[:, choice]).sum()
    result = Uniform().search(made, proxy(made), evaluations=9, seed=0)
    origins = [trial.origin for trial in result.trials]
    assert any("fell back" in origin for origin in origins)
    assert "uniform w32a32" in origins


def test_random_search_gives_up_when_everything_was_seen():
    made = problem(residual(), 0, {Metric.LATENCY: 100.0})
    result = RandomSearch().search(made, proxy(made), evaluations=10**6, seed=0)
    assert result.evaluations == len(CHOICES) ** 5


def trial(row: list[int], score: float) -> Trial:
    return Trial(np.array(row, np.uint8), score, -score, {}, "test")


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(-5, 5)), max_size=40))
def test_the_archive_keeps_the_best_distinct_policies(entries):
    scores = dict(reversed(entries))  # the first score of a policy counts
    archive = Archive(4)
    for row, score in entries:
        if score == scores[row]:
            archive.add(trial([row], score))
    kept = [t.score for t in archive.trials]
    assert kept == sorted(scores.values(), reverse=True)[:4]
    assert len({t.index.tobytes() for t in archive.trials}) == len(kept)


def test_the_ledger_stops_at_its_limit():
    made = problem(residual(), 0, {Metric.LATENCY: 100.0})
    ledger = Ledger(made, lambda i: -made.proxy_loss(i), evaluations=2)
    index = np.array([[0] * 5, [1] * 5, [0] * 5, [2] * 5], np.uint8)
    scores = ledger.score(index, "test")
    np.testing.assert_array_equal(np.isnan(scores), [False, False, False, True])
    assert scores[0] == scores[2]
    assert ledger.left == 0
    assert random_loss(residual(), 0)[:, 0].sum() == pytest.approx(-scores[0])


def test_a_policy_that_is_infeasible_as_measured_counts_and_is_never_the_best():
    made = problem(residual(), 0, {Metric.LATENCY: 100.0})

    def evaluate(index):
        return np.where(index[:, 0] == 0, -np.inf, -made.proxy_loss(index))

    ledger = Ledger(made, evaluate, evaluations=9)
    scores = ledger.score(np.array([[0] * 5], np.uint8), "test")
    assert scores[0] == -np.inf
    assert ledger.best is None
    assert ledger.left == 8
    ledger.score(np.array([[1] * 5, [0] * 5], np.uint8), "test")
    result = ledger.result({})
    assert [t.rejected for t in result.trials] == [True, False]
    assert result.best is not None
    assert result.best.tolist() == [1] * 5
    assert len(result.archive) == 1
    assert result.log["rejected_as_measured"] == 1


def test_each_trial_is_recorded_before_the_next_policy_is_scored():
    made = problem(residual(), 0, {Metric.LATENCY: 100.0})
    recorded: list[Trial] = []

    def evaluate(index):
        if len(recorded) == 2:
            raise KeyboardInterrupt
        return -made.proxy_loss(index)

    ledger = Ledger(made, evaluate, evaluations=9, record=recorded.append)
    with pytest.raises(KeyboardInterrupt):
        ledger.score(np.array([[0] * 5, [1] * 5, [2] * 5], np.uint8), "test")
    assert [trial.index.tolist() for trial in recorded] == [[0] * 5, [1] * 5]


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_is_a_number(score):
    made = problem(residual(), 0, {Metric.LATENCY: 100.0})
    ledger = Ledger(made, lambda i: np.full(len(i), score), evaluations=9)
    with pytest.raises(ValueError, match="a score is a number"):
        ledger.score(np.array([[0] * 5], np.uint8), "test")
