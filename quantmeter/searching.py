"""The second verb: find the bits that keep the accuracy inside the budgets."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.table import CostTable
from quantization.bits import DEFAULT_CHOICES, BitWidths
from quantization.errors import BudgetError, PolicyError
from quantization.network import Network
from quantization.policy import IndexArray, Policy
from quantization.ranges import RangeMethod
from quantmeter.costs import parse_costs
from quantmeter.data import Data
from quantmeter.files import require_folder
from quantmeter.preparing import REWARDS, Prepared, Progress, check_reward, prepare
from quantmeter.runs import (
    POLICY,
    RESULT,
    TRIALS,
    Found,
    describe,
    simulated_on_test,
    summarize,
    trial_writer,
)
from quantmeter.workbench import open_workbench
from search import methods
from search.budgets import parse_budgets
from search.exact import Solution, solve
from search.greedy import greedy_policy
from search.problem import Problem
from search.searcher import Searcher, SearchResult, Trial

METHODS = tuple(methods.METHODS)
__all__ = [
    "METHODS",
    "REWARDS",
    "Found",
    "Prepared",
    "SearchReport",
    "describe",
    "make_searcher",
    "prepare",
    "run_method",
    "search",
]


def make_searcher(method: str, episodes: int, start: IndexArray | None = None) -> Searcher:
    """Return the search method called `method`; see `search.methods`.

    Raises:
        QuantmeterError: if there is none; names close matches.
    """
    return methods.make_searcher(method, methods.MethodSettings(start=start, episodes=episodes))


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
        start: (L,) policy that iterative methods start from; None starts cold.
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


def _warm_start(problem: Problem) -> IndexArray | None:
    """What greedy search finds, (L,); None if it finds nothing within the budgets."""
    found = greedy_policy(problem)
    return None if found is None else found[0]


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
    warm: bool = False,
    choices: Sequence[BitWidths] = DEFAULT_CHOICES,
    ties: Sequence[Sequence[str]] = (),
    ranges: RangeMethod = "minmax",
    threads: int = 1,
    seconds: float = 60.0,
    seed: int = 0,
    store: Path | None = None,
    exported: bool = True,
    tables: Mapping[str, CostTable] | None = None,
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
        warm: let an iterative method start from what greedy search finds on the proxy loss.
        choices: bit-widths.
        ties: groups of layers that must get equal bits.
        ranges: how activation ranges are chosen; policies carry it as their option ``ranges``.
        threads: of a measuring backend.
        seconds: wall time of a measuring backend.
        seed: of split and search.
        store: file of the measurements that a measuring backend keeps; None keeps none.
        exported: whether the policy is to be exported. If not, as for other hardware, choices that
            ONNX Runtime cannot run are allowed too, and nothing has a size.
        tables: to use for ``table:FILE`` instead of what the file holds, by the file as in `cost`.
        out: folder for ``policy.json``, ``trials.jsonl`` and ``result.json``; None writes nothing.
        progress: called with the share done and what is being done.

    Returns:
        The best policy with its figures and the certificate.

    Raises:
        QuantmeterError: what is wrong with the model, the data, a budget or a backend.
    """
    make_searcher(method, episodes)  # says at once that there is no such method
    check_reward(reward)
    requests = parse_budgets(budgets)
    bench = open_workbench(model, data, seed=seed, ranges=ranges)
    if short := [tie for tie in ties if len(set(tie)) < 2]:
        raise PolicyError(f"a tie names at least two layers, not {','.join(short[0]) or 'none'}")
    bench.network.tied(ties)  # says at once that there is no such layer
    context = BackendContext(
        threads=threads,
        seconds=seconds,
        seed=seed,
        inputs=bench.range_inputs,
        store=store,
        progress=progress,
    )
    costs = parse_costs(cost, context, exported=exported, tables=tables)
    if not costs.models:
        raise BackendError("nothing is priced; name what prices the latency or energy: --cost")
    folder = None if out is None else Path(out)
    if folder is not None:
        require_folder(folder)  # says at once that it cannot be written to
    prepared = prepare(bench, costs, requests, choices, ties=ties, progress=progress)
    optimum = solve(prepared.problem)
    iterative = methods.METHODS[method].iterative
    stream: IO[str] | None = None
    if folder is not None:
        for name in (POLICY, RESULT):  # of an earlier run: two runs are never mixed
            (folder / name).unlink(missing_ok=True)
        stream = (folder / TRIALS).open("w", encoding="utf-8")
    try:
        result = run_method(
            prepared,
            method,
            reward=reward,
            episodes=episodes,
            seed=seed,
            start=_warm_start(prepared.problem) if warm and iterative else None,
            record=None if stream is None else trial_writer(prepared, stream),
            progress=progress,
        )
    finally:
        if stream is not None:
            stream.close()
    assert result.best is not None
    found = describe(prepared, method, result.best, optimum, result.log)
    found = replace(found, test_accuracy=simulated_on_test(prepared, found.policy))
    summary = summarize(prepared, requests, result, found, optimum, reward)
    if folder is not None:
        (folder / POLICY).write_text(found.policy.to_json(), encoding="utf-8")
        text = json.dumps(summary, indent=2, allow_nan=False)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    return SearchReport(found.policy, found, result, optimum, summary)
