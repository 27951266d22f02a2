"""Greedy descent: buy feasibility at the best price, then spend what is left."""

from dataclasses import dataclass

import numpy as np

from quantization.policy import IndexArray
from search.archive import Ledger
from search.problem import Problem
from search.repair import price_changes
from search.searcher import Evaluate, Progress, Record, SearchResult
from search.uniform import uniform_policy


def descend(problem: Problem, start: IndexArray) -> IndexArray | None:
    """Take single changes from `start`, (1, L), until the policy is feasible.

    Each step takes the change that adds the least proxy loss per violation removed. Changes that
    add none come first, the one that removes most before the others.

    Returns:
        (1, L), or None if no single change helps any more.
    """
    decisions = problem.decide(start)
    while (violation := problem.violation(problem.costs(problem.expand(decisions)))[0]) > 0:
        after, added = (values[0] for values in price_changes(problem, decisions))
        removed = violation - after
        useful = (removed > 1e-12 * violation) & problem.allowed_decisions
        if not useful.any():
            return None
        price = np.where(added > 0, added / np.where(useful, removed, 1.0), -removed)
        rate = np.where(useful, price, np.inf)
        decision, choice = np.unravel_index(rate.argmin(), rate.shape)
        decisions[0, decision] = choice
    return problem.expand(decisions)


def spend(problem: Problem, start: IndexArray) -> IndexArray:
    """Take from a feasible policy, (1, L), the single change that removes most loss, repeatedly.

    Returns:
        (1, L): a feasible policy that no feasible single change improves.
    """
    decisions = problem.decide(start)
    while True:
        after, added = (values[0] for values in price_changes(problem, decisions))
        gain = np.where((after == 0) & problem.allowed_decisions, -added, 0.0)
        decision, choice = np.unravel_index(gain.argmax(), gain.shape)
        if gain[decision, choice] <= 0:
            return problem.expand(decisions)
        decisions[0, decision] = choice


def greedy_policy(problem: Problem) -> IndexArray | None:
    """Return what greedy search finds, (1, L), or None if it never becomes feasible.

    Starts from the policy of the least loss; where that gets stuck, as conversions can make every
    single change costlier, from the uniform policies too. The least loss wins.
    """
    reached = descend(problem, problem.lowest_loss)
    if reached is not None:
        return spend(problem, reached)
    found = []
    for choice in range(len(problem.choices)):
        reached = descend(problem, uniform_policy(problem, choice)[0])
        if reached is not None:
            found.append(spend(problem, reached))
    return min(found, key=lambda index: float(problem.proxy_loss(index)[0]), default=None)


@dataclass(frozen=True)
class Greedy:
    """Greedy search on the proxy loss; its one policy is scored."""

    name: str = "greedy"

    def search(
        self,
        problem: Problem,
        evaluate: Evaluate,
        *,
        evaluations: int,
        seed: int,  # noqa: ARG002 - nothing is random here
        progress: Progress | None = None,
        record: Record | None = None,
    ) -> SearchResult:
        """See `search.searcher.Searcher`."""
        ledger = Ledger(problem, evaluate, evaluations, progress, record)
        index = greedy_policy(problem)
        if index is not None:
            ledger.score(index, self.name)
        return ledger.result({"found": float(index is not None)})
