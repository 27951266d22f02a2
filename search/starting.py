"""Where a search starts: within its budgets as measured, not by the sums of the tables alone."""

from collections.abc import Callable, Collection
from dataclasses import replace

from costmodels.units import Metric
from quantization.errors import BudgetError
from quantization.policy import IndexArray
from search.greedy import greedy_policy
from search.problem import Problem

STEP = 0.97
"""What is left of the tables' budgets after each start that was measured to be above."""
TRIES = 12
"""Starts that are looked for."""


def greedy_start(problem: Problem) -> IndexArray | None:
    """Return what greedy search finds, (L,), or None if it never becomes feasible."""
    found = greedy_policy(problem)
    return None if found is None else found[0]


def accepted_start(
    problem: Problem,
    find: Callable[[Problem], IndexArray | None],
    accepts: Callable[[IndexArray], bool],
    metrics: Collection[Metric],
) -> IndexArray | None:
    """Return the first start that is accepted, looked for within tighter and tighter budgets.

    Where a table is a few percent too low, every policy that spends its budget is rejected, and a
    search that starts from one learns from rejections only.

    Args:
        problem: what is searched.
        find: finds a start within the budgets of a problem; None if there is none.
        accepts: whether a start, (L,), is within the budgets as measured.
        metrics: that are measured; their budgets are tightened.

    Returns:
        (L,), or None if no start was accepted within `TRIES` steps.
    """
    seen: set[bytes] = set()
    for step in range(TRIES):
        share = STEP**step
        budgets = {m: b * share if m in metrics else b for m, b in problem.budgets.items()}
        try:
            start = find(replace(problem, budgets=budgets))
        except BudgetError:  # not even the tables can be met so
            return None
        if start is None:
            return None
        if start.tobytes() not in seen and accepts(start):
            return start
        seen.add(start.tobytes())
    return None
