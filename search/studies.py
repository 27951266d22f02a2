"""Samplers of optuna behind the loop of `search.proposing`."""

from typing import TYPE_CHECKING

import numpy as np

from costmodels.table import FloatArray
from quantization.errors import QuantmeterError
from quantization.policy import IndexArray
from search.problem import Problem
from search.proposing import Proposer

if TYPE_CHECKING:
    from optuna.distributions import CategoricalDistribution
    from optuna.samplers import BaseSampler


def require_optuna(method: str) -> None:
    """Raise unless optuna can be imported.

    Raises:
        QuantmeterError: if it is not installed; says how to get it.
    """
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise QuantmeterError(
            f"the method {method} needs optuna: pip install 'quantmeter[search]'"
        ) from None


class Study(Proposer):
    """A study in memory that proposes policies; a proposer (`search.proposing.Proposer`).

    Each decision with more than one allowed choice is a categorical parameter. A sampler learns
    the policy that was scored, not the one that it proposed before repair: the proposal is told as
    failed, and the policy is entered as a trial of its own. Those that are not feasible are trials
    whose constraint is violated.

    Args:
        problem: what is chosen.
        sampler: proposes.
        first: (N, L) policies that are proposed before the sampler is asked.
    """

    def __init__(self, problem: Problem, sampler: "BaseSampler", first: IndexArray) -> None:
        import optuna

        self._generations = isinstance(sampler, optuna.samplers.NSGAIISampler)

        self._problem = problem
        self._failed = optuna.trial.TrialState.FAIL
        self._queue = list(first)
        self._free = np.flatnonzero(problem.allowed_decisions.sum(1) > 1)
        self._space: dict[str, CategoricalDistribution] = {}
        for decision in self._free:
            allowed = np.flatnonzero(problem.allowed_decisions[decision])
            choices = [int(choice) for choice in allowed]
            self._space[str(decision)] = optuna.distributions.CategoricalDistribution(choices)
        self._only = problem.allowed_decisions.argmax(1).astype(np.uint8)
        loud = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # a new study would say so
        try:
            self._study = optuna.create_study(sampler=sampler, direction="maximize")
        finally:
            optuna.logging.set_verbosity(loud)

    def propose(self, count: int) -> IndexArray:
        """See `search.proposing.Proposer`."""
        if self._queue:
            proposed, self._queue = self._queue[:count], self._queue[count:]
            return np.array(proposed)
        decisions = np.tile(self._only, (count, 1))
        for row in decisions:
            trial = self._study.ask(dict(self._space))
            row[self._free] = [trial.params[name] for name in self._space]
            self._study.tell(trial, state=self._failed)
        return self._problem.expand(decisions)

    def learn(self, index: IndexArray, scores: FloatArray, violation: FloatArray) -> None:
        """See `search.proposing.Proposer`."""
        decisions = self._problem.decide(index)[:, self._free]
        for row, score, excess in zip(decisions, scores, violation, strict=True):
            params = dict(zip(self._space, map(int, row), strict=True))
            self._study.enqueue_trial(params)
            trial = self._study.ask(dict(self._space))
            if self._generations:
                _ = trial.relative_params
            trial.set_constraint("violation", float(excess))
            self._study.tell(trial, float(score) if excess <= 0 else 0.0)
