"""The report page: what it says, that it is one file, and the geometry of its charts."""

import copy
import io
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from quantmeter.charts import accuracy_chart, latency_chart
from quantmeter.commands.demo import announce, print_files, print_result
from quantmeter.report import (
    describe_layer,
    describe_page,
    describe_rows,
    format_gap,
    render,
    shade,
)
from search.oracle import Interval

CHOICES = ("w2a8", "w3a8", "w4a8", "w6a8", "w8a8", "w32a32")
# name, right of 358, ratio, bytes
ROWS = (
    ("REINFORCE on accuracy", 344, 0.465, 112_903),
    ("REINFORCE on proxy loss", 344, 0.464, 112_446),
    ("exact (MILP on proxy loss)", 349, 0.470, 114_166),
    ("greedy", 348, 0.475, 114_089),
    ("random", 341, 0.469, 113_908),
    ("uniform w2a8", 216, 0.471, 88_566),
    ("uniform w3a8", 333, 0.468, 114_172),
    ("uniform w4a8", 349, 0.470, 139_776),
    ("uniform w6a8", 353, 0.467, 190_986),
    ("uniform w8a8", 350, 0.463, 239_093),
)


def _entry(name: str, right: int, ratio: float, size: int) -> dict[str, Any]:
    """A row's accuracy and timing."""
    found = Interval.wilson(right, 358)
    return {
        "test_accuracy": found.share,
        "test_accuracy_interval": [found.low, found.high],
        "timed": _timed(name, ratio, size),
    }


def _timed(name: str, ratio: float, size: int) -> dict[str, Any]:
    cells = [{"name": "stem", "asked": "w8a8", "stored": "int8", "executed": "QLinearConv"}]
    layers = [{**cell, "ok": True, "reason": ""} for cell in cells]
    return {
        "policy": name,
        "median_s": 432e-6 * ratio,
        "ratio_to_float": {"low": ratio - 0.01, "mid": ratio, "high": ratio + 0.02},
        "floor": 0.01,
        "predicted_ratio_to_float": 1.0 if ratio == 1.0 else 0.474,
        "size_bytes": size,
        "audit": {
            "ok": True,
            "size_bytes": size,
            "predicted_bytes": size,
            "problems": [],
            "layers": layers,
        },
    }


def _cell(bits: str) -> dict[str, Any]:
    if bits == "w32a32":
        size, kernel, latency, kl = 2096.0, "Conv", 9.2e-6, 0.0
    else:
        size, kernel, latency, kl = 918.0, "QLinearConv", 17e-6, 10.0 ** -int(bits[1])
    cell = {"latency": latency, "energy": 1.5e-6, "size": size, "kernel": kernel}
    return {**cell, "kl": kl, "accuracy_drop": 0.0140 if bits == "w2a8" else 0.0}


@pytest.fixture
def result() -> dict[str, Any]:
    rows = []
    for position, (name, right, ratio, size) in enumerate(ROWS):
        rows.append(
            {
                "name": name,
                "proxy_loss": 0.04 + 0.01 * position,
                "gap": 0.25 * position,
                "search_accuracy": 0.95,
                "costs": {"latency": 2e-4, "energy": 5.35e-5, "size": float(size)},
                "feasible": size < 114_172,
                **_entry(name, right, ratio, size),
            }
        )
    layer = {"name": "stem", "kind": "Conv", "macs": 110592, "weight_count": 432}
    return {
        "network": {"layers": 21, "macs": 21027712, "weight_count": 204832, "digest": "4db795bb"},
        "device": {
            "cpu": "AMD EPYC",
            "architecture": "x86_64",
            "isa": ["avx2", "avx512_vnni"],
            "cores": 2,
            "memory_bytes": 25276514304,
            "system": "Linux",
            "runtime": "onnxruntime",
            "runtime_version": "1.32.0",
        },
        "runtime": {"provider": "CPUExecutionProvider", "threads": 1},
        "noise_floor": {"low": 0.997, "mid": 1.001, "high": 1.006, "relative": 0.006},
        "budgets": {
            "latency_ratio": 0.7,
            "size_bytes": 114172.0,
            "size_is_that_of": "uniform w3a8",
        },
        "split": {"ranges": 181, "search": 358, "test": 358},
        "certificate": {"proxy_optimum": 0.0405, "proven": True},
        "calibration": {
            "policies": 117,
            "disturbed_policies": 9,
            "unlike_policies": 3,
            "failed_policies": [{"kind": "killed", "text": "killed by SIGSEGV"}],
            "inputs": "given",
            "validation": {
                "policies": 34,
                "total": {"mean_absolute": 0.0159, "near": 0.971, "rank_correlation": 0.984},
                "table": {"mean_absolute": 0.0312, "near": 0.912, "rank_correlation": None},
                "half_width": 0.0427,
                "level": 0.9,
            },
            "seconds": 6,
        },
        "energy": {
            "note": "analytical, not measured here",
            "source": {
                "backend": "analytical:haq",
                "preset": "the numbers that texts print",
                "formula": "b_w/8 * params * e_mem + macs * e_mac",
                "notes": ["DRAM at 640 pJ per byte is four times the published figure"],
            },
        },
        "deployed": "exact (MILP on proxy loss)",
        "attempts": 1,
        "rows": rows,
        "float": {"costs": {"energy": 6.21e-4}, **_entry("float", 353, 1.0, 838_465)},
        "layers": [{**layer, "deployed_bits": "w4a8", "choices": {b: _cell(b) for b in CHOICES}}],
    }


