"""The rule that people apply by hand, fitted to the budgets."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantization.policy import IndexArray
from search.archive import Ledger
from search.problem import Problem
from search.repair import repair
from search.searcher import Evaluate, Progress, Record, SearchResult

_EDGE_BITS = 8
"""Weight bits of the first and the last layer."""


def manual_policies(problem: Problem) -> IndexArray:
    """Return the policies of the rule, (N, L), from the most bits to the fewest.

    The choices that are not float form a ladder by weight bits, then activation bits. The first and
    the last layer get 8 bits; depthwise layers one rung below the others, since they hold few
    weights and few MACs for each byte that they move. Then, rung after rung, the layers step down,
    those with the most weights first; depthwise layers never leave their distance. Where all others
    are at the bottom, the last layer goes down too, then the first. A choice that is not allowed
    gives way to the next narrower one that is, else to the next wider.

    The rule mixes what is done by hand: first and last layer at 8 bits (S. Zhou et al., DoReFa-Net,
    arXiv:1606.06160; R. Krishnamoorthi, arXiv:1806.08342), and fewer bits for depthwise layers of
    a memory-bound device (K. Wang et al., HAQ, CVPR 2019, section 4.4).

    Args:
        problem: its network and choices; budgets are not looked at.
    """
    choices = problem.choices
    exact = [k for k, bits in enumerate(choices) if not bits.is_float] or list(range(len(choices)))
    ladder = sorted(exact, key=lambda k: choices[k], reverse=True)
    edge = next(
        (r for r, k in enumerate(ladder) if choices[k].weights <= _EDGE_BITS), len(ladder) - 1
    )
    bottom = len(ladder) - 1
    layers = problem.network.layers
    rungs = np.full(len(problem.groups), edge)
    lower = np.array([all(layers[i].is_depthwise for i in group) for group in problem.groups])
    last, first = int(problem.decision_of[-1]), int(problem.decision_of[0])
    weights = [sum(layers[i].weight_count for i in group) for group in problem.groups]
    inner = [int(g) for g in np.argsort(weights)[::-1] if g not in (first, last)]
    steps = [(rung, decision) for rung in range(edge, bottom + 1) for decision in inner]
    steps += [(rung, g) for g in dict.fromkeys((last, first)) for rung in range(edge, bottom + 1)]
    rows = []
    for rung, decision in steps:
        rungs[decision] = rung
        moved = np.minimum(rungs + lower * (np.arange(len(rungs)) != first), bottom)
        rows.append(_allowed_choices(problem, np.array(ladder), moved))
    kept = [row for i, row in enumerate(rows) if i == 0 or (row != rows[i - 1]).any()]
    return problem.expand(np.array(kept))


def _allowed_choices(
    problem: Problem, ladder: npt.NDArray[np.intp], rungs: npt.NDArray[np.intp]
) -> IndexArray:
    """Return for each decision, (G,), the choice at its rung, or the nearest that is allowed."""
    taken = np.empty(len(rungs), np.uint8)
    for decision, rung in enumerate(rungs):
        allowed = problem.allowed_decisions[decision]
        nearest = [*ladder[rung:], *ladder[:rung][::-1], *np.flatnonzero(allowed)]
        taken[decision] = next(choice for choice in nearest if allowed[choice])
    return taken


@dataclass(frozen=True)
class Manual:
    """Scores the policy of most bits, of those by the manual rule, that is within the budgets.

    If none is, the one that exceeds them least is repaired, and its origin says so.
    """

    name: str = "manual"

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
        policies = manual_policies(problem)
        violation = problem.violation(problem.costs(policies))
        taken = int(violation.argmin())  # the first of the feasible ones, if any
        outcome = repair(problem, policies[[taken]])
        if not outcome.rejected[0]:
            ledger.score(outcome.index, f"{self.name}{' repaired' * bool(outcome.repaired[0])}")
        return ledger.result({"step": float(taken), "repaired": float(outcome.repaired[0])})
