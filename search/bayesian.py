"""Bayesian optimisation: optuna's tree-structured Parzen estimator."""

from dataclasses import dataclass

import numpy as np

from quantization.policy import IndexArray
from search.archive import Ledger
from search.problem import Problem
from search.proposing import explore
from search.searcher import Evaluate, Progress, Record, SearchResult
from search.studies import Study, require_optuna


@dataclass(frozen=True, eq=False)
class Bayesian:
    """Proposes where good policies are dense and bad ones are rare, one at a time.

    The densities of good and of bad policies are estimated over all decisions together. Until ten
    policies were scored, it draws at random.

    J. Bergstra, R. Bardenet, Y. Bengio, B. Kegl, "Algorithms for hyper-parameter optimization",
    NeurIPS 2011; the implementation is optuna's.

    Args:
        start: (L,) a policy that is scored first, or None.
        repaired: whether infeasible policies are repaired or rejected.
    """

    start: IndexArray | None = None
    repaired: bool = True
    name: str = "bayesian"

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
        """See `search.searcher.Searcher`.

        Raises:
            QuantmeterError: if optuna is not installed.
        """
        require_optuna(self.name)
        from optuna.samplers import TPESampler

        ledger = Ledger(problem, evaluate, evaluations, progress, record)
        none = np.empty((0, len(problem.network.layers)), np.uint8)
        study = Study(problem, TPESampler(seed=seed, multivariate=True), none)
        log = explore(
            problem,
            ledger,
            study,
            name=self.name,
            start=self.start,
            repaired=self.repaired,
            batch=1,
        )
        return ledger.result(log)