class _Reader(HTMLParser):
    """Collects the text, the attributes, and what is left open."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in {"meta", "br", "wbr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def test_the_page_refers_to_nothing_outside_itself(result: dict[str, Any]) -> None:
    page = render(result)
    reader = _read(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not {"src", "href", "xlink:href", "srcset"} & {name for name, _ in reader.attributes}
    assert not re.search(r"https?:|url\(|@import|@font-face", page)


def test_the_verdict_puts_the_deployed_policy_beside_float_and_uniform_bits_of_equal_size(
    result: dict[str, Any],
) -> None:
    text = _read(render(result)).text
    assert "Deployed: exact (MILP on proxy loss)" in text
    assert (
        "0.470x measured, 95 % interval [0.460x, 0.490x] ; noise floor 0.6 % "
        "predicted 0.474x" in text
    )
    assert "6 B to spare" in text
    assert "is 4.5 points above that of uniform bits; the two 95 % intervals do not overlap" in text
    assert "float 98.6 % [96.8 %, 99.4 %] exact (MILP on proxy loss) 97.5 %" in text
    assert "1 of 1 layers stored and executed as asked; bytes exactly as predicted" in text


def test_the_noise_floor_stands_beside_the_measured_ratio(result: dict[str, Any]) -> None:
    tile = render(result).partition("Latency, relative to float")[2].partition("</div>")[0]
    assert "noise floor 0.6\N{NO-BREAK SPACE}%" in tile


TOTAL = (
    "n 34 policies that were never fitted: mean absolute error 1.6 %, 97.1 % within 10 %, "
    "rank correlation 0.98"
)
TABLE = (
    "he table alone, which is what a search adds up: mean absolute error 3.1 %, "
    "91.2 % within 10 %, rank correlation not known"
)


@pytest.mark.parametrize("where", ["page", "terminal"])
def test_the_calibration_is_judged_by_policies_that_were_never_fitted(
    result: dict[str, Any], where: str
) -> None:
    text = _read(render(result)).text if where == "page" else _printed(result)
    interval = "90 % interval of a new policy: from its prediction over 1.043 to its prediction"
    for part in (TOTAL, TABLE, interval):
        assert part in text
    validation = result["calibration"]["validation"]
    validation.update(half_width=None, policies=12)
    text = _read(render(result)).text if where == "page" else _printed(result)
    assert "o interval of a new policy: 12 of 30 policies that it needs; give more time" in text
    assert "90 % interval of a new policy" not in text
    result["calibration"]["validation"] = None
    text = _read(render(result)).text if where == "page" else _printed(result)
    assert "o policy was kept apart from the fit: how good it is remains unknown" in text


def test_the_terminal_says_what_became_of_the_policies_that_were_timed(
    result: dict[str, Any],
) -> None:
    assert (
        "latency table: 117 policies timed (given inputs); 9 of them count for less: others "
        "disturbed the machine; 3 of them left out as unlike all others; "
        "1 more failed, the first: killed, killed by SIGSEGV" in _printed(result)
    )
    result["calibration"].update(disturbed_policies=0, unlike_policies=0, failed_policies=[])
    assert "latency table: 117 policies timed (given inputs) on 34" in _printed(result)


def test_the_verdict_admits_that_overlapping_intervals_prove_nothing(
    result: dict[str, Any],
) -> None:
    result["deployed"] = "random"
    text = _read(render(result)).text
    assert "intervals overlap, so this run alone does not prove a difference" in text


def test_the_page_says_clearly_that_nothing_is_deployed(result: dict[str, Any]) -> None:
    result.update(deployed=None, attempts=3)
    result["budgets"]["latency_ratio"] = 0.4
    result["layers"][0]["deployed_bits"] = None
    text = _read(render(result)).text
    assert "Nothing is deployed After 3 searches" in text
    assert "The closest by latency within the size budget is REINFORCE on proxy loss" in text
    assert "Deployed:" not in text


def test_names_are_escaped(result: dict[str, Any]) -> None:
    result["rows"][0]["name"] = "<script>alert(1)</script>"
    result["layers"][0]["name"] = "a.<script>"
    result["device"]["cpu"] = "a&b <i>"
    page = render(result)
    assert "<script>" not in page
    assert "a&amp;b &lt;i&gt;" in page


def test_the_page_says_that_energy_is_analytical_with_the_notes_of_its_preset(
    result: dict[str, Any],
) -> None:
    text = _read(render(result)).text
    assert "Analytical, not measured here" in text
    assert result["energy"]["source"]["notes"][0] in text


def test_every_column_of_energy_on_the_page_says_analytical(result: dict[str, Any]) -> None:
    headers = re.findall(r"<th[^>]*>([^<]*energy[^<]*)", render(result))
    assert headers == ["energy, analytical"] * 2


def test_the_energy_of_float_is_shown_too(result: dict[str, Any]) -> None:
    assert describe_rows(result)[-1]["energy"] == 6.21e-4
    assert "621 µJ" in _read(render(result)).text


def test_the_headline_says_by_what_the_deployed_policy_was_chosen_and_who_leads_elsewhere(
    result: dict[str, Any],
) -> None:
    result["deployed"] = "greedy"
    text = _read(render(result)).text
    assert "Chosen by accuracy on the search images (95.0 %; of those within a standard" in text
    assert (
        "Within both budgets, exact (MILP on proxy loss) reads more of them right: 97.5 % "
        "[95.3 %, 98.7 %]; the two 95 % intervals overlap." in text
    )


def test_a_leader_on_the_held_out_images_is_looked_for_within_the_budgets_only(
    result: dict[str, Any],
) -> None:
    assert describe_page(result)["ahead"] is None  # uniform w6a8 is better, but over its size
    result["deployed"] = "random"
    assert describe_page(result)["ahead"]["names"] == ["exact (MILP on proxy loss)"]
    result["rows"][2]["timed"]["audit"]["ok"] = False
    assert describe_page(result)["ahead"]["names"] == ["greedy"]
    result["rows"][0].update(_entry("REINFORCE on accuracy", 348, 0.465, 112_903))
    assert describe_page(result)["ahead"]["names"] == ["REINFORCE on accuracy", "greedy"]


def test_a_leader_whose_interval_is_apart_is_reported_as_such(result: dict[str, Any]) -> None:
    result["deployed"] = "uniform w2a8"
    assert describe_page(result)["ahead"]["apart"]
    assert "does not overlap that of uniform w2a8" in _read(render(result)).text


def test_budgets_are_judged_by_the_upper_limit_and_by_the_bytes_of_the_file(
    result: dict[str, Any],
) -> None:
    result["rows"][0]["timed"]["ratio_to_float"] = {"low": 0.6, "mid": 0.69, "high": 0.71}
    rows = {row["name"]: row for row in describe_rows(result)}
    assert not rows["REINFORCE on accuracy"]["latency_met"]
    result["rows"][0]["timed"]["ratio_to_float"] |= {"high": 0.695}
    assert not describe_rows(result)[0]["latency_met"], "1 % more is above the budget"
    result["rows"][0]["timed"]["ratio_to_float"] |= {"high": 0.69}
    assert describe_rows(result)[0]["latency_met"]
    assert rows["uniform w3a8"]["size_met"]  # exactly the budget
    assert not rows["uniform w4a8"]["size_met"]
    assert not rows["float"]["latency_met"]


def test_a_gap_is_left_out_where_a_budget_is_broken(result: dict[str, Any]) -> None:
    gaps = {row["name"]: row["gap"] for row in describe_rows(result)}
    assert gaps["uniform w3a8"] == 1.5
    assert gaps["uniform w4a8"] is None
    assert gaps["float"] is None


def test_no_gap_to_an_optimum_is_negative(result: dict[str, Any]) -> None:
    result["rows"][6]["gap"] = -0.2  # not feasible by the table, though its file is
    result["rows"][1]["gap"] = -1e-17  # the optimum itself, rounded
    gaps = {row["name"]: row["gap"] for row in describe_rows(result)}
    assert gaps["uniform w3a8"] is None
    assert format_gap(gaps["REINFORCE on proxy loss"]) == "+0.0"


def test_a_policy_that_only_the_search_ruled_out_is_named(result: dict[str, Any]) -> None:
    assert describe_page(result)["table_refuses"] == ["uniform w3a8"]
    result["rows"][6]["feasible"] = True
    assert "the search ruled it out" not in _read(render(result)).text


def test_a_layer_that_int8_makes_slower_is_marked(result: dict[str, Any]) -> None:
    layer = result["layers"][0]
    assert describe_layer(layer)["slower"]
    layer["choices"]["w32a32"]["latency"] = 20e-6
    assert not describe_layer(layer)["slower"]


def test_a_layer_whose_integer_choices_are_all_unsupported_has_no_int8_latency(
    result: dict[str, Any],
) -> None:
    layer = result["layers"][0]
    for bits in CHOICES[:-1]:
        layer["choices"][bits]["latency"] = None
    layer["deployed_bits"] = "w32a32"
    described = describe_layer(layer)
    assert described["int8"]["latency"] is None
    assert not described["slower"]
    assert (described["weight_bits"], described["bar"]) == (32, 100.0)
    _read(render(result))


def test_shades_grow_with_divergence_and_stay_readable() -> None:
    shades = [shade(kl) for kl in (0.0, 1e-3, 1e-2, 1e-1, 1.0, 100.0)]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (0.0, 0.5)


def test_both_charts_have_a_row_for_each_policy_in_the_order_of_the_table(
    result: dict[str, Any],
) -> None:
    page = describe_page(result)
    names = [row["name"] for row in page["rows"]]
    assert [mark.name for mark in page["accuracy_chart"].marks] == names
    assert [mark.name for mark in page["latency_chart"].marks] == names[:-1]  # all but float


def test_the_accuracy_chart_draws_accuracy_and_says_size(result: dict[str, Any]) -> None:
    rows = describe_rows(result)
    chart = accuracy_chart(rows)
    assert all(0.0 <= mark.low < mark.x < mark.high <= 100.0 for mark in chart.marks)
    by_accuracy = sorted(range(len(rows)), key=lambda i: rows[i]["accuracy"])
    assert by_accuracy == sorted(range(len(rows)), key=lambda i: chart.marks[i].x)
    sizes = {mark.name: (mark.text, mark.met) for mark in chart.marks}
    assert sizes["REINFORCE on accuracy"] == ("113 kB", True)
    assert sizes["uniform w2a8"] == ("88.6 kB", True)
    assert sizes["uniform w4a8"] == ("140 kB", False)


def test_equal_accuracies_are_drawn_at_the_same_place_and_compared_with_float(
    result: dict[str, Any],
) -> None:
    marks = {mark.name: mark for mark in accuracy_chart(describe_rows(result)).marks}
    assert marks["uniform w4a8"].x == marks["exact (MILP on proxy loss)"].x
    line = accuracy_chart(describe_rows(result)).line
    assert line.at == marks["float"].x
    assert line.text == "float 98.6 %"


def test_ticks_of_the_accuracy_chart_are_where_such_accuracies_are_and_do_not_collide(
    result: dict[str, Any],
) -> None:
    result["rows"][0]["test_accuracy"] = 0.95
    chart = accuracy_chart(describe_rows(result))
    places = [tick.at for tick in chart.ticks]
    assert next(t.at for t in chart.ticks if t.text == "95 %") == pytest.approx(chart.marks[0].x)
    assert all(a - b >= 11.0 for a, b in pairwise(places))


def test_a_perfect_accuracy_fits_the_chart(result: dict[str, Any]) -> None:
    result["float"] = _entry("float", 358, 1.0, 838_465)
    perfect = accuracy_chart(describe_rows(result)).marks[-1]
    assert perfect.low < perfect.x <= perfect.high <= 100.0


def test_the_latency_chart_holds_every_interval_and_the_budget(result: dict[str, Any]) -> None:
    chart = latency_chart(describe_rows(result)[:-1], 0.7)
    assert 0.0 < chart.line.at < 100.0
    assert chart.line.text == "budget 0.70x"
    assert all(0.0 <= mark.low <= mark.x <= mark.high <= 100.0 for mark in chart.marks)
    assert (chart.marks[0].text, chart.marks[0].met) == ("0.465x", True)
    by_budget = next(tick for tick in chart.ticks if tick.text == "0.70")
    assert by_budget.at == pytest.approx(chart.line.at)


def test_a_row_without_a_prediction_is_drawn_without_one(result: dict[str, Any]) -> None:
    result["rows"][0]["timed"]["predicted_ratio_to_float"] = None
    rows = describe_rows(result)[:-1]
    assert latency_chart(rows, 0.7).marks[0].predicted is None
    _read(render(result))


def test_rendering_leaves_the_result_as_it_was(result: dict[str, Any]) -> None:
    before = copy.deepcopy(result)
    render(result)
    assert result == before


def _printed(result: dict[str, Any]) -> str:
    stream = io.StringIO()
    print_result(result, Console(file=stream, width=200, highlight=False))
    return " ".join(stream.getvalue().split())


def _cells(result: dict[str, Any], name: str) -> list[str]:
    """The row of the terminal's table about a policy."""
    stream = io.StringIO()
    print_result(result, Console(file=stream, width=200, highlight=False))
    line = next(t for t in stream.getvalue().splitlines() if t.startswith("│") and name in t)
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_terminal_prints_the_noise_floor_before_what_it_claims(result: dict[str, Any]) -> None:
    printed = _printed(result)
    floor = (
        "noise floor of that run: 0.6% (float against itself, loaded twice: 1.001 [0.997, 1.006]"
    )
    assert floor in printed
    assert printed.index(floor) < printed.index("deployed: ")


