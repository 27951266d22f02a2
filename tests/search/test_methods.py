import sys
import warnings

import numpy as np
import pytest

from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES, parse_choices
from quantization.errors import QuantmeterError
from search.exact import solve
from search.greedy import greedy_policy
from search.manual import manual_policies
from search.methods import METHODS, MethodSettings, make_searcher
from search.mutation import mutants
from search.reinforce import Reinforce, ReinforceConfig
from search.sampling import RandomSearch
from tests.search.networks import chain, deep, problem, residual

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_by_its_name(name):
    assert make_searcher(name).name == name
    assert METHODS[name].summary


def test_an_unknown_method_names_close_matches():
    with pytest.raises(QuantmeterError, match="did you mean 'greedy'"):
        make_searcher("gredy")


def test_the_agent_gets_its_start_and_knobs():
    made = problem(residual(), 1, TWO)
    start = greedy_policy(made)[0]
    warm = make_searcher("reinforce", MethodSettings(start=start))
    assert isinstance(warm, Reinforce)
    assert warm.config == ReinforceConfig.warm()
    np.testing.assert_array_equal(warm.start, start)
    config = ReinforceConfig(hidden=8)
    given = make_searcher("reinforce", MethodSettings(agent=config))
    assert isinstance(given, Reinforce)
    assert given.config is config


def test_without_repair_infeasible_proposals_cost_no_evaluation():
    made = problem(residual(), 1, TWO)
    result = RandomSearch(repaired=False).search(
        made, lambda i: -made.proxy_loss(i), evaluations=10, seed=0
    )
    assert result.evaluations == 10
    assert result.log["repaired_share"] == 0
    assert 0 < result.log["rejected_share"] < 1
    assert result.log["drawn"] > 10
    assert made.feasible(np.array([t.index for t in result.trials])).all()


def test_evolution_learns_what_was_scored_and_lets_the_best_survive():
    made = problem(deep(), 2, TWO)
    losses = {}
    for name in ("random", "evolution"):
        result = make_searcher(name).search(
            made, lambda i: -made.proxy_loss(i), evaluations=200, seed=0
        )
        losses[name] = result.archive[0].loss
        later = np.array([t.loss for t in result.trials[100:]])
        first = np.array([t.loss for t in result.trials[:20]])
        assert name == "random" or np.median(later) < 0.5 * np.median(first)
    assert losses["evolution"] < 0.6 * losses["random"]


def test_copies_of_the_start_change_some_decisions_and_keep_ties_and_masks():
    made = problem(residual().tied([("a", "c")]), 1, TWO, masked=0.3)
    parent = made.lowest_loss[0]
    copies = mutants(made, parent, 200, np.random.default_rng(0), 0.1)
    assert made.allowed[np.arange(5), copies].all()
    np.testing.assert_array_equal(made.expand(made.decide(copies)), copies)
    changes = (made.decide(copies) != made.decide(parent[None])).sum(1)
    assert changes.min() == 1
    assert changes.mean() < 1.5


def test_without_optuna_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    made = problem(residual(), 1, TWO)
    for name in ("evolution", "bayesian"):
        with pytest.raises(QuantmeterError, match=f"{name} needs optuna: pip install"):
            make_searcher(name).search(made, lambda i: i[:, 0], evaluations=1, seed=0)


def test_optuna_prints_nothing_and_is_as_loud_afterwards_as_before(capfd):
    import optuna

    made = problem(residual(), 1, TWO)
    loud = optuna.logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("evolution", "bayesian"):
            make_searcher(name).search(made, lambda i: -made.proxy_loss(i), evaluations=15, seed=0)
    assert optuna.logging.get_verbosity() == loud
    assert capfd.readouterr() == ("", "")


def test_the_manual_rule_keeps_8_bits_at_both_ends_and_depthwise_below():
    made = problem(chain(), 0, TWO, choices=parse_choices("w2a8,w4a8,w8a8,w32a32"))
    rule = [[str(made.choices[k]) for k in row] for row in manual_policies(made)]
    assert rule[0] == ["w8a8", "w4a8", "w8a8", "w8a8"]  # b is depthwise
    assert ["w8a8", "w2a8", "w4a8", "w8a8"] in rule
    assert rule[-1] == ["w2a8", "w2a8", "w2a8", "w2a8"]
    bits = np.array([[made.choices[k].weights for k in row] for row in manual_policies(made)])
    assert (np.diff(bits, axis=0) <= 0).all()
    inner_at_bottom = (bits[:, 1:3] == 2).all(1)
    assert (bits[~inner_at_bottom][:, [0, 3]] == 8).all()


def test_the_manual_rule_spends_the_budget():
    made = problem(deep(), 0, {Metric.LATENCY: 0.5})
    result = make_searcher("manual").search(
        made, lambda i: -made.proxy_loss(i), evaluations=1, seed=0
    )
    policies = manual_policies(made)
    step = int(result.log["step"])
    np.testing.assert_array_equal(result.best, policies[step])
    assert not made.feasible(policies[:step]).any()


def test_zero_shot_is_the_optimum_of_its_proxy_and_scores_nothing():
    made = problem(residual(), 1, TWO)
    result = make_searcher("zero-shot").search(made, None, evaluations=5, seed=0)
    assert result.evaluations == 0
    np.testing.assert_array_equal(result.best, solve(made).index)
    other = np.ones_like(made.loss)
    result = make_searcher("zero-shot", MethodSettings(proxy=other)).search(
        made, None, evaluations=5, seed=0
    )
    assert result.log["proxy_loss"] == 5.0


def test_gradient_descent_comes_close_to_the_optimum():
    made = problem(deep(), 2, TWO, choices=DEFAULT_CHOICES)
    result = make_searcher("differentiable").search(
        made, lambda i: -made.proxy_loss(i), evaluations=150, seed=0
    )
    assert result.archive[0].loss < 1.1 * solve(made).loss
