"""A new run removes what an earlier one wrote in its folder, and nothing of the user's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantmeter.run_files import candidate_files, files_of, front_file
from quantmeter.run_folder import RunFolder

PLAIN: dict[str, Any] = {"method": "greedy", "parts": None, "training": None, "front": None}
FULL: dict[str, Any] = {
    "method": "reinforce",
    "parts": [10, 20, 20],
    "training": {"fine_tune": 2},
    "front": "latency=3",
}
OWN = (
    *("model.onnx", "trained.onnx", "trained.policy.json", "trained-1.onnx", "agent.npz"),
    *("trained_resnet.onnx", "trained-9.onnx", "trained-best.onnx", "energy.table.json"),
    *("front-1.policy.json", "front-9.policy.json", "front-left.policy.json"),
)


def begin(folder: Path, request: Mapping[str, Any]) -> None:
    with RunFolder(folder) as run:
        run.begin(request, {}, {})


def put(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (folder / name).write_text("own")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"request.json"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the user's, with folders that are named like files of a run."""
    for name in ("trained_models", "trained-2.onnx"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.onnx").write_text("own")
    return tmp_path


FOLDERS = {"trained_models", "trained-2.onnx"}


def test_a_folder_without_a_run_loses_nothing(folder: Path) -> None:
    put(folder, OWN)
    begin(folder, PLAIN)
    assert left(folder) == {*OWN, *FOLDERS}


def test_a_run_of_a_file_beside_it_leaves_the_file_when_it_is_repeated(folder: Path) -> None:
    """As ``search model.onnx --out .``, twice: that earlier run wrote no ``model.onnx``."""
    put(folder, OWN)
    begin(folder, PLAIN)
    begin(folder, PLAIN)
    assert left(folder) == {*OWN, *FOLDERS} - {"energy.table.json"}


def test_what_the_earlier_run_wrote_is_removed_by_its_exact_names(folder: Path) -> None:
    begin(folder, FULL)
    put(folder, OWN)
    put(folder, ("trials.jsonl", "result.json", "policy.json", "latency.table.json"))
    begin(folder, PLAIN)
    kept = {"trained_resnet.onnx", "trained-9.onnx", "trained-best.onnx"}
    assert left(folder) == {*kept, *FOLDERS, "front-9.policy.json", "front-left.policy.json"}


def test_a_run_that_trains_reads_no_candidates_of_elsewhere(folder: Path) -> None:
    put(folder, ("trained-1.onnx", "trained-1.json", "trained-3.json", "trained.onnx"))
    begin(folder, FULL)
    assert left(folder) == {"trained-3.json", "trained.onnx", *FOLDERS}


@pytest.mark.parametrize("damaged", ["{", '{"version": 1, "request": {"front": 7, "training": 7}}'])
def test_a_damaged_request_claims_nothing_but_tables(damaged: str, folder: Path) -> None:
    put(folder, ("trials.jsonl", "model.onnx", "trained_resnet.onnx", "latency.table.json"))
    (folder / "request.json").write_text(damaged)
    begin(folder, PLAIN)
    assert left(folder) == {"model.onnx", "trained_resnet.onnx", *FOLDERS}


def test_the_names_of_a_request_are_those_that_runs_write() -> None:
    assert files_of(PLAIN) == set()
    assert files_of(FULL) == {
        *("model.onnx", "trained.onnx", "trained.policy.json", "agent.npz"),
        *candidate_files(1),
        *candidate_files(2),
        *map(front_file, (1, 2, 3)),
    }
    short = {**PLAIN, "training": {"fine_tune": 0}}
    assert files_of(short) == {"trained.onnx", "trained.policy.json", *candidate_files(1)}
