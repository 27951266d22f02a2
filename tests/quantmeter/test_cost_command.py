"""``quantmeter cost``: its table, its JSON, its pictures, and how it says no."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

from costmodels.accelerator_files import FOLDER
from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.sketch import Sketch
from costmodels.units import Metric, Unit, format_quantity
from quantization.bits import parse_choices
from quantization.reading import read_network
from quantmeter.cli import main
from quantmeter.reference_task import SHIPPED_MODEL

WIDTH = 100


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def row(self, name: str) -> list[str]:
        """Return the words of the table's row that holds `name`."""
        table = self.out[: self.out.index("\ntotal")]
        [line] = [line for line in table.splitlines() if name in line.split()]
        return line.split()


Call = Callable[[str], Answer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's network, a long one, a table whose cells differ in provenance, and a policy."""
    made = tmp_path_factory.mktemp("cost")
    network = read_network(SHIPPED_MODEL)
    onnx.save_model(network.model, made / "DEMO.onnx")
    sketch = Sketch()
    x = sketch.input((1, 4, 8, 8))
    for i in range(60):
        x = sketch.conv(x, 4 if i else 16, kernel=3, name=f"/features/features.{i}/conv/Conv[0]")
    onnx.save_model(sketch.network(x).model, made / "LONG.onnx")
    model = backend("analytical:haq", BackendContext())
    table = model.table(network, parse_choices("w8a8,w32a32"), Metric.LATENCY).to_json()
    content = json.loads(table)
    content["unary"]["provenance"][3] = ["measured", "measured"]
    content["unary"]["kernel"][3] = ["QLinearConv", "Conv"]
    (made / "TABLE.json").write_text(json.dumps(content))
    content["unit"] = "cycles"
    cycles = [[1e12 * value for value in row] for row in content["unary"]["value"]]
    content["unary"]["value"] = cycles
    (made / "CYCLES.json").write_text(json.dumps(content))
    bits = ("w4a8", "w8a8", "w2a2")
    layers = {name: bits[i % 3] for i, name in enumerate(network.layer_names)}
    policy = {"version": 1, "layers": layers, "options": {}}
    (made / "MIXED.json").write_text(json.dumps(policy))
    (made / "folder.png").mkdir()
    fused = (FOLDER / "bit-fusion.toml").read_text()
    inner = re.search(r"^bandwidth = .*$", fused, re.MULTILINE)
    assert inner is not None
    slow = fused.replace('name = "buffer"\n', f'name = "buffer"\n{inner[0]}\n'.replace("96", "900"))
    (made / "INNER.toml").write_text(slow)
    (made / "FREE.toml").write_text(slow.replace(f"{inner[0]}\n", "", 1))
    return made


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(folder)

    def run(line: str) -> Answer:
        try:
            status = main(line.split())
        except SystemExit as stop:
            status = int(str(stop.code))
        return Answer(status, *capsys.readouterr())

    return run


def test_every_layer_has_a_row_with_value_share_and_provenance_of_each_metric(call: Call) -> None:
    line = "cost DEMO.onnx --cost latency=table:TABLE.json --cost energy=analytical:haq"
    answer = call(f"{line} --policy w8a8")
    assert (answer.status, answer.err) == (0, "")
    bills = call(f"{line} --policy w8a8 --json").json["metrics"]
    assert list(bills) == ["latency", "energy", "size"]
    names = [layer["name"] for layer in bills["latency"]["layers"]]
    assert [name for name in names if answer.row(name)] == list(
        read_network("DEMO.onnx").layer_names
    )
    row = answer.row(names[3])
    assert row[:3] == ["4", names[3], "w8a8"]
    assert [word for word in row if word.endswith("%")] == [
        f"{bill['layers'][3]['share']:.1%}" for bill in bills.values()
    ]
    assert "measured" in row, "the column of a metric whose cells differ says it in each row"
    assert "assumed" in answer.row(names[4])
    titles = answer.row("energy"), answer.row("exact")
    assert titles[0] == ["latency", "energy", "size"]
    assert titles[1][-4:] == ["analytical", "share", "exact", "share"], (
        "all cells of a metric alike"
    )
    assert answer.row("100.0%")[0] == "total"
    latency = bills["latency"]["layers"][3]["cost"]
    assert row[3:5] == format_quantity(latency, Unit.SECONDS).split()
    assert "note: energy of glue and conversions: 0, because the formula has no such" in answer.out


def test_the_table_is_no_wider_than_100_columns(call: Call) -> None:
    for line in (
        "cost DEMO.onnx --cost latency=table:TABLE.json --cost energy=analytical:haq",
        "cost DEMO.onnx --cost analytical:bit-fusion --policy MIXED.json",
        "cost LONG.onnx --cost analytical:haq",
    ):
        answer = call(line)
        assert (answer.status, answer.err) == (0, "")
        table = answer.out[: answer.out.index("\ntotal")].splitlines()
        assert max(len(row.rstrip()) for row in table) <= WIDTH, line


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Make standard output a terminal of `width` columns that has no colours."""
    for name, value in {"COLUMNS": str(width), "LINES": "40", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("metrics", [("latency",), ("latency", "energy"), ()])
@pytest.mark.parametrize(
    "line",
    [
        "cost DEMO.onnx --cost latency=table:TABLE.json --cost energy=analytical:haq",
        "cost LONG.onnx --cost analytical:haq --all",
        "cost DEMO.onnx --cost latency=table:CYCLES.json --cost energy=analytical:haq",
    ],
)
def test_a_terminal_shows_every_number_unit_and_bits_whole(
    call: Call, monkeypatch: pytest.MonkeyPatch, line: str, metrics: tuple[str, ...], width: int
) -> None:
    line += "".join(f" --metric {metric}" for metric in metrics)
    found = call(f"{line} --json").json
    bills = list(found["metrics"].values()) if "metrics" in found else [found]
    assert len(bills) == (len(metrics) or 3)
    terminal(monkeypatch, width)
    answer = call(line)
    assert (answer.status, answer.err) == (0, "")
    assert "…" not in answer.out
    lines = answer.out.splitlines()
    assert max(len(row) for row in lines) <= width
    for i in range(len(bills[0]["layers"])):
        rows = [row.split() for row in lines if re.match(rf" +{i + 1}  ", row)]
        words = " ".join(word for row in rows for word in row)
        layers = [(bill["layers"][i], Unit(bill["unit"])) for bill in bills]
        wanted = [format_quantity(layer["cost"], unit) for layer, unit in layers]
        assert all(layers[0][0]["bits"] in row for row in rows)
        assert re.search(" .*".join(map(re.escape, ["", *wanted])) + r"(?!\S)", words), words
        assert f"{layers[0][0]['share']:.1%}" in words.split()
    totals = " ".join(row for row in lines if row.split()[:1] == ["total"])
    assert all(format_quantity(bill["total"], Unit(bill["unit"])) in totals for bill in bills)


def test_what_has_no_room_is_said_under_the_table(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal(monkeypatch, 80)
    line = (
        "cost DEMO.onnx --cost latency=table:TABLE.json --cost energy=analytical:haq --policy w8a8"
    )
    said = "latency of #1-3, #5-21: assumed; #4: measured; (glue), (conversions): analytical\n"
    out = call(line).out
    assert said in out
    assert "  from" not in out
    terminal(monkeypatch, 130)
    out = call(line).out
    assert "  from" in out
    assert "latency of #" not in out


def test_of_a_long_network_the_dearest_layers_are_listed_and_the_others_counted(call: Call) -> None:
    line = "cost LONG.onnx --cost analytical:haq --metric energy --policy w8a8"
    whole = call(f"{line} --json").json
    assert len(whole["layers"]) == 60, "JSON holds all"
    for option, rows in (("", 40), (" --top 3", 3), (" --all", 60)):
        out = call(line + option).out
        found = [int(n) for n in re.findall(r"^ *(\d+)  .*Conv\[0\]", out, re.MULTILINE)]
        assert len(found) == rows
        assert found == sorted(found)
        costs = [layer["cost"] for layer in whole["layers"]]
        worst = min(costs[i - 1] for i in found)
        assert all(costs[i] <= worst for i in range(60) if i + 1 not in found)
        assert (f"the {60 - rows} layers of the smallest shares are one row; --all" in out) == (
            rows < 60
        )
        assert (f"({60 - rows} others)" in out) == (rows < 60)


def test_one_metric_keeps_its_fields_and_parts_add_up(call: Call) -> None:
    line = "cost DEMO.onnx --cost table:TABLE.json --metric latency --policy w8a8 --json"
    found = call(line).json
    assert {"metric", "total", "unit", "statistic", "provenance", "table_total"} <= set(found)
    others = ("glue", "conversions", "constant", "once", "neighbours", "difference")
    parts = sum(found[name] for name in others) + sum(x["cost"] for x in found["layers"])
    assert parts == pytest.approx(found["total"])
    assert found["layers"][3]["kernel"] == "QLinearConv"
    assert found["other_provenance"]["glue"] == "analytical"
    shares = sum(layer["share"] for layer in found["layers"])
    assert shares == pytest.approx(1.0), "nothing else costs anything in this table"
    assert "QLinearConv" in call(line.removesuffix(" --json")).out


def test_a_policy_that_no_file_can_hold_has_no_size_and_says_why(call: Call) -> None:
    line = "cost DEMO.onnx --cost analytical:bit-fusion --policy w2a2"
    found = call(f"{line} --json").json
    assert list(found["metrics"]) == ["latency", "energy"]
    assert "no file of this policy can be exported" in found["left_out"]["size"]
    assert "note: no size: no file" in call(line).out


def test_a_metric_may_be_named_more_than_once(call: Call) -> None:
    line = "cost DEMO.onnx --cost analytical:haq --metric size --metric energy --json"
    assert list(call(line).json["metrics"]) == ["size", "energy"]


@pytest.mark.parametrize(
    ("line", "panels"),
    [
        ("--cost analytical:bit-fusion --policy MIXED.json", 2),
        ("--cost analytical:bit-serial-edge --policy w4a4 --metric latency", 1),
        ("--cost analytical:gpu-t4", 2),
        ("--cost latency=table:TABLE.json --cost energy=analytical:systolic-int8 --policy w8a8", 2),
        ("--cost analytical:haq", 2),
        ("--cost analytical:INNER.toml --policy w8a8", 2),
        ("--cost analytical:FREE.toml --policy w8a8", 2),
        ("--metric size --policy w8a8", 1),
    ],
)
def test_the_picture_is_a_png_that_shows_something(
    call: Call, folder: Path, line: str, panels: int
) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    from matplotlib.image import imread

    answer = call(f"cost DEMO.onnx {line} --plot new/COST.png --json")
    assert (answer.status, answer.err) == (0, "")
    assert answer.json["plot"] == "new/COST.png"
    path = folder / "new/COST.png"
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    pixels = np.asarray(imread(path))[..., :3]
    assert pixels.shape[1] == panels * 900
    for panel in np.split(pixels, panels, axis=1):
        inked = (panel < 0.95).any(-1)
        assert 0.005 < inked.mean() < 0.6
        assert inked.any(1).mean() > 0.7, "it fills its height"
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all((edge == 1).all() for edge in edges), "nothing is cut off"
    path.unlink()


def test_the_picture_is_named_where_the_table_is_printed(call: Call, folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    answer = call("cost LONG.onnx --cost analytical:bit-fusion --policy w8a8 --plot LONG.png")
    assert (answer.status, answer.err) == (0, "")
    assert "drawn: LONG.png" in answer.out
    assert (folder / "LONG.png").stat().st_size > 10_000


BAD = {
    "no such bits": (
        "cost DEMO.onnx --cost analytical:haq --policy w9a8",
        "no such bit-width: weights 9",
    ),
    "no such model": ("cost absent.onnx --cost analytical:haq", "no such file: absent.onnx"),
    "no such table": ("cost DEMO.onnx --cost table:absent.json", "absent.json: No such file"),
    "no such policy": ("cost DEMO.onnx --metric size --policy absent.json", "absent.json: No such"),
    "nothing to price": ("cost DEMO.onnx", "--cost BACKEND, or --metric size"),
    "metric that nothing prices": (
        "cost DEMO.onnx --cost table:TABLE.json --metric energy",
        "nothing prices energy; add --cost",
    ),
    "metric that a backend lacks": (
        "cost DEMO.onnx --cost latency=analytical:horowitz",
        "does not price latency",
    ),
    "widths that an accelerator lacks": (
        "cost DEMO.onnx --cost analytical:bit-fusion",
        "analytical:bit-fusion: the policy is not supported: layer 'stem' at w32a32; "
        "it has w 2-8,16 x a 2-8,16; choose with --policy POLICY.json or bits such as w8a8",
    ),
    "widths that a table lacks": (
        "cost DEMO.onnx --cost table:TABLE.json --metric latency --policy w4a8",
        "table:TABLE.json: ",
    ),
    "widths that a table lacks, the way out": (
        "cost DEMO.onnx --cost table:TABLE.json --metric latency --policy w4a8",
        "choose with --policy",
    ),
    "no rows": ("cost DEMO.onnx --cost analytical:haq --top 0", "'0' is no positive number"),
    "all and some": ("cost DEMO.onnx --cost analytical:haq --top 2 --all", "not allowed with"),
    "picture that is no PNG": (
        "cost DEMO.onnx --cost analytical:haq --plot COST.pdf",
        "writes PNG: name a file FILE.png, not COST.pdf",
    ),
    "picture without a kind": ("cost DEMO.onnx --cost analytical:haq --plot COST", "FILE.png"),
}
BAD_WITH_MATPLOTLIB = {
    "folder as picture": (
        "cost DEMO.onnx --cost analytical:haq --plot folder.png",
        "folder.png: it is a folder",
    ),
    "picture in a file": (
        "cost DEMO.onnx --cost analytical:haq --plot MIXED.json/COST.png",
        "cannot write to MIXED.json",
    ),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_WITH_MATPLOTLIB])
def test_bad_input_is_one_line_and_status_2(call: Call, name: str) -> None:
    if name in BAD_WITH_MATPLOTLIB:
        pytest.importorskip("matplotlib", reason="needs the extra plot")
    line, message = (BAD | BAD_WITH_MATPLOTLIB)[name]
    answer = call(line)
    assert (answer.status, answer.out) == (2, "")
    assert answer.err.startswith("quantmeter: error: ")
    assert answer.err.count("\n") == 1
    assert message in answer.err


def test_without_matplotlib_the_picture_is_refused_before_anything_is_priced(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantmeter.plots.find_spec", lambda _name: None)
    answer = call("cost DEMO.onnx --cost ort --metric latency --plot COST.png")
    assert (answer.status, answer.out) == (2, "")
    assert "needs matplotlib: pip install 'quantmeter[plot]'" in answer.err
    assert not (folder / "COST.png").exists()
