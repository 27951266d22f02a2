"""What lies close to a policy: as likely as its choices where it is as good, unlikely elsewhere."""

import numpy as np
import pytest
import torch

from costmodels.table import FloatArray
from costmodels.units import Metric
from quantization.policy import IndexArray
from search.agent import sample, seeded_agent
from search.elites import Elites
from search.environment import Environment
from search.exact import solve
from search.greedy import greedy_policy
from search.imitation import imitate, imitation_loss
from search.reinforce import Reinforce, ReinforceConfig
from search.reinforce_config import Constraint
from search.softened import softened
from search.transfer import SavedAgent
from tests.search.networks import RICH_CHOICES, deep, gated, problem

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


@pytest.mark.parametrize("seed", range(4))
def test_the_start_is_most_likely_and_nothing_masked_is_possible(seed: int) -> None:
    made = problem(gated(), seed, {Metric.SIZE: 0.9}, choices=RICH_CHOICES, masked=0.2)
    start = made.lowest_loss[0]
    p = softened(made, start, 0.7)
    np.testing.assert_allclose(p.sum(1), 1)
    assert not p[~made.allowed_decisions].any()
    own = p[np.arange(len(p)), made.decide(start[None])[0]]
    np.testing.assert_allclose(own, p.max(1))
    is_open = made.allowed_decisions.sum(1) > 1
    assert own[is_open].mean() == pytest.approx(0.7, abs=0.01)


def test_what_is_likely_is_nearly_as_good() -> None:
    """Drawn close to what greedy finds, policies lose far less than any that differ as much."""
    made = problem(deep(), 1, {Metric.SIZE: 0.6}, choices=RICH_CHOICES)
    found = greedy_policy(made)
    assert found is not None
    p = softened(made, found[0], 0.7)
    draw = np.random.default_rng(0)
    close = np.array([[draw.choice(len(q), p=q) for q in p] for _ in range(200)], np.uint8)
    shares = close != made.decide(found)
    anything = np.where(shares, draw.integers(0, p.shape[1], close.shape), made.decide(found))
    environment = Environment(made)
    losses = [
        made.proxy_loss(environment.finish(decisions.astype(np.uint8)).index).mean()
        for decisions in (close, anything)
    ]
    start = made.proxy_loss(found)[0]
    assert losses[0] - start < 0.5 * (losses[1] - start)


def test_the_agent_learns_those_probabilities() -> None:
    made = problem(deep(), 1, TWO, choices=RICH_CHOICES)
    start = solve(made).index
    environment = Environment(made)
    agent = seeded_agent(environment, 300, 0)
    told = imitate(agent, environment, start, ReinforceConfig(), 0)
    wanted = softened(made, start, 0.8)
    batch = sample(agent, environment, 2000, torch.Generator().manual_seed(0))
    seen = np.array([np.bincount(c, minlength=wanted.shape[1]) / 2000 for c in batch.choices])
    assert np.abs(seen - wanted).max() < 0.15
    own = wanted[np.arange(len(wanted)), made.decide(start[None])[0]]
    assert told == pytest.approx(own.mean(), abs=0.1)


def test_elites_are_the_best_policies_by_what_was_sampled_for_them_first() -> None:
    elites = Elites(2)
    assert len(elites.decisions) == 0
    sampled = np.array([[0, 0], [0, 1], [1, 1], [2, 2]], np.uint8)
    became = np.array([[0, 0], [0, 0], [1, 1], [2, 2]], np.uint8)
    elites.take_in(sampled, became, np.array([1.0, 1.0, 3.0, -np.inf]))
    np.testing.assert_array_equal(elites.decisions, [[1, 1], [0, 0]])
    elites.take_in(sampled[3:], became[3:], np.array([2.0]))
    np.testing.assert_array_equal(elites.decisions, [[1, 1], [2, 2]])
    elites.take_in(sampled[1:2], became[1:2], np.array([4.0]))
    np.testing.assert_array_equal(elites.decisions, [[0, 1], [1, 1]])


@pytest.mark.parametrize("constraint", ["repair", "soft"])
def test_every_update_imitates_the_best_within_the_budgets(
    constraint: Constraint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards have no gradient here: what becomes likely are the elites."""
    made = problem(deep(), 1, TWO, choices=RICH_CHOICES)
    kept: list[IndexArray] = []
    take_in = Elites.take_in

    def told(self: Elites, decisions: IndexArray, index: IndexArray, rewards: FloatArray) -> None:
        assert made.feasible(index).all()
        take_in(self, decisions, index, rewards)
        kept.append(self.decisions)

    monkeypatch.setattr(Elites, "take_in", told)
    monkeypatch.setattr(
        "search.reinforce.policy_loss", lambda agent, *_: 0.0 * agent.head.bias.sum()
    )
    agents: list[SavedAgent] = []
    config = ReinforceConfig(episodes=400, hidden=32, constraint=constraint, learning_rate=1e-2)
    Reinforce(config, trained=agents.append).search(
        made, lambda index: -made.proxy_loss(index), evaluations=400, seed=0
    )
    environment = Environment(made, constraint)
    agent, fresh = agents[0].agent(environment), seeded_agent(environment, 32, 0)
    with torch.no_grad():
        likely, before = (float(imitation_loss(a, environment, kept[-1])) for a in (agent, fresh))
    assert likely < 0.9 * before, "else nothing moves the agent"


def test_without_places_nothing_is_elite() -> None:
    elites = Elites(0)
    elites.take_in(np.zeros((1, 3), np.uint8), np.zeros((1, 3), np.uint8), np.ones(1))
    assert len(elites.decisions) == 0
