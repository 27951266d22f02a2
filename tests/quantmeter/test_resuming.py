"""A search that was ended goes on: no evaluation is repeated, and the result is the same."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from costmodels.sketch import Sketch
from quantization.bits import parse_choices
from quantization.errors import QuantmeterError
from quantization.reading import read_network
from quantmeter.cli import main
from quantmeter.data import Data
from quantmeter.journal import Journal
from quantmeter.run_folder import RunFolder
from quantmeter.searching import SearchReport, search
from search.oracle import PostTrainingOracle

FILES = ["latency.table.json", "policy.json", "request.json", "result.json", "trials.jsonl"]
GIVEN: dict[str, Any] = {
    "cost": ["latency=analytical:haq"],
    "budgets": ["latency=0.6x", "size=0.4x"],
    "method": "random",
    "episodes": 24,
    "choices": parse_choices("w2a8,w3a8,w4a8,w8a8,w32a32"),
}


def model() -> onnx.ModelProto:
    sketch = Sketch()
    x = sketch.node("Relu", sketch.conv(sketch.input((1, 3, 12, 12)), 8, kernel=3, name="stem"))
    x = sketch.node("Relu", sketch.conv(x, 8, kernel=3, groups=8, name="depthwise"))
    x = sketch.node("Relu", sketch.conv(x, 32, name="expand"))
    x = sketch.node("GlobalAveragePool", sketch.conv(x, 32, kernel=3, name="mix"))
    return sketch.model(sketch.gemm(sketch.node("Flatten", x), 32, 5, name="head"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model, and images that it classifies somehow."""
    folder = tmp_path_factory.mktemp("files")
    onnx.save_model(read_network(model()).model, folder / "MODEL.onnx")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((60, 3, 12, 12)).astype(np.float32)
    np.savez(folder / "DATA.npz", x=x, y=draw.integers(0, 5, 60))
    return folder / "MODEL.onnx", folder / "DATA.npz"


def contents(folder: Path) -> dict[str, bytes]:
    """What a run left, by the name of the file."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Evaluations:
    """Counts accuracies that are computed, and ends the search before one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.policies: list[str] = []
        self.left = 10**9
        original = PostTrainingOracle.score

        def score(oracle: PostTrainingOracle, policy: Any) -> float:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.policies.append(policy.to_json())
            return original(oracle, policy)

        patch.setattr(PostTrainingOracle, "score", score)


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    return Evaluations(monkeypatch)


