"""Make infeasible policies feasible at little loss."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.table import BoolArray, FloatArray
from costmodels.units import Metric
from quantization.policy import IndexArray
from search.problem import Problem


@dataclass(frozen=True, eq=False)
class Repaired:
    """Policies after repair.

    Args:
        index: (P, L) the policies; rejected ones as they were.
        costs: for each table (P,) what they cost.
        repaired: (P,) which were infeasible and are feasible now.
        rejected: (P,) which are infeasible still.
        violation: (P,) how far the rejected ones are from feasible, 0 for the others.
    """

    index: IndexArray
    costs: Mapping[Metric, FloatArray]
    repaired: BoolArray
    rejected: BoolArray
    violation: FloatArray


def repair(problem: Problem, index: IndexArray) -> Repaired:
    """Change single decisions of infeasible policies until they are feasible.

    The changes that lower the violation (`Problem.violation`) are ordered by proxy loss added per
    violation removed, both as seen from the given policy; the first prefix of that order that is
    feasible is taken. If none is, the policy is rejected.

    Args:
        problem: the budgets.
        index: (P, L) policies that respect ties and masks; not changed.
    """
    costs = problem.costs(index)
    violation = problem.violation(costs)
    wrong = np.flatnonzero(violation > 0)
    repaired, rejected = np.zeros((2, len(index)), bool)
    if not wrong.size:
        return Repaired(index, costs, repaired, rejected, violation)
    prefixes = _prefixes(problem, problem.decide(index[wrong]), violation[wrong])
    flat = problem.expand(prefixes.reshape(-1, prefixes.shape[2]))
    priced = problem.costs(flat)
    feasible = (problem.violation(priced) == 0).reshape(prefixes.shape[:2])
    mended = feasible.any(1)
    repaired[wrong] = mended
    rejected[wrong] = ~mended
    source = (np.arange(len(wrong)) * prefixes.shape[1] + feasible.argmax(1))[mended]
    target = wrong[mended]
    index = index.copy()
    index[target] = flat[source]
    for metric, cost in costs.items():
        cost[target] = priced[metric][source]
    violation[target] = 0.0
    return Repaired(index, costs, repaired, rejected, violation)


def judge(problem: Problem, index: IndexArray) -> Repaired:
    """Reject infeasible policies, (P, L), and change none: what `repair` is compared with."""
    costs = problem.costs(index)
    violation = problem.violation(costs)
    return Repaired(index, costs, np.zeros(len(index), bool), violation > 0, violation)


def admit(problem: Problem, index: IndexArray) -> Repaired:
    """Reject only policies, (P, L), that some table does not support: for soft budgets."""
    costs = problem.costs(index)
    met: BoolArray = np.logical_and.reduce(
        [np.ones(len(index), bool), *(np.isfinite(cost) for cost in costs.values())]
    )
    violation = np.where(met, 0.0, problem.violation(costs))
    return Repaired(index, costs, np.zeros(len(index), bool), ~met, violation)


def single_changes(problem: Problem, decisions: IndexArray) -> IndexArray:
    """Return every policy that differs in one decision.

    Args:
        problem: G decisions among K choices.
        decisions: (P, G).

    Returns:
        (P, G, K, G) decisions; entry (p, g, k) gives decision g the choice k. Choices that are not
        allowed, and the policy itself, are among them.
    """
    count, choices = problem.decision_loss.shape
    changed = np.empty((len(decisions), count, choices, count), np.uint8)
    changed[:] = decisions[:, None, None]
    where = np.arange(count)
    changed[:, where, :, where] = np.arange(choices, dtype=np.uint8)
    return changed


def price_changes(problem: Problem, decisions: IndexArray) -> tuple[FloatArray, FloatArray]:
    """Return the violation and the added loss, both (P, G, K), of every single change."""
    changed = single_changes(problem, decisions)
    costs = problem.costs(problem.expand(changed.reshape(-1, changed.shape[3])))
    loss = problem.decision_loss
    now = loss[np.arange(len(loss)), decisions]
    return problem.violation(costs).reshape(changed.shape[:3]), loss - now[:, :, None]


def _prefixes(problem: Problem, decisions: IndexArray, violation: FloatArray) -> IndexArray:
    """Return the policies (P, N, G) after each of N changes, best change first."""
    after, added = price_changes(problem, decisions)
    removed = violation[:, None, None] - after
    useful = (removed > 0) & problem.allowed_decisions
    rate = np.where(useful, added / np.where(useful, removed, 1.0), np.inf)
    rate = _undominated(rate, removed).reshape(len(decisions), -1)
    counts = np.isfinite(rate).sum(1)
    order = np.argsort(rate, axis=1, kind="stable")[:, : max(1, counts.max())]
    applied = np.arange(order.shape[1]) < counts[:, None]
    return _accumulate(decisions, order, applied, len(problem.choices))


def _undominated(rate: FloatArray, removed: FloatArray) -> FloatArray:
    """Drop changes, (P, G, K), that come after a stronger one of the same decision."""
    earlier = rate[..., None, :] < rate[..., :, None]
    stronger = removed[..., None, :] >= removed[..., :, None]
    kept: FloatArray = np.where((earlier & stronger).any(3), np.inf, rate)
    return kept


def _accumulate(
    decisions: IndexArray, order: npt.NDArray[np.intp], applied: BoolArray, choices: int
) -> IndexArray:
    """Return the policies (P, N, G) after each change; `order` (P, N) numbers them g * K + k."""
    policies, steps = order.shape
    # step and choice in one number: the running maximum is the latest change of each decision
    codes = np.full((policies, steps, decisions.shape[1]), -1, np.int32)
    row, step = np.nonzero(applied)
    decision, choice = np.divmod(order[row, step], choices)
    codes[row, step, decision] = step * choices + choice
    np.maximum.accumulate(codes, axis=1, out=codes)
    changed = (codes % choices).astype(np.uint8)
    return np.where(codes >= 0, changed, decisions[:, None])
