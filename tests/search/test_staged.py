import numpy as np
import pytest
import torch

from costmodels.units import Metric
from quantization.bits import parse_choices
from search.agent import sample, seeded_agent
from search.environment import Environment
from search.exact import solve
from search.reinforce import Reinforce, ReinforceConfig
from search.staged import StagedEnvironment
from tests.search.networks import every_policy, problem, replayed, residual

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}
GRID = parse_choices("w4a4,w4a8,w8a4,w8a8,fp16,w32a32")


def made(**options):
    return problem(residual(), 0, TWO, choices=GRID, **options)


def test_actions_and_decisions_are_the_same_thing_said_twice():
    given = made()
    environment = StagedEnvironment(given)
    decisions = given.decide(every_policy(given))
    actions = environment.act(decisions)
    assert actions.shape == (len(decisions), 10)
    np.testing.assert_array_equal(environment.decide(actions), decisions)


@pytest.mark.parametrize("constraint", ["repair", "mask"])
def test_sampled_actions_are_allowed_choices_and_are_rescored_as_drawn(constraint):
    given = made(masked=0.4)
    environment = StagedEnvironment(given, constraint)
    agent = seeded_agent(environment, 16, 0)
    with torch.no_grad():
        agent.head.weight.mul_(200)
    batch = sample(agent, environment, 64, torch.Generator().manual_seed(0), 2.0)
    decisions = environment.decide(batch.actions)
    np.testing.assert_array_equal(environment.act(decisions), batch.actions)
    assert given.allowed_decisions[np.arange(5), decisions].all()
    with torch.no_grad():
        rescored = agent(batch.states, batch.penalty, 2.0)
    drawn = torch.log_softmax(batch.logits / 2.0 + batch.penalty, dim=2)
    met = batch.penalty == 0
    assert (drawn - rescored)[met].abs().max() < 1e-5


def test_the_second_step_sees_the_weights_and_the_first_what_whole_choices_see():
    given = made()
    decisions = given.decide(every_policy(given))[::500]
    staged, whole = StagedEnvironment(given), Environment(given)
    features = replayed(staged, staged.act(decisions)).features
    expected = replayed(whole, decisions).features
    length = whole.feature_count
    for second in (0, 1):
        np.testing.assert_array_equal(features[second::2, :, :length], expected)
        assert (features[second::2, :, length] == second).all()
    assert not features[0::2, :, length + 1 :].any()
    weights = staged.stages[decisions][:, :, 0].T
    np.testing.assert_array_equal(features[1::2, :, length + 1 :].argmax(2), weights)


def test_an_agent_that_decides_weights_first_searches_and_starts_warm():
    given = made()
    config = ReinforceConfig(hidden=16, learning_rate=0.01, weights_first=True)
    optimum = solve(given)
    limits = {"evaluations": 150, "seed": 0}
    result = Reinforce(config).search(given, lambda i: -given.proxy_loss(i), **limits)
    assert result.archive[0].loss <= 1.5 * optimum.loss
    warm = Reinforce(config, optimum.index).search(given, lambda i: -given.proxy_loss(i), **limits)
    assert warm.archive[0].loss == optimum.loss
    assert 0.5 < warm.log["imitated_probability"] < 0.95
