"""The second level of a hierarchical choice: layers have their widths, now their channels get some.

Any searcher chooses the layers' widths. Then, decision by decision, output channels are ordered by
what a narrower width would cost each of them, and a few cuts through that order become choices:
channels before the cut get the wider of two widths around the layer's own. Those that lose no less
and cost no less than another are dropped. The MILP picks one of the others, or the layer's own
width, for every decision at once, so that budgets stay met: bits move from channels that do not
need them to such that do, in any layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.table import BoolArray, Cells, CostTable, FloatArray
from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import misfit_of
from quantization.errors import PolicyError
from quantization.gradients import FloatNetwork, squared_gradients
from quantization.policy import IndexArray, Policy
from quantization.quantizer import Float32Array
from quantization.simulation import Simulation
from search.curvature import IMAGES, weight_error
from search.dominance import non_dominated
from search.exact import solve
from search.problem import Problem

CUTS = 7
"""Cuts through the order of channels that are tried for a pair of widths, at most."""
_MOST_CHOICES = 256
"""What the byte of a policy's index tells apart."""

Tables = Callable[[Sequence[BitWidths]], Mapping[Metric, CostTable]]
"""Prices choices: what `quantmeter.costs.Costs.tables` does for a network."""

ChannelCosts = Mapping[tuple[str, int], FloatArray]
"""By layer and weight bits what each output channel loses, (channels,), not negative."""


@dataclass(frozen=True, eq=False)
class Refined:
    """A policy with channel groups, and what it was chosen from.

    Args:
        problem: the choices of every layer: the width it had, and channel groups around it.
        start: (L,) the policy that was refined, in the choices of `problem`.
        index: (L,) the policy of the least proxy loss within every budget.
        proven: whether no other cuts have less, up to the solver's gap.
    """

    problem: Problem
    start: IndexArray
    index: IndexArray
    proven: bool

    @property
    def policy(self) -> Policy:
        """The refined policy."""
        names, choices = self.problem.network.layer_names, self.problem.choices
        return Policy({n: choices[int(k)] for n, k in zip(names, self.index, strict=True)})

    @property
    def losses(self) -> tuple[float, float]:
        """Proxy loss before and after."""
        before, after = self.problem.proxy_loss(np.stack([self.start, self.index]))
        return float(before), float(after)

    @property
    def grouped(self) -> int:
        """Layers that have channel groups."""
        chosen = [self.problem.choices[int(k)] for k in self.index]
        return sum(isinstance(bits, ChannelGroups) for bits in chosen)


def channel_costs(
    simulation: Simulation, widths: Sequence[int], images: Float32Array, seed: int = 0
) -> dict[tuple[str, int], FloatArray]:
    """Return ``1/2 sum F e^2`` over each output channel's weights, in nats.

    F is the diagonal of the Fisher information, e what quantization (statistics corrected) adds to
    a weight: the second-order estimate of the Kullback-Leibler divergence from the float network.

    Args:
        simulation: of the network.
        widths: weight bits.
        images: (N, ...) float32; the first `search.curvature.IMAGES` are used.
        seed: of the classes that gradients are taken of.

    Returns:
        By layer with weights, and width, (channels,). Layers whose channels get no groups
        (ConvTranspose) are left out.

    Raises:
        DataError: if the images do not fit the network.
    """
    network = FloatNetwork(simulation.exporter)
    fisher, _ = squared_gradients(network, images[:IMAGES], seed)
    choices = [BitWidths(width, 8) for width in widths]
    corrections = simulation.correct_alone(choices)
    found = {}
    for layer in simulation.network.layers:
        if not layer.groupable:
            continue
        for bits in choices:
            correction = corrections.get((layer.name, bits))
            error = weight_error(simulation, network, layer, bits, correction)
            axis = simulation.exporter.parameters.weight(layer.name, bits.weights).axis
            each = np.moveaxis(fisher[layer.name] * np.square(error), axis, 0)
            found[layer.name, bits.weights] = 0.5 * each.reshape(len(each), -1).sum(1)
    return found


def refine(
    problem: Problem,
    index: IndexArray,
    costs: ChannelCosts,
    tables: Tables,
    *,
    cuts: int = CUTS,
    seconds: float = 60.0,
) -> Refined:
    """Give channel groups to the layers of a policy where that lowers the proxy loss.

    The loss of a layer at one width is that of `problem`; channels share it in proportion to their
    `costs` at that width, and a layer with groups loses the sum of its channels' shares.

    Args:
        problem: what the policy was chosen from.
        index: (L,) the policy.
        costs: of every layer that may get groups, at every weight width of the problem's choices.
        tables: prices other choices, by the same metrics as `problem`.
        cuts: tried for each pair of widths. Of more groupings than a batch can hold choices, some
            of every layer are left out.
        seconds: wall time after which the best policy so far is taken.

    Returns:
        A policy whose proxy loss is not above that of the given one, and that is within the budgets
        if the given one is.

    Raises:
        PolicyError: if nothing is priced.
        BudgetError: if neither the policy nor any with channel groups meets the budgets.
    """
    if not problem.tables:
        raise PolicyError("channel groups need a cost to save; give the problem a table")
    found: dict[int, dict[ChannelGroups, FloatArray]] = {}
    for decision in range(len(problem.groups)):
        for pair in _pairs(problem, index, decision):
            more = _groupings(problem, costs, decision, pair, cuts)
            found.setdefault(decision, {}).update(more)
    listed = dict.fromkeys(bits for each in found.values() for bits in each)
    every = tables((*problem.choices, *listed))
    kept = _useful(problem, index, found, every)
    choices = (*problem.choices, *dict.fromkeys(bits for each in kept.values() for bits in each))
    column = {bits: k for k, bits in enumerate(choices)}
    allowed = np.zeros((len(index), len(choices)), np.bool_)
    allowed[np.arange(len(index)), index] = True
    loss = np.zeros(allowed.shape)
    loss[:, : len(problem.choices)] = np.where(problem.allowed, problem.loss, 0.0)
    for decision, groupings in kept.items():
        for bits in groupings:
            allowed[problem.groups[decision], column[bits]] = True
            loss[problem.groups[decision], column[bits]] = found[decision][bits]
    priced = {metric: _only(table.restrict(choices), allowed) for metric, table in every.items()}
    wider = Problem(problem.network, choices, priced, problem.budgets, loss)
    solution = solve(wider, seconds=seconds)
    before, after = wider.proxy_loss(np.stack([index, solution.index]))
    stays = wider.feasible(index[None])[0] and before <= after  # the solver stops at a gap
    return Refined(wider, index, index if stays else solution.index, solution.proven)


