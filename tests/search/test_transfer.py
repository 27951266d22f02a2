from dataclasses import replace

import numpy as np
import pytest
import torch

from costmodels.units import Metric
from quantization.errors import PolicyError
from search.agent import sample, seeded_agent
from search.environment import Environment
from search.exact import Solver
from search.reinforce import Reinforce, ReinforceConfig
from search.transfer import SavedAgent, inherit
from tests.search.networks import RICH_CHOICES, chain, deep, problem, residual

ONE = {Metric.LATENCY: 0.7}
TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}
CONFIG = ReinforceConfig(hidden=12, learning_rate=0.01)


def trained(made, seed=0, evaluations=100, config=CONFIG):
    kept = []
    Reinforce(config, trained=kept.append).search(
        made, lambda i: -made.proxy_loss(i), evaluations=evaluations, seed=seed
    )
    return kept[0]


def test_a_saved_agent_is_read_as_it_was(tmp_path):
    saved = trained(problem(residual(), 0, TWO))
    saved.write(tmp_path / "agent.npz")
    again = SavedAgent.read(tmp_path / "agent.npz")
    assert again.choices == saved.choices
    assert again.weights.keys() == saved.weights.keys()
    for name, value in saved.weights.items():
        np.testing.assert_array_equal(again.weights[name], value)


def test_an_agent_continues_on_another_network_with_other_budgets():
    """It needs fewer evaluations than a cold one to what every cold one finds in 40.

    With a mask, so that the agent and not the repair keeps the budget.
    """
    config = replace(CONFIG, constraint="mask")
    saved = trained(problem(residual(), 0, TWO), evaluations=60, config=config)
    other = problem(deep(), 1, ONE)

    def scores(evaluations, seed, *inherited):
        searcher = Reinforce(config, inherited=inherited)
        result = searcher.search(
            other, lambda i: -other.proxy_loss(i), evaluations=evaluations, seed=seed
        )
        return np.array([trial.score for trial in result.trials])

    cold = [scores(60, seed) for seed in range(2)]
    level = min(found.max() for found in cold)
    needed = [1 + int((found >= level).argmax()) for found in cold]
    for seed in range(2):
        assert (scores(min(needed) - 1, seed, saved) >= level).any()


def evened(above):
    """Let a settled agent continue at a budget just above the least; return it and a batch."""
    made = problem(deep(), 1, ONE)
    least = Solver(made).minimum(Metric.LATENCY)
    tight = replace(made, budgets={Metric.LATENCY: above * least.costs[Metric.LATENCY]})
    environment = Environment(tight, "mask")
    settled = seeded_agent(environment, 12, 0)
    with torch.no_grad():
        settled.head.weight.mul_(2000)
    saved = SavedAgent.of(settled, tight.choices)
    after = inherit([saved], environment, CONFIG, torch.Generator().manual_seed(0))
    return settled, after, sample(after, environment, 50, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("above", [1.01, 1.02])
def test_choices_that_a_tight_budget_forces_do_not_make_the_others_more_even(above):
    _, after, batch = evened(above)
    with torch.no_grad():
        likeliest = after(batch.states, batch.penalty).max(2).values.exp()
    is_open = (batch.penalty == 0).sum(2) > 1
    assert 0 < float(is_open.float().mean()) < 0.5
    assert 0.65 < float(likeliest[is_open].mean()) < 0.85


def test_an_agent_whose_every_choice_is_forced_is_left_as_it_is():
    before, after, batch = evened(1.001)
    assert int((batch.penalty == 0).sum(2).max()) == 1
    assert torch.equal(before.head.weight, after.head.weight)


def test_one_saved_agent_prefers_what_it_preferred_but_less():
    made = problem(residual(), 0, TWO)
    environment = Environment(made)
    before = seeded_agent(environment, 12, 0)
    with torch.no_grad():
        before.head.weight.mul_(2000)
    saved = SavedAgent.of(before, made.choices)
    after = inherit([saved], environment, CONFIG, torch.Generator().manual_seed(0))
    batch = sample(before, environment, 5, torch.Generator().manual_seed(1))
    with torch.no_grad():
        old, new = (agent(batch.states, batch.penalty) for agent in (before, after))
    assert (old.argmax(2) == new.argmax(2)).all()
    assert old.max(2).values.exp().mean() > 0.9 > new.max(2).values.exp().mean() > 0.5


def test_several_saved_agents_are_combined_by_what_they_do():
    """Agents that mostly take the first and the last choice become one that takes both."""
    made = problem(chain(), 0, {Metric.LATENCY: 100.0})
    environment = Environment(made)
    extremes = []
    for seed, choice in ((0, 0), (1, 2)):
        agent = seeded_agent(environment, 12, seed)
        with torch.no_grad():
            agent.head.bias[choice] = 9.0
        extremes.append(SavedAgent.of(agent, made.choices))
    both = inherit(extremes, environment, CONFIG, torch.Generator().manual_seed(0))
    batch = sample(both, environment, 50, torch.Generator().manual_seed(1))
    with torch.no_grad():
        p = both(batch.states, batch.penalty).exp().mean((0, 1)).numpy()
    np.testing.assert_allclose(p, [0.44, 0.12, 0.44], atol=0.06)


def test_an_agent_of_other_choices_is_refused():
    saved = trained(problem(residual(), 0, TWO), evaluations=5)
    other = problem(residual(), 0, TWO, choices=RICH_CHOICES)
    with pytest.raises(PolicyError, match="--choices w4a8,w8a8,w32a32"):
        saved.agent(Environment(other))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"[1]"])
def test_what_is_no_saved_agent_is_told(tmp_path, content):
    path = tmp_path / "agent.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PolicyError, match="saved agent"):
        SavedAgent.read(path)


def test_an_agent_of_other_weights_or_another_version_is_told(tmp_path):
    made = problem(residual(), 0, TWO)
    saved = trained(made, evaluations=5)
    lacking = {n: w for n, w in saved.weights.items() if n != "head.bias"}
    with pytest.raises(PolicyError, match="train it anew"):
        SavedAgent(lacking, saved.choices).agent(Environment(made))
    np.savez(tmp_path / "a.npz", meta=np.array('{"format": 99, "choices": []}'))
    with pytest.raises(PolicyError, match="format 99"):
        SavedAgent.read(tmp_path / "a.npz")
