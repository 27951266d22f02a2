"""The CSV: costs by name, what they are in lines before them, each problem with its line."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from costmodels.errors import CostError, TableError
from costmodels.published import rows
from costmodels.published.content import Published, Stated
from costmodels.table import Provenance
from costmodels.units import Unit
from quantization.bits import parse_choices
from quantmeter.commands.import_ import CSV_LAYOUT

README = Path(__file__).parents[3] / "calibration_data" / "README.md"
HEAD = "# unit: us\n# statistic: median\n"
ROWS = "layer,choice,value\nstem,w8a8,4\nhead,w4a8,1.5\nhead,w8a8,2e0\n"


def read(text: str | bytes, **stated: object) -> Published:
    content = text.encode() if isinstance(text, str) else text
    return rows.read(content, Stated(**stated))  # type: ignore[arg-type]


def test_costs_are_read_by_name_and_what_has_no_row_is_not_supported() -> None:
    found = read(HEAD + ROWS)
    assert found.names == ("stem", "head")
    assert found.choices == parse_choices("w4a8,w8a8")
    np.testing.assert_allclose(found.value, [[np.inf, 4e-6], [1.5e-6, 2e-6]])
    assert (found.unit, found.statistic) == (Unit.SECONDS, "median")


def test_options_say_what_the_file_does_not() -> None:
    stated = {"unit": "Mcycles", "statistic": "model", "batch": 4, "device": "a simulator"}
    found = read(ROWS, provenance=Provenance.ANALYTICAL, **stated)
    assert (found.unit, found.statistic) == (Unit.CYCLES, "model")
    assert found.value[0, 1] == 4e6
    assert found.provenance is Provenance.ANALYTICAL
    assert (found.source["batch"], found.source["device"]) == (4, "a simulator")


def test_lines_before_the_header_say_what_the_values_are() -> None:
    head = (
        "# of a paper, table 3\n#unit= mJ\n# statistic: mean of ten\n\n# provenance: measured\n"
        "# batch: 16\n# metric: energy\n# device: ACME NPU, SDK 3.1\n"
    )
    found = read(head + ROWS)
    assert (found.unit, found.statistic) == (Unit.JOULES, "mean of ten")
    assert found.provenance is Provenance.MEASURED
    assert (found.source["batch"], found.source["device"]) == (16, "ACME NPU, SDK 3.1")
    assert found.source["remarks"] == ["of a paper, table 3"]


def test_costs_that_nobody_explains_are_assumed_and_that_is_said() -> None:
    found = read(HEAD + ROWS)
    assert found.provenance is Provenance.ASSUMED
    assert any("assumed" in note for note in found.notes)
    assert not read(HEAD + ROWS, provenance=Provenance.EXACT).notes


def test_a_spreadsheet_may_have_written_the_file() -> None:
    lines = [HEAD.replace("\n", ",,\n"), ROWS.replace("stem", '"stem"'), ",,\n"]
    text = "\ufeff" + "".join(lines).replace("\n", "\r\n")
    np.testing.assert_array_equal(read(text).value, read(HEAD + ROWS).value)


@pytest.mark.parametrize("text", [CSV_LAYOUT, README.read_text()], ids=["help", "README"])
def test_the_layout_that_users_are_shown_is_read_as_they_are_told(text: str) -> None:
    example = re.search(r"(?:^    .*\n)+", text, re.MULTILINE)
    assert example is not None
    found = read(textwrap.dedent(example[0]))
    assert found.names == ("stem", "head")
    assert found.choices == parse_choices("w4a8,w8a8")
    np.testing.assert_allclose(found.value, [[9.75e-6, 12.5e-6], [np.inf, 3.25e-6]])
    assert found.provenance is Provenance.MEASURED
    assert found.source["batch"] == 1
    assert found.source["device"] == "ACME NPU, SDK 3.1"


BAD = {
    "nothing": ("", "line 1: layer,choice,value expected, not nothing"),
    "a head alone": (HEAD, "line 3: layer,choice,value expected"),
    "no rows": (f"{HEAD}layer,choice,value\n", "no costs"),
    "no unit": (f"# statistic: mean\n{ROWS}", "does not say its unit: add a line '# unit: ...' or"),
    "no statistic": (f"# unit: s\n{ROWS}", "does not say its statistic"),
    "other columns": (f"{HEAD}layer,bits,value\n", "line 3: .*not layer,bits,value"),
    "another column": (f"{HEAD}layer,choice,value,note\n", "line 3"),
    "semicolons": (HEAD + ROWS.replace(",", ";"), "not layer;choice;value"),
    "a row too short": (f"{HEAD}{ROWS}tail,w8a8\n", "line 7: 2 columns, expected 3"),
    "a decimal comma": (f"{HEAD}{ROWS}tail,w8a8,1,5\n", "line 7: 4 columns"),
    "no bits": (f"{HEAD}{ROWS}tail,int8,1\n", "line 7: 'int8' is no bit-width"),
    "bits that are no choice": (f"{HEAD}{ROWS}tail,w1a8,1\n", "line 7: no such bit-width"),
    "text": (f"{HEAD}{ROWS}tail,w8a8,fast\n", "line 7: 'fast' is no number"),
    "no number": (f"{HEAD}{ROWS}tail,w8a8,\n", "line 7: '' is no number"),
    "not a number": (f"{HEAD}{ROWS}tail,w8a8,nan\n", "line 7: nan is no cost; leave out"),
    "infinity": (f"{HEAD}{ROWS}tail,w8a8,inf\n", "line 7: inf is no cost; leave out"),
    "a negative cost": (f"{HEAD}{ROWS}tail,w8a8,-1\n", "layer 'tail' costs -1e-06 at w8a8"),
    "a cost of nothing": (f"{HEAD}{ROWS}tail,w8a8,0\n", "layer 'tail' costs 0 at w8a8"),
    "a cell twice": (f"{HEAD}{ROWS}stem,W8A8,4\n", "line 7: another cost of 'stem' at W8A8"),
    "a size": (f"# unit: kB\n# statistic: exact\n{ROWS}", "sizes are not imported"),
    "another metric": (f"{HEAD}# metric: energy\n{ROWS}", "metric is energy, which has no unit us"),
    "two units": (f"{HEAD}# unit: cycles\n{ROWS}", "line 3 gives the unit once more"),
    "no batch": (f"{HEAD}# batch: many\n{ROWS}", "batch 'many' is no positive number"),
    "no provenance": (f"{HEAD}# provenance: guessed\n{ROWS}", "no provenance 'guessed'"),
    "a table already": ("# {}\nblock,name\n", "a table already"),
    "no text": (b"\x93NUMPY\xff\xfe", "no text in UTF-8"),
    "a quote without end": (f'{HEAD}{ROWS}"tail,w8a8,1\n', "line 7: 1 columns"),
    "a field too long": (f"{HEAD}{ROWS}{'x' * 200_000},w8a8,1\n", "no CSV: field larger"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_one_clear_line(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(TableError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_what_is_no_unit_is_an_error() -> None:
    with pytest.raises(CostError, match="'hours' is no unit"):
        read(ROWS, unit="hours", statistic="mean")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"unit": "cycles"}, "the unit is us in the file and cycles as given"),
        ({"statistic": "mean"}, "the statistic is median in the file and mean as given"),
    ],
)
def test_file_and_options_must_not_contradict_each_other(
    stated: dict[str, str], message: str
) -> None:
    with pytest.raises(TableError, match=message):
        read(HEAD + ROWS, **stated)
    assert read(HEAD + ROWS, unit="us", statistic="median").unit is Unit.SECONDS
