"""``quantmeter drift``, the check before ``search`` and ``bench``, and ``--store``."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from costmodels.sketch import Sketch
from costmodels.table import CostTable
from hil.judgement import Answer
from quantmeter.calibrating import calibrate
from quantmeter.cli import main


class Said(NamedTuple):
    status: int
    out: str
    err: str


Call = Callable[[str], Said]

WIDE = 1.0
"""Noise of a reading, as a doctored table says: what the machine really does then means nothing."""


def doctored(
    table: CostTable, *, floats: float = 1.0, ratios: float = 1.0, **source: Any
) -> CostTable:
    """The table as if other times had been read when it was made.

    Args:
        table: a measured table.
        floats: factor of every time.
        ratios: every other ratio to float is multiplied by it, the rest divided.
        source: what it says of itself instead.
    """
    content = json.loads(table.to_json())
    content["source"] |= source
    for i, each in enumerate(content["measurements"]):
        each["ratio_to_float"] *= ratios if i % 2 else 1 / ratios
        for name in ("policy", "float"):
            each[name]["samples_s"] = [s * floats for s in each[name]["samples_s"]]
    return CostTable.from_json(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images, a policy, and a table calibrated in a few seconds with doctored copies."""
    made = tmp_path_factory.mktemp("work")
    sketch = Sketch()
    x = sketch.input((1, 3, 12, 12))
    for i in range(4):
        x = sketch.node("Relu", sketch.conv(x, 32, kernel=3, name=f"conv{i}"))
    pooled = sketch.node("Flatten", sketch.node("GlobalAveragePool", x))
    network = sketch.network(sketch.gemm(pooled, 32, 5, name="head"))
    onnx.save_model(network.model, made / "M.onnx")
    draw = np.random.default_rng(0)
    images = draw.standard_normal((40, 3, 12, 12)).astype(np.float32)
    np.savez(made / "D.npz", x=images, y=draw.integers(0, 5, 40))
    (made / "P.json").write_text('{"version": 1, "layers": {"conv1": "w8a8"}, "options": {}}')
    table = calibrate(network, seconds=6.0)
    (made / "T.json").write_text(table.to_json())
    copies = {
        "holds": doctored(table, reading_noise=WIDE),
        "faster": doctored(table, reading_noise=WIDE, floats=1e-3),
        "moved": doctored(table, ratios=1e3, reading_noise=0.01),
        "old": doctored(table, reading_noise=WIDE, created_s=0.0),
        "old_faster": doctored(table, reading_noise=WIDE, floats=1e-3, created_s=0.0),
        "old_bare": replace(doctored(table, created_s=0.0), measurements=()),
        "threads": doctored(table, runtime={"threads": 7}),
        "there": doctored(table, device={**table.source["device"], "cpu": "another CPU"}),
    }
    for name, copy in copies.items():
        (made / f"{name}.json").write_text(copy.to_json())
    (made / "T.csv").write_text(table.to_csv())
    (made / "corrupt.sqlite").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    (made / "text.sqlite").write_text("no store\n" * 50)
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


def test_a_table_of_this_machine_is_checked_with_any_answer(call: Call) -> None:
    """What the machine did meanwhile is its own affair; status and answer belong together."""
    said = call("drift M.onnx T.json --json")
    found = json.loads(said.out)
    assert said.err == ""
    assert found["answer"].split()[0] in {answer.value for answer in Answer}
    assert said.status == int(found["answer"] == "recalibrate")
    assert found["scale"] > 0
    assert found["noise"] > 0
    assert 5 <= found["probes"] <= 10


@pytest.mark.parametrize(
    ("table", "status", "answer"),
    [("holds", 0, "unchanged"), ("faster", 0, "rescale by"), ("moved", 1, "recalibrate")],
)
def test_status_text_and_file_follow_the_answer(
    call: Call, folder: Path, table: str, status: int, answer: str
) -> None:
    said = call(f"drift M.onnx {table}.json --out new/{table}.json")
    assert (said.status, said.err) == (status, "")
    assert said.out.startswith(f"{table}.json: {answer}")
    assert ("calibrate --anew" in said.out) == (answer == "recalibrate")
    written = folder / "new" / f"{table}.json"
    assert written.exists() == (status == 0)
    assert (f"written: new/{table}.json" in said.out) == (status == 0)
    if status == 0:
        before, after = CostTable.read(folder / f"{table}.json"), CostTable.read(written)
        factor = after.source.get("rescaled", 1.0)
        assert (factor > 30) == (table == "faster")
        np.testing.assert_allclose(after.unary.value, before.unary.value * factor)


