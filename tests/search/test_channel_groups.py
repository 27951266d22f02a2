"""Refining a policy by channel groups."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.size import ExportedSize
from costmodels.table import FloatArray
from costmodels.units import Metric
from quantization.bits import BitWidths, parse_choices
from quantization.channel_groups import ChannelGroups
from quantization.errors import BudgetError, PolicyError
from quantization.gradients import FloatNetwork, squared_gradients
from quantization.network import Network
from quantization.policy import PolicyBatch
from search import channel_groups
from search.certificate import certify
from search.channel_groups import Tables, channel_costs, refine
from search.exact import solve
from search.problem import Problem
from tests.networks import Subject, small_mobilenet
from tests.search.networks import chain

CHOICES = parse_choices("w2a8,w4a8,w8a8")


def by_energy(network: Network) -> Tables:
    model = backend("analytical:haq", BackendContext())
    return lambda choices: {Metric.ENERGY: model.table(network, choices, Metric.ENERGY)}


def by_size(network: Network) -> Tables:
    size = ExportedSize()
    return lambda choices: {Metric.SIZE: size.table(network, choices, Metric.SIZE)}


def drawn_costs(
    network: Network, seed: int, choices: Sequence[BitWidths] = CHOICES
) -> dict[tuple[str, int], FloatArray]:
    """Channels whose losses differ widely, fourfold less with each bit."""
    draw = np.random.default_rng(seed)
    found = {}
    for layer in network.layers:
        channel = draw.lognormal(0.0, 1.5, layer.out_channels)
        for bits in choices:
            found[layer.name, bits.weights] = channel * 0.25**bits.weights
    return found


def posed(
    network: Network,
    tables: Tables,
    seed: int,
    share: float,
    choices: Sequence[BitWidths] = CHOICES,
) -> tuple[Problem, Mapping[tuple[str, int], FloatArray]]:
    """A problem whose budget lies between the uniform policies, and the costs of its channels."""
    costs = drawn_costs(network, seed, choices)
    loss = np.array([[costs[n, c.weights].sum() for c in choices] for n in network.layer_names])
    priced = tables(choices)
    free = Problem(network, tuple(choices), priced, {}, loss)
    ends = np.repeat(np.array([[0], [len(choices) - 1]], np.uint8), len(network.layers), 1)
    budgets = {}
    for metric, cost in free.costs(ends).items():
        budgets[metric] = float(cost[0] + share * (cost[1] - cost[0]))
    return Problem(network, tuple(choices), priced, budgets, loss), costs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_loss_falls_and_budgets_stay_met(seed: int, share: float) -> None:
    network = small_mobilenet()
    tables = by_energy(network)
    problem, costs = posed(network, tables, seed, share)
    best = solve(problem)
    found = refine(problem, best.index, costs, tables)
    before, after = found.losses
    assert before == pytest.approx(best.loss)
    assert after < before * 0.99
    assert found.grouped > 0
    assert found.problem.feasible(found.index[None])[0]
    model = backend("analytical:haq", BackendContext())
    [cost] = model.total(network, PolicyBatch.of(network, [found.policy]), Metric.ENERGY)
    assert cost <= problem.budgets[Metric.ENERGY] * (1 + 1e-9)


def test_groups_lose_what_their_channels_lose() -> None:
    network = small_mobilenet()
    tables = by_energy(network)
    problem, costs = posed(network, tables, 1, 0.3)
    found = refine(problem, solve(problem).index, costs, tables)
    expected = 0.0
    for name in network.layer_names:
        bits = found.policy[name]
        if isinstance(bits, ChannelGroups):
            expected += sum(costs[name, w][list(each)].sum() for w, each in bits.groups)
        else:
            expected += costs[name, bits.weights].sum()
    assert found.losses[1] == pytest.approx(expected)


def test_the_certificate_of_a_refined_policy_judges_it_as_it_is() -> None:
    network = small_mobilenet()
    tables = by_energy(network)
    problem, costs = posed(network, tables, 1, 0.3)
    best = solve(problem)
    found = refine(problem, best.index, costs, tables)
    made = certify(problem, best, found.index, refined=found.problem)
    assert (made.optimum, made.loss) == (pytest.approx(best.loss), found.losses[1])
    assert made.gap == pytest.approx(found.losses[1] / best.loss - 1)
    assert made.gap is not None
    assert made.gap < 0
    [cost] = found.problem.costs(found.index[None])[Metric.ENERGY]
    assert made.totals[Metric.ENERGY] == pytest.approx(cost)
    listed = made.layers[Metric.ENERGY]
    assert {layer.name: layer.bits for layer in listed} == {
        name: str(bits) for name, bits in found.policy.layers.items()
    }
    assert sum(layer.cost for layer in listed) == pytest.approx(cost)
    plain = certify(problem, best)
    assert made.prices == plain.prices, "budgets are worth what they are worth to one width a layer"
    assert (plain.grouped, plain.gap) == (False, 0.0)


def test_layers_keep_their_width_or_split_around_it() -> None:
    network = small_mobilenet()
    tables = by_energy(network)
    problem, costs = posed(network, tables, 2, 0.4)
    start = solve(problem).index
    found = refine(problem, start, costs, tables)
    for name, k in zip(network.layer_names, start, strict=True):
        bits, before = found.policy[name], CHOICES[int(k)]
        narrow, wide = bits.weight_widths[0], bits.weight_widths[-1]
        assert narrow <= before.weights <= wide
        assert bits == before or narrow < wide


def test_the_wider_group_holds_the_channels_that_gain_most_by_it() -> None:
    network = small_mobilenet()
    tables = by_energy(network)
    problem, costs = posed(network, tables, 0, 0.3)
    found = refine(problem, solve(problem).index, costs, tables)
    for name in network.layer_names:
        bits = found.policy[name]
        if isinstance(bits, ChannelGroups):
            (narrow, first), (wide, last) = bits.groups
            saved = costs[name, narrow] - costs[name, wide]
            assert saved[list(last)].min() >= saved[list(first)].max()


def test_no_choice_of_cuts_is_better_nor_one_that_was_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = chain()
    tables = by_energy(network)
    problem, costs = posed(network, tables, 3, 0.4)
    start = solve(problem).index
    found = refine(problem, start, costs, tables, cuts=3)
    assert found.proven
    monkeypatch.setattr(channel_groups, "non_dominated", lambda points: np.ones(len(points), bool))
    wider = refine(problem, start, costs, tables, cuts=3).problem
    options = [np.flatnonzero(row) for row in wider.allowed]
    # w2a8 and w8a8 stand at the end of two pairs of widths, w4a8 lies within three
    assert [len(row) for row in options] == [{0: 7, 1: 10, 2: 7}[int(k)] for k in start]
    assert len(found.problem.choices) < len(wider.choices)
    every = np.array(list(itertools.product(*options)), np.uint8)
    feasible = every[wider.feasible(every)]
    assert wider.proxy_loss(feasible).min() == pytest.approx(found.losses[1], rel=1e-6)


def test_where_groups_cost_more_than_they_save_the_policy_stays() -> None:
    # a layer of 8 x 8 weights: a group costs some 300 bytes and saves 16 at most
    network = chain()
    tables = by_size(network)
    problem, costs = posed(network, tables, 0, 0.6)
    start = solve(problem).index
    found = refine(problem, start, costs, tables)
    assert found.grouped == 0
    np.testing.assert_array_equal(found.index, found.start)
    assert found.losses[0] == found.losses[1]


def test_tied_layers_get_the_same_groups() -> None:
    network = small_mobilenet().tied([("b0.expand", "b0.depthwise"), ("stem", "head")])
    tables = by_energy(network)
    problem, costs = posed(network, tables, 0, 0.3)
    found = refine(problem, solve(problem).index, costs, tables)
    found.policy.check(network)
    grouped = {n for n in network.layer_names if isinstance(found.policy[n], ChannelGroups)}
    assert "b0.expand" in grouped
    assert not grouped & {"stem", "head"}, "they have no equal channels"


def test_float_layers_and_such_without_weights_get_none(attention: Subject) -> None:
    network = attention.network
    choices = parse_choices("w4a8,w8a8,w32a32")
    tables = by_energy(network)
    problem, costs = posed(network, tables, 0, 0.5, choices)
    start = np.zeros(len(network.layers), np.uint8)
    start[0] = 2
    found = refine(problem, start, costs, tables)
    assert found.policy[network.layer_names[0]] == choices[2]
    for layer in network.layers:
        assert layer.has_weights or not isinstance(found.policy[layer.name], ChannelGroups)


def test_many_groupings_are_thinned_so_that_a_byte_tells_all_choices_apart() -> None:
    network = small_mobilenet()
    tables = by_energy(network)
    problem, costs = posed(network, tables, 0, 0.3)
    start = np.ones(len(network.layers), np.uint8)
    found = refine(problem, start, costs, tables, cuts=60)
    assert 200 < len(found.problem.choices) <= 256
    assert found.losses[1] < found.losses[0]


def test_a_problem_without_tables_has_nothing_to_save() -> None:
    network = chain()
    problem, costs = posed(network, by_energy(network), 0, 0.5)
    free = Problem(network, CHOICES, {}, {}, problem.loss)
    with pytest.raises(PolicyError, match="need a cost to save"):
        refine(free, np.zeros(4, np.uint8), costs, lambda _: {})


def test_a_budget_that_no_groups_meet_is_an_error() -> None:
    network = chain()
    tables = by_energy(network)
    problem, costs = posed(network, tables, 0, 0.1)
    widest = np.full(4, 2, np.uint8)
    with pytest.raises(BudgetError, match="cannot be met"):
        refine(problem, widest, costs, tables)


def test_costs_of_channels_are_what_fisher_information_makes_of_their_errors(
    small: Subject,
) -> None:
    images = small.images[:8]
    found = channel_costs(small.simulation, [2, 4], images, seed=1)
    fisher, _ = squared_gradients(FloatNetwork(small.exporter), images, 1)
    corrections = small.simulation.correct_alone([BitWidths(2, 8)])
    for name, axis in (("stem", 0), ("classifier", 0)):
        quantized = small.exporter.parameters.weight(name, 2)
        exact = small.simulation._executor.differentiable_weight(small.network.layer(name))
        for channel in (0, 3):
            gain = corrections[name, BitWidths(2, 8)].gain[channel]
            row = np.take(quantized.dequantize(), channel, axis) * gain
            error = row - np.take(exact.detach().numpy(), channel, axis)
            expected = 0.5 * (np.take(fisher[name], channel, axis) * error**2).sum()
            assert found[name, 2][channel] == pytest.approx(expected, rel=1e-5)
    assert all(len(c) == small.network.layer(n).out_channels for (n, _), c in found.items())
    assert sum(c.sum() for (_, w), c in found.items() if w == 4) < sum(
        c.sum() for (_, w), c in found.items() if w == 2
    )
