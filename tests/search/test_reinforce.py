from dataclasses import replace

import numpy as np
import pytest
import torch

from costmodels.table import Cells
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES
from quantization.errors import BudgetError, PolicyError
from search.agent import Stepper, sample, seeded_agent
from search.baseline import Baseline
from search.environment import Environment
from search.exact import solve
from search.exploration import Exploration
from search.imitation import imitate
from search.reinforce import Reinforce, ReinforceConfig, policy_loss
from search.repair import Repaired
from search.sampling import RandomSearch
from search.softened import softened
from tests.search.networks import RICH_CHOICES, deep, every_policy, gated, problem, residual

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("constraint", ["repair", "mask"])
def test_rescored_choices_have_the_probabilities_they_were_drawn_from(temperature, constraint):
    made = problem(gated(), 0, TWO, choices=RICH_CHOICES, masked=0.3)
    environment = Environment(made, constraint)
    agent = seeded_agent(environment, 32, 0)
    with torch.no_grad():
        agent.head.weight.mul_(200)  # far from uniform
    batch = sample(agent, environment, 64, torch.Generator().manual_seed(0), temperature)
    with torch.no_grad():
        rescored = agent(batch.states, batch.penalty, batch.temperature)
    drawn = torch.log_softmax(batch.logits / temperature + batch.penalty, dim=2)
    allowed = torch.from_numpy(environment.mask)[:, None].expand_as(drawn)
    assert (drawn - rescored)[allowed].abs().max() < 1e-5
    assert rescored.exp()[~allowed].max() == 0.0
    assert environment.mask[np.arange(environment.steps), batch.actions].all()


def test_sampled_choices_follow_the_masked_distribution():
    made = problem(residual(), 0, TWO, masked=0.3)
    environment = Environment(made)
    agent = seeded_agent(environment, 16, 3)
    with torch.no_grad():
        agent.head.weight.mul_(100)
    batch = sample(agent, environment, 20_000, torch.Generator().manual_seed(1))
    expected = torch.log_softmax(batch.logits + batch.penalty, dim=2)[0, 0].exp().numpy()
    seen = np.bincount(batch.choices[0].numpy(), minlength=len(expected)) / 20_000
    np.testing.assert_allclose(seen, expected, atol=0.015)


def test_single_steps_equal_the_lstm():
    agent = seeded_agent(Environment(problem(residual(), 0, TWO)), 20, 0)
    states = torch.randn(7, 3, agent.lstm.input_size)
    with torch.no_grad():
        expected = agent.head(agent.lstm(states)[0])
        stepper = Stepper(agent, 3)
        stepped = torch.stack([stepper.step(state) for state in states])
    assert (stepped - expected).abs().max() < 1e-6


def test_the_agent_beats_random_and_comes_close_to_the_optimum():
    budgets = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}
    made = problem(deep(), 2, budgets, choices=DEFAULT_CHOICES)
    optimum = solve(made).loss
    config = ReinforceConfig(episodes=400, hidden=48, learning_rate=3e-3)
    losses = {"agent": [], "random": []}
    for seed in range(3):
        limits = {"evaluations": 400, "seed": seed}
        for name, searcher in (("agent", Reinforce(config)), ("random", RandomSearch())):
            result = searcher.search(made, lambda i: -made.proxy_loss(i), **limits)
            losses[name].append(result.archive[0].loss)
    assert np.mean(losses["agent"]) < 0.1 * np.mean(losses["random"])
    assert np.mean(losses["agent"]) < 1.5 * optimum


def test_the_log_tells_what_happened():
    made = problem(residual(), 1, TWO)
    config = ReinforceConfig(episodes=50, hidden=8)
    result = Reinforce(config).search(
        made, lambda i: -made.proxy_loss(i), evaluations=10**6, seed=0
    )
    assert result.log["episodes"] == 50
    assert result.log["updates"] == 5
    assert 0 < result.log["repaired_share"] < 1
    assert result.log["rejected_share"] == 0
    assert result.log["distinct_policies"] == result.evaluations <= 50


