"""What a search found, in figures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costmodels.provenance import said_of
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.policy import IndexArray, Policy
from quantmeter.explaining import Explanation
from quantmeter.preparing import Prepared
from quantmeter.scoring import Score, Totals
from quantmeter.search_options import Scoring
from search.budgets import BudgetRequest
from search.exact import Solution
from search.oracle import Interval, count_right
from search.pareto import trial_to_dict
from search.searcher import SearchResult


@dataclass(frozen=True, eq=False)
class Found:
    """One policy in figures, for people.

    Args:
        name: of the method or the policy.
        policy: the bits.
        loss: proxy loss.
        gap: proxy loss over the exact optimum, less 1; None if the optimum is 0.
        search_accuracy: on the search part, simulated, or as torch computes it if it was trained.
        test_accuracy: on the held-out part, with its interval; None until it is reported, and of
            policies that were trained to be scored, whose networks are not kept.
        costs: in each metric by the tables that were searched, in their units; size, if the policy
            is to be exported, is exact.
        feasible: whether every budget is met by the tables.
        log: figures of the method.
        measured: what it costs as a whole by what `--totals` named, in SI units, if anything was.
        divergence: from the float network on the search part, in nats, if that was maximised.
    """

    name: str
    policy: Policy
    loss: float
    gap: float | None
    search_accuracy: float
    costs: Mapping[Metric, float]
    feasible: bool
    log: Mapping[str, float | str]
    test_accuracy: Interval | None = None
    measured: Mapping[Metric, float] = field(default_factory=dict)
    divergence: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        test = self.test_accuracy
        return {
            "name": self.name,
            "policy": json.loads(self.policy.to_json()),
            "proxy_loss": self.loss,
            "gap": self.gap,
            "search_accuracy": self.search_accuracy,
            "divergence": self.divergence,
            "test_accuracy": None if test is None else test.share,
            "test_accuracy_interval": None if test is None else [test.low, test.high],
            "costs": {metric.value: cost for metric, cost in self.costs.items()},
            "measured": {metric.value: cost for metric, cost in self.measured.items()},
            "feasible": self.feasible,
            "log": dict(self.log),
        }


def describe(
    prepared: Prepared,
    name: str,
    index: IndexArray,
    optimum: Solution,
    log: Mapping[str, float | str] | None = None,
    score: Score | None = None,
) -> Found:
    """Return what the search knows of one policy, (L,); the test part is not read.

    Args:
        prepared: see `quantmeter.preparing.prepare`.
        name: of the method or the policy.
        index: (L,) the policy.
        optimum: of the proxy loss.
        log: figures of the method.
        score: what the search found of it; an accuracy on all images is not computed again.
    """
    problem = prepared.problem
    policy = prepared.policy(index)
    loss = float(problem.proxy_loss(index[None])[0])
    priced = {metric: float(cost[0]) for metric, cost in problem.costs(index[None]).items()}
    if Metric.SIZE in priced:
        [size] = prepared.costs.total(prepared.bench.network, [policy], Metric.SIZE)
        priced[Metric.SIZE] = float(size)
    known = None if score is None or score.abandoned else score.accuracy
    return Found(
        name,
        policy,
        loss,
        loss / optimum.loss - 1.0 if optimum.loss > 0 else None,
        prepared.oracle.score(policy) if known is None else known,
        priced,
        bool(problem.feasible(index[None])[0]),
        log or {},
        measured={} if score is None else score.measured,
        divergence=None if score is None else score.divergence,
    )


def simulated_on_test(prepared: Prepared, policy: Policy) -> Interval:
    """Simulate `policy`, deployable or not, on the held-out images; reads them once."""
    bench = prepared.bench
    images, labels = bench.part("test")
    expected = bench.float_labels if labels is None else labels
    logits = bench.simulation.logits(policy, images, bench.corrections(policy))
    return Interval.wilson(count_right(logits, expected), len(images))


def costs_from(tables: Mapping[Metric, CostTable]) -> dict[str, str]:
    """Return by metric how its costs came to be: measured, or modelled and by whom."""
    return {metric.value: said_of(table) for metric, table in tables.items()}


def summarize(
    prepared: Prepared,
    requests: Sequence[BudgetRequest],
    result: SearchResult,
    found: Found,
    optimum: Solution,
    scoring: Scoring,
    totals: Totals | None,
    explanation: Explanation,
) -> dict[str, Any]:
    """Return what ``result.json`` holds, as JSON values."""
    problem, bench = prepared.problem, prepared.bench
    assert bench.split is not None
    images, labels = bench.part("search")
    floats: float | None = None
    if labels is not None:
        floats = count_right(bench.simulation.logits(Policy({}), images), labels) / len(labels)
    return {
        "version": 1,
        "network": bench.network.digest,
        "best": found.to_dict(),
        "reward": scoring.reward,
        "accuracy_is": "agreement with the float network" if labels is None else "right answers",
        "float_search_accuracy": floats,
        "oracle": scoring.oracle,
        "proxy": prepared.proxy,
        "evaluations": result.evaluations,
        "budgets": {
            r.metric.value: {
                "asked": str(r),
                "limit": problem.budgets[r.metric],
                "unit": problem.tables[r.metric].unit.value,
            }
            for r in requests
        },
        "float": {
            m.value: prepared.costs.float_reference(bench.network, m) for m in problem.tables
        },
        "totals": None
        if totals is None
        else {
            "backends": {metric.value: model.name for metric, model in totals.models.items()},
            "limits": {metric.value: limit for metric, limit in totals.limits.items()},
            "units": {metric.value: totals.unit(metric).value for metric in totals.models},
        },
        "certificate": {
            **explanation.certificate.to_dict(),
            "policy": json.loads(prepared.policy(optimum.index).to_json()),
        },
        "patterns": explanation.patterns.to_dict(),
        "archive": [trial_to_dict(problem, trial) for trial in result.archive],
        "pareto": explanation.pareto.to_dict(),
        "front": None if explanation.front is None else explanation.front.to_dict(),
        "unsolved": explanation.unsolved,
        "sensitivity": _sensitivities(prepared),
        "split": bench.split.to_dict(),
        "costs_from": costs_from(problem.tables),
        "cost_sources": {m.value: dict(t.source) for m, t in problem.tables.items()},
    }


def _sensitivities(prepared: Prepared) -> dict[str, dict[str, dict[str, float]]]:
    """By layer and bits: what runs tell, and what the proxy loss sums up."""
    problem, told = prepared.problem, prepared.sensitivity
    found: dict[str, dict[str, dict[str, float]]] = {}
    for i, name in enumerate(prepared.bench.network.layer_names):
        found[name] = {}
        for k, bits in enumerate(problem.choices):
            cell = {}
            if told is not None:
                cell = {"kl": float(told.kl[i, k]), "accuracy_drop": float(told.drop[i, k])}
            if np.isfinite(problem.loss[i, k]):  # where the choice is supported
                cell["proxy_loss"] = float(problem.loss[i, k])
            found[name][str(bits)] = cell
    return found
