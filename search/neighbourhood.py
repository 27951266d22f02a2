"""Random changes of the best policy so far: the control for whatever claims to learn."""

from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.mutation import mutants
from search.problem import Problem
from search.proposing import Iterative, Proposer
from search.sampling import random_policies


@dataclass(frozen=True, eq=False)
class Neighbourhood(Iterative):
    """Scores changed copies of the best policy found so far; begins at the start.

    Without a start it begins at random policies. Like a (1+10) evolution strategy without
    recombination: what evolution, or an agent, finds beyond this is not due to luck around the
    start.

    Args:
        start: (L,) a policy that is scored first, or None.
        repaired: whether infeasible policies are repaired or rejected.
        changes: decisions that are drawn anew, on average.
    """

    changes: float = 2.0
    name: str = "neighbourhood"

    def proposer(self, problem: Problem, seed: int) -> Proposer:
        """See `search.proposing.Iterative`."""
        return _Climb(problem, np.random.default_rng(seed), self.changes)


class _Climb(Proposer):
    """Proposes around the best policy so far."""

    def __init__(self, problem: Problem, rng: np.random.Generator, changes: float) -> None:
        self._problem, self._rng = problem, rng
        self._rate = min(1.0, changes / len(problem.groups))
        self._best: IndexArray | None = None
        self._rank = (0.0, 0.0)

    def propose(self, count: int) -> IndexArray:
        """See `search.proposing.Proposer`."""
        if self._best is None:
            return random_policies(self._problem, count, self._rng)
        return mutants(self._problem, self._best, count, self._rng, self._rate)

    def learn(self, index: IndexArray, scores: FloatArray, violation: FloatArray) -> None:
        """See `search.proposing.Proposer`."""
        for row, score, excess in zip(index, scores, violation, strict=True):
            rank = (-float(excess), float(score))
            if self._best is None or rank > self._rank:
                self._best, self._rank = row, rank
