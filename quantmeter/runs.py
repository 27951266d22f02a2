"""What a search found, in figures, and the folder that it is written to."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from costmodels.provenance import said_of
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.policy import IndexArray, Policy
from quantmeter.preparing import Prepared
from search.budgets import BudgetRequest
from search.exact import Solution
from search.oracle import Interval, count_right
from search.searcher import SearchResult, Trial

POLICY, TRIALS, RESULT = "policy.json", "trials.jsonl", "result.json"
"""The files of a run."""


@dataclass(frozen=True, eq=False)
class Found:
    """One policy in figures, for people.

    Args:
        name: of the method or the policy.
        policy: the bits.
        loss: proxy loss.
        gap: proxy loss over the exact optimum, less 1; None if the optimum is 0.
        search_accuracy: on the search part, simulated.
        test_accuracy: on the held-out part, with its interval; None until it is reported.
        costs: in each metric by the tables that were searched, in their units; size, if the policy
            is to be exported, is exact.
        feasible: whether every budget is met.
        log: figures of the method.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        test = self.test_accuracy
        return {
            "name": self.name,
            "policy": json.loads(self.policy.to_json()),
            "proxy_loss": self.loss,
            "gap": self.gap,
            "search_accuracy": self.search_accuracy,
            "test_accuracy": None if test is None else test.share,
            "test_accuracy_interval": None if test is None else [test.low, test.high],
            "costs": {metric.value: cost for metric, cost in self.costs.items()},
            "feasible": self.feasible,
            "log": dict(self.log),
        }


def describe(
    prepared: Prepared,
    name: str,
    index: IndexArray,
    optimum: Solution,
    log: Mapping[str, float | str] | None = None,
) -> Found:
    """Return what the search knows of one policy, (L,); the test part is not read."""
    problem = prepared.problem
    policy = prepared.policy(index)
    loss = float(problem.proxy_loss(index[None])[0])
    priced = {metric: float(cost[0]) for metric, cost in problem.costs(index[None]).items()}
    if Metric.SIZE in priced:
        [size] = prepared.costs.total(prepared.bench.network, [policy], Metric.SIZE)
        priced[Metric.SIZE] = float(size)
    return Found(
        name,
        policy,
        loss,
        loss / optimum.loss - 1.0 if optimum.loss > 0 else None,
        prepared.oracle.score(policy),
        priced,
        bool(problem.feasible(index[None])[0]),
        log or {},
    )


def simulated_on_test(prepared: Prepared, policy: Policy) -> Interval:
    """Simulate `policy`, deployable or not, on the held-out images; reads them once."""
    bench = prepared.bench
    images, labels = bench.part("test")
    expected = bench.float_labels if labels is None else labels
    logits = bench.simulation.logits(policy, images, bench.corrections(policy))
    return Interval.wilson(count_right(logits, expected), len(images))


def trial_writer(prepared: Prepared, stream: IO[str]) -> Callable[[Trial], None]:
    """Return a function that appends each trial to `stream` as one JSON line, at once."""
    names = prepared.bench.network.layer_names
    choices = prepared.problem.choices
    said = costs_from(prepared.problem.tables)

    def write(trial: Trial) -> None:
        bits = {n: str(choices[int(i)]) for n, i in zip(names, trial.index, strict=True)}
        content = {
            "origin": trial.origin,
            "score": trial.score,
            "proxy_loss": trial.loss,
            "costs": {m.value: c for m, c in trial.costs.items()},
            "costs_from": said,
            "layers": bits,
        }
        stream.write(json.dumps(content) + "\n")
        stream.flush()

    return write


def costs_from(tables: Mapping[Metric, CostTable]) -> dict[str, str]:
    """Return by metric how its costs came to be: measured, or modelled and by whom."""
    return {metric.value: said_of(table) for metric, table in tables.items()}


def summarize(
    prepared: Prepared,
    requests: Sequence[BudgetRequest],
    result: SearchResult,
    found: Found,
    optimum: Solution,
    reward: str,
) -> dict[str, Any]:
    """Return what ``result.json`` holds, as JSON values."""
    problem, bench = prepared.problem, prepared.bench
    assert bench.split is not None
    return {
        "version": 1,
        "network": bench.network.digest,
        "best": found.to_dict(),
        "reward": reward,
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
        "certificate": {
            "proxy_optimum": optimum.loss,
            "proven": optimum.proven,
            "gap": found.gap,
            "policy": json.loads(prepared.policy(optimum.index).to_json()),
        },
        "sensitivity": {
            name: {
                str(bits): {"kl": float(kl), "accuracy_drop": float(drop)}
                for bits, kl, drop in zip(
                    problem.choices,
                    prepared.sensitivity.kl[i],
                    prepared.sensitivity.drop[i],
                    strict=True,
                )
            }
            for i, name in enumerate(bench.network.layer_names)
        },
        "split": bench.split.to_dict(),
        "costs_from": costs_from(problem.tables),
        "cost_sources": {m.value: dict(t.source) for m, t in problem.tables.items()},
    }