def test_the_search_does_not_touch_the_global_generator():
    made = problem(residual(), 1, TWO)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Reinforce(ReinforceConfig(episodes=10, hidden=8)).search(
        made, lambda i: -made.proxy_loss(i), evaluations=10, seed=0
    )
    assert torch.equal(torch.rand(1), expected)


def test_a_warm_start_is_scored_and_imitated():
    made = problem(residual(), 1, TWO)
    start = solve(made).index
    result = Reinforce(ReinforceConfig.warm(episodes=20), start).search(
        made, lambda i: -made.proxy_loss(i), evaluations=100, seed=0
    )
    assert result.trials[0].origin == "reinforce start"
    np.testing.assert_array_equal(result.best, start)
    wanted = softened(made, start, 0.8)  # other choices are as good: less than 0.8 is left
    own = wanted[np.arange(len(wanted)), made.decide(start[None])[0]]
    assert result.log["imitated_probability"] == pytest.approx(own.mean(), abs=0.05)


def test_steps_without_a_choice_do_not_count_as_imitated():
    """Two of five decisions are forced: the probability is that of the three others."""
    made = problem(residual(), 1, TWO)
    table = made.tables[Metric.LATENCY]
    unary = table.unary.value.copy()
    unary[:2, 1:] = np.inf
    forced = replace(table, unary=Cells.of(unary, table.unary.provenance))
    made = replace(made, tables={**made.tables, Metric.LATENCY: forced})
    environment = Environment(made)
    agent = seeded_agent(environment, 8, 0)
    untrained = ReinforceConfig(imitation_steps=0)
    found = imitate(agent, environment, made.lowest_loss[0], untrained, 0)
    assert found == pytest.approx(1 / 3, abs=0.01)


def test_a_start_with_masked_bits_is_refused():
    made = problem(residual(), 1, TWO, masked=0.5)
    environment = Environment(made)
    layer, choice = np.argwhere(~made.allowed)[0]
    start = made.lowest_loss[0].copy()
    start[layer] = choice
    with pytest.raises(PolicyError, match="not supported"):
        imitate(seeded_agent(environment, 8, 0), environment, start, ReinforceConfig(), 0)


def test_rejected_trajectories_do_not_move_the_baseline():
    baseline = Baseline(momentum=0.5)
    rewards = np.array([1.0, 3.0, 1e9])
    advantages = baseline.advantages(rewards, np.array([0.0, 0.0, 0.4]))
    assert baseline.mean == 2.0
    assert baseline.deviation == 1.0
    np.testing.assert_allclose(advantages, [-1.0, 1.0, -1.4])


def test_without_any_feasible_trajectory_less_excess_is_better():
    advantages = Baseline(momentum=0.5).advantages(np.zeros(3), np.array([0.1, 0.2, 0.3]))
    assert advantages[0] > advantages[1] > advantages[2]
    assert advantages.sum() == pytest.approx(0.0)
    assert Baseline(0.5).advantages(np.zeros(2), np.ones(2)).tolist() == [0.0, 0.0]


def test_the_baseline_follows_the_rewards():
    baseline = Baseline(momentum=0.8)
    for step in range(50):
        baseline.advantages(np.full(4, 5.0 + (step > 25)), np.zeros(4))
    assert baseline.mean == pytest.approx(6.0, abs=0.01)


def test_an_agent_that_settles_is_made_to_try_what_is_new():
    made = problem(residual(), 1, TWO)
    results = []
    for limit in (1.0, 8.0):
        config = ReinforceConfig(
            hidden=16, learning_rate=0.01, entropy=0.0, temperature_limit=limit, patience=5
        )
        results.append(
            Reinforce(config).search(made, lambda i: -made.proxy_loss(i), evaluations=200, seed=0)
        )
    stuck, kept = results
    assert stuck.log["gave_up"] == 1.0
    assert stuck.log["collapsed_share"] > 0.5
    assert stuck.log["highest_temperature"] == 1.0
    assert kept.log["highest_temperature"] > 2.0
    assert kept.evaluations > 1.2 * stuck.evaluations


