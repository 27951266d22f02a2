"""``quantmeter accelerators``: what it lists, who said so, and how it says no."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from costmodels.accelerator_files import FOLDER, shipped
from quantmeter.cli import main


class Said(NamedTuple):
    status: int
    out: str
    err: str


def said(capsys: pytest.CaptureFixture[str], line: str) -> Said:
    try:
        status = main(line.split())
    except SystemExit as stop:
        status = int(str(stop.code))
    return Said(status, *capsys.readouterr())


def test_every_preset_is_listed_with_metrics_widths_and_title(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = said(capsys, "accelerators")
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == list(shipped())
    listed = dict(zip(shipped(), zip(lines[::2], lines[1::2], strict=True), strict=True))
    assert "energy, latency, size equal, w 4,8 x a 4,8; fp16; w32a32" in listed["gpu-t4"][0]
    assert "energy, size          wider operand 8,16; fp16; w32a32" in listed["horowitz"][0]
    assert "NVIDIA T4" in listed["gpu-t4"][1]


def test_sources_are_one_line_a_number_with_value_unit_kind_and_source(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = said(capsys, "accelerators --sources gpu-t4 horowitz")
    assert (answer.status, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert len(lines) == 4 + 4 + 2 + 2 + 5, "each number once"
    assert (
        "gpu-t4 throughput(int4) = 1.3e+14 MAC/s (published) NVIDIA, T4 Tensor Core GPU "
        "datasheet: Performance: INT4 260 TOPS"
    ) in lines
    assert all(" (published) " in line or " (assumed) " in line for line in lines)
    [dram] = [line for line in lines if line.startswith("horowitz e_mem")]
    assert "1.6e-10 J/B" in dram
    assert "32-bit word" in dram


def test_every_number_of_every_preset_is_among_the_sources(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = said(capsys, "accelerators --sources").out.splitlines()
    for name in shipped():
        given = (FOLDER / f"{name}.toml").read_text().count("{value = ")
        assert sum(line.startswith(f"{name} ") for line in lines) == given


def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(said(capsys, "accelerators haq --sources --json").out)
    [entry] = answer["accelerators"]
    assert entry["metrics"] == ["energy", "latency", "size"]
    assert entry["widths"] == "wider operand 2-8,16; w32a32"
    numbers = {number["field"]: number for number in entry["numbers"]}
    assert numbers["e_mem"]["value"] == pytest.approx(640e-12)
    assert numbers["e_mem"]["unit"] == "J/B"
    assert numbers["beta"]["kind"] == "assumed"
    [plain] = json.loads(said(capsys, "accelerators haq --json").out)["accelerators"]
    assert "numbers" not in plain


def test_a_file_of_a_user_is_listed_like_a_shipped_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text((FOLDER / "gpu-t4.toml").read_text())
    answer = said(capsys, f"accelerators {path}")
    assert answer.status == 0
    assert answer.out.startswith(str(path))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("accelerators haqq", "no analytical preset 'haqq' (did you mean 'haq'?)"),
        ("accelerators absent.toml", "absent.toml: No such file"),
        ("accelerators BAD.toml", "BAD.toml: throughput.8.kind: missing"),
        ("accelerators --source-of haq", "unrecognized arguments: --source-of"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str, message: str
) -> None:
    bad = (FOLDER / "systolic-int8.toml").read_text().replace('kind = "published", ', "", 1)
    (tmp_path / "BAD.toml").write_text(bad)
    answer = said(capsys, line.replace("BAD.toml", str(tmp_path / "BAD.toml")))
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith("quantmeter: error: ")
    assert message in answer.err
    assert answer.err.count("\n") == 1
