"""The second verb: find the bits that keep the accuracy inside the budgets."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from costmodels.model import BackendContext
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES, BitWidths
from quantization.errors import BudgetError, QuantmeterError, did_you_mean
from quantization.network import Network
from quantization.policy import IndexArray, Policy, PolicyBatch
from quantmeter.costs import Costs, parse_costs
from quantmeter.data import Data
from quantmeter.workbench import Workbench, open_workbench
from search.budgets import BudgetRequest, parse_budgets
from search.exact import Exact, Solution, solve
from search.greedy import Greedy
from search.oracle import Interval, PostTrainingOracle
from search.problem import Problem
from search.reinforce import Reinforce, ReinforceConfig
from search.sampling import RandomSearch
from search.searcher import Evaluate, Searcher, SearchResult, Trial
from search.sensitivity import Sensitivity, measure_sensitivity
from search.uniform import Uniform

METHODS = ("reinforce", "exact", "greedy", "uniform", "random")
REWARDS = ("accuracy", "proxy")

Progress = Callable[[float, str], None]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that a search needs, made once for any number of methods.

    Args:
        bench: network and data.
        costs: what prices which metric.
        problem: choices, tables, budgets and proxy loss (KL sensitivities).
        sensitivity: of each layer at each choice.
        oracle: accuracy on the search part.
    """

    bench: Workbench
    costs: Costs
    problem: Problem
    sensitivity: Sensitivity
    oracle: PostTrainingOracle

    def evaluate(self, reward: str) -> Evaluate:
        """Return what a searcher maximises: accuracy, or the negative proxy loss.

        Raises:
            QuantmeterError: for another reward.
        """
        if reward == "proxy":
            return lambda index: -self.problem.proxy_loss(index)
        if reward == "accuracy":
            return lambda index: self.oracle.accuracy(self.batch(index))
        raise QuantmeterError(f"no reward {reward!r}; choose {' or '.join(REWARDS)}")

    def batch(self, index: IndexArray) -> PolicyBatch:
        """Return policies (P, L) of the problem's choices as a batch."""
        return PolicyBatch(self.bench.network.layer_names, self.problem.choices, index)

    def policy(self, index: IndexArray) -> Policy:
        """Return one policy, (L,)."""
        return self.batch(index[None])[0]


def make_searcher(method: str, episodes: int, start: IndexArray | None = None) -> Searcher:
    """Return the search method called `method`.

    Raises:
        QuantmeterError: if there is none; names close matches.
    """
    if method == "reinforce":
        if start is None:
            return Reinforce(ReinforceConfig(episodes=episodes))
        return Reinforce(ReinforceConfig.warm(episodes=episodes), start)
    simple: dict[str, Callable[[], Searcher]] = {
        "exact": Exact,
        "greedy": Greedy,
        "uniform": Uniform,
        "random": RandomSearch,
    }
    if method not in simple:
        raise QuantmeterError(
            f"no method {method!r}{did_you_mean(method, METHODS)}; choose {', '.join(METHODS)}"
        )
    return simple[method]()


def prepare(
    bench: Workbench,
    costs: Costs,
    budgets: Sequence[BudgetRequest],
    choices: Sequence[BitWidths],
    *,
    progress: Progress = lambda _share, _what: None,
) -> Prepared:
    """Price the choices, resolve the budgets and measure sensitivities.

    Args:
        bench: network and data.
        costs: what prices which metric.
        budgets: at most one per metric.
        choices: bit-widths; float32 is what relative budgets refer to and need not be among them.
        progress: called with the share done and what is being done.

    Raises:
        BackendError: if nothing prices a budgeted metric.
        BudgetError: if a budget cannot be met; says what the minimum reachable is.
        DataError: without data.
    """
    network = bench.network
    images, labels = bench.part("search")
    for budget in budgets:
        costs.model(budget.metric)
    tables = costs.tables(network, tuple(choices))
    limits = {
        b.metric: b.resolve(costs.float_total(network, b.metric) if b.relative else 0.0)
        for b in budgets
    }
    shape = (len(network.layers), len(choices))
    flat = Problem(network, tuple(choices), tables, limits, np.zeros(shape))
    solve(flat)  # fails early, with the minimum reachable, if the budgets cannot be met
    sensitivity = measure_sensitivity(bench.simulation, choices, images, labels, progress)
    problem = Problem(network, tuple(choices), tables, limits, sensitivity.kl)
    oracle = PostTrainingOracle(bench.simulation, images, labels)
    return Prepared(bench, costs, problem, sensitivity, oracle)


