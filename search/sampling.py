"""Random search: what any method has to beat."""

from dataclasses import dataclass

import numpy as np

from quantization.policy import IndexArray
from search.archive import Ledger
from search.problem import Problem
from search.repair import repair
from search.searcher import Evaluate, Progress, Record, SearchResult

_BATCH = 10
_PATIENCE = 50
"""Batches in a row without a new feasible policy after which sampling gives up."""


def random_policies(problem: Problem, count: int, rng: np.random.Generator) -> IndexArray:
    """Draw policies, (count, L): each decision independent and uniform over what is allowed."""
    keys = rng.random((count, *problem.allowed_decisions.shape))
    return problem.expand(np.where(problem.allowed_decisions, keys, -1.0).argmax(2))


@dataclass(frozen=True)
class RandomSearch:
    """Scores random policies; infeasible ones are repaired as the agent's are."""

    name: str = "random"

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
        rng = np.random.default_rng(seed)
        drawn = repaired = rejected = idle = 0
        while ledger.left > 0 and idle < _PATIENCE:
            outcome = repair(problem, random_policies(problem, _BATCH, rng))
            drawn += _BATCH
            repaired += int(outcome.repaired.sum())
            rejected += int(outcome.rejected.sum())
            left = ledger.left
            ledger.score(outcome.index[~outcome.rejected], self.name)
            idle = idle + 1 if ledger.left == left else 0
        return ledger.result(
            {
                "drawn": float(drawn),
                "repaired_share": repaired / max(1, drawn),
                "rejected_share": rejected / max(1, drawn),
            }
        )
