"""Soft budgets: what the agent maximises instead of keeping a hard limit.

Hard budgets are `ReinforceConfig.constraint` ``repair``, ``mask`` or ``reject``. A cost is counted
as a share of its budget, so that several budgets, in any units, add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray
from costmodels.units import Metric
from search.problem import SLACK, Problem

_FIRST_EXCESS = 0.1
"""An excess that costs one deviation of the first scores, before the weights adapt."""


@dataclass
class Penalty:
    """A soft budget: ``score - sum_m lambda_m * max(0, cost_m / budget_m - 1)``.

    Each budget has its own weight, which an update multiplies by ``exp(rate * (share of policies
    beyond that budget - target))``: a multiplicative step fits scores of any scale and keeps the
    weight positive. The first weights make an excess of 10 % worth one deviation of the first
    scores.

    Args:
        problem: its budgets.
        target: share of policies that may be beyond a budget.
        rate: of the adaptation.
        weights: lambda of each budget in the order of `Problem.budgets`; None until `take_in`.
    """

    problem: Problem
    target: float
    rate: float
    weights: FloatArray | None = None

    def take_in(self, scores: FloatArray, costs: Mapping[Metric, FloatArray]) -> FloatArray:
        """Return the rewards, (B,), of one update, then adapt the weights.

        Args:
            scores: (B,); -inf for policies that are infeasible as measured.
            costs: for each metric (B,), finite.
        """
        excess = self._excess(costs)
        known = scores[np.isfinite(scores)]
        if self.weights is None and known.size:
            deviation = float(known.std()) or float(np.abs(known).max()) or 1.0
            self.weights = np.full(excess.shape[1], deviation / _FIRST_EXCESS)
        if self.weights is None:
            return scores
        rewards: FloatArray = scores - excess @ self.weights
        beyond = (excess > SLACK).mean(0)
        self.weights = self.weights * np.exp(self.rate * (beyond - self.target))
        return rewards

    def _excess(self, costs: Mapping[Metric, FloatArray]) -> FloatArray:
        """Return the excess (B, M) as a share of each budget."""
        shares = [costs[metric] / budget for metric, budget in self.problem.budgets.items()]
        count = len(next(iter(costs.values()), ()))
        stacked = np.stack(shares, 1) if shares else np.zeros((count, 0))
        excess: FloatArray = np.maximum(0.0, stacked - 1.0)
        return excess
