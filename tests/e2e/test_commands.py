"""The main job as separate commands in processes of their own, on the reference task."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from quantization.policy import Policy
from quantization.reading import read_network
from quantmeter.reference_task import SHIPPED_MODEL
from tests.networks import Subject

COMMAND = Path(sys.executable).with_name("quantmeter")


def _run(folder: Path, line: str) -> "subprocess.CompletedProcess[str]":
    assert COMMAND.is_file(), "the package is not installed in this environment"
    words = line.replace("MODEL.onnx", str(SHIPPED_MODEL)).split()
    return subprocess.run(
        [COMMAND, *words], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


def _answer(folder: Path, line: str) -> Any:
    """Run a command that must succeed, print JSON only, and be silent on standard error."""
    done = _run(folder, line)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Subject) -> Path:
    made = tmp_path_factory.mktemp("job")
    np.savez_compressed(made / "DATA.npz", x=digits.images[:80], y=digits.labels[:80])
    return made


@pytest.fixture(scope="module")
def calibrated(folder: Path) -> Any:
    return _answer(
        folder, "calibrate MODEL.onnx --cost ort --time 8s --data DATA.npz --out TABLE.json --json"
    )


@pytest.fixture(scope="module")
def searched(folder: Path, calibrated: Any) -> Any:
    return _answer(
        folder,
        "search MODEL.onnx --data DATA.npz --cost table:TABLE.json --budget latency=0.9x "
        "--budget size=0.5x --method reinforce --episodes 20 --seed 0 --out RUN --json",
    )


def test_calibrate_times_policies_and_says_how_good_the_table_is(
    folder: Path, calibrated: Any
) -> None:
    assert calibrated["policies"] >= 24
    validation = calibrated["validation"]
    assert validation["policies"] >= 10
    for which in ("total", "table"):
        assert 0 <= validation[which]["mean_absolute"] < 1
        assert 0 <= validation[which]["near"] <= 1
    assert (validation["half_width"] is None) == (validation["policies"] < 30)
    assert calibrated["failed_policies"] == []
    assert calibrated["inputs"] == "given"
    assert (folder / "TABLE.json").is_file()


def test_the_policy_that_was_found_is_within_its_budgets_by_the_table(
    folder: Path, searched: Any
) -> None:
    best, floats = searched["best"], searched["float"]
    assert best["feasible"] is True
    assert best["costs"]["latency"] <= 0.9 * floats["latency"] * (1 + 1e-9)
    assert best["costs"]["size"] <= 0.5 * floats["size"] * (1 + 1e-9)
    priced = _answer(
        folder,
        "cost MODEL.onnx --cost table:TABLE.json --metric latency --policy RUN/policy.json --json",
    )
    assert priced["table_total"] == pytest.approx(best["costs"]["latency"])
    table = json.loads((folder / "TABLE.json").read_text())
    context = np.abs(table["context"]["values"]).sum()  # what neighbours may add at most
    assert 0 < abs(priced["neighbours"]) <= context
    assert priced["total"] == pytest.approx(priced["table_total"] + priced["neighbours"])


def test_the_policy_that_was_found_can_be_exported_at_its_predicted_size(
    folder: Path, searched: Any
) -> None:
    found = _answer(folder, "export MODEL.onnx RUN/policy.json --data DATA.npz --out Q.onnx --json")
    assert found["audit"]["ok"] is True
    assert (folder / "Q.onnx").stat().st_size == searched["best"]["costs"]["size"]
    onnx.checker.check_model(onnx.load_model(folder / "Q.onnx"))


def test_the_policy_that_was_found_is_timed_beside_its_prediction(
    folder: Path, searched: Any
) -> None:
    found = _answer(
        folder,
        "bench MODEL.onnx RUN/policy.json --data DATA.npz --cost table:TABLE.json "
        "--vs float --vs w8a8 --blocks 6 --json",
    )
    first, floats, eight = found["results"]
    assert first["policy"] == "RUN/policy.json"
    assert (floats["policy"], eight["policy"]) == ("float", "w8a8")
    line = "cost MODEL.onnx --cost table:TABLE.json --metric latency --json"
    ours, in_float = (_answer(folder, line + p) for p in (" --policy RUN/policy.json", ""))
    assert first["predicted_s"] == pytest.approx(ours["total"])
    predicted = ours["total"] / in_float["total"]
    assert first["predicted_ratio_to_float"] == pytest.approx(predicted)
    assert first["ratio_to_float"]["mid"] > 0
    assert first["accuracy"] > 0.5
    assert all(result["audit"]["ok"] for result in found["results"])
    asked = {layer["name"]: layer["asked"] for layer in first["audit"]["layers"]}
    policy = Policy.read(folder / "RUN/policy.json")
    assert asked == {name: str(policy[name]) for name in read_network(SHIPPED_MODEL).layer_names}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("inspect absent.onnx", "no such file"),
        ("search MODEL.onnx --data DATA.npz --budget size=1kB --out X", "minimum reachable"),
        ("export MODEL.onnx absent.json --out X.onnx", "absent.json"),
        ("bench MODEL.onnx p.json --threads 0", "--threads"),
    ],
)
def test_an_error_is_one_line_on_standard_error(folder: Path, line: str, message: str) -> None:
    done = _run(folder, line)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"quantmeter: error: .*{re.escape(message)}.*\n", done.stderr)


def test_a_reader_that_stops_early_is_no_error(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [COMMAND, "inspect", SHIPPED_MODEL, "--json"],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("module", ["quantmeter", "quantmeter.cli"])
def test_importing_the_front_door_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "onnxruntime", "onnx", "numpy", "scipy", "pandas", "sklearn"}


def test_the_package_offers_its_three_verbs() -> None:
    code = (
        "import quantmeter; from quantmeter import calibrate, search, benchmark;"
        "print(calibrate.__module__, search.__module__, benchmark.__module__);"
        "assert not hasattr(quantmeter, 'nothing')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [
        "quantmeter.calibrating",
        "quantmeter.searching",
        "quantmeter.benchmarking",
    ]