@dataclass(frozen=True, eq=False)
class Found:
    """One policy in figures, for people.

    Args:
        name: of the method or the policy.
        policy: the bits.
        loss: proxy loss.
        gap: proxy loss over the exact optimum, less 1; None if the optimum is 0.
        search_accuracy: on the search part, simulated.
        test_accuracy: on the held-out part, simulated, with interval.
        costs: in each metric, SI units; size is exact.
        feasible: whether every budget is met.
        log: figures of the method.
    """

    name: str
    policy: Policy
    loss: float
    gap: float | None
    search_accuracy: float
    test_accuracy: Interval
    costs: Mapping[Metric, float]
    feasible: bool
    log: Mapping[str, float | str]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "name": self.name,
            "policy": json.loads(self.policy.to_json()),
            "proxy_loss": self.loss,
            "gap": self.gap,
            "search_accuracy": self.search_accuracy,
            "test_accuracy": self.test_accuracy.share,
            "test_accuracy_interval": [self.test_accuracy.low, self.test_accuracy.high],
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
    """Score one policy, (L,), on everything that is reported; reads the test part once."""
    bench, problem = prepared.bench, prepared.problem
    policy = prepared.policy(index)
    loss = float(problem.proxy_loss(index[None])[0])
    images, labels = bench.part("test")
    expected = bench.float_labels if labels is None else labels
    logits = bench.simulation.logits(policy, images, bench.corrections(policy))
    right = int((logits.argmax(1) == expected).sum())
    batch = prepared.batch(index[None])
    priced = {
        m: float(model.total(bench.network, batch, m)[0])
        for m, model in prepared.costs.models.items()
    }
    return Found(
        name,
        policy,
        loss,
        loss / optimum.loss - 1.0 if optimum.loss > 0 else None,
        prepared.oracle.score(policy),
        Interval.wilson(right, len(images)),
        priced,
        bool(problem.feasible(index[None])[0]),
        log or {},
    )


def run_method(
    prepared: Prepared,
    method: str,
    *,
    reward: str = "accuracy",
    episodes: int = 600,
    seed: int = 0,
    start: IndexArray | None = None,
    record: Callable[[Trial], None] | None = None,
    progress: Progress = lambda _share, _what: None,
) -> SearchResult:
    """Run one search method.

    Args:
        prepared: see `prepare`.
        method: one of `METHODS`.
        reward: one of `REWARDS`.
        episodes: policies to try at most.
        seed: of every random choice.
        start: (L,) policy that REINFORCE starts from; None starts cold.
        record: called with each trial when it is made.
        progress: called with the share done.

    Raises:
        BudgetError: if the method found no policy within the budgets.
    """
    result = make_searcher(method, episodes, start).search(
        prepared.problem,
        prepared.evaluate(reward),
        evaluations=episodes,
        seed=seed,
        progress=progress,
        record=record,
    )
    if result.best is None:
        raise BudgetError(f"{method} found no policy within the budgets; try --method exact")
    return result


@dataclass(frozen=True, eq=False)
class SearchReport:
    """What `search` returns and writes.

    Args:
        policy: the best policy.
        found: it in figures.
        result: every trial.
        optimum: the exact optimum of the proxy loss, the certificate.
        summary: what ``result.json`` holds.
    """

    policy: Policy
    found: Found
    result: SearchResult
    optimum: Solution
    summary: Mapping[str, Any]


