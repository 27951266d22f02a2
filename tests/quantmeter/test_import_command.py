"""``quantmeter import``: from a published file to a search, and one clear line where not."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import quantmeter
from costmodels.model import BackendContext
from costmodels.sketch import Sketch
from costmodels.table import CostTable
from costmodels.units import Metric, Unit
from quantization.bits import BitWidths, parse_choices
from quantization.errors import BudgetError
from quantization.network import Network
from quantization.policy import Policy
from quantization.reading import read_network
from quantmeter.benchmarking import benchmark
from quantmeter.cli import main
from quantmeter.costs import parse_costs
from quantmeter.preparing import prepare
from quantmeter.workbench import Workbench, open_workbench
from search.budgets import parse_budgets

LAYERS = ("stem", "mix", "head")


class Answer(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[[str], Answer]


@pytest.fixture(scope="module")
def network() -> Network:
    sketch = Sketch()
    stem = sketch.node("Relu", sketch.conv(sketch.input((1, 3, 12, 12)), 8, kernel=3, name="stem"))
    pooled = sketch.node("GlobalAveragePool", sketch.conv(stem, 16, kernel=3, name="mix"))
    return read_network(
        sketch.model(sketch.gemm(sketch.node("Flatten", pooled), 16, 5, name="head"))
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, network: Network) -> Path:
    """A model, images, and files as others publish them."""
    made = tmp_path_factory.mktemp("published")
    onnx.save_model(network.model, made / "MODEL.onnx")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((40, 3, 12, 12)).astype(np.float32)
    np.savez(made / "DATA.npz", x=x, y=draw.integers(0, 5, 40))
    layer, w, a = np.ogrid[1:4, 1:9, 1:9]
    np.save(made / "haq.npy", layer * 1000 * w * a)
    np.save(made / "longer.npy", np.ones((4, 8, 8)))
    np.save(made / "objects.npy", np.ones((3, 8, 8)).astype(object))
    (made / "short.npy").write_bytes((made / "haq.npy").read_bytes()[:500])
    hawq = {
        "latency_ms_chip": {"4": [1.0, 2.0, 3.0], "8": [2.0, 4.0, 6.0]},
        "macs_millions": [entry.macs / 1e6 for entry in network.layers],
        "tied_layers": [[0, 2]],
    }
    (made / "hawq.json").write_text(json.dumps(hawq))
    hawq["macs_millions"][1] *= 2
    (made / "other.json").write_text(json.dumps(hawq))
    rows = "".join(f"{name},{bits},2\n" for name in LAYERS for bits in ("w8a8", "w32a32"))
    text = f"# unit: kcycles\n# statistic: model\nlayer,choice,value\n{rows}"
    (made / "costs.csv").write_text(text)
    (made / "seconds.csv").write_text(text.replace("kcycles", "ms"))
    (made / "bare.csv").write_text(f"layer,choice,value\n{rows}")
    eight = Policy(dict.fromkeys(LAYERS, BitWidths(8, 8)))
    (made / "EIGHT.json").write_text(eight.to_json())
    for name, form, file in (
        ("T", "haq", "haq.npy"),
        ("CYCLES", "csv", "costs.csv"),
        ("SECONDS", "csv", "seconds.csv"),
    ):
        table = quantmeter.import_table(form, made / file, network)
        (made / f"{name}.json").write_text(table.to_json())
    return made


@pytest.fixture
def call(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run one command line in the folder of the files."""
    monkeypatch.chdir(folder)

    def run(line: str) -> Answer:
        capsys.readouterr()
        try:
            status = main(shlex.split(line))
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return run


def test_the_table_is_written_in_the_unit_of_the_file(call: Call, folder: Path) -> None:
    line = "import haq haq.npy MODEL.onnx --batch 16 --device 'an FPGA' --out NEW.json --json"
    answer = call(line)
    assert (answer.status, answer.err) == (0, "")
    table = CostTable.read(folder / "NEW.json")
    assert (answer.json["unit"], table.unit) == ("cycles", Unit.CYCLES)
    assert answer.json["layers"] == list(LAYERS)
    assert answer.json["choices"] == [f"w{w}a{a}" for w in range(2, 9) for a in range(2, 9)]
    source = answer.json["source"]
    assert source == dict(table.source)
    assert (source["file"], source["batch"], source["device"]) == ("haq.npy", 16, "an FPGA")
    assert re.fullmatch("[0-9a-f]{64}", source["sha256"])


