"""Pareto fronts: of what a run tried, and of the proxy loss, proven point by point.

One run gives many budgets: every trial that costs less than a smaller budget also answers that one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodels.table import FloatArray
from costmodels.units import Metric
from quantization.errors import BudgetError
from quantization.policy import IndexArray
from search.dominance import hypervolume, non_dominated
from search.exact import Solution, Solver
from search.problem import SLACK, Problem
from search.searcher import Evaluate, Trial


def pareto_front(trials: Sequence[Trial], metrics: Sequence[Metric]) -> tuple[Trial, ...]:
    """Return the trials that no other beats: a score at least as high for no higher cost.

    Args:
        trials: those whose score is not finite were infeasible as measured, and are left out.
        metrics: the costs that are objectives beside the score.

    Returns:
        The front, cheapest in the first metric first; of equal trials the earliest.

    Raises:
        BudgetError: if there is no metric, or a trial has no cost in one.
    """
    measured = [trial for trial in trials if np.isfinite(trial.score)]
    values = _objectives(measured, metrics)
    front = [t for t, kept in zip(measured, non_dominated(values), strict=True) if kept]
    return tuple(sorted(front, key=lambda t: (t.costs[metrics[0]], -t.score)))


def front_volume(
    trials: Sequence[Trial], worst_score: float, worst_costs: Mapping[Metric, float]
) -> float:
    """Return the hypervolume of trials, between a worst score and worst costs.

    Args:
        trials: any; those on the front decide.
        worst_score: what a score has to exceed to count, such as that of guessing.
        worst_costs: what each cost has to stay below, such as those of the float model: the
            objectives.

    Returns:
        In score times the units of the costs; see `search.dominance.hypervolume`.

    Raises:
        BudgetError: if there is no metric, or a trial has no cost in one.
    """
    measured = [trial for trial in trials if np.isfinite(trial.score)]
    values = _objectives(measured, tuple(worst_costs))
    return hypervolume(values, np.array([-worst_score, *worst_costs.values()]))


def best_within(trials: Sequence[Trial], budgets: Mapping[Metric, float]) -> Trial | None:
    """Return the trial of the highest score whose costs are within budgets; None if none is.

    Args:
        trials: of one run; those whose score is not finite are left out.
        budgets: in the units of the trials' costs. Of equal scores the least proxy loss wins.

    Raises:
        BudgetError: if a trial has no cost in a budgeted metric.
    """
    for metric in budgets:
        _require(trials, metric)
    met = [
        trial
        for trial in trials
        if np.isfinite(trial.score)
        and all(trial.costs[m] <= b * (1 + SLACK) for m, b in budgets.items())
    ]
    return min(met, key=lambda t: (-t.score, t.loss), default=None)


@dataclass(frozen=True, eq=False)
class FrontPoint:
    """What is best within one budget of a sweep.

    Args:
        budget: of the metric that is swept, in the unit of its table.
        solution: the policy of the least proxy loss within it, and its proof.
        trial: the trial of the highest score within it and the budgets for other metrics; None if
            there is none, or no trials.
        score: of `solution`; None if it is not known.
    """

    budget: float
    solution: Solution
    trial: Trial | None = None
    score: float | None = None

    @property
    def index(self) -> IndexArray:
        """(L,) what scores best: the trial, or the solution if that scores as high."""
        trial = self.trial
        if trial is None or (self.score is not None and self.score >= trial.score):
            return self.solution.index
        return trial.index

    def to_dict(self, problem: Problem) -> dict[str, Any]:
        """Return the point as JSON values; `problem` names layers and bits."""
        found, trial = self.solution, self.trial
        tried = None
        if trial is not None:
            tried = trial_to_dict(problem, trial)
        return {
            "budget": self.budget,
            "proxy_loss": found.loss,
            "bound": max(0.0, found.bound),
            "proven": found.proven,
            "score": self.score,
            "costs": _named(found.costs),
            "layers": _bits(problem, found.index),
            "best_trial": tried,
        }


def proxy_front(
    problem: Problem, metric: Metric, count: int, *, seconds: float = 60.0
) -> tuple[FrontPoint, ...]:
    """Return the exact front of proxy loss against one cost: a MILP for each of many budgets.

    The epsilon-constraint method (Haimes, Lasdon and Wismer, IEEE Transactions on Systems, Man and
    Cybernetics 1, 1971): budgets from what the policy of the least loss costs down to the minimum
    reachable, in equal ratios. A policy that also meets the next smaller budgets is the optimum of
    those too, and is not solved for again.

    Args:
        problem: its budget for `metric` is not looked at; those for other metrics are kept.
        metric: what is swept.
        count: how many budgets, at least 2.
        seconds: of each solve; what stopped early says so in `Solution.proven`.

    Returns:
        A point for each distinct policy that no other beats, cheapest first; its budget is the
        smallest of the sweep that it meets. At most `count`.

    Raises:
        BudgetError: if `metric` has no table, there are fewer than 2 budgets, or the other budgets
            cannot be met.
        UnsupportedChoiceError: if no policy is supported whatever it costs.
    """
    if metric not in problem.tables:
        raise BudgetError(f"a front needs a {metric.value} table; name what prices it: --cost")
    if count < 2:
        raise BudgetError(f"a front has at least 2 budgets, not {count}")
    others = {m: b for m, b in problem.budgets.items() if m is not metric}
    solver = Solver(replace(problem, budgets=others), seconds)
    top = solver.optimum()
    floor = solver.minimum(metric, within=others)
    assert floor is not None  # `optimum` meets the other budgets
    found: list[FrontPoint] = []
    for budget in _sweep(floor.costs[metric], top.costs[metric], count)[::-1]:
        if found and found[-1].solution.costs[metric] <= budget * (1 + SLACK):
            found[-1] = replace(found[-1], budget=budget)
            continue
        solution = solver.optimum_within({**others, metric: budget}) if found else top
        if solution is not None:  # but for rounding at the minimum reachable
            found.append(FrontPoint(budget, solution))
    values = np.array([[p.solution.loss, p.solution.costs[metric]] for p in found])
    return tuple(p for p, kept in zip(found, non_dominated(values), strict=True) if kept)[::-1]


def within_others(problem: Problem, trials: Sequence[Trial], metric: Metric) -> tuple[Trial, ...]:
    """Return the trials within every budget of `problem` but that for one metric.

    A search whose budgets are soft tries policies beyond them.

    Args:
        problem: of the run; its tables say what the trials cost.
        trials: of the run.
        metric: what is swept.

    Returns:
        With the costs of the tables, see `by_tables`.
    """
    if not trials:
        return ()
    others = {m: b for m, b in problem.budgets.items() if m is not metric}
    priced = by_tables(problem, trials)
    met = replace(problem, budgets=others).within(
        {metric: np.array([t.costs[metric] for t in priced]) for metric in problem.tables}
    )
    return tuple(trial for trial, kept in zip(priced, met, strict=True) if kept)


def by_tables(problem: Problem, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return trials with what they cost by the tables, whatever else priced them.

    Budgets of a front, and what the float network costs, are those of the tables too.
    """
    if not trials:
        return ()
    costs = problem.costs(np.array([trial.index for trial in trials], np.uint8))
    return tuple(
        replace(trial, costs={metric: float(cost[i]) for metric, cost in costs.items()})
        for i, trial in enumerate(trials)
    )