def run(files: tuple[Path, Path], out: Path, **changes: object) -> SearchReport:
    return search(*files, out=out, **{**GIVEN, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["random", "reinforce"])
def test_a_search_ended_three_times_repeats_no_evaluation_and_ends_the_same(
    method: str, files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    whole = run(files, tmp_path / "whole", method=method)
    wanted = list(evaluations.policies)
    evaluations.policies.clear()
    for before in (3, 4, 5):  # in the middle of batches of ten, and of the first
        evaluations.left = before
        with pytest.raises(KeyboardInterrupt):
            run(files, tmp_path / "ended", method=method)
        assert not (tmp_path / "ended" / "result.json").exists()
    evaluations.left = 10**9
    report = run(files, tmp_path / "ended", method=method)
    assert (whole.read_back, report.read_back) == (0, 12)
    assert evaluations.policies == wanted
    assert len(wanted) == len(set(wanted))
    first, second = contents(tmp_path / "whole"), contents(tmp_path / "ended")
    assert sorted(first) == sorted([*FILES, *(["agent.npz"] if method == "reinforce" else [])])
    assert first == second


def test_a_killed_process_goes_on_as_the_same_command(
    files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    run(files, tmp_path / "whole", episodes=80)
    command = [sys.executable, "-m", "quantmeter.cli", "search", files[0], "--data", files[1]]
    words = (
        "--cost latency=analytical:haq --budget latency=0.6x --budget size=0.4x --method random "
        "--episodes 80 --choices w2a8,w3a8,w4a8,w8a8,w32a32 --no-store --out"
    )
    process = subprocess.Popen(
        [*map(str, command), *words.split(), tmp_path / "killed"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process
    )
    trials, end = tmp_path / "killed/trials.jsonl", time.monotonic() + 60
    while not trials.exists() or trials.read_bytes().count(b"\n") < 5:
        assert process.poll() is None, "the search ended before it was killed"
        assert time.monotonic() < end
        time.sleep(0.002)
    process.kill()
    process.wait()
    held = trials.read_bytes().count(b"\n")
    evaluations.policies.clear()
    report = run(files, tmp_path / "killed", episodes=80)
    assert report.read_back == held
    assert len(evaluations.policies) == report.result.evaluations - held
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("option", "command"),
    [("", "the same command"), (" --anew", "the same command without --anew")],
)
def test_an_interrupted_command_says_what_goes_on(
    option: str,
    command: str,
    files: tuple[Path, Path],
    tmp_path: Path,
    evaluations: Evaluations,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluations.left = 3
    line = f"search {files[0]} --data {files[1]} --cost analytical:haq --budget latency=0.6x"
    more = f" --method random --episodes 6 --choices w2a8,w8a8 --no-store --out {tmp_path}"
    assert main((line + more + option).split()) == 130
    told = f"quantmeter: interrupted; {command} goes on where it ended\n"
    assert capsys.readouterr().err == told


@pytest.fixture(scope="module")
def whole(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run leaves."""
    folder = tmp_path_factory.mktemp("whole")
    run(files, folder)
    return contents(folder)


def ended(files: tuple[Path, Path], out: Path, evaluations: Evaluations, **changes: object) -> None:
    evaluations.left = 6
    with pytest.raises(KeyboardInterrupt):
        run(files, out, **changes)
    evaluations.left = 10**9
    evaluations.policies.clear()


@pytest.mark.parametrize("tail", [b'{"origin": "rand', b'{"origin": "rand\n', b"\0\0\0\n"])
def test_a_half_written_last_line_is_evaluated_again(
    tail: bytes,
    files: tuple[Path, Path],
    whole: dict[str, bytes],
    tmp_path: Path,
    evaluations: Evaluations,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended(files, tmp_path, evaluations)
    with (tmp_path / "trials.jsonl").open("ab") as stream:
        stream.write(tail)
    assert run(files, tmp_path).read_back == 6
    assert contents(tmp_path) == whole
    told = f"{tmp_path}/trials.jsonl: its last line is damaged; that trial is made again"
    assert caplog.messages == [told]


@pytest.mark.parametrize("damage", [{}, {"score": math.nan}, {"accuracy": 5.0}, {"score": "0.5"}])
def test_a_damaged_line_in_the_middle_is_told(
    damage: dict[str, object], files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    ended(files, tmp_path, evaluations)
    trials = tmp_path / "trials.jsonl"
    lines = trials.read_bytes().split(b"\n")
    line = {**json.loads(lines[1]), **damage} if damage else {}
    trials.write_bytes(b"\n".join([lines[0], json.dumps(line).encode(), *lines[2:]]))
    with pytest.raises(QuantmeterError, match=r"line 2 is no trial.*--anew"):
        run(files, tmp_path)


def test_a_damaged_table_is_told_with_what_to_do(
    files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    ended(files, tmp_path, evaluations)
    table = tmp_path / "latency.table.json"
    table.write_bytes(table.read_bytes()[:500])
    with pytest.raises(QuantmeterError, match=r"latency.table.json: .*--anew"):
        run(files, tmp_path)


def test_an_unfinished_search_is_not_lost_to_another_request(
    files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    ended(files, tmp_path, evaluations)
    before = contents(tmp_path)
    with pytest.raises(QuantmeterError, match=r"differs in budgets, seed: .*--anew"):
        run(files, tmp_path, seed=1, budgets=["latency=0.6x"])
    other = np.random.default_rng(1).standard_normal((60, 3, 12, 12)).astype(np.float32)
    with pytest.raises(QuantmeterError, match="differs in data: "):
        search(files[0], Data(other, None), out=tmp_path, **GIVEN)
    assert contents(tmp_path) == before
    report = run(files, tmp_path, seed=1, anew=True)
    assert report.read_back == 0
    assert len(evaluations.policies) == report.result.evaluations


def test_a_table_file_that_changed_is_another_request(
    files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    run(files, tmp_path / "made")
    table = tmp_path / "T.json"
    table.write_bytes((tmp_path / "made/latency.table.json").read_bytes())
    cost = [f"table:{table}"]
    ended(files, tmp_path / "run", evaluations, cost=cost)
    whole = table.read_text()
    table.write_text(whole + "\n")
    with pytest.raises(QuantmeterError, match="differs in cost: "):
        run(files, tmp_path / "run", cost=cost)
    table.write_text(whole)
    assert run(files, tmp_path / "run", cost=cost).read_back == 6


def test_a_search_that_does_not_repeat_itself_is_told(
    files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    ended(files, tmp_path, evaluations)
    trials = tmp_path / "trials.jsonl"
    lines = trials.read_text().splitlines(keepends=True)
    trials.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(QuantmeterError, match=r"does not repeat line 1.*--anew"):
        run(files, tmp_path)


def test_a_finished_search_is_read_back_and_only_replaced_when_asked(
    files: tuple[Path, Path], tmp_path: Path, evaluations: Evaluations
) -> None:
    first = run(files, tmp_path)
    before = contents(tmp_path)
    evaluations.policies.clear()
    report = run(files, tmp_path)
    assert report.read_back == first.result.evaluations
    assert evaluations.policies == []
    assert contents(tmp_path) == before
    with pytest.raises(QuantmeterError, match="holds a search that differs in seed: give another"):
        run(files, tmp_path, seed=1)
    assert contents(tmp_path) == before
    report = run(files, tmp_path, seed=1, anew=True)
    assert report.read_back == 0
    assert len(evaluations.policies) == report.result.evaluations
    assert json.loads((tmp_path / "request.json").read_text())["request"]["seed"] == 1


@pytest.mark.parametrize("name", ["policy.json", "trials.jsonl", "result.json"])
def test_files_of_something_else_are_not_replaced_unasked(
    name: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(QuantmeterError, match=f"holds {name} of something else: give another"):
        run(files, tmp_path)
    assert (tmp_path / name).read_text() == "precious"
    run(files, tmp_path, anew=True)
    assert (tmp_path / name).read_text() != "precious"


def test_two_searches_do_not_share_a_folder(files: tuple[Path, Path], tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path),
        pytest.raises(QuantmeterError, match=r"another search is running in .*; give another"),
    ):
        run(files, tmp_path)
    run(files, tmp_path)


def test_trials_reach_the_disk_ten_times_a_second_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[float] = []
    times = iter([0.0, 0.0, 0.05, 0.099, 0.1, 0.1, 0.15, 0.3, 0.3, 0.3])
    asked: list[float] = []

    def clock() -> float:
        asked.append(next(times))
        return asked[-1]

    monkeypatch.setattr("os.fsync", lambda _: synced.append(asked[-1]))
    path = tmp_path / "trials.jsonl"
    with Journal(path, (), 0, lambda _: "{}", clock) as journal:
        for count in range(1, 7):
            journal.record(None)  # type: ignore[arg-type]
            assert path.read_bytes() == b"{}\n" * count, "a killed process would lose it"
        assert synced == [0.0, 0.1, 0.3]
    assert len(synced) == 4
