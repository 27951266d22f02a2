"""What stands beside the best policy of a search: certificate, patterns, Pareto fronts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from costmodels.units import Metric, Unit
from quantization.policy import Policy, PolicyBatch
from quantmeter.preparing import Prepared
from quantmeter.run_files import front_file
from quantmeter.scoring import Scorer
from quantmeter.search_options import FrontRequest
from search.certificate import Certificate, certify
from search.channel_groups import Refined
from search.exact import Solution, UnsolvedError
from search.pareto import (
    FrontPoint,
    by_tables,
    front_volume,
    pareto_front,
    proxy_front,
    trial_to_dict,
    with_trials,
    within_others,
)
from search.patterns import Patterns, measure_patterns
from search.searcher import SearchResult, Trial


@dataclass(frozen=True, eq=False)
class Front:
    """The best policy within each of several budgets for one metric.

    Args:
        metric: that is swept.
        unit: of its budgets and costs.
        points: cheapest first.
        entries: the points as JSON values.
        policies: of each point: what scores highest, the best trial or the optimum of the proxy
            loss.
        volume: hypervolume of the trials over accuracy 0 and the cost of the float network, as a
            share of the rectangle between that point and accuracy 1 at no cost; None if the float
            network has no price, or no trial's accuracy is known.
    """

    metric: Metric
    unit: Unit
    points: tuple[FrontPoint, ...]
    entries: tuple[Mapping[str, Any], ...]
    policies: tuple[Policy, ...]
    volume: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the front as JSON values."""
        return {
            "metric": self.metric.value,
            "unit": self.unit.value,
            "hypervolume": self.volume,
            "points": list(self.entries),
        }


@dataclass(frozen=True, eq=False)
class Pareto:
    """The trials that no other beats in score and every cost at once.

    Args:
        trials: cheapest in the first cost first; their costs are those of the tables.
        entries: the same as JSON values.
        volume: hypervolume of the trials over accuracy 0 and the costs of the float network, as a
            share of the box between that point and accuracy 1 at no cost; None if the float network
            has no price, or no trial's accuracy is known.
    """

    trials: tuple[Trial, ...]
    entries: tuple[Mapping[str, Any], ...]
    volume: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the front as JSON values."""
        return {"hypervolume": self.volume, "trials": list(self.entries)}


@dataclass(frozen=True, eq=False)
class Explanation:
    """What is known beside the best policy.

    Args:
        certificate: the proved optimum of the proxy loss, gap, worth of each budget, dear layers.
        patterns: which kinds of layers got which bits.
        pareto: the trials that no other beats.
        front: of several budgets, if one was asked for and could be solved.
        unsolved: why a front that was asked for is missing; None if nothing is.
    """

    certificate: Certificate
    patterns: Patterns
    pareto: Pareto
    front: Front | None
    unsolved: str | None = None


def explain(
    prepared: Prepared,
    optimum: Solution,
    result: SearchResult,
    accuracies: Sequence[Trial],
    *,
    front: FrontRequest | None = None,
    scorer: Scorer | None = None,
    refined: Refined | None = None,
) -> Explanation:
    """Look at what a search found.

    Args:
        prepared: what it stood on.
        optimum: of its proxy loss.
        result: of the search; it has a best policy.
        accuracies: the trials whose accuracy is known, with it as their score.
        front: which front is wanted.
        scorer: what the search maximised; a front needs it.
        refined: the best policy with channel groups, if the run ends with it.

    Raises:
        BudgetError: if a front of a metric without a table is wanted.
    """
    assert result.best is not None
    problem = prepared.problem
    best, wider = result.best, None
    if refined is not None:
        best, wider = refined.index, refined.problem
    certificate = certify(problem, optimum, best, trials=accuracies, refined=wider)
    choices = problem.choices if wider is None else wider.choices
    policy = PolicyBatch(problem.network.layer_names, choices, best[None])
    patterns = measure_patterns(problem.network, policy)
    found, unsolved = None, None
    if front is not None:
        try:
            assert scorer is not None
            found = _front(prepared, result, accuracies, front, scorer)
        except UnsolvedError as error:  # what the search found outlives that
            unsolved = str(error)
    pareto = _pareto(prepared, result, accuracies)
    return Explanation(certificate, patterns, pareto, found, unsolved)


def _pareto(prepared: Prepared, result: SearchResult, accuracies: Sequence[Trial]) -> Pareto:
    problem = prepared.problem
    metrics = tuple(problem.tables)
    front = pareto_front(by_tables(problem, result.trials), metrics)
    entries = tuple(trial_to_dict(problem, trial) for trial in front)
    return Pareto(front, entries, _volume(prepared, by_tables(problem, accuracies), metrics))


def _volume(
    prepared: Prepared, accuracies: Sequence[Trial], metrics: Sequence[Metric]
) -> float | None:
    """Hypervolume over accuracy 0 and the float network's costs, as a share; None if unknown."""
    worst: dict[Metric, float] = {}
    for metric in metrics:
        reference = prepared.costs.float_reference(prepared.bench.network, metric)
        if reference is None or reference <= 0:
            return None
        worst[metric] = reference
    if not accuracies:
        return None
    return front_volume(accuracies, 0.0, worst) / math.prod(worst.values())


def _front(
    prepared: Prepared,
    result: SearchResult,
    accuracies: Sequence[Trial],
    asked: FrontRequest,
    scorer: Scorer,
) -> Front:
    points = proxy_front(prepared.problem, asked.metric, asked.count)
    trials = within_others(prepared.problem, result.trials, asked.metric)
    points = with_trials(points, trials, asked.metric, scorer.without_limits())
    known = within_others(prepared.problem, accuracies, asked.metric)
    volume = _volume(prepared, known, (asked.metric,))
    policies = tuple(prepared.policy(point.index) for point in points)
    unit = prepared.problem.tables[asked.metric].unit
    entries = tuple(point.to_dict(prepared.problem) for point in points)
    return Front(asked.metric, unit, points, entries, policies, volume)


def front_files(front: Front) -> Mapping[str, str]:
    """Return the policy files of a front's points by their name, cheapest first."""
    return {
        front_file(number): policy.to_json()
        for number, policy in enumerate(front.policies, start=1)
    }