def test_people_are_told_what_was_checked_left_out_and_assumed(call: Call) -> None:
    out = call("import haq haq.npy MODEL.onnx --batch 16 --out NEW.json").out
    assert "latency in cycles (model) of 3 layers at 49 choices; checked: number of layers" in out
    assert "left out, since no choice has such bits: w1, a1" in out
    assert "note: glue and conversions cost 0: the file has no such term" in out
    assert "note: one run is of a batch of 16" in out


@pytest.mark.parametrize(
    "line",
    [
        "haq haq.npy MODEL.onnx",
        "hawq hawq.json MODEL.onnx",
        "csv costs.csv MODEL.onnx --provenance measured",
    ],
)
def test_the_commands_that_it_proposes_work(call: Call, line: str) -> None:
    told = call(f"import {line} --out NEW.json").out
    commands = dict(re.findall(r"^(price it|search with it): quantmeter (.*)$", told, re.MULTILINE))
    priced = call(commands["price it"])
    assert (priced.status, priced.err) == (0, "")
    assert "total: " in priced.out
    searched = call(f"{commands['search with it']} --method exact --out RUN --anew")
    assert (searched.status, searched.err) == (0, "")
    assert "latency: predicted" in searched.out


def test_every_layer_may_be_priced_at_the_same_bits(call: Call) -> None:
    cost = "cost MODEL.onnx --cost table:T.json --metric latency"
    assert call(f"{cost} --policy w8a8 --json").json["total"] == 6000 * 64
    assert call(f"{cost} --policy w2a3 --json").json["total"] == 6000 * 6
    assert (
        "total: 384,000 cycles, analytical by others (haq), not measured"
        in call(f"{cost} --policy w8a8").out
    )


def test_what_a_table_does_not_price_is_no_cost_of_zero(call: Call) -> None:
    answer = call("cost MODEL.onnx --cost table:T.json --metric latency")
    assert answer.status == 2
    assert "the table holds no w32a32; it holds w2a2, w2a3" in answer.err
    assert answer.err.endswith(
        "and 37 more; choose with --policy POLICY.json or bits such as w8a8\n"
    )


def test_a_table_may_be_written_as_csv(call: Call, folder: Path) -> None:
    assert call("import haq haq.npy MODEL.onnx --out T.csv").status == 0
    assert CostTable.read(folder / "T.csv").unit is Unit.CYCLES
    again = call("import csv T.csv MODEL.onnx --out T2.json")
    assert (again.status, "a table already: --cost table:" in again.err) == (2, True)


def test_what_others_measured_is_not_called_measured_here(call: Call) -> None:
    call("import hawq hawq.json MODEL.onnx --out NEW.json")
    answer = call("cost MODEL.onnx --cost table:NEW.json --metric latency --policy w4a4")
    assert "total: 6.00 ms, measured by others (hawq)" in answer.out
    assert "note: measured by others on chip, not here" in answer.out
    drifted = call("drift MODEL.onnx NEW.json")
    assert (drifted.status, "only measured tables drift" in drifted.err) == (2, True)


def test_the_help_of_csv_shows_the_layout(call: Call) -> None:
    answer = call("import csv --help")
    assert answer.status == 0
    assert "    layer,choice,value\n    stem,w8a8,12.5\n" in answer.out


def test_a_search_finds_the_optimum_of_an_imported_table_within_a_budget_in_cycles(
    call: Call,
) -> None:
    line = "search MODEL.onnx --data DATA.npz --cost table:T.json --choices w2a8,w4a8,w8a8"
    answer = call(f"{line} --method exact --budget latency=0.2Mcycles --out RUN --anew --json")
    assert (answer.status, answer.err) == (0, "")
    budget = answer.json["budgets"]["latency"]
    assert (budget["limit"], budget["unit"]) == (200_000, "cycles")
    layers = answer.json["best"]["policy"]["layers"]
    cost = sum(1000 * i * 8 * BitWidths.parse(layers[n]).weights for i, n in enumerate(LAYERS, 1))
    assert answer.json["best"]["costs"]["latency"] == cost <= 200_000
    assert answer.json["float"]["latency"] is None
    told = call(f"{line} --method exact --budget latency=0.2Mcycles --out RUN").out
    assert f"latency: predicted {cost:,} cycles of 200,000 cycles" in told


