"""The best distinct policies, and the ledger that scores each policy once."""

from bisect import insort

import numpy as np

from costmodels.table import FloatArray
from quantization.policy import IndexArray
from search.problem import Problem
from search.searcher import Evaluate, Progress, Record, SearchResult, Trial

KEPT = 32
"""Policies that an archive keeps by default."""


class Archive:
    """The `capacity` best trials of distinct policies, best score first.

    Among equal scores the lower proxy loss comes first, then the earlier trial.

    Args:
        capacity: how many trials are kept, at least one.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("an archive keeps at least one trial")
        self.capacity = capacity
        self._ranked: list[tuple[float, float, int, Trial]] = []
        self._rows: set[bytes] = set()
        self._added = 0

    def add(self, trial: Trial) -> None:
        """Keep `trial` if it is new, among the best and not rejected."""
        row = trial.index.tobytes()
        if row in self._rows or trial.rejected:
            return
        self._added += 1
        self._rows.add(row)
        insort(self._ranked, (-trial.score, trial.loss, self._added, trial))
        if len(self._ranked) > self.capacity:
            self._rows.discard(self._ranked.pop()[3].index.tobytes())

    @property
    def trials(self) -> tuple[Trial, ...]:
        """The kept trials, best first."""
        return tuple(entry[3] for entry in self._ranked)


class Ledger:
    """Scores feasible policies, each distinct one once, and remembers every trial.

    Policies are handed to `evaluate` one at a time, and each trial is recorded when it is made: a
    killed search has lost no finished evaluation. One that scores ``-inf`` is infeasible as
    measured: it counts as an evaluation, and is never the best.

    Args:
        problem: whose policies are scored.
        evaluate: scores policies; higher is better.
        evaluations: how many distinct policies may be scored.
        progress: told how far the scoring is.
        record: called with each trial when it is made.
        capacity: how many trials the archive keeps.
    """

    def __init__(
        self,
        problem: Problem,
        evaluate: Evaluate,
        evaluations: int,
        progress: Progress | None = None,
        record: Record | None = None,
        capacity: int = KEPT,
    ) -> None:
        self._problem = problem
        self._evaluate = evaluate
        self._limit = evaluations
        self._progress = progress
        self._record = record
        self._archive = Archive(capacity)
        self._scores: dict[bytes, float] = {}
        self.trials: list[Trial] = []

    @property
    def left(self) -> int:
        """How many distinct policies may still be scored."""
        return self._limit - len(self.trials)

    @property
    def best(self) -> Trial | None:
        """The trial of the highest score, if any."""
        trials = self._archive.trials
        return trials[0] if trials else None

    def score(self, index: IndexArray, origin: str) -> FloatArray:
        """Return the scores of feasible policies; those met before cost no evaluation.

        Args:
            index: (P, L).
            origin: what proposes them.

        Returns:
            (P,) scores, ``-inf`` for what is infeasible as measured; NaN for new policies beyond
            the limit of evaluations.

        Raises:
            ValueError: if `evaluate` answers NaN or ``+inf``.
        """
        keys = [row.tobytes() for row in index]
        fresh = {k: i for i, k in reversed(list(enumerate(keys))) if k not in self._scores}
        chosen = sorted(fresh.values())[: self.left]
        if chosen:
            self._add(np.ascontiguousarray(index[chosen]), origin)
        return np.array([self._scores.get(key, np.nan) for key in keys])

    def _add(self, index: IndexArray, origin: str) -> None:
        losses = self._problem.proxy_loss(index)
        costs = self._problem.costs(index)
        within = self._problem.within(costs) if costs else np.ones(len(index), bool)
        for i in range(len(index)):
            [score] = np.asarray(self._evaluate(index[i : i + 1]), np.float64)
            if not score < np.inf:
                raise ValueError(f"a score is a number or -inf, not {score}")
            trial = Trial(
                index[i].copy(),
                float(score),
                float(losses[i]),
                {metric: float(cost[i]) for metric, cost in costs.items()},
                origin,
            )
            self._scores[trial.index.tobytes()] = trial.score
            self.trials.append(trial)
            if within[i]:  # a soft budget lets others be tried
                self._archive.add(trial)
            if self._record is not None:
                self._record(trial)
            if self._progress is not None:
                best = self.best
                text = f"{origin}: best {best.score:.4g}" if best is not None else origin
                self._progress(min(1.0, len(self.trials) / max(1, self._limit)), text)

    def result(self, log: dict[str, float | str]) -> SearchResult:
        """Return what was found, with the figures of the method."""
        figures: dict[str, float | str] = {
            "distinct_policies": float(len(self._scores)),
            "rejected_as_measured": float(sum(trial.rejected for trial in self.trials)),
            **log,
        }
        return SearchResult(self._archive.trials, tuple(self.trials), figures)
