"""Random search: what any method has to beat."""

from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.archive import Ledger
from search.problem import Problem
from search.proposing import explore
from search.searcher import Evaluate, Progress, Record, SearchResult

_BATCH = 10


def random_policies(problem: Problem, count: int, rng: np.random.Generator) -> IndexArray:
    """Draw policies, (count, L): each decision independent and uniform over what is allowed."""
    keys = rng.random((count, *problem.allowed_decisions.shape))
    return problem.expand(np.where(problem.allowed_decisions, keys, -1.0).argmax(2))


@dataclass(frozen=True, eq=False)
class RandomSearch:
    """Scores random policies, after the start if there is one.

    Args:
        start: (L,) a policy that is scored first, or None.
        repaired: whether infeasible policies are repaired, as the agent's are, or rejected.
    """

    start: IndexArray | None = None
    repaired: bool = True
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
        draws = _Draws(problem, np.random.default_rng(seed))
        log = explore(
            problem,
            ledger,
            draws,
            name=self.name,
            start=self.start,
            repaired=self.repaired,
            batch=_BATCH,
        )
        return ledger.result(log)


@dataclass(frozen=True, eq=False)
class _Draws:
    """Proposes without looking back."""

    problem: Problem
    rng: np.random.Generator

    def propose(self, count: int) -> IndexArray:
        return random_policies(self.problem, count, self.rng)

    def learn(self, index: IndexArray, scores: FloatArray, violation: FloatArray) -> None:
        pass
