"""The loop of every method that proposes policies, sees their scores, and proposes again."""

from typing import Protocol

import numpy as np

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.archive import Ledger
from search.exact import solve
from search.problem import Problem
from search.repair import judge, repair

PATIENCE = 500
"""Proposals in a row without a new feasible policy after which a search gives up."""


class Proposer(Protocol):
    """What a method does between two batches of evaluations."""

    def propose(self, count: int, /) -> IndexArray:
        """Return policies (P, L), 1 <= P <= count, that respect ties and masks."""

    def learn(self, index: IndexArray, scores: FloatArray, violation: FloatArray, /) -> None:
        """Take in new policies.

        Args:
            index: (P, L) distinct policies, as they are after repair, never learned before.
            scores: (P,) higher is better; -inf for those that are not feasible.
            violation: (P,) how far each is from feasible, positive where it is not.
        """


def explore(
    problem: Problem,
    ledger: Ledger,
    proposer: Proposer,
    *,
    name: str,
    start: IndexArray | None,
    repaired: bool,
    batch: int,
) -> dict[str, float | str]:
    """Let `proposer` propose until the evaluations of `ledger` are spent, or nothing new comes.

    The start is scored first. Proposals that are infeasible are repaired, or rejected: then they
    cost no evaluation. What was met before is not scored, and not learned, again.

    Args:
        problem: the budgets.
        ledger: scores policies.
        proposer: the method.
        name: of the method, the origin of its trials.
        start: (L,) or None.
        repaired: whether infeasible proposals are repaired.
        batch: proposals that are scored at once, at most.

    Returns:
        Figures for the log: how many proposals were drawn, and which share was repaired, rejected,
        and met before.

    Raises:
        BudgetError: if all of the first proposals are rejected, and no policy meets the budgets.
    """
    settle = repair if repaired else judge
    seen: set[bytes] = set()
    count = {"drawn": 0, "repaired": 0, "rejected": 0, "repeated": 0}
    idle, asked = 0, False
    given = None if start is None else start[None]
    while ledger.left > 0 and idle < PATIENCE:
        first = given is not None
        proposed = proposer.propose(min(batch, ledger.left)) if given is None else given
        given = None
        outcome = settle(problem, proposed)
        keys = [row.tobytes() for row in outcome.index]
        new = np.array([k not in seen and keys.index(k) == i for i, k in enumerate(keys)])
        seen.update(keys)
        accepted = ~outcome.rejected
        if not (first or asked) and outcome.rejected.all():
            solve(problem)  # raises if the budgets cannot be met at all
        asked = asked or not first
        scores = np.full(len(keys), -np.inf)
        origin = f"{name} start" if first else name
        scores[accepted & new] = ledger.score(outcome.index[accepted & new], origin)
        violation = np.where(outcome.rejected, outcome.violation, 0.0)
        violation[accepted & np.isneginf(scores)] = 1.0
        if new.any():
            proposer.learn(outcome.index[new], scores[new], violation[new])
        idle = 0 if (accepted & new).any() else idle + len(keys)
        count["drawn"] += len(keys)
        count["repaired"] += int(outcome.repaired.sum())
        count["rejected"] += int(outcome.rejected.sum())
        count["repeated"] += int((~new).sum())
    drawn = count.pop("drawn")
    shares = {f"{what}_share": number / max(1, drawn) for what, number in count.items()}
    return {"drawn": float(drawn), **shares, "gave_up": float(idle >= PATIENCE)}
