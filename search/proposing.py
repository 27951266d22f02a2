"""The loop of every method that proposes policies, sees their scores, and proposes again."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.archive import Ledger
from search.exact import solve
from search.problem import Problem
from search.repair import judge, repair
from search.searcher import Evaluate, Progress, Record, SearchResult

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

    def figures(self) -> dict[str, float]:
        """Return what it tells of itself in the log: nothing, unless it says so."""
        return {}


@dataclass(frozen=True, eq=False)
class Iterative(ABC):
    """A searcher (`search.searcher.Searcher`) that is all in what it proposes.

    Args:
        start: (L,) a policy that is scored first, or None.
        repaired: whether infeasible policies are repaired or rejected.
    """

    start: IndexArray | None = None
    repaired: bool = True

    @property
    @abstractmethod
    def name(self) -> str:
        """See `search.searcher.Searcher`; the origin of its trials."""

    @property
    def batch(self) -> int:
        """Policies that are proposed before their scores are looked at, at most."""
        return 10

    @abstractmethod
    def proposer(self, problem: Problem, seed: int) -> Proposer:
        """Return what proposes policies in one search."""

    def search(
        self,
        problem: Problem,
        evaluate: Evaluate,
        *,
        evaluations: int,
        seed: int,
        progress: Progress | None = None,
        record: Record | None = None,
    ) -> SearchResult:
        """See `search.searcher.Searcher`."""
        ledger = Ledger(problem, evaluate, evaluations, progress, record)
        proposer = self.proposer(problem, seed)
        log = _explore(self, problem, ledger, proposer)
        return ledger.result({**log, **proposer.figures()})


def _explore(
    method: Iterative, problem: Problem, ledger: Ledger, proposer: Proposer
) -> dict[str, float | str]:
    """Let `proposer` propose until the evaluations of `ledger` are spent, or nothing new comes.

    The start is scored first. Proposals that are infeasible are repaired, or rejected: then they
    cost no evaluation. What was met before is not scored, and not learned, again.

    Args:
        method: with its start, and whether infeasible proposals are repaired.
        problem: the budgets.
        ledger: scores policies.
        proposer: of the method.

    Returns:
        Figures for the log: how many proposals were drawn, and which share was repaired, rejected,
        and met before.

    Raises:
        BudgetError: if all of the first proposals are rejected, and no policy meets the budgets.
    """
    settle = repair if method.repaired else judge
    seen: set[bytes] = set()
    count = {"drawn": 0, "repaired": 0, "rejected": 0, "repeated": 0}
    idle, asked = 0, False
    given = None if method.start is None else method.start[None]
    while ledger.left > 0 and idle < PATIENCE:
        first = given is not None
        proposed = proposer.propose(min(method.batch, ledger.left)) if given is None else given
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
        origin = f"{method.name} start" if first else method.name
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