def with_trials(
    points: Sequence[FrontPoint], trials: Sequence[Trial], metric: Metric, evaluate: Evaluate
) -> tuple[FrontPoint, ...]:
    """Return the points with the best trial of a run within each budget, and all scores.

    The trials of a run crowd at its own budget: within a smaller one, what they left over may be
    worse than the optimum of the proxy loss, so that is scored too.

    Args:
        points: of `proxy_front`.
        trials: of a run, within its budgets for other metrics (`within_others`).
        metric: what was swept.
        evaluate: what the run maximised.
    """
    index = np.array([p.solution.index for p in points], np.uint8)
    scores = evaluate(index) if len(points) else ()
    return tuple(
        replace(p, trial=best_within(trials, {metric: p.budget}), score=float(score))
        for p, score in zip(points, scores, strict=True)
    )


def trial_to_dict(problem: Problem, trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON values; `problem` names layers and bits."""
    return {
        "score": trial.score,
        "proxy_loss": trial.loss,
        "costs": _named(trial.costs),
        "origin": trial.origin,
        "layers": _bits(problem, trial.index),
    }


def _bits(problem: Problem, index: IndexArray) -> dict[str, str]:
    names = problem.network.layer_names
    return {name: str(problem.choices[k]) for name, k in zip(names, index, strict=True)}


def _named(costs: Mapping[Metric, float]) -> dict[str, float]:
    return {metric.value: cost for metric, cost in costs.items()}


def _sweep(low: float, high: float, count: int) -> list[float]:
    """Return ascending budgets; what is fitted may cost nothing or less, which no budget can be."""
    if high <= low:
        return [high]
    least = low if low > 0 else high / count
    return [float(budget) for budget in np.geomspace(least, high, count)]


def _objectives(trials: Sequence[Trial], metrics: Sequence[Metric]) -> FloatArray:
    """Return (N, 1 + M): negative scores and costs."""
    if not metrics:
        raise BudgetError("a front needs a cost beside the score, such as latency")
    for metric in metrics:
        _require(trials, metric)
    rows = [[-trial.score, *(trial.costs[m] for m in metrics)] for trial in trials]
    return np.array(rows, np.float64).reshape(len(trials), 1 + len(metrics))


def _require(trials: Sequence[Trial], metric: Metric) -> None:
    if any(metric not in trial.costs for trial in trials):
        raise BudgetError(f"the trials have no {metric.value}; search with a {metric.value} table")
