"""Bayesian optimisation: optuna's tree-structured Parzen estimator."""

from dataclasses import dataclass

import numpy as np

from search.problem import Problem
from search.proposing import Iterative
from search.studies import Study, require_optuna


@dataclass(frozen=True, eq=False)
class Bayesian(Iterative):
    """Proposes where good policies are dense and bad ones are rare, one at a time.

    The densities of good and of bad policies are estimated over all decisions together. Until ten
    policies were scored, it draws at random.

    J. Bergstra, R. Bardenet, Y. Bengio, B. Kegl, "Algorithms for hyper-parameter optimization",
    NeurIPS 2011; the implementation is optuna's.

    Args:
        start: (L,) a policy that is scored first, or None.
        repaired: whether infeasible policies are repaired or rejected.
    """

    name: str = "bayesian"

    @property
    def batch(self) -> int:
        """See `search.proposing.Iterative`: each proposal knows all scores before it."""
        return 1

    def proposer(self, problem: Problem, seed: int) -> Study:
        """See `search.proposing.Iterative`.

        Raises:
            QuantmeterError: if optuna is not installed.
        """
        require_optuna(self.name)
        from optuna.samplers import TPESampler

        none = np.empty((0, len(problem.network.layers)), np.uint8)
        return Study(problem, TPESampler(seed=seed, multivariate=True), none)
