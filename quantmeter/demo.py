"""The main job on a real network and real images: from float to a timed mixed-precision file."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.replay import TableReplay
from costmodels.size import ExportedSize
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES
from quantization.errors import BudgetError
from quantization.policy import IndexArray, Policy
from quantization.reading import read_network
from quantmeter.benchmarking import FLOAT, Benchmark, accuracy_on_test, benchmark
from quantmeter.calibrating import calibrate
from quantmeter.costs import Costs
from quantmeter.data import Data
from quantmeter.demo_result import EQUAL_SIZE, LATENCY_BUDGET, DemoResult, discard, meets
from quantmeter.method_run import run_method
from quantmeter.preparing import Prepared, prepare
from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task
from quantmeter.runs import Found, describe
from quantmeter.scoring import Scorer
from quantmeter.workbench import Workbench, open_workbench
from search.budgets import BudgetRequest
from search.exact import Solution, solve
from search.oracle import Interval

_ATTEMPTS = 4
"""The first search, and at most three more on a tightened table."""


@dataclass(frozen=True)
class _Row:
    """A search method of the demo; the table has them in this order."""

    name: str
    method: str
    reward: str
    warm: bool = False  # starts from what greedy found


_METHODS = (
    _Row("greedy", "greedy", "proxy"),
    _Row("exact (MILP)", "exact", "proxy"),
    _Row("REINFORCE, proxy", "reinforce", "proxy"),
    _Row("REINFORCE, KL", "reinforce", "kl", warm=True),
    _Row("random, KL", "random", "kl"),
)

Progress = Callable[[float, str], None]
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress bar with a title."""


@dataclass(frozen=True)
class DemoOptions:
    """How long the demo takes.

    Args:
        seconds: of measuring the latency table.
        episodes: policies that REINFORCE, and random search, run on the search images.
        proxy_episodes: evaluations of the proxy loss by REINFORCE.
        images: of the search part that are looked at; None for all.
        blocks: turns of each candidate in the final timing.
        seed: of everything that is drawn.
    """

    seconds: float = 30.0
    episodes: int = 70
    proxy_episodes: int = 600
    images: int | None = None
    blocks: int = 30
    seed: int = 0


def run_demo(options: DemoOptions, out: Path, bar: Bar) -> DemoResult:
    """Calibrate, search, export, audit and time; write everything into `out`.

    Args:
        options: how long.
        out: folder of the run.
        bar: opens a progress bar.
    """
    out.mkdir(parents=True, exist_ok=True)
    discard(out)
    bench = _open(options, out)
    with bar("latency") as progress:
        table = calibrate(
            bench.network,
            data=bench.data,
            seconds=options.seconds,
            seed=options.seed,
            progress=progress,
        )
    (out / "table.json").write_text(table.to_json(), encoding="utf-8")
    requests = [
        BudgetRequest(Metric.LATENCY, LATENCY_BUDGET, relative=True),
        BudgetRequest(Metric.SIZE, float(_uniform_bytes(bench))),
    ]
    with bar("sensitivity") as progress:
        prepared = prepare(bench, _costs(table), requests, DEFAULT_CHOICES, progress=progress)
    found = _search_until_met(prepared, table, options, bar)
    float_accuracy, rows = _read_test_part(bench, found.rows)
    result = DemoResult(
        found.prepared,
        table,
        rows,
        found.timed,
        found.optimum,
        found.deployed,
        found.attempts,
        float_accuracy,
    )
    result.write(out)
    return result


@dataclass(frozen=True, eq=False)
class _Outcome:
    """The last search whose policies were timed; fields as in `DemoResult`."""

    prepared: Prepared
    rows: Sequence[Found]
    optimum: Solution
    timed: Benchmark
    deployed: str | None
    attempts: int


def _search_until_met(
    prepared: Prepared, table: CostTable, options: DemoOptions, bar: Bar
) -> _Outcome:
    """Search, time the files, and search again on a dearer table while none meets the budgets."""
    limit = prepared.problem.budgets[Metric.SIZE]
    outcome: _Outcome | None = None
    factor = 1.0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            rows, optimum = _search(prepared, options, bar)
        except BudgetError:
            if outcome is None:
                raise
            return outcome  # on the dearer table nothing is left to search
        with bar("timing") as progress:
            timed = benchmark(
                prepared.bench,
                {row.name: row.policy for row in rows},
                costs=_costs(table),
                rivals=(FLOAT,),
                blocks=options.blocks,
                score=False,
                progress=progress,
            )
        deployed = _deployed(rows, timed, limit, prepared.oracle.count)
        outcome = _Outcome(prepared, rows, optimum, timed, deployed, attempt)
        if deployed is not None:
            break
        factor = _shortfall(timed, limit, factor)
        tables = {**prepared.problem.tables, Metric.LATENCY: _dearer(table, factor)}
        prepared = replace(prepared, problem=replace(prepared.problem, tables=tables))
    assert outcome is not None
    return outcome