def _pairs(problem: Problem, index: IndexArray, decision: int) -> Iterator[tuple[int, int]]:
    """Yield the positions of (narrower, wider) choices around the one that a decision has."""
    members = [problem.network.layers[i] for i in problem.groups[decision]]
    at = int(index[problem.groups[decision][0]])
    bits = problem.choices[at]
    whole = all(layer.groupable for layer in members)
    equal = len({layer.out_channels for layer in members}) == 1
    if bits.is_float or not whole or not equal or members[0].out_channels < 2:
        return
    others = [
        k
        for k, other in enumerate(problem.choices)
        if other.activations == bits.activations
        and not other.is_float
        and problem.allowed_decisions[decision, k]
    ]
    narrower = [k for k in others if problem.choices[k].weights <= bits.weights]
    wider = [k for k in others if problem.choices[k].weights >= bits.weights]
    yield from ((a, b) for a in narrower for b in wider if a != b)


def _groupings(
    problem: Problem, costs: ChannelCosts, decision: int, pair: tuple[int, int], cuts: int
) -> dict[ChannelGroups, FloatArray]:
    """Return channel groups of two widths, and what each layer of the decision loses with them."""
    members = problem.groups[decision]
    narrow, wide = (problem.choices[k] for k in pair)
    channels = problem.network.layers[members[0]].out_channels
    losses = np.array(
        [
            [
                problem.loss[row, k]
                * _shares(costs[problem.network.layer_names[row], problem.choices[k].weights])
                for k in pair
            ]
            for row in members
        ]
    )  # (members, 2, channels)
    saved = (losses[:, 0] - losses[:, 1]).sum(0)
    order = np.argsort(-saved, kind="stable")
    found = {}
    for cut in sorted({round(channels * i / (cuts + 1)) for i in range(1, cuts + 1)}):
        if not 0 < cut < channels:
            continue
        first, last = order[:cut], order[cut:]
        bits = ChannelGroups(
            wide.activations, {wide.weights: first.tolist(), narrow.weights: last.tolist()}
        )
        assert not misfit_of(problem.network.layers[members[0]], bits)
        found[bits] = losses[:, 1, first].sum(1) + losses[:, 0, last].sum(1)
    return found


def _useful(
    problem: Problem,
    index: IndexArray,
    found: Mapping[int, Mapping[ChannelGroups, FloatArray]],
    tables: Mapping[Metric, CostTable],
) -> dict[int, list[ChannelGroups]]:
    """Return the groupings of each decision that no other, nor its own width, beats in everything.

    All of them read the same activations, so that they differ in nothing but their own cells. Where
    too many are left, such are kept as lie evenly between the cheapest and the dearest.
    """
    room = (_MOST_CHOICES - len(problem.choices)) // max(len(found), 1)
    result = {}
    for decision, groupings in found.items():
        members = problem.groups[decision]
        at = int(index[members[0]])
        bits = list(groupings)
        values = [
            np.array([problem.loss[members, at].sum(), *(g.sum() for g in groupings.values())])
        ]
        for table in tables.values():
            position = {each: k for k, each in enumerate(table.choices)}
            columns = np.array([at, *(position[each] for each in bits)], np.intp)
            values.append(table.unary.value[np.ix_(members, columns)].sum(0))
        points = np.stack(values, axis=1)
        good = np.flatnonzero(non_dominated(points) & np.isfinite(points).all(1))
        good = good[good > 0]
        good = good[np.argsort(points[good, 1], kind="stable")]
        if len(good) > room:
            good = good[np.round(np.linspace(0, len(good) - 1, room)).astype(np.intp)]
        result[decision] = [bits[i - 1] for i in good]
    return result


def _shares(costs: FloatArray) -> FloatArray:
    """Return the shares, (channels,), in which channels bear their layer's loss."""
    total = costs.sum()
    return costs / total if total > 0 else np.full(len(costs), 1 / len(costs))


def _only(table: CostTable, allowed: BoolArray) -> CostTable:
    """Return the table with support for the allowed cells alone."""
    cells = table.unary
    value = np.where(allowed, cells.value, np.inf)
    unary = Cells.of(value, cells.provenance, kernel=cells.kernel, uncertainty=cells.uncertainty)
    return replace(table, unary=unary)
