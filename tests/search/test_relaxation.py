import numpy as np
import pytest
import torch

from costmodels.units import Metric
from search.relaxation import Relaxation
from tests.search.networks import (
    NETWORKS,
    RICH_CHOICES,
    Graph,
    chain,
    every_policy,
    problem,
    residual,
)

TWO = {Metric.LATENCY: 0.7, Metric.SIZE: 0.6}


def one_hot(made, index):
    chosen = made.decide(index)[0].astype(np.int64)
    return torch.nn.functional.one_hot(torch.from_numpy(chosen), len(made.choices)).double()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("tied", [False, True])
def test_at_certain_choices_the_expected_cost_is_the_price(network, tied):
    wired = network().tied([("a", "c")]) if tied else network()
    made = problem(wired, 3, TWO, choices=RICH_CHOICES, negative=True, once=0.5)
    relaxation = Relaxation(made)
    rng = np.random.default_rng(0)
    policies = every_policy(made)
    for index in policies[rng.integers(len(policies), size=20)]:
        certain = one_hot(made, index[None])
        costs = made.costs(index[None])
        expected = [costs[m][0] / budget for m, budget in made.budgets.items()]
        np.testing.assert_allclose(relaxation.shares(certain).numpy(), expected, rtol=1e-9)
        assert float(relaxation.loss(certain)) == pytest.approx(made.proxy_loss(index[None])[0])


def forked():
    g = Graph()
    a = g.glue("Relu", [g.conv("x", "a")], "a.relu")
    return g.network(g.conv(a, "b"), g.glue("HardSwish", [g.conv(a, "c", 3, 8)], "c.swish"))


@pytest.mark.parametrize("network", [chain, forked])
def test_without_joins_the_expected_cost_is_the_mean_over_all_policies(network):
    made = problem(network(), 5, TWO, choices=RICH_CHOICES, once=0.5)
    chances = np.random.default_rng(1).dirichlet(np.ones(4), len(made.groups))
    policies = every_policy(made)
    weight = chances[np.arange(len(chances)), made.decide(policies)].prod(1)
    assert weight.sum() == pytest.approx(1.0)
    costs = made.costs(policies)
    expected = [weight @ costs[m] / budget for m, budget in made.budgets.items()]
    found = Relaxation(made).shares(torch.from_numpy(chances)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_costs_have_a_gradient_in_every_chance():
    made = problem(residual(), 2, TWO)
    chances = torch.full((5, 3), 1 / 3, dtype=torch.float64, requires_grad=True)
    Relaxation(made).shares(chances).sum().backward()
    assert chances.grad is not None
    assert (chances.grad != 0).all()
