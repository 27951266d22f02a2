"""What the agent knows about each decision before any choice is made.

Every figure is on a scale that means the same in any network: a position, a logarithm of a count,
or a share of what the decisions of this network have on average. So a state has the same length and
meaning for every network with the same choices, and what was learned on one serves others.
"""

import math

import numpy as np
import numpy.typing as npt

from costmodels.table import FloatArray
from quantization.network import Layer
from search.problem import Problem

Float32Array = npt.NDArray[np.float32]

_FEWEST, _MOST = 1e-4, 1e2
"""Shares of the average are cut off here before the logarithm."""


def static_features(problem: Problem) -> Float32Array:
    """Return the features (G, 10 + 2 K) of each decision.

    Columns: relative depth, -1 to 1; logarithms of input channels, output channels, kernel area and
    stride; whether depthwise; logarithms of the shares of macs and of weights, of macs, of weights,
    and for each choice of its loss, then for each choice of what it saves.

    A tie is described by its first layer, with the macs, weights, losses and costs of all. Losses
    are shares of the average over the decisions of the largest loss; savings are what a choice
    costs less than the dearest one in the tightest budget, as shares of the average of the largest
    saving. Figures of choices that are not allowed are 0.
    """
    layers = problem.network.layers
    members = [[layers[i] for i in group] for group in problem.groups]
    depth = np.array([group[0] for group in problem.groups]) / max(1, len(layers) - 1)
    macs = np.array([sum(layer.macs for layer in group) for group in members], np.float64)
    weights = np.array([sum(layer.weight_count for layer in group) for group in members])
    described = np.array([_describe(group[0]) for group in members])
    columns = [
        2.0 * depth[:, None] - 1.0,
        described,
        _log_share(macs)[:, None],
        _log_share(weights)[:, None],
        np.log10(np.maximum(macs, 1.0))[:, None] / 2.0 - 3.0,
        np.log10(np.maximum(weights, 1.0))[:, None] / 2.0 - 2.0,
    ]
    allowed = problem.allowed_decisions
    loss = np.where(allowed, problem.decision_loss, 0.0)
    for amount in (loss, np.where(allowed, _savings(problem), 0.0)):
        average = amount.max(1).mean()
        columns.append(np.where(allowed, _log(amount / (average or 1.0)), 0.0))
    return np.concatenate(columns, axis=1).astype(np.float32)


def _describe(first: Layer) -> list[float]:
    stride = float(first.stride[0]) if first.stride else 1.0
    return [
        math.log10(first.in_channels) - 2.0,
        math.log10(first.out_channels) - 2.0,
        math.log10(math.prod(first.kernel)),
        math.log10(stride),
        float(first.is_depthwise),
    ]


def _savings(problem: Problem) -> FloatArray:
    """Return what choices, (G, K), cost less than the dearest in the tightest budget."""
    costs = problem.costs(problem.lowest_loss)
    over = {metric: costs[metric][0] / budget for metric, budget in problem.budgets.items()}
    if not over:
        return np.zeros_like(problem.decision_loss)
    unary = problem.tables[max(over, key=over.__getitem__)].unary.value
    cost = np.array([unary[group].sum(0) for group in problem.groups])
    seen = np.where(problem.allowed_decisions, cost, -np.inf)
    saving: FloatArray = seen.max(1, keepdims=True) - cost
    return saving


def _log_share(amount: FloatArray) -> FloatArray:
    return _log(amount / (amount.mean() or 1.0))


def _log(share: FloatArray) -> FloatArray:
    logarithm: FloatArray = np.log10(np.clip(share, _FEWEST, _MOST))
    return logarithm