BAD = {
    "M.onnx T.json --out T.json": "T.json is read and would be overwritten",
    "M.onnx T.json --out ./M.onnx": "M.onnx is read and would be overwritten",
    "M.onnx T.json --data D.npz --out D.npz": "D.npz is read and would be overwritten",
    "M.onnx absent.json": "absent.json: No such file",
    "absent.onnx T.json": "no such file: absent.onnx",
    "M.onnx P.json": "P.json: this JSON holds no cost table",
    "M.onnx threads.json": "measured with 7 threads, not 1",
    "M.onnx T.json --threads 2": "measured with 1 thread, not 2",
    "M.onnx there.json": "measured on another CPU with onnxruntime",
    "M.onnx T.csv": "timed policies, 10 are needed",
    "M.onnx": "TABLE.json",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_checked_is_one_line_and_status_2(
    call: Call, folder: Path, line: str
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    said = call(f"drift {line}")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("quantmeter: error: ")
    assert said.err.count("\n") == 1
    assert BAD[line] in said.err
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    assert after == before


def test_the_help_says_what_drift_does_and_what_search_and_bench_check(call: Call) -> None:
    assert "does it hold?" in call("drift --help").out
    for command in ("search", "bench"):
        text = call(f"{command} --help").out
        assert all(option in text for option in ("--no-drift-check", "--store", "--no-store"))


USES = {
    "bench": "bench M.onnx P.json --blocks 8 --json",
    "search": "search M.onnx --data D.npz --method greedy --budget size=0.6x --out RUN --anew "
    "--json",
}


@pytest.mark.parametrize("command", USES)
def test_an_old_table_is_checked_before_it_is_used_and_standard_error_says_so(
    call: Call, command: str
) -> None:
    said = call(f"{USES[command]} --cost table:old_faster.json --no-store")
    assert said.status == 0
    [line] = said.err.splitlines()
    assert line.startswith("old_faster.json: rescale by ")
    assert "rescaled for this command; quantmeter drift --out writes it so" in line
    assert json.loads(said.out), "standard output holds the result alone"


def test_an_old_table_that_holds_is_one_line(call: Call) -> None:
    said = call(f"{USES['bench']} --cost latency=table:old.json --no-store")
    assert said.status == 0
    assert said.err.startswith("old.json: unchanged")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize("command", USES)
@pytest.mark.parametrize("cost", ["table:old.json --no-drift-check", "table:T.json"])
def test_no_check_is_made_of_fresh_tables_or_where_none_is_wanted(
    call: Call, command: str, cost: str
) -> None:
    said = call(f"{USES[command]} --cost {cost} --no-store")
    assert (said.status, said.err) == (0, "")


@pytest.mark.parametrize(
    ("command", "where"),
    [("bench", ("results", 0, "predicted_s")), ("search", ("float", "latency"))],
)
def test_a_command_goes_on_with_the_rescaled_table(
    call: Call, command: str, where: Sequence[str | int]
) -> None:
    """What it predicts is what the file says, times a factor above 30."""
    found = []
    for more in ("--no-drift-check", ""):
        said = call(f"{USES[command]} --cost table:old_faster.json --no-store {more}")
        value = json.loads(said.out)
        for key in where:
            value = value[key]
        found.append(value)
    assert found[1] > 30 * found[0]


@pytest.mark.parametrize("command", USES)
def test_a_check_that_cannot_be_made_is_one_line_and_the_command_goes_on(
    call: Call, command: str
) -> None:
    said = call(f"{USES[command]} --cost table:old_bare.json --no-store")
    assert said.status == 0
    assert said.err.startswith("old_bare.json: not checked, used as it is: ")
    assert said.err.count("\n") == 1


USES_ALL = {**USES, "cost": "cost M.onnx --metric latency --json"}


@pytest.mark.parametrize("command", USES_ALL)
@pytest.mark.parametrize(
    ("table", "said"),
    [("there", "measured on another CPU"), ("threads", "measured with 7 threads, not 1")],
)
def test_a_table_of_another_device_or_other_threads_is_never_used_silently(
    call: Call, command: str, table: str, said: str
) -> None:
    found = call(f"{USES_ALL[command]} --cost table:{table}.json --no-store")
    assert found.status == 0
    assert found.err.startswith(f"{table}.json: {said}")
    assert found.err.count("\n") == 1
    assert json.loads(found.out), "standard output holds the result alone"


def test_cost_says_how_old_a_table_is_and_times_nothing(call: Call) -> None:
    found = call(f"{USES_ALL['cost']} --cost table:old.json --no-store")
    assert found.status == 0
    assert re.fullmatch(
        r"old\.json: measured [\d,]+ days ago; quantmeter drift tells whether it holds\n", found.err
    )
    assert call(f"{USES_ALL['cost']} --cost table:T.json --no-store").err == ""


@pytest.mark.parametrize("command", USES)
def test_a_store_and_none_exclude_each_other(call: Call, command: str) -> None:
    said = call(f"{USES[command]} --cost table:T.json --store S.sqlite --no-store")
    assert (said.status, said.out) == (2, "")
    assert "not allowed with argument" in said.err
    assert said.err.count("\n") == 1


def test_measurements_are_kept_where_store_says(call: Call, folder: Path) -> None:
    line = f"{USES['bench']} --cost ort"
    own = Path(os.environ["QUANTMETER_STORE"])
    before = own.exists()
    assert call(f"{line} --no-store").status == 0
    assert own.exists() == before
    said = call(f"{line} --store kept/S.sqlite")
    assert (said.status, said.err) == (0, "")
    assert (folder / "kept/S.sqlite").stat().st_size > 0
    assert own.exists() == before


def test_calibrate_anew_measures_again_what_the_store_holds(call: Call, tmp_path: Path) -> None:
    line = f"calibrate M.onnx --time 6s --store {tmp_path / 'kept.sqlite'} --out {tmp_path}"
    for name, more in (("one", ""), ("same", ""), ("new", " --anew")):
        said = call(f"{line}/{name}.json{more}")
        assert (said.status, said.err) == (0, "")
    one, same, new = (CostTable.read(tmp_path / f"{n}.json") for n in ("one", "same", "new"))
    assert list(same.measurements) == list(one.measurements)
    assert same.source["created_s"] == one.source["created_s"] < new.source["created_s"]
    first, again = (t.measurements[0]["policy"]["samples_s"] for t in (one, new))
    assert first != again


STORES = {"corrupt.sqlite": "is damaged|no SQLite database", "text.sqlite": "no SQLite database"}
"""Files that are no store, and what is said of them."""

MEASURES = {
    "bench": f"{USES['bench']} --cost ort",
    "calibrate": "calibrate M.onnx --cost ort --time 6s --out new.json",
    "search": f"{USES['search']} --cost ort --time 6s",
    "cost": "cost M.onnx --cost ort --metric latency",
}


def names_in(folder: Path) -> set[str]:
    """What lies in the folder, but for the run that a search may begin."""
    return {path.name for path in folder.iterdir()} - {"RUN"}


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("command", MEASURES)
def test_a_file_that_is_no_store_is_one_clear_line_and_is_not_touched(
    call: Call, folder: Path, command: str, store: str
) -> None:
    path = folder / store
    before, listed = (path.read_bytes(), path.stat().st_mtime_ns), names_in(folder)
    said = call(f"{MEASURES[command]} --store {store}")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"quantmeter: error: {store} is ")
    assert said.err.count("\n") == 1
    assert any(text in said.err for text in STORES[store].split("|"))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert names_in(folder) == listed, "no log and no lock lies beside it"
