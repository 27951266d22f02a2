"""Random search: what any method has to beat."""

from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.problem import Problem
from search.proposing import Iterative, Proposer


def random_policies(problem: Problem, count: int, rng: np.random.Generator) -> IndexArray:
    """Draw policies, (count, L): each decision independent and uniform over what is allowed."""
    keys = rng.random((count, *problem.allowed_decisions.shape))
    return problem.expand(np.where(problem.allowed_decisions, keys, -1.0).argmax(2))


@dataclass(frozen=True, eq=False)
class RandomSearch(Iterative):
    """Scores random policies, after the start if there is one.

    Args:
        start: (L,) a policy that is scored first, or None.
        repaired: whether infeasible policies are repaired, as the agent's are, or rejected.
    """

    name: str = "random"

    def proposer(self, problem: Problem, seed: int) -> Proposer:
        """See `search.proposing.Iterative`."""
        return _Draws(problem, np.random.default_rng(seed))


@dataclass(frozen=True, eq=False)
class _Draws(Proposer):
    """Proposes without looking back."""

    problem: Problem
    rng: np.random.Generator

    def propose(self, count: int) -> IndexArray:
        return random_policies(self.problem, count, self.rng)

    def learn(self, index: IndexArray, scores: FloatArray, violation: FloatArray) -> None:
        pass
