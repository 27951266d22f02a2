"""The quick demo in a process of its own, and what it decides when timing disappoints."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from costmodels.sketch import example_network
from costmodels.table import CostTable
from costmodels.units import Metric
from hil.timing import Ratio
from quantization.bits import BitWidths
from quantmeter import demo


def test_the_quick_demo_deploys_an_audited_policy_that_meets_both_budgets(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quantmeter.cli", "demo", "--quick", "--json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "result.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    deployed = rows[result["deployed"]]["timed"]
    assert deployed["ratio_to_float"]["high"] <= result["budgets"]["latency_ratio"]
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


@dataclass
class _Row:
    name: str
    search_accuracy: float
    loss: float = 1.0
    feasible: bool = True


def _timed(**high: float) -> Any:
    results = [
        SimpleNamespace(
            name=name,
            ratio_to_float=Ratio(value - 0.02, value - 0.01, value),
            predicted_ratio_to_float=0.5,
            audit=SimpleNamespace(ok=True),
        )
        for name, value in high.items()
    ]
    return SimpleNamespace(results=results)


def test_the_deployed_policy_is_the_most_accurate_whose_upper_limit_meets_the_budget() -> None:
    rows: Any = [_Row("slow", 0.99), _Row("fits", 0.97), _Row("worse", 0.95)]
    assert demo._deployed(rows, _timed(slow=0.71, fits=0.69, worse=0.5)) == "fits"
    rows[1] = replace(rows[1], feasible=False)
    assert demo._deployed(rows, _timed(slow=0.71, fits=0.69, worse=0.5)) == "worse"
    assert demo._deployed(rows, _timed(slow=0.71, fits=0.69, worse=0.8)) is None


def test_a_prediction_that_fell_short_makes_integer_layers_dearer_by_that_factor() -> None:
    network = example_network()
    choices = (BitWidths(8, 8), BitWidths(32, 32))
    from costmodels.model import BackendContext
    from costmodels.registry import backend

    table: CostTable = backend("analytical:haq", BackendContext()).table(
        network, choices, Metric.LATENCY
    )
    rows: Any = [_Row("a", 0.9)]
    tightened = demo._tighten(table, rows, _timed(a=0.75))
    np.testing.assert_allclose(tightened.unary.value[:, 0], table.unary.value[:, 0] * 1.5)
    np.testing.assert_array_equal(tightened.unary.value[:, 1], table.unary.value[:, 1])
