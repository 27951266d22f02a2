"""The policies that people try first: the same bits everywhere."""

from dataclasses import dataclass

import numpy as np

from quantization.bits import FLOAT32
from quantization.policy import IndexArray
from search.archive import Ledger
from search.problem import Problem
from search.searcher import Evaluate, Progress, Record, SearchResult


def uniform_policy(problem: Problem, choice: int) -> tuple[IndexArray, int]:
    """Return the policy (1, L) that gives every layer one choice, and how many layers differ.

    A decision for which the choice is masked falls back to w32a32 if that is allowed, else to its
    allowed choice of the least loss.
    """
    allowed = problem.allowed_decisions
    fallback = problem.decision_loss.argmin(1)
    if FLOAT32 in problem.choices:
        position = problem.choices.index(FLOAT32)
        fallback = np.where(allowed[:, position], position, fallback)
    decisions = np.where(allowed[:, choice], choice, fallback)
    index = problem.expand(decisions[None])
    return index, int((index != choice).sum())


@dataclass(frozen=True)
class Uniform:
    """Scores each uniform policy that is feasible, from the narrowest to the widest.

    The trial's origin says how many layers fell back (see `uniform_policy`).
    """

    name: str = "uniform"

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
        met = []
        for choice, bits in enumerate(problem.choices):
            index, differ = uniform_policy(problem, choice)
            if differ == len(problem.network.layers) or not problem.feasible(index)[0]:
                continue
            fell_back = f" ({differ} layers fell back)" if differ else ""
            ledger.score(index, f"{self.name} {bits}{fell_back}")
            met.append(str(bits))
        return ledger.result({"feasible": ",".join(met)})
