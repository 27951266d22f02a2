"""The report page: what it says, that it is one file, and the geometry of its charts."""

import copy
import re
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

import pytest

pytest.importorskip("jinja2")

from quantmeter.charts import (
    Mark,
    accuracy_chart,
    latency_chart,
    overlap,
    place_labels,
    spread_sideways,
)
from quantmeter.report import describe_layer, describe_page, describe_rows, render, shade
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
        "budgets": {
            "latency_ratio": 0.7,
            "size_bytes": 114172.0,
            "size_is_that_of": "uniform w3a8",
        },
        "split": {"ranges": 181, "search": 358, "test": 358},
        "certificate": {"proxy_optimum": 0.0405, "proven": True},
        "calibration": {
            "policies": 117,
            "held_out_policies": 16,
            "held_out_mean_absolute_error": 0.0159,
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
        "float": _entry("float", 353, 1.0, 838_465),
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
        if tag not in {"meta", "br"}:
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
    assert "0.470x measured, 95 % interval [0.460x, 0.490x] predicted 0.474x" in text
    assert "6 B to spare" in text
    assert "is 4.5 points above that of uniform bits; the two 95 % intervals do not overlap" in text
    assert "float 98.6 % [96.8 %, 99.4 %] exact (MILP on proxy loss) 97.5 %" in text
    assert "1 of 1 layers stored and executed as asked; bytes exactly as predicted" in text


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


def test_budgets_are_judged_by_the_upper_limit_and_by_the_bytes_of_the_file(
    result: dict[str, Any],
) -> None:
    result["rows"][0]["timed"]["ratio_to_float"] = {"low": 0.6, "mid": 0.69, "high": 0.71}
    rows = {row["name"]: row for row in describe_rows(result)}
    assert not rows["REINFORCE on accuracy"]["latency_met"]
    assert rows["uniform w3a8"]["size_met"]  # exactly the budget
    assert not rows["uniform w4a8"]["size_met"]
    assert not rows["float"]["latency_met"]


def test_a_gap_is_left_out_where_a_budget_is_broken(result: dict[str, Any]) -> None:
    gaps = {row["name"]: row["gap"] for row in describe_rows(result)}
    assert gaps["uniform w3a8"] == 1.5
    assert gaps["uniform w4a8"] is None
    assert gaps["float"] is None


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


def test_points_that_are_spread_keep_their_side_of_the_line_and_their_order() -> None:
    xs = [95.0, 99.5, 100.0, 100.5, 101.0, 40.0]
    moved = spread_sideways(xs, 100.0)
    assert all((a <= 100.0) == (b <= 100.0) for a, b in zip(xs, moved, strict=True))
    assert sorted(range(6), key=xs.__getitem__) == sorted(range(6), key=moved.__getitem__)
    assert all(abs(a - b) >= 9.0 for a, b in combinations(moved, 2))
    assert moved[5] == 40.0


@pytest.mark.parametrize("deployed", ["exact (MILP on proxy loss)", None])
def test_labels_of_the_accuracy_chart_cover_neither_each_other_nor_a_whisker(
    result: dict[str, Any], deployed: str | None
) -> None:
    result["deployed"] = deployed
    chart = accuracy_chart(describe_rows(result), 114_172.0)
    boxes = [mark.label.box for mark in chart.marks if mark.label is not None]
    assert len(boxes) == len(ROWS) + 1
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    whiskers = [(m.x - 1.0, m.high, m.x + 1.0, m.low) for m in chart.marks]
    assert not any(overlap(box, whisker) for box in boxes for whisker in whiskers)
    left, top, right, bottom = chart.plot
    assert all(left <= b[0] and top <= b[1] and b[2] <= right and b[3] <= bottom for b in boxes)


def test_leaders_of_a_ladder_do_not_cross() -> None:
    marks = [Mark(f"policy {i}", "searched", False, 100.0 + 9 * i, 50, 80, 30) for i in range(5)]
    labels = place_labels(marks, (40.0, 20.0, 600.0, 300.0))
    heights = [label.y for label in labels]
    assert heights == sorted(heights, reverse=True)  # the leftmost turns last, below all others
    assert all(label.leader for label in labels)
    assert min(label.box[1] for label in labels) >= 80.0


def test_the_accuracy_chart_keeps_what_is_within_the_budget_left_of_its_line(
    result: dict[str, Any],
) -> None:
    rows = describe_rows(result)
    chart = accuracy_chart(rows, 114_172.0)
    for row, mark in zip(rows, chart.marks, strict=True):
        assert (mark.x <= chart.line) == row["size_met"]
        assert mark.high <= mark.y <= mark.low  # heights run downwards


def test_a_perfect_accuracy_fits_the_chart(result: dict[str, Any]) -> None:
    result["float"] = _entry("float", 358, 1.0, 838_465)
    chart = accuracy_chart(describe_rows(result), 114_172.0)
    assert chart.plot[1] <= chart.marks[-1].y <= chart.plot[3]


def test_the_latency_chart_holds_every_interval_and_the_budget(result: dict[str, Any]) -> None:
    rows = describe_rows(result)[:-1]
    chart = latency_chart(rows, 0.7)
    left, _, right, bottom = chart.plot
    assert left < chart.line < right
    assert all(left <= mark.low <= mark.x <= mark.high <= right for mark in chart.marks)
    assert all(mark.y < bottom for mark in chart.marks)
    assert chart.x_ticks[0].text == "0.40"
    by_budget = next(tick for tick in chart.x_ticks if tick.text == "0.70")
    assert by_budget.at == pytest.approx(chart.line)


def test_a_row_without_a_prediction_is_drawn_without_one(result: dict[str, Any]) -> None:
    result["rows"][0]["timed"]["predicted_ratio_to_float"] = None
    rows = describe_rows(result)[:-1]
    assert latency_chart(rows, 0.7).marks[0].predicted is None
    _read(render(result))


def test_rendering_leaves_the_result_as_it_was(result: dict[str, Any]) -> None:
    before = copy.deepcopy(result)
    render(result)
    assert result == before
