"""The quick demo in a process of its own, and what it decides when timing disappoints."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.size import ExportedSize
from costmodels.sketch import example_network
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.policy import Policy
from quantmeter import demo
from quantmeter.cli import main
from quantmeter.commands.demo import next_commands
from quantmeter.preparing import Prepared
from search.exact import solve
from search.problem import Problem


def test_the_quick_demo_deploys_an_audited_policy_that_meets_both_budgets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantmeter.cli", "demo", "--quick", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["costs_from"]["energy"].startswith("analytical")
    assert result["costs_from"]["energy"].endswith("not measured")
    rows = {row["name"]: row for row in result["rows"]}
    deployed = rows[result["deployed"]]["timed"]
    limit = deployed["ratio_to_float"]["high"] * (1 + deployed["floor"])
    assert limit <= result["budgets"]["latency_ratio"]
    assert deployed["floor"] >= result["noise_floor"]["relative"]
    assert deployed["size_bytes"] <= result["budgets"]["size_bytes"]
    assert deployed["audit"]["ok"]
    assert (tmp_path / "deployed.onnx").stat().st_size == deployed["size_bytes"]
    onnx.checker.check_model(onnx.load(tmp_path / "deployed.onnx"))
    optimum = result["certificate"]["proxy_optimum"]
    assert rows["exact (MILP)"]["proxy_loss"] == pytest.approx(optimum)
    assert rows["greedy"]["proxy_loss"] >= optimum - 1e-12
    uniform = rows["uniform w3a8"]["test_accuracy"]
    assert uniform <= result["float"]["test_accuracy"] - 0.03
    assert result["deployed"] in (tmp_path / "report.html").read_text()
    assert "latency ... " in done.stderr
    again = shlex.split(next_commands(tmp_path, 0)["time it again"])
    assert main([*again[again.index("bench") :], "--blocks", "6"]) == 0


@dataclass
class _Row:
    name: str
    search_accuracy: float
    loss: float = 1.0
    policy: Policy = field(default_factory=lambda: Policy({}))


def _result(name: str, high: float, *, size: int = 100, ok: bool = True) -> Any:
    return SimpleNamespace(
        name=name,
        ratio_limit=high,
        predicted_ratio_to_float=0.5,
        size_bytes=size,
        audit=SimpleNamespace(ok=ok),
    )


def _timed(*results: Any) -> Any:
    return SimpleNamespace(results=results)


def test_the_deployed_policy_is_the_most_accurate_whose_file_meets_the_budgets() -> None:
    rows: Any = [_Row("first", 0.99), _Row("second", 0.97), _Row("third", 0.95)]
    second, third = _result("second", 0.69), _result("third", 0.5)
    for first in (
        _result("first", 0.71),
        _result("first", 0.5, size=101),
        _result("first", 0.5, ok=False),
    ):
        assert demo._deployed(rows, _timed(first, second, third), 100.0, 10_000) == "second"
        assert demo._deployed(rows, _timed(first), 100.0, 10_000) is None


def test_within_a_standard_error_of_the_best_accuracy_the_least_proxy_loss_is_deployed() -> None:
    rows: Any = [_Row("lucky", 0.98, 3.0), _Row("sound", 0.975, 1.0), _Row("poor", 0.9, 0.5)]
    timed = _timed(*(_result(row.name, 0.5) for row in rows))
    assert demo._deployed(rows, timed, 100.0, 358) == "sound"  # the error is 0.74 points
    assert demo._deployed(rows, timed, 100.0, 10_000) == "lucky"  # 0.14 points


def test_the_table_gets_dearer_by_the_largest_shortfall_and_by_more_each_time() -> None:
    timed = _timed(_result("a", 0.75), _result("b", 0.72), _result("too large", 1.5, size=101))
    assert demo._shortfall(timed, 100.0, 1.0) == pytest.approx(0.75 / 0.5)
    assert demo._shortfall(timed, 100.0, 1.5) == pytest.approx(1.5 * 1.01)


def _latency_table() -> CostTable:
    choices = (BitWidths(8, 8), BitWidths(32, 32))
    model = backend("analytical:haq", BackendContext())
    return model.table(example_network(), choices, Metric.LATENCY)


def test_a_dearer_table_multiplies_integer_kernels_only() -> None:
    table = _latency_table()
    dearer = demo._dearer(table, 1.5)
    np.testing.assert_allclose(dearer.unary.value[:, 0], table.unary.value[:, 0] * 1.5)
    np.testing.assert_array_equal(dearer.unary.value[:, 1], table.unary.value[:, 1])


@contextmanager
def _no_bar(_title: str) -> Iterator[Callable[[float, str], None]]:
    yield lambda _share, _what: None


@pytest.mark.parametrize(
    ("measured", "deployed", "attempts"),
    [
        ([0.6], "exact", 1),
        ([0.72, 0.6], "exact", 2),
        ([0.72] * 4, None, 4),
        ([1.5], None, 1),  # nothing is left on a table three times as dear
    ],
)
def test_searching_goes_on_until_a_file_meets_its_budgets_or_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
    measured: list[float],
    deployed: str | None,
    attempts: int,
) -> None:
    table, network = _latency_table(), example_network()
    floats = float(table.unary.value[:, 1].sum())
    size = ExportedSize().table(network, table.choices, Metric.SIZE)
    problem = Problem(
        network,
        table.choices,
        {Metric.LATENCY: table, Metric.SIZE: size},
        {Metric.LATENCY: 0.7 * floats, Metric.SIZE: 1e9},
        np.tile([1.0, 0.0], (len(network.layers), 1)),
    )
    rest = iter(measured)

    def search(prepared: Any, *_: object) -> Any:
        solution = solve(prepared.problem)
        return [_Row("exact", 0.9)], solution

    monkeypatch.setattr(demo, "_search", search)
    monkeypatch.setattr(demo, "benchmark", lambda *_, **__: _timed(_result("exact", next(rest))))
    oracle: Any = SimpleNamespace(count=358)
    prepared = Prepared(None, None, problem, None, oracle)  # type: ignore[arg-type]
    found = demo._search_until_met(prepared, table, demo.DemoOptions(), _no_bar)
    assert (found.deployed, found.attempts) == (deployed, attempts)
    assert next(rest, None) is None