def test_the_temperature_rises_while_policies_repeat_and_falls_when_they_are_new():
    exploration = Exploration(ReinforceConfig(new_share=0.5, temperature_step=2.0, patience=3))

    def update(rows, rejected=False):
        index = np.array(rows, np.uint8)[:, None]
        none = np.zeros(len(rows), bool)
        outcome = Repaired(index, {}, none, none | rejected, none.astype(float))
        exploration.take_in(index, outcome)
        return exploration.temperature

    assert [update([0, 1, 2, 3]), update([0, 1, 2, 4]), update([0, 0, 0, 0])] == [1.0, 2.0, 4.0]
    assert [update([0, 0, 0, 0]) for _ in range(2)] == [8.0, 8.0]
    assert exploration.ended
    assert [update([5, 6, 0, 0]), update([7, 8, 9, 0])] == [4.0, 2.0]
    assert not exploration.ended
    for row in range(10, 13):  # new, but never accepted
        update([row], rejected=True)
    assert exploration.ended
    assert exploration.figures()["collapsed_share"] == 0.4


@pytest.mark.parametrize("constraint", ["repair", "mask", "reject"])
def test_budgets_that_cannot_be_met_are_told(constraint):
    made = problem(residual(), 1, {Metric.LATENCY: 0.01})
    config = ReinforceConfig(hidden=8, constraint=constraint)
    with pytest.raises(BudgetError, match="the minimum reachable is"):
        Reinforce(config).search(made, lambda i: -made.proxy_loss(i), evaluations=10, seed=0)


def test_policies_that_are_infeasible_as_measured_do_not_poison_the_search():
    made = problem(residual(), 1, {Metric.LATENCY: 0.9})

    def evaluate(index):
        return np.where(index[:, 0] == 0, -np.inf, -made.proxy_loss(index))

    config = ReinforceConfig(hidden=16, learning_rate=0.01)
    result = Reinforce(config).search(made, evaluate, evaluations=100, seed=0)
    assert any(trial.rejected for trial in result.trials)
    index = every_policy(made)
    best = evaluate(index)[made.feasible(index)].max()
    assert result.archive[0].score == pytest.approx(best, rel=0.2)


def test_a_reward_of_minus_infinity_enters_no_average():
    baseline = Baseline(momentum=0.5)
    advantages = baseline.advantages(np.array([1.0, 3.0, -np.inf]), np.array([0.0, 0.0, 1.0]))
    assert (baseline.mean, baseline.deviation) == (2.0, 1.0)
    assert advantages.tolist() == [-1.0, 1.0, -2.0]


def test_the_loss_is_that_of_the_distribution_that_was_drawn_from():
    environment = Environment(problem(residual(), 0, TWO))
    agent = seeded_agent(environment, 8, 0)
    with torch.no_grad():
        agent.head.weight.mul_(200)
    batch = sample(agent, environment, 6, torch.Generator().manual_seed(0), temperature=3.0)
    log_p = torch.log_softmax(batch.logits / 3.0 + batch.penalty, dim=2)
    taken = log_p.gather(2, batch.choices[:, :, None])[:, :, 0]
    advantages = np.array([1.0, -1.0, 0.5, 0.0, 2.0, -3.0])
    entropy = float(-(log_p.exp() * log_p).sum(2).mean())
    expected = -float((taken * torch.tensor(advantages)).mean()) - 0.1 * entropy
    found = policy_loss(agent, batch, advantages, 0.1).detach()
    assert float(found) == pytest.approx(expected, rel=1e-4)
