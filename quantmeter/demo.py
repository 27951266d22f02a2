"""The main job on a real network and real images: from float to a timed mixed-precision file."""

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
from quantization.policy import IndexArray, Policy
from quantization.reading import read_network
from quantmeter.benchmarking import FLOAT, Benchmark, accuracy_on_test, benchmark
from quantmeter.calibrating import calibrate
from quantmeter.costs import Costs
from quantmeter.data import Data
from quantmeter.demo_result import EQUAL_SIZE, LATENCY_BUDGET, DemoResult
from quantmeter.reference_task import load_digits_task
from quantmeter.searching import Found, Prepared, describe, prepare, run_method
from quantmeter.workbench import Workbench, open_workbench
from search.budgets import BudgetRequest
from search.exact import Solution, solve
from search.oracle import Interval

MODEL = Path(__file__).parent / "data" / "digits.onnx"
_ATTEMPTS = 4
"""The first search, and at most three more on a tightened table."""
_PROXY_EPISODES = 600


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
    _Row("REINFORCE, accuracy", "reinforce", "accuracy", warm=True),
    _Row("random, accuracy", "random", "accuracy"),
)

Progress = Callable[[float, str], None]
Bar = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress bar with a title."""


@dataclass(frozen=True)
class DemoOptions:
    """How long the demo takes.

    Args:
        seconds: of measuring the latency table.
        episodes: accuracy evaluations of REINFORCE, and of random search.
        blocks: turns of each candidate in the final timing.
        seed: of everything that is drawn.
    """

    seconds: float = 30.0
    episodes: int = 100
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
    prepared: Prepared | None = None
    tightened, attempt = table, 0
    while True:
        attempt += 1
        costs = _costs(tightened)
        if prepared is None:
            with bar("sensitivity") as progress:
                prepared = prepare(bench, costs, requests, DEFAULT_CHOICES, progress=progress)
        else:
            tables = {**prepared.problem.tables, Metric.LATENCY: tightened}
            problem = replace(prepared.problem, tables=tables)
            prepared = replace(prepared, costs=costs, problem=problem)
        rows, optimum = _search(prepared, options, bar)
        policies = {row.name: row.policy for row in rows}
        with bar("timing") as progress:
            timed = benchmark(
                bench,
                policies,
                costs=_costs(table),
                rivals=(FLOAT,),
                blocks=options.blocks,
                score=False,
                progress=progress,
            )
        deployed = _deployed(rows, timed)
        if deployed is not None or attempt == _ATTEMPTS:
            break
        tightened = _tighten(tightened, rows, timed)
    float_accuracy, tested = _read_test_part(bench, rows)
    result = DemoResult(prepared, table, tested, timed, optimum, deployed, attempt, float_accuracy)
    result.write(out)
    return result


def _open(options: DemoOptions, out: Path) -> Workbench:
    task = load_digits_task()  # its own seed: the shipped network was trained on that split
    data = Data(task.unseen_images, task.unseen_labels)
    np.savez_compressed(out / "data.npz", x=task.unseen_images, y=task.unseen_labels)
    (out / "model.onnx").write_bytes(MODEL.read_bytes())
    return open_workbench(read_network(out / "model.onnx"), data, seed=options.seed)


def _uniform_bytes(bench: Workbench) -> int:
    return bench.exporter.size_bytes(Policy.uniform(bench.network, EQUAL_SIZE))


def _costs(latency: CostTable) -> Costs:
    energy = backend("analytical:haq", BackendContext())
    replay = TableReplay(latency, "ort, measured")
    return Costs({Metric.LATENCY: replay, Metric.ENERGY: energy, Metric.SIZE: ExportedSize()})


def _search(prepared: Prepared, options: DemoOptions, bar: Bar) -> tuple[list[Found], Solution]:
    optimum = solve(prepared.problem)
    rows: list[Found] = []
    greedy: IndexArray | None = None
    for row in _METHODS:
        with bar(row.name) as progress:
            result = run_method(
                prepared,
                row.method,
                reward=row.reward,
                episodes=options.episodes if row.reward == "accuracy" else _PROXY_EPISODES,
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


def _deployed(rows: Sequence[Found], timed: Benchmark) -> str | None:
    """The most accurate on the search part whose measured upper limit meets the budgets."""
    upper = {r.name: r.ratio_to_float.high for r in timed.results}
    audited = {r.name: r.audit.ok for r in timed.results}
    fits = [
        row
        for row in rows
        if row.feasible and audited[row.name] and upper[row.name] <= LATENCY_BUDGET
    ]
    best = max(fits, key=lambda row: (row.search_accuracy, -row.loss), default=None)
    return None if best is None else best.name


def _tighten(table: CostTable, rows: Sequence[Found], timed: Benchmark) -> CostTable:
    """Make integer kernels dearer by the largest factor by which a prediction fell short."""
    feasible = {row.name for row in rows if row.feasible}
    shortfalls = [
        r.ratio_to_float.high / r.predicted_ratio_to_float
        for r in timed.results
        if r.name in feasible and r.predicted_ratio_to_float
    ]
    factor = max([1.01, *shortfalls])
    integer = np.array([not c.reads.is_float for c in table.choices])
    value = np.where(integer, table.unary.value * factor, table.unary.value)
    unary = replace(table.unary, value=value)
    return replace(table, unary=unary)


def _read_test_part(bench: Workbench, rows: Sequence[Found]) -> tuple[Interval, tuple[Found, ...]]:
    """Run the float file and each reported policy's file once on the held-out images."""
    found: dict[str, Interval] = {}
    for policy in (Policy({}), *(row.policy for row in rows)):
        if (key := policy.to_json()) not in found:  # methods may agree
            found[key] = accuracy_on_test(bench, policy)
    tested = (replace(row, test_accuracy=found[row.policy.to_json()]) for row in rows)
    return found[Policy({}).to_json()], tuple(tested)