def test_the_terminal_prints_gaps_as_the_page_does(result: dict[str, Any]) -> None:
    assert _cells(result, "greedy")[2] == "+75.0%"
    assert _cells(result, "uniform w3a8")[2] == "+150%"
    assert _cells(result, "uniform w4a8")[2] == "-"
    assert _cells(result, "uniform w4a8")[-1] == "over"


def test_the_terminal_defines_its_columns(result: dict[str, Any]) -> None:
    text = _printed(result)
    for column in ("*: deployed", "proxy: ", "gap: ", "predicted: "):
        assert column in text


def test_the_terminal_says_by_what_was_chosen_and_who_leads_elsewhere(
    result: dict[str, Any],
) -> None:
    assert "higher on the test images" not in _printed(result)
    result["deployed"] = "greedy"
    text = _printed(result)
    assert "chosen by accuracy on the search images (95.0%; of those within a standard" in text
    assert "within both budgets: exact (MILP on proxy loss), 97.5% [95.3%, 98.7%]; the two" in text
    assert "95 % intervals overlap" in text


def test_the_terminal_prints_a_run_that_deploys_nothing(result: dict[str, Any]) -> None:
    result["deployed"] = result["layers"][0]["deployed_bits"] = None
    result["layers"][0]["choices"]["w8a8"]["latency"] = None
    assert "deployed: " not in _printed(result).replace("*: deployed", "")
    assert _cells(result, "stem")[2] == "-"


def test_what_was_written_is_listed_with_commands_that_stay_on_one_line() -> None:
    stream = io.StringIO()
    out = Path("a folder/" + "deep" * 40)
    print_files(out, 3, Console(file=stream, width=80, highlight=False), deployed=True)
    written, bench, search = stream.getvalue().splitlines()
    for name in ("model.onnx", "data.npz", "deployed.onnx", "deployed.policy.json"):
        assert name in written
    assert str(out / "deployed.policy.json") in shlex.split(bench)
    assert shlex.split(search)[-2:] == ["--method", "exact"]
    assert all("--seed 3" in line for line in (bench, search))


def test_a_stage_is_announced_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with announce("latency"):
        assert capsys.readouterr().err == "latency ..."
    assert re.fullmatch(r" \d+ s\n", capsys.readouterr().err)
    with pytest.raises(ValueError, match="x"), announce("search"):
        raise ValueError("x")
    assert capsys.readouterr().err.endswith("...\n")  # what follows has a line of its own
