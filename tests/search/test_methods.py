import numpy as np
import pytest

from costmodels.units import Metric
from quantization.errors import QuantmeterError
from search.greedy import greedy_policy
from search.methods import METHODS, MethodSettings, make_searcher
from search.reinforce import Reinforce, ReinforceConfig
from search.sampling import RandomSearch
from tests.search.networks import problem, residual

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_made_by_its_name(name):
    assert make_searcher(name).name == name
    assert METHODS[name].summary


def test_an_unknown_method_names_close_matches():
    with pytest.raises(QuantmeterError, match="did you mean 'greedy'"):
        make_searcher("gredy")


def test_the_agent_gets_its_episodes_start_and_knobs():
    made = problem(residual(), 1, TWO)
    start = greedy_policy(made)[0]
    warm = make_searcher("reinforce", MethodSettings(start=start, episodes=7))
    assert isinstance(warm, Reinforce)
    assert warm.config == ReinforceConfig.warm(episodes=7)
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
