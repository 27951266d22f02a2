"""A policy, and what lies close to it: each decision's choices by what they would cost instead."""

import numpy as np

from costmodels.table import BoolArray, FloatArray
from quantization.policy import IndexArray
from search.problem import Problem
from search.repair import single_changes


def softened(problem: Problem, start: IndexArray, probability: float) -> FloatArray:
    """Return probabilities (G, K) under which the choices of `start`, (L,), are likely.

    ``p ~ exp(-max(loss + rate * cost, 0) / t)``, where loss and cost are what a single change of
    the start adds, cost as share of the budgets, and the rate is what a share of budget is worth in
    loss: that at which the least can be gained by one change of each decision. So what is nearly as
    good is nearly as likely, whether it saves or spends. t gives the start's choices the mean
    probability that is asked for, or what comes next to it where others are as good.

    Args:
        problem: its proxy loss, tables and budgets.
        start: respects ties, and is supported.
        probability: of the start's choices, mean over the decisions with a choice.
    """
    decisions = problem.decide(start[None])[0]
    groups, choices = problem.allowed_decisions.shape
    index = problem.expand(single_changes(problem, decisions[None]).reshape(-1, groups))
    own = np.arange(groups), decisions
    loss = problem.proxy_loss(index).reshape(groups, choices)
    share = np.zeros((groups, choices))
    for metric, cost in problem.costs(index).items():
        if metric in problem.budgets:
            share += cost.reshape(groups, choices) / problem.budgets[metric]
    allowed = problem.allowed_decisions & np.isfinite(loss + share)
    with np.errstate(invalid="ignore"):
        loss, share = loss - loss[own][:, None], share - share[own][:, None]
    energy = np.where(allowed, np.maximum(loss + _rate(loss, share, allowed) * share, 0.0), np.inf)
    is_open = allowed.sum(1) > 1
    if not is_open.any():
        return allowed.astype(np.float64)
    low, high = 1e-15, 1e6  # in units of the largest energy
    scale = float(np.max(energy[allowed], initial=0.0)) or 1.0
    for _ in range(80):
        middle = np.sqrt(low * high)
        p = _boltzmann(energy, middle * scale)
        low, high = (middle, high) if p[own][is_open].mean() > probability else (low, middle)
    return p


def _rate(loss: FloatArray, share: FloatArray, allowed: BoolArray) -> float:
    """What a share of budget is worth in loss: the price at which least is gained by a change."""
    trades = allowed & (share * loss < 0)
    if not trades.any():
        return 0.0
    rates = np.unique(-loss[trades] / share[trades])
    gains = [
        np.where(allowed, np.maximum(-(loss + r * share), 0.0), 0.0).max(1).sum() for r in rates
    ]
    return float(rates[int(np.argmin(gains))])


def _boltzmann(energy: FloatArray, temperature: float) -> FloatArray:
    p = np.exp(-energy / temperature)  # the start has energy 0
    return np.asarray(p / p.sum(1, keepdims=True))