def search(
    model: str | Path | Network,
    data: str | Path | Data,
    *,
    cost: Sequence[str] = (),
    budgets: Sequence[str] = (),
    method: str = "reinforce",
    reward: str = "accuracy",
    episodes: int = 600,
    choices: Sequence[BitWidths] = DEFAULT_CHOICES,
    ties: Sequence[Sequence[str]] = (),
    threads: int = 1,
    seconds: float = 60.0,
    seed: int = 0,
    out: str | Path | None = None,
    progress: Progress = lambda _share, _what: None,
) -> SearchReport:
    """Search for the bits of every layer of a network under budgets.

    Args:
        model: path of an ONNX file, or a network.
        data: images that the network never saw, split 20 / 40 / 40 into ranges, search and test.
        cost: backends, such as ``table:T.json`` or ``energy=analytical:haq``.
        budgets: such as ``latency=0.7x`` or ``size=2MB``.
        method: one of `METHODS`.
        reward: ``accuracy`` or ``proxy``.
        episodes: policies to try.
        choices: bit-widths.
        ties: groups of layers that must get equal bits.
        threads: of a measuring backend.
        seconds: wall time of a measuring backend.
        seed: of split and search.
        out: folder for ``policy.json``, ``trials.jsonl`` and ``result.json``; None writes nothing.
        progress: called with the share done and what is being done.

    Returns:
        The best policy with its figures and the certificate.

    Raises:
        QuantmeterError: what is wrong with the model, the data, a budget or a backend.
    """
    make_searcher(method, episodes)
    requests = parse_budgets(budgets)
    bench = open_workbench(model, data, seed=seed)
    if ties:
        tied = bench.network.tied(ties)
        bench = Workbench(tied, bench.data, bench.split, seed, bench.ranges)
    context = BackendContext(
        threads=threads, seconds=seconds, seed=seed, inputs=bench.range_inputs, progress=progress
    )
    prepared = prepare(bench, parse_costs(cost, context), requests, choices, progress=progress)
    optimum = solve(prepared.problem)
    folder = None if out is None else Path(out)
    stream: IO[str] | None = None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "trials.jsonl").open("w", encoding="utf-8")
    try:
        result = run_method(
            prepared,
            method,
            reward=reward,
            episodes=episodes,
            seed=seed,
            record=None if stream is None else trial_writer(prepared, stream),
            progress=progress,
        )
    finally:
        if stream is not None:
            stream.close()
    assert result.best is not None
    found = describe(prepared, method, result.best, optimum, result.log)
    summary = _summary(prepared, requests, result, found, optimum, reward)
    if folder is not None:
        (folder / "policy.json").write_text(found.policy.to_json(), encoding="utf-8")
        text = json.dumps(summary, indent=2)
        (folder / "result.json").write_text(text + "\n", encoding="utf-8")
    return SearchReport(found.policy, found, result, optimum, summary)


def trial_writer(prepared: Prepared, stream: IO[str]) -> Callable[[Trial], None]:
    """Return a function that appends each trial to `stream` as one JSON line, at once."""
    names = prepared.bench.network.layer_names
    choices = prepared.problem.choices

    def write(trial: Trial) -> None:
        bits = {n: str(choices[int(i)]) for n, i in zip(names, trial.index, strict=True)}
        content = {
            "origin": trial.origin,
            "score": trial.score,
            "proxy_loss": trial.loss,
            "costs": {m.value: c for m, c in trial.costs.items()},
            "layers": bits,
        }
        stream.write(json.dumps(content) + "\n")
        stream.flush()

    return write


def _summary(
    prepared: Prepared,
    requests: Sequence[BudgetRequest],
    result: SearchResult,
    found: Found,
    optimum: Solution,
    reward: str,
) -> dict[str, Any]:
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
        "float": {m.value: prepared.costs.float_total(bench.network, m) for m in problem.tables},
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
        "cost_sources": {m.value: dict(t.source) for m, t in problem.tables.items()},
    }