def test_bits_for_other_hardware_are_searched_without_an_export(call: Call, folder: Path) -> None:
    call("import hawq hawq.json MODEL.onnx --out NEW.json")
    line = "search MODEL.onnx --data DATA.npz --cost table:NEW.json --choices w4a4,w8a8 --out RUN"
    answer = call(
        f"{line} --anew --no-export --method exact --budget latency=7ms --tie stem,head --json"
    )
    assert (answer.status, answer.err) == (0, "")
    assert answer.json["best"]["policy"]["layers"] == {
        "stem": "w4a4",
        "mix": "w4a4",
        "head": "w4a4",
    }
    assert "size" not in answer.json["best"]["costs"]
    told = call(f"{line} --anew --no-export --episodes 5 --budget latency=9ms")
    assert (told.status, told.err) == (0, "")
    assert "quantmeter bench" not in told.out
    assert Policy.read(folder / "RUN" / "policy.json").layers.keys() == set(LAYERS)


SEARCH = "search MODEL.onnx --data DATA.npz --cost table:T.json --choices w4a8,w8a8 --out NEW"
BAD = {
    "no format": ("import", "FORMAT"),
    "another format": ("import onnx haq.npy MODEL.onnx --out X.json", "onnx"),
    "missing file": ("import haq absent.npy MODEL.onnx --out X.json", "absent.npy: No such file"),
    "missing model": ("import haq haq.npy absent.onnx --out X.json", "no such file: absent.onnx"),
    "no output": ("import haq haq.npy MODEL.onnx", "--out"),
    "output over the file": ("import haq haq.npy MODEL.onnx --out haq.npy", "would be overwritten"),
    "output over the model": (
        "import haq haq.npy MODEL.onnx --out MODEL.onnx",
        "would be overwritten",
    ),
    "another number of layers": (
        "import haq longer.npy MODEL.onnx --out X.json",
        "longer.npy: 4 layers in the file, 3 in the network",
    ),
    "another network": (
        "import hawq other.json MODEL.onnx --out X.json",
        "other.json: it is of another network: multiply-accumulates differ at 1 of 3 layers: 'mix'",
    ),
    "pickled objects": ("import haq objects.npy MODEL.onnx --out X.json", "are not loaded"),
    "a file cut short": ("import haq short.npy MODEL.onnx --out X.json", "no .npy array"),
    "JSON as an array": ("import haq hawq.json MODEL.onnx --out X.json", "no .npy array"),
    "an array as JSON": ("import hawq haq.npy MODEL.onnx --out X.json", "haq.npy: no JSON"),
    "an array as CSV": ("import csv haq.npy MODEL.onnx --out X.json", "haq.npy: no text in UTF-8"),
    "no unit": ("import csv bare.csv MODEL.onnx --out X.json", "does not say its unit"),
    "a unit that is none": (
        "import haq haq.npy MODEL.onnx --unit h --out X.json",
        "'h' is no unit",
    ),
    "a contradiction": (
        "import csv costs.csv MODEL.onnx --unit us --out X.json",
        "the unit is kcycles in the file and us as given",
    ),
    "an unknown layer": (
        "import haq haq.npy MODEL.onnx --without stemm --out X.json",
        "no layer 'stemm' in this network.*did you mean 'stem'",
    ),
    "no batch": ("import haq haq.npy MODEL.onnx --batch 0 --out X.json", "no positive number"),
    "a budget in seconds": (
        f"{SEARCH} --budget latency=8ms",
        r"latency=0.008s cannot be compared with a table in cycles; write for example "
        r"latency=20Mcycles \(uniform w8a8 costs 384,000 cycles\)",
    ),
    "a fraction of what has no price": (
        f"{SEARCH} --budget latency=0.7x",
        r"latency=0.7x is a fraction of the float model, which its table does not price; write for "
        r"example latency=20Mcycles \(uniform w8a8 costs 384,000 cycles\)",
    ),
    "cycles of energy": (f"{SEARCH} --budget energy=8Mcycles", "is no energy"),
    "a budget that cannot be met": (
        f"{SEARCH} --budget latency=9kcycles",
        "latency budget 9,000 cycles cannot be met; the minimum reachable is 192,000 cycles",
    ),
    "what only cannot be exported": (
        f"{SEARCH.replace('w4a8', 'w4a4')} --budget latency=99kcycles",
        "minimum reachable is 384,000 cycles; w4a4 cannot be exported here: --no-export allows",
    ),
    "a size without an export": (
        f"{SEARCH} --no-export --budget size=2MB",
        "nothing prices size; it is the exported file's, and --no-export means",
    ),
    "nothing priced": (
        "search MODEL.onnx --data DATA.npz --no-export --out NEW",
        "nothing is priced",
    ),
    "cycles as a prediction of seconds": (
        "bench MODEL.onnx EIGHT.json --vs w8a8 --cost table:T.json",
        "table:T.json is in cycles and does not price the float network: it predicts nothing that",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(call: Call, folder: Path, name: str) -> None:
    line, message = BAD[name]
    answer = call(line)
    assert answer.status == 2
    assert answer.out == ""
    assert answer.err.startswith("quantmeter: error: ")
    assert answer.err.count("\n") == 1
    assert re.search(message, answer.err), answer.err
    assert not (folder / "X.json").exists()


def test_in_python_the_same_table_comes_from_one_call(call: Call, folder: Path) -> None:
    call("import haq haq.npy MODEL.onnx --out NEW.json")
    table = quantmeter.import_table("haq", folder / "haq.npy", folder / "MODEL.onnx")
    assert table.to_json() == (folder / "NEW.json").read_text()


TABLES = {"CYCLES": (Unit.CYCLES, 6000.0), "SECONDS": (Unit.SECONDS, 6e-3)}
"""What uniform 8 bits, and the float network, cost by each."""


def test_a_table_in_cycles_and_one_in_seconds_are_never_one_latency(call: Call) -> None:
    answer = call(
        "cost MODEL.onnx --cost table:CYCLES.json --cost table:SECONDS.json --metric latency"
    )
    assert (answer.status, "two backends for latency" in answer.err) == (2, True)


@pytest.mark.parametrize("name", TABLES)
def test_a_cost_is_told_with_the_unit_of_its_table(
    call: Call, folder: Path, network: Network, name: str
) -> None:
    unit, total = TABLES[name]
    costs = parse_costs([f"table:{folder / name}.json"], BackendContext())
    assert costs.float_reference(network, Metric.LATENCY) == pytest.approx(total)
    told = call(f"cost MODEL.onnx --cost table:{name}.json --metric latency --json").json
    assert (told["unit"], told["total"]) == (unit.value, pytest.approx(total))


@pytest.fixture(scope="module")
def bench(folder: Path) -> Workbench:
    return open_workbench(folder / "MODEL.onnx", folder / "DATA.npz")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(TABLES)),
    st.floats(1e-6, 1e12),
    st.sampled_from(["cycles", "kcycles", "Mcycles", "s", "ms", "us", "ns"]),
)
def test_a_budget_in_another_unit_than_the_table_is_never_compared(
    bench: Workbench, folder: Path, name: str, value: float, unit: str
) -> None:
    costs = parse_costs([f"table:{folder / name}.json"], BackendContext())
    [budget] = parse_budgets([f"latency={value!r}{unit}"])
    choices = parse_choices("w8a8,w32a32")
    if budget.unit is not TABLES[name][0]:
        with pytest.raises(BudgetError, match="cannot be compared with a table in"):
            prepare(bench, costs, [budget], choices)
    elif budget.value < TABLES[name][1] * (1 - 1e-6):
        with pytest.raises(BudgetError, match="cannot be met"):
            prepare(bench, costs, [budget], choices)


@pytest.mark.parametrize("name", TABLES)
def test_a_fraction_of_float_is_one_in_any_unit(bench: Workbench, folder: Path, name: str) -> None:
    costs = parse_costs([f"table:{folder / name}.json"], BackendContext())
    choices = parse_choices("w8a8,w32a32")
    problem = prepare(bench, costs, parse_budgets(["latency=1.5x"]), choices).problem
    assert problem.budgets[Metric.LATENCY] == pytest.approx(1.5 * TABLES[name][1])


def test_a_prediction_in_cycles_is_a_ratio_and_no_time(bench: Workbench, folder: Path) -> None:
    for name, seconds in (("CYCLES", None), ("SECONDS", pytest.approx(6e-3))):
        costs = parse_costs([f"table:{folder / name}.json"], BackendContext())
        [only] = benchmark(bench, {}, costs=costs, rivals=["w8a8"], blocks=6, score=False).results
        assert only.predicted_s == seconds
        assert only.predicted_ratio_to_float == pytest.approx(1.0)
