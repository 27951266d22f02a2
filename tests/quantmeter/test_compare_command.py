"""``quantmeter compare``: what it prints and writes, and how it says no."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest

from costmodels.measured import MeasuredPolicies
from costmodels.registry import backend
from costmodels.sketch import Sketch
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES, BitWidths
from quantization.network import Network
from quantization.policy import Policy
from quantmeter.cli import main


class Said(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[[str], Said]


def _network() -> Network:
    sketch = Sketch()
    x = sketch.input((1, 3, 6, 6))
    for i in range(3):
        x = sketch.node("Relu", sketch.conv(x, 4, kernel=3, name=f"conv{i}"))
    return sketch.network(x)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, policies, a table, and policies with times that are made up."""
    made = tmp_path_factory.mktemp("work")
    network = _network()
    onnx.save_model(network.model, made / "M.onnx")
    table = backend("analytical:haq").table(network, DEFAULT_CHOICES, Metric.LATENCY)
    (made / "T.json").write_text(table.to_json())
    eight, four = BitWidths(8, 8), BitWidths(4, 8)
    policies = {
        "float": Policy({}),
        "mixed": Policy({"conv1": eight, "conv2": four}),
        "w8a8": Policy.uniform(network, eight),
    }
    (made / "P.json").write_text(policies["mixed"].to_json())
    (made / "Q.json").write_text(Policy({"conv0": BitWidths(4, 4)}).to_json())
    seconds = np.array([4e-3, 1e-3, 2e-3])
    device = {"cpu": "A CPU", "runtime": "a runtime", "runtime_version": "1.2"}
    source = {"device": device, "runtime": {"threads": 3}, "seed": 0}
    held = MeasuredPolicies(network.digest, policies, seconds, source)
    (made / "measured.json").write_text(held.to_json())
    bare = MeasuredPolicies(network.digest, policies, seconds, {"seed": "none"})
    (made / "bare.json").write_text(bare.to_json())
    other = MeasuredPolicies("0" * 64, policies, seconds)
    (made / "other.json").write_text(other.to_json())
    return made


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command line in the folder."""
    monkeypatch.chdir(folder)

    def run(line: str) -> Said:
        capsys.readouterr()
        try:
            status = main(line.split())
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return run


def test_a_row_per_backend_and_rival_with_what_regret_refers_to(call: Call) -> None:
    said = call("compare M.onnx --cost analytical:haq --cost table:T.json --measured measured.json")
    assert (said.status, said.err) == (0, "")
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in said.out.splitlines()
        if line.startswith("│")
    ]
    assert [row[0] for row in rows] == ["analytical:haq", "table:T.json", "MACs x bits", "size"]
    assert rows[0][1:] == rows[1][1:], "the table holds what the formula says"
    macs = rows[2]
    assert macs[1:3] == ["-", "-"]
    assert macs[-3:] == ["100.0%", "w8a8", "2.00 ms"], "mixed would have been twice as fast"
    assert macs[-4] == "0.500"
    assert "3 policies measured on A CPU, a runtime 1.2, 3 thread(s)" in said.out
    assert "the fastest: mixed, 1.00 ms" in said.out
    assert "than the fastest of these" in said.out


def test_json_holds_every_figure_and_standard_output_nothing_else(call: Call) -> None:
    said = call("compare M.onnx --cost analytical:haq --measured measured.json --json")
    assert (said.status, said.err) == (0, "")
    found = json.loads(said.out)
    assert set(found) == {"policies", "best", "backends", "source", "notes"}
    assert found["best"] == {"name": "mixed", "seconds": 1e-3}
    assert found["policies"][1]["layers"] == {"conv1": "w8a8", "conv2": "w4a8"}
    haq, macs, size = found["backends"]
    assert (haq["unit"], macs["unit"], size["unit"]) == ("s", None, "B")
    assert len(haq["predicted"]) == 3
    assert macs["regret"] == pytest.approx(1.0)


def test_a_file_that_names_no_device_is_compared_all_the_same(call: Call) -> None:
    said = call("compare M.onnx --cost analytical:haq --measured bare.json")
    assert (said.status, said.err) == (0, "")
    assert "measured on a device that the file does not name" in said.out


def test_policies_are_measured_beside_float_written_and_compared_again(
    call: Call, folder: Path
) -> None:
    line = "compare M.onnx P.json --cost analytical:haq --cost ort --out new/M.json --json"
    said = call(line)
    assert (said.status, said.err) == (0, "")
    first = json.loads(said.out)
    assert [policy["name"] for policy in first["policies"]] == ["P.json", "float", "w8a8"]
    assert all(0 < policy["seconds"] < 1 for policy in first["policies"])
    assert [row["name"] for row in first["backends"]][1] == "ort"
    second = first["backends"][1]["predicted"]
    assert second != [policy["seconds"] for policy in first["policies"]], "measured twice"
    assert "a second time" in " ".join(first["notes"])
    assert first["source"]["backend"] == "ort"
    written = MeasuredPolicies.read(folder / "new/M.json")
    assert written.seconds.tolist() == [policy["seconds"] for policy in first["policies"]]
    again = json.loads(call("compare M.onnx --cost ort --measured new/M.json --json").out)
    assert again["policies"] == first["policies"]
    assert again["notes"] == first["notes"]
    assert again["backends"][0]["predicted"] == second, "the store holds the second reading"


def test_a_second_measurement_that_is_none_is_not_called_so(call: Call) -> None:
    said = call("compare M.onnx --cost ort --measured measured.json --json")
    assert (said.status, said.err) == (0, "")
    [note] = json.loads(said.out)["notes"]
    assert note.startswith("ort measured the policies here and now")


def test_random_policies_are_measured_and_the_same_command_measures_nothing_twice(
    call: Call, folder: Path
) -> None:
    line = "compare M.onnx --policies 2 --store kept.sqlite --seed 7"
    first, second = call(f"{line} --json"), call(f"{line} --json")
    assert (first.status, first.err) == (0, "")
    found = [json.loads(said.out)["policies"] for said in (first, second)]
    assert [policy["name"] for policy in found[0]] == ["random 1", "random 2", "float", "w8a8"]
    assert found[0] == found[1]
    said = call(f"{line} --out random.json")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines()[-1] == "written: random.json"
    assert "4 policies measured on " in said.out


BAD = {
    "--cost energy=analytical:haq": "prices no latency; only latency is compared",
    "--cost analytical:horowitz": "prices no latency; only latency is compared",
    "--cost size=analytical:haq": "size is not priced by a backend",
    "--cost analitical:haq": "did you mean 'analytical'",
    "--cost table:absent.json": "absent.json: No such file",
    "--cost table:T.json --cost latency=table:T.json": "given twice",
    "--measured measured.json --policies 3": "--measured brings its policies",
    "--measured measured.json --out new.json": "--measured brings its policies",
    "P.json --measured measured.json": "--measured brings its policies",
    "P.json --policies 3": "not both",
    "--policies 0": "'0' is no positive number",
    "--measured other.json": "measured on another network",
    "--measured T.json": "T.json: this JSON holds no measured policies",
    "--measured absent.json": "absent.json: No such file",
    "--out M.onnx": "M.onnx is read and would be overwritten",
    "P.json --out P.json": "P.json is read and would be overwritten",
    "--cost table:T.json --out T.json": "T.json is read and would be overwritten",
    "Q.json": "Q.json: layer 'conv0' at w4a4: no kernels for activations below 8 bits",
    "absent.json": "absent.json: No such file",
    "--time 60": "60s or 5m",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_compared_is_one_line_and_status_2(call: Call, line: str) -> None:
    said = call(f"compare M.onnx {line}")
    assert (said.status, said.out) == (2, "")
    assert re.fullmatch(r"quantmeter: error: [^\n]+\n", said.err)
    assert BAD[line] in said.err
