"""The command line: what it prints, and how it says no."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from costmodels.registry import backend
from costmodels.sketch import Sketch
from costmodels.units import Metric
from hil.counters import Availability
from quantization.bits import DEFAULT_CHOICES, BitWidths
from quantization.policy import Policy
from quantization.reading import read_network
from quantmeter.cli import COMMANDS, main
from quantmeter.commands.options import progress_bar


class Files(NamedTuple):
    """What the commands are called with; the folder is the working directory."""

    folder: Path
    layers: tuple[str, ...]


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[[str], Answer]


def _model() -> onnx.ModelProto:
    sketch = Sketch()
    stem = sketch.conv(sketch.input((1, 3, 12, 12)), 8, kernel=3, name="stem")
    stem = sketch.node("Relu", stem)
    deep = sketch.conv(stem, 8, kernel=3, groups=8, name="depthwise")
    wide = sketch.node("Relu", sketch.conv(sketch.node("Relu", deep), 64, name="expand"))
    pooled = sketch.node("GlobalAveragePool", sketch.conv(wide, 64, kernel=3, name="mix"))
    return sketch.model(sketch.gemm(sketch.node("Flatten", pooled), 64, 5, name="head"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A model, images, policies and a table, and some files that are none."""
    folder = tmp_path_factory.mktemp("work")
    network = read_network(_model())
    onnx.save_model(network.model, folder / "MODEL.onnx")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((40, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "DATA.npz", x=x, y=draw.integers(0, 5, 40))
    np.savez(folder / "shape.npz", x=x[:, :1])
    np.savez(folder / "classes.npz", x=x, y=draw.integers(0, 9, 40))
    (folder / "text.npz").write_text("no archive")
    table = backend("analytical:haq").table(network, DEFAULT_CHOICES, Metric.LATENCY)
    (folder / "TABLE.json").write_text(table.to_json())
    (folder / "OTHER.json").write_text(replace(table, network="0" * 64).to_json())
    policies = {
        "float": {},
        "POLICY": {"stem": "w4a8", "mix": "w8a8"},
        "unknown": {"stemm": "w8a8"},
        "w4a4": {"mix": "w4a4"},
        "w9a9": {"mix": "w9a9"},
    }
    for name, layers in policies.items():
        content = {"version": 1, "layers": layers, "options": {}}
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "option.json").write_text(
        '{"version": 1, "layers": {}, "options": {"acuracy_level": 4}}'
    )
    whole = (folder / "MODEL.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    (folder / "text.onnx").write_text("This is a text file.\nIt is no model.\n")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "deep.json").write_text("[" * 100_000)
    sketch = Sketch()
    dense = sketch.network(sketch.conv(sketch.input((1, 3, 12, 12)), 4, name="only"))
    onnx.save_model(dense.model, folder / "dense.onnx")
    sketch = Sketch()
    left, right = sketch.input((1, 3, 12, 12)), sketch.input((1, 3, 12, 12))
    two = sketch.network(sketch.conv(sketch.node("Add", left, right), 4, name="second"))
    onnx.save_model(two.model, folder / "two.onnx")
    np.savez(folder / "unlabelled.npz", x=x)
    (folder / "plain.json").write_text('{"a": 1}')
    (folder / "broken.json").write_text('{"version": 1, "layers": {')
    (folder / "later.json").write_text('{"version": 9, "layers": {}}')
    (folder / "folder").mkdir()
    (folder / "RUN").mkdir()
    (folder / "RUN" / "result.json").write_text("{}")
    return Files(folder, network.layer_names)


@pytest.fixture
def call(files: Files, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command line in the folder of the files."""
    monkeypatch.chdir(files.folder)

    def run(line: str) -> Answer:
        capsys.readouterr()
        try:
            status = main(line.split())
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return run


def test_without_a_terminal_there_is_a_line_every_half_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = iter([0.0, 29.0, 30.0, 59.0, 61.0])
    with progress_bar("searching", lambda: next(times)) as move:
        for done in range(4):
            move(done / 4, "random: best 0.9")
    told = "searching 25% random: best 0.9\nsearching 75% random: best 0.9\n"
    assert capsys.readouterr() == ("", told)


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_command_has_help(call: Call, command: Sequence[str]) -> None:
    answer = call(" ".join((*command, "--help")))
    assert (answer.status, answer.err) == (0, "")
    assert answer.out.startswith("usage: quantmeter")


def test_inspect_lists_layers_macs_and_coverage(call: Call, files: Files) -> None:
    answer = call("inspect MODEL.onnx --json")
    assert (answer.status, answer.err) == (0, "")
    found = answer.json
    assert [layer["name"] for layer in found["layers"]] == list(files.layers)
    assert sum(layer["macs"] for layer in found["layers"]) == found["macs"]
    assert found["layers"][1]["macs"] == 8 * 9 * 12 * 12
    assert found["layers"][0]["weight_count"] == 8 * 3 * 9
    assert found["layers"][-1]["kind"] == "Gemm"
    assert found["coverage"]["layers"] == 5
    assert found["coverage"]["unknown"] == []
    lines = call("inspect MODEL.onnx").out.splitlines()
    [stem] = [line for line in lines if line.startswith(" stem ")]
    assert stem.split() == ["stem", "Conv", "3->8", "3x3", "12x12", "31,104", "216"]
    assert max(map(len, lines)) <= 80


def test_inspect_counts_the_work_that_no_layer_does(call: Call, files: Files) -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 3, 4, 4)), 4, name="c")
    largest = sketch.node("ReduceMax", x, sketch.constant(np.array([0, 1, 2])), keepdims=0)
    network = sketch.network(sketch.node("MatMul", x, largest))  # by a vector: that is no layer
    onnx.save_model(network.model, files.folder / "vector.onnx")
    found = call("inspect vector.onnx --json").json
    assert found["coverage"]["unknown"] == ["MatMul"]
    assert (found["macs"], found["coverage"]["unknown_macs"]) == (3 * 4 * 16, 4 * 16)
    assert "run in float: MatMul (64 more MACs)" in call("inspect vector.onnx").out


def test_cost_prices_every_layer_of_a_policy(call: Call, files: Files) -> None:
    line = "cost MODEL.onnx --cost analytical:haq --metric energy --policy POLICY.json --json"
    answer = call(line)
    assert (answer.status, answer.err) == (0, "")
    found = answer.json
    assert {"total", "unit", "layers", "provenance"} <= set(found)
    assert found["unit"] == "J"
    assert [layer["name"] for layer in found["layers"]] == list(files.layers)
    bits = {layer["name"]: layer["bits"] for layer in found["layers"]}
    assert bits == dict.fromkeys(files.layers, "w32a32") | {"stem": "w4a8", "mix": "w8a8"}
    parts = sum(layer["cost"] for layer in found["layers"])
    parts += found["glue"] + found["conversions"] + found["constant"]
    assert found["total"] == pytest.approx(parts)
    floats = call("cost MODEL.onnx --cost analytical:haq --metric energy --json").json
    assert floats["total"] > found["total"]
    assert "four times" in " ".join(found["notes"])
    said = found["costs_from"]
    assert said.startswith(("analytical (haq: ", "analytical and assumed (haq: "))
    assert said.endswith(", not measured")
    printed = call("cost MODEL.onnx --cost analytical:haq --metric energy").out
    assert re.search(
        r"^total: [0-9.]+ [mµn]J, analytical.* \(haq: .*\), not measured$", printed, re.M
    )


def test_bench_says_of_energy_what_was_measured_or_why_not(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hil.energy_bench.measurable", lambda _parts: Availability((), "there is no RAPL")
    )
    line = "bench MODEL.onnx POLICY.json --blocks 6 --energy --cost energy=analytical:haq"
    answer = call(line)
    assert (answer.status, answer.err) == (0, "")
    assert "energy: not measurable here, because there is no RAPL\n" in answer.out
    assert re.search(
        r"^energy of POLICY\.json: .*J, analytical \(haq: .*\), not measured$", answer.out, re.M
    )
    found = call(f"{line} --json").json
    assert found["energy"]["reason"] == "not measurable here, because there is no RAPL"
    assert found["results"][0]["energy"]["modelled"]["provenance"].endswith("not measured")
    assert "energy" not in call("bench MODEL.onnx POLICY.json --blocks 6").out


def test_search_says_that_energy_was_modelled_wherever_it_gives_one(
    call: Call, files: Files
) -> None:
    line = "search MODEL.onnx --data DATA.npz --cost energy=analytical:haq --method exact"
    answer = call(f"{line} --budget energy=0.5x --out ENERGY")
    assert (answer.status, answer.err) == (0, "")
    assert re.search(
        r"^energy: predicted .*J of .*J, analytical.*, not measured$", answer.out, re.M
    )
    found = json.loads((files.folder / "ENERGY/result.json").read_text())
    assert found["costs_from"]["energy"].endswith("not measured")
    for trial in (files.folder / "ENERGY/trials.jsonl").read_text().splitlines():
        assert json.loads(trial)["costs_from"]["energy"] == found["costs_from"]["energy"]


def test_the_size_that_cost_prints_is_that_of_the_exported_file(call: Call, files: Files) -> None:
    priced = call("cost MODEL.onnx --metric size --policy POLICY.json --json").json
    parts = sum(layer["cost"] for layer in priced["layers"]) + priced["once"]
    parts += priced["glue"] + priced["conversions"] + priced["constant"]
    assert priced["once"] > 0, "a layer of the policy has 4-bit weights"
    assert priced["total"] == parts
    answer = call("export MODEL.onnx POLICY.json --data DATA.npz --out Q.onnx --json")
    assert (answer.status, answer.err) == (0, "")
    assert priced["total"] == (files.folder / "Q.onnx").stat().st_size
    assert priced["unit"] == "B"
    assert answer.json["audit"]["ok"] is True


def test_an_exported_file_is_a_valid_model_and_says_what_it_did(call: Call, files: Files) -> None:
    answer = call("export MODEL.onnx POLICY.json --out new/folder/Q.onnx")
    assert (answer.status, answer.err) == (0, "")
    assert "bytes as predicted" in answer.out
    assert "random inputs" in answer.out
    onnx.checker.check_model(onnx.load_model(files.folder / "new/folder/Q.onnx"))


def test_bench_reports_policies_and_rivals(call: Call) -> None:
    answer = call(
        "bench MODEL.onnx POLICY.json --data DATA.npz --cost table:TABLE.json --vs float "
        "--vs w8a8 --blocks 6 --json"
    )
    assert (answer.status, answer.err) == (0, "")
    assert [r["policy"] for r in answer.json["results"]] == ["POLICY.json", "float", "w8a8"]
    assert all(r["predicted_s"] > 0 for r in answer.json["results"])
    plain = call("bench MODEL.onnx ./POLICY.json --blocks 6")
    assert (plain.status, plain.err) == (0, "")
    assert "./POLICY.json" in plain.out
    assert "random inputs" in plain.out


def test_search_writes_its_run_and_prints_the_same_as_json(call: Call, files: Files) -> None:
    line = (
        "search MODEL.onnx --data DATA.npz --cost table:TABLE.json --budget latency=0.7x "
        "--budget size=2MB --method reinforce --episodes 12 --seed 0 --out NEW --json"
    )
    answer = call(line)
    assert (answer.status, answer.err) == (0, "")
    assert answer.json == json.loads((files.folder / "NEW/result.json").read_text())
    policy = Policy.read(files.folder / "NEW/policy.json")
    assert set(policy.layers) == set(files.layers)
    plain = call(line.replace("NEW", "TEXT").replace("--json", "--reward proxy --seed 7"))
    assert (plain.status, plain.err) == (0, "")
    assert "Best policy" in plain.out
    assert "latency: " in plain.out
    bench = "quantmeter bench MODEL.onnx TEXT/policy.json --data DATA.npz --seed 7 "
    assert bench in plain.out  # on the same split: test images that the search did not see


def test_calibrate_writes_a_table_that_search_and_cost_take(call: Call, files: Files) -> None:
    answer = call("calibrate MODEL.onnx --cost ort --time 8s --out tables/T.json --json")
    assert (answer.status, answer.err) == (0, "")
    assert answer.json["policies"] >= 24
    priced = call("cost MODEL.onnx --cost table:tables/T.json --metric latency --json").json
    assert priced["provenance"] == ["calibrated"]
    assert 0 < priced["total"] < 1
    assert all(layer["kernel"] for layer in priced["layers"])
    assert answer.json["validation"] is None, "of 32 policies, too few are left to be fitted"
    plain = call("calibrate MODEL.onnx --cost ort --time 8s --out tables/T.json")
    assert (plain.status, plain.err) == (0, "")
    assert "how good it is remains unknown" in plain.out


def test_calibrate_takes_a_backend_that_measures_nothing(call: Call, files: Files) -> None:
    answer = call("calibrate MODEL.onnx --cost latency=analytical:haq --out H.json")
    assert (answer.status, answer.err) == (0, "")
    assert "nothing was measured" in answer.out
    assert (files.folder / "H.json").is_file()


def test_devices_and_backends_answer(call: Call) -> None:
    [device] = call("devices --json").json["devices"]
    assert {"cpu", "isa", "saturates", "runtime_version"} <= set(device)
    assert "runtime_version" in call("devices").out
    names = [b["name"] for b in call("backends --json").json["backends"]]
    assert {"analytical", "ort", "table"} <= set(names)
    assert "analytical" in call("backends").out


BAD = {
    "missing model": ("inspect absent.onnx", "no such file: absent.onnx"),
    "truncated model": ("inspect truncated.onnx", "truncated.onnx is no"),
    "text as model": ("inspect text.onnx", "text.onnx is no"),
    "empty model": ("inspect empty.onnx", "empty.onnx is no"),
    "folder as model": ("inspect folder", "no such file: folder"),
    "policy that is no policy": (
        "cost M --metric size --policy plain.json",
        "plain.json: a policy",
    ),
    "policy that is no JSON": ("export M broken.json --out q.onnx", "broken.json: .* JSON"),
    "policy of a later version": ("bench M later.json", "version 9 is not known"),
    "missing policy": ("export M absent.json --out q.onnx", "absent.json: No such file"),
    "model as policy": ("export M MODEL.onnx --out q.onnx", "MODEL.onnx: "),
    "unknown layer": ("export M unknown.json --out q.onnx", "'stemm'.*did you mean 'stem'"),
    "unknown layer priced": ("cost M --metric size --policy unknown.json", "did you mean 'stem'"),
    "unsupported bits": ("export M w4a4.json --out q.onnx", "'mix' at w4a4 is not deployable"),
    "unsupported bits timed": ("bench M w4a4.json", "'mix' at w4a4 is not deployable"),
    "unsupported bits sized": ("cost M --metric size --policy w4a4.json", "w4a4"),
    "unreadable bits": (
        "export M w9a9.json --out q.onnx",
        "w9a9.json: layer 'mix': no such bit-width",
    ),
    "table that is none": ("cost M --metric latency --cost table:plain.json", "no cost table"),
    "table that is no JSON": ("cost M --metric latency --cost table:broken.json", "is JSON"),
    "missing table": ("cost M --metric latency --cost table:absent.json", "absent.json: No such"),
    "table of another network": ("cost M --metric latency --cost table:OTHER.json", "another net"),
    "table without the metric": ("cost M --metric energy --cost table:TABLE.json", "add --cost"),
    "unknown backend": ("cost M --metric energy --cost analytic:haq", "did you mean 'analytical'"),
    "unknown preset": ("cost M --metric energy --cost analytical:haqq", "did you mean 'haq'"),
    "no backend": ("cost M --metric latency", "nothing prices latency"),
    "no metric": ("cost M", "--metric"),
    "unknown metric": ("cost M --metric speed", "speed"),
    "unknown method": ("search S --method reinforced", "did you mean 'reinforce'"),
    "unknown reward": ("search S --reward luck", "luck"),
    "unreachable size": ("search S --budget size=1kB", "minimum reachable is [0-9.]+ kB"),
    "unreachable latency": ("search S --budget latency=0.001x", "minimum reachable is [0-9.]+ .?s"),
    "budget without value": ("search S --budget latency", "'latency' is no budget"),
    "budget without unit": ("search S --budget latency=8", "write a positive number with unit"),
    "budget of another unit": ("search S --budget latency=8MB", "8ms"),
    "budget on nothing known": ("search S --budget latencies=8ms", "did you mean 'latency'"),
    "negative budget": ("search S --budget size=-2MB", "positive"),
    "two budgets for one metric": ("search S --budget size=2MB --budget size=0.5x", "two budgets"),
    "budget that nothing prices": ("search S --budget energy=0.5x", "nothing prices energy"),
    "tie of one layer": ("search S --tie stem", "at least two layers"),
    "output that is the model": ("export M POLICY.json --out ./MODEL.onnx", "would be overwritten"),
    "table over the model": ("calibrate M --time 60s --out MODEL.onnx", "would be overwritten"),
    "full disk": ("export M POLICY.json --out /dev/full", "cannot write to /dev/full: No space"),
    "table calibrated again": (
        "calibrate M --cost table:TABLE.json --out t.json",
        "measures no latency",
    ),
    "unknown option of a policy": (
        "cost M --metric size --policy option.json",
        "option 'acuracy_level' is not known.*did you mean",
    ),
    "unknown tied layer": ("search S --tie stem,mixx", "did you mean 'mix'"),
    "choices that are none": ("search S --choices w8a8,int4", "'int4' is no bit-width"),
    "choices not in the table": ("search S --choices w5a8,w32a32", "holds no w5a8"),
    "no data": ("search M --out new", "--data"),
    "missing data": ("search M --data absent.npz --out new", "absent.npz: no such file"),
    "data that is none": ("search M --data text.npz --out new", "text.npz: not a .npz archive"),
    "data of another shape": ("export M POLICY.json --data shape.npz --out q.onnx", "N, 1, 12, 12"),
    "labels of other classes": ("bench M POLICY.json --data classes.npz", "has 5 classes"),
    "no threads": ("bench M POLICY.json --threads 0", "'0' is no positive number"),
    "negative seed": ("search S --seed -1", "-1"),
    "huge seed": ("search S --seed 99999999999999999999", "whole number"),
    "no episodes": ("search S --episodes 0", "positive"),
    "time without unit": ("calibrate M --time 60 --out t.json", "60s or 5m"),
    "too little time": ("calibrate M --time 0.01s --out t.json", "give more time"),
    "rival that is none": ("bench M POLICY.json --vs int8", "'int8' is no bit-width"),
    "folder as file": ("export M POLICY.json --out folder", "folder: it is a folder"),
    "folder as table": ("calibrate M --time 60s --out folder", "folder: it is a folder"),
    "file as folder": (
        "export M POLICY.json --out POLICY.json/q.onnx",
        "cannot write to POLICY.json",
    ),
    "file as run": ("search S2 --out POLICY.json", "cannot write to POLICY.json"),
    "unwritable place": (
        "export M POLICY.json --out /proc/none/q.onnx",
        "cannot write to /proc/none",
    ),
    "network of two inputs": ("calibrate two.onnx --time 1s --out t.json", "one input"),
    "file nested too deeply": ("bench M deep.json", "nested too deeply"),
    "labels for no classifier": ("bench dense.onnx float.json --data DATA.npz", "without y"),
    "search of no classifier": ("search dense.onnx --data unlabelled.npz --out new", "classes"),
    "unknown command": ("inspekt M", "inspekt"),
    "no command": ("", "COMMAND"),
    "unknown option": ("inspect M --fast", "--fast"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(call: Call, name: str) -> None:
    line, message = BAD[name]
    search = "M --data DATA.npz --cost table:TABLE.json"
    expanded = {"S": f"{search} --out new --episodes 5", "S2": search, "M": "MODEL.onnx"}
    words = [expanded.get(word, word) for word in line.split()]
    answer = call(" ".join(words).replace(" M ", " MODEL.onnx "))
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("quantmeter: error: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err
    assert re.search(message, answer.err), answer.err


def test_nothing_is_left_behind_by_what_failed(files: Files) -> None:
    assert not (files.folder / "q.onnx").exists()
    assert not (files.folder / "t.json").exists()
    assert not list(files.folder.glob("new/*.json*"))


def test_a_network_that_does_not_classify_is_timed_without_accuracy(call: Call) -> None:
    answer = call("bench dense.onnx float.json --data unlabelled.npz --blocks 6 --json")
    assert (answer.status, answer.err) == (0, "")
    assert answer.json["results"][0]["accuracy"] is None
    assert any("no accuracy" in note for note in answer.json["notes"])


def test_ties_are_kept(call: Call, files: Files) -> None:
    answer = call(
        "search MODEL.onnx --data DATA.npz --method exact --budget size=0.3x --tie stem,mix,head "
        "--out TIED --json"
    )
    assert (answer.status, answer.err) == (0, "")
    layers = answer.json["best"]["policy"]["layers"]
    assert len({layers[name] for name in ("stem", "mix", "head")}) == 1
    assert BitWidths.parse(layers["stem"]) != BitWidths(32, 32)


def test_the_version_is_printed(call: Call) -> None:
    answer = call("--version")
    assert (answer.status, answer.out) == (0, f"quantmeter {version('quantmeter')}\n")


def test_choices_that_run_nowhere_are_said_to_be_masked(call: Call, files: Files) -> None:
    line = (
        "calibrate MODEL.onnx --cost ort --time 8s --choices w8a8,w4a4,w32a32 --out M.json --json"
    )
    assert call(line).json["masked"] == ["w4a4"]


@pytest.mark.parametrize("stdout", ["closed", "ascii"])
def test_output_reaches_any_terminal(files: Files, stdout: str) -> None:
    words = [sys.executable, "-m", "quantmeter.cli"]
    words += ["cost", "MODEL.onnx", "--cost", "analytical:haq", "--metric", "latency"]
    if stdout == "closed":
        words = ["sh", "-c", '"$@" >&-', "sh", *words]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        words, cwd=files.folder, capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert ("total" in done.stdout) == (stdout == "ascii")
