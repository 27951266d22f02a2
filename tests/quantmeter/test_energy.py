"""Where a figure of energy appears it says whether it was measured, and if not, who says so."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from costmodels.cells import Cells, Provenance
from costmodels.model import BackendContext
from costmodels.provenance import said_of
from costmodels.registry import backend
from costmodels.units import Metric
from hil.energy import MeasuredEnergy, NotMeasured, Repeat
from hil.energy_bench import Energies, EnergyJob
from quantization.bits import DEFAULT_CHOICES, BitWidths
from quantization.policy import Policy
from quantmeter.benchmarking import Benchmark, benchmark
from quantmeter.commands.bench import print_energy
from quantmeter.costs import parse_costs
from quantmeter.workbench import Workbench, open_workbench
from tests.networks import Subject

REASON = "there is no RAPL (no /sys/class/powercap/intel-rapl; virtual machines hide it)"
ANALYTICAL = "analytical (haq: the numbers that texts on hardware-aware quantization print)"
ONE = Repeat((2e-3,), (25.0,), (10.0,), (10.0,), 500, 1.0, 60, 1e-5)


def _absent(_job: EnergyJob) -> NotMeasured:
    return NotMeasured(REASON)


def _synthetic(job: EnergyJob) -> Energies:
    repeats = tuple(replace(ONE, energy_j=(j,)) for j in (2.0e-3, 2.1e-3, 1.9e-3))
    found = MeasuredEnergy(("package-0",), repeats, (1e-3,), "synthetic")
    refused = NotMeasured("idle power drifted by 30 W around a window")
    return {name: refused if name == "w8a8" else found for name in job.models}


@pytest.fixture(scope="module")
def bench(small: Subject) -> Workbench:
    return open_workbench(small.network)


@pytest.fixture(scope="module")
def policies(small: Subject) -> dict[str, Policy]:
    return {"p.json": Policy({small.network.layer_names[1]: BitWidths(4, 8)})}


@pytest.fixture(scope="module")
def found(bench: Workbench, policies: dict[str, Policy]) -> Benchmark:
    costs = parse_costs(["energy=analytical:haq"], BackendContext())
    return benchmark(bench, policies, costs=costs, blocks=6, energy=True, take=_absent)


@pytest.fixture(scope="module")
def measured(bench: Workbench, policies: dict[str, Policy]) -> Benchmark:
    return benchmark(bench, policies, blocks=6, energy=True, take=_synthetic)


def _printed(found: Benchmark) -> str:
    screen = Console(file=io.StringIO(), width=150, highlight=False)
    print_energy(found, screen)
    text = screen.file
    assert isinstance(text, io.StringIO)
    return text.getvalue()


def test_without_a_counter_the_reason_is_printed_and_the_model_labelled(found: Benchmark) -> None:
    lines = _printed(found).splitlines()
    assert lines[0] == f"energy: not measurable here, because {REASON}"
    assert len(lines) == 1 + len(found.results)
    for line in lines[1:]:
        assert re.fullmatch(
            r"energy of (p\.json|float|w8a8): [0-9.]+ [mµn]?J, "
            + re.escape(ANALYTICAL)
            + ", not measured",
            line,
        ), line


def test_without_a_counter_the_json_says_the_same(found: Benchmark) -> None:
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["energy"] == {
        "measured": False,
        "reason": f"not measurable here, because {REASON}",
        "modelled": f"{ANALYTICAL}, not measured",
    }
    for result in content["results"]:
        energy = result["energy"]
        assert energy["measured"] == {"provenance": "absent", "reason": REASON}
        assert energy["modelled"]["energy_j"] > 0
        assert energy["modelled"]["provenance"] == f"{ANALYTICAL}, not measured"


def test_a_measured_energy_has_its_interval_beside_the_latency(measured: Benchmark) -> None:
    text = _printed(measured)
    assert "Energy per run, measured, idle subtracted" in text
    row = next(line for line in text.splitlines() if "p.json" in line)
    assert "2.00 mJ" in row
    assert "[1.74 mJ, 2.26 mJ]" in row
    assert "25 W" in row
    assert "not measured: idle power drifted by 30 W" in text
    assert "analytical" not in text
    content = measured.to_dict()
    assert content["energy"] == {"measured": True, "reason": None, "modelled": None}
    entry = next(r for r in content["results"] if r["policy"] == "p.json")["energy"]
    assert entry["measured"]["provenance"] == "measured"
    assert entry["measured"]["low_j"] < 2e-3 < entry["measured"]["high_j"]
    assert entry["modelled"] is None


def test_energy_that_nobody_asked_for_is_not_there(
    bench: Workbench, policies: dict[str, Policy]
) -> None:
    content = benchmark(bench, policies, rivals=(), blocks=6, score=False).to_dict()
    assert content["energy"] is None
    assert "energy" not in content["results"][0]


def test_a_table_says_how_its_costs_came_to_be(small: Subject) -> None:
    model = backend("analytical:haq")
    table = model.table(small.network, (BitWidths(8, 8),), Metric.ENERGY)
    assert said_of(table) == f"{ANALYTICAL}, not measured"
    guessed = model.table(small.network, DEFAULT_CHOICES, Metric.LATENCY)
    assert said_of(guessed).startswith("analytical and assumed (haq: ")
    timed = Cells.of(table.unary.value, Provenance.MEASURED)
    measured = replace(table, unary=timed, source={"backend": "ort"})
    assert said_of(measured) == "measured (ort)"
