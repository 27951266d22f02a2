"""The interface of every search method, and what it returns."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from costmodels.table import FloatArray
from costmodels.units import Metric
from quantization.policy import IndexArray
from search.problem import Problem

Evaluate = Callable[[IndexArray], FloatArray]
"""Scores (P,) of policies (P, L); higher is better. What a searcher maximises.

``-inf`` says that a policy is infeasible as measured: it is rejected, never the best, and enters no
average of rewards. `search.archive.Ledger` asks for one policy at a time.
"""

Progress = Callable[[float, str], None]
"""Called with the share done, 0..1, and what is being done."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One policy that was scored; feasible, unless the budgets of the search are soft.

    Args:
        index: (L,) the choice of each layer.
        score: what `Evaluate` answered; higher is better, ``-inf`` if infeasible as measured.
        loss: its proxy loss.
        costs: what it costs in each table, in that table's unit.
        origin: what proposed it, such as ``greedy`` or ``reinforce update 12``.
    """

    index: IndexArray
    score: float
    loss: float
    costs: Mapping[Metric, float]
    origin: str

    @property
    def rejected(self) -> bool:
        """Whether it was found to be infeasible when it was measured."""
        return self.score == -math.inf


Record = Callable[[Trial], None]
"""Called with each trial when it is made."""


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What a search found.

    Args:
        archive: the best distinct feasible policies, best score first.
        trials: every scored policy, in order.
        log: figures of the method, such as the shares of repaired and rejected rollouts.
    """

    archive: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    log: Mapping[str, float | str] = field(default_factory=dict)

    @property
    def best(self) -> IndexArray | None:
        """(L,) the policy of the highest score; None if no feasible policy was found."""
        return self.archive[0].index if self.archive else None

    @property
    def evaluations(self) -> int:
        """How many policies were scored."""
        return len(self.trials)


class Searcher(Protocol):
    """A search method."""

    @property
    def name(self) -> str:
        """How the method is called, such as ``reinforce``."""

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
        """Look for the feasible policy of the highest score.

        Args:
            problem: what is chosen, what it costs, and the budgets.
            evaluate: scores distinct feasible policies.
            evaluations: how many policies may be scored at most.
            seed: of every random choice; the same seed finds the same policies.
            progress: told how far the search is.
            record: called with each trial when it is made.

        Raises:
            BudgetError: if the method can tell that no policy meets the budgets.
        """