def _open(options: DemoOptions, out: Path) -> Workbench:
    task = load_digits_task()  # its own seed: the shipped network was trained on that split
    data = Data(task.unseen_images, task.unseen_labels)
    np.savez_compressed(out / "data.npz", x=task.unseen_images, y=task.unseen_labels)
    (out / "model.onnx").write_bytes(SHIPPED_MODEL.read_bytes())
    bench = open_workbench(read_network(out / "model.onnx"), data, seed=options.seed)
    assert bench.split is not None  # there are images
    seen = bench.split.search[: options.images]
    return replace(bench, split=replace(bench.split, search=seen))


def _uniform_bytes(bench: Workbench) -> int:
    return bench.exporter.size_bytes(Policy.uniform(bench.network, EQUAL_SIZE))


def _costs(latency: CostTable) -> Costs:
    energy = backend("analytical:haq", BackendContext())
    replay = TableReplay(latency, "ort, measured")
    return Costs({Metric.LATENCY: replay, Metric.ENERGY: energy, Metric.SIZE: ExportedSize()})


def _search(prepared: Prepared, options: DemoOptions, bar: Bar) -> tuple[list[Found], Solution]:
    optimum = solve(prepared.problem)
    episodes = {"kl": options.episodes, "proxy": options.proxy_episodes}
    rows: list[Found] = []
    greedy: IndexArray | None = None
    for row in _METHODS:
        with bar(row.name) as progress:
            result = run_method(
                prepared,
                row.method,
                scorer=Scorer(prepared, row.reward),
                episodes=episodes[row.reward],
                seed=options.seed,
                start=greedy if row.warm else None,
                progress=progress,
            )
        assert result.best is not None  # run_method raises otherwise
        greedy = result.best if row.method == "greedy" else greedy
        rows.append(describe(prepared, row.name, result.best, optimum, result.log))
    for position, bits in enumerate(prepared.problem.choices):
        if not bits.is_float:
            index = np.full(len(prepared.bench.network.layers), position, np.uint8)
            rows.append(describe(prepared, f"uniform {bits}", index, optimum))
    return rows, optimum


def _deployed(
    rows: Sequence[Found], timed: Benchmark, size_bytes: float, images: int
) -> str | None:
    """Of the files that meet the budgets when measured, the most accurate on the search part.

    Accuracies within one standard error of the best count as equal; among these the least proxy
    loss decides (docs/decisions/0005-one-standard-error.md).
    """
    met = {r.name for r in timed.results if meets(r, size_bytes)}
    fitting = [row for row in rows if row.name in met]
    best = max((row.search_accuracy for row in fitting), default=0.0)
    error = math.sqrt(best * (1.0 - best) / images)
    equal = (row for row in fitting if row.search_accuracy >= best - error)
    chosen = min(equal, key=lambda row: (row.loss, -row.search_accuracy), default=None)
    return None if chosen is None else chosen.name


def _shortfall(timed: Benchmark, size_bytes: float, factor: float) -> float:
    """Return by how much the measured table is to be dearer; more than `factor`, the last answer.

    It is the largest factor by which a prediction of a file within the size budget fell short.
    """
    shortfalls = [
        r.ratio_limit / r.predicted_ratio_to_float
        for r in timed.results
        if r.size_bytes <= size_bytes and r.predicted_ratio_to_float
    ]
    return max(factor * 1.01, *shortfalls)


def _dearer(table: CostTable, factor: float) -> CostTable:
    """Multiply the costs of integer kernels."""
    integer = np.array([not c.reads.is_float for c in table.choices])
    value = np.where(integer, table.unary.value * factor, table.unary.value)
    return replace(table, unary=replace(table.unary, value=value))


def _read_test_part(bench: Workbench, rows: Sequence[Found]) -> tuple[Interval, tuple[Found, ...]]:
    """Run the float file and each reported policy's file once on the held-out images."""
    found: dict[str, Interval] = {}
    for policy in (Policy({}), *(row.policy for row in rows)):
        if (key := policy.to_json()) not in found:  # methods may agree
            found[key] = accuracy_on_test(bench, bench.export(policy))
    tested = (replace(row, test_accuracy=found[row.policy.to_json()]) for row in rows)
    return found[Policy({}).to_json()], tuple(tested)
