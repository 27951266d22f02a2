"""Whether a table still holds, judged on made-up timings of the example network."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.context import Context
from costmodels.errors import TableError
from costmodels.measurement import Device, Measurement
from costmodels.registry import backend
from costmodels.sketch import Sketch, example_network
from costmodels.table import Cells, CostTable, Once, Provenance
from costmodels.units import Metric
from hil.calibration import Timed
from hil.design import Pattern
from hil.device import detect
from hil.drift import Answer
from quantization.bits import DEFAULT_CHOICES
from quantmeter.drifting import OLD_S, DriftCheck, check_old_tables, drift, is_old

NETWORK = example_network()
LAYERS = len(NETWORK.layers)
NOISE = 0.01


@dataclass
class Machine:
    """Each integer layer saves a share of its own of the float network's time.

    Args:
        slower: factor of every time.
        integer_slower: factor of what runs as integers.
    """

    slower: float = 1.0
    integer_slower: float = 1.0
    timed: list[Pattern] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = np.random.default_rng(7)

    def measure(self, pattern: Pattern, _seed: int) -> Timed:
        self.timed.append(pattern)
        shares = np.arange(1, LAYERS + 1) / (LAYERS * (LAYERS + 1))
        ratio = 1 - float(shares[pattern].sum()) * (2 - 1.2 * self.integer_slower)
        ratio *= float(np.exp(0.2 * NOISE * self._draw.standard_normal()))
        policy = Measurement("policy", (1e-3 * self.slower * ratio,))
        return Timed(pattern, ratio, policy, Measurement("float", (1e-3 * self.slower,)), 0.1)


def made_table(**source: Any) -> CostTable:
    """A table of the example network with every part, timed on a quiet machine a moment ago."""
    plain = backend("analytical:haq").table(NETWORK, DEFAULT_CHOICES, Metric.LATENCY)
    then = Machine()
    timed = [
        then.measure(np.array(integer), 0)
        for integer in itertools.islice(itertools.product([True, False], repeat=LAYERS), 60)
    ]
    marked = np.zeros(plain.unary.value.shape, np.bool_)
    marked[0, 0] = True
    return replace(
        plain,
        unary=Cells.of(
            plain.unary.value,
            Provenance.CALIBRATED,
            uncertainty=0.1 * np.where(plain.supported, plain.unary.value, 0.0),
        ),
        constant=2.0,
        once=Once(3.0, marked),
        context=Context(np.array([[0, 1, -1], [2, 3, 4]], np.int16), np.array([0.5, -0.25])),
        source={
            "device": detect().to_dict(),
            "runtime": {"threads": 1},
            "reading_noise": NOISE,
            "created_s": 1e9,
            **source,
        },
        measurements=[
            {
                "integer_layers": t.pattern.tolist(),
                "ratio_to_float": t.ratio,
                "policy": t.measurement.to_dict(),
                "float": t.reference.to_dict(),
            }
            for t in timed
        ],
    )


def elsewhere() -> Device:
    return replace(detect(), cpu="another CPU")


def check(table: CostTable | Path, machine: Machine, threads: int = 1) -> DriftCheck:
    return drift(NETWORK, table, threads=threads, measure=machine.measure)


def test_a_table_that_holds_is_returned_as_it_was() -> None:
    table, machine = made_table(), Machine()
    found = check(table, machine)
    assert found.drift.answer is Answer.UNCHANGED
    assert found.table is table
    assert found.noise == NOISE, "the larger one of that of the calibration and that of now"
    assert [pattern.any() for pattern in machine.timed] == [False] * 4 + [True] * 10


def test_a_table_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "T.json").write_text(made_table().to_json())
    found = check(tmp_path / "T.json", Machine())
    assert found.drift.answer is Answer.UNCHANGED
    assert found.table.layers == NETWORK.layer_names


def test_a_slower_machine_gets_every_part_of_the_table_times_the_factor() -> None:
    table = made_table()
    found = check(table, Machine(slower=1.5))
    assert str(found.drift) == "rescale by 1.5"
    new, factor = found.table, found.drift.scale
    assert factor == pytest.approx(1.5)
    for name in ("unary", "glue", "conversion"):
        old_cells, new_cells = getattr(table, name), getattr(new, name)
        np.testing.assert_allclose(new_cells.value, old_cells.value * factor)
    assert table.unary.uncertainty is not None
    np.testing.assert_allclose(new.unary.uncertainty, table.unary.uncertainty * factor)
    assert table.once is not None
    assert new.once is not None
    assert new.once.value == pytest.approx(table.once.value * factor)
    assert table.context is not None
    assert new.context is not None
    np.testing.assert_allclose(new.context.values, table.context.values * factor)
    assert new.constant == pytest.approx(table.constant * factor)
    assert new.source["rescaled"] == factor
    assert list(new.measurements) == list(table.measurements)


def test_a_rescaled_table_holds_and_is_not_rescaled_again() -> None:
    rescaled = CostTable.from_json(check(made_table(), Machine(slower=1.5)).table.to_json())
    again = check(rescaled, Machine(slower=1.5))
    assert again.drift.answer is Answer.UNCHANGED
    assert again.drift.scale == pytest.approx(1.0)
    back = check(rescaled, Machine())
    assert back.drift.scale == pytest.approx(1 / 1.5)
    np.testing.assert_allclose(back.table.unary.value, made_table().unary.value)


def test_a_table_whose_ratios_moved_is_not_changed() -> None:
    table = made_table()
    found = check(table, Machine(integer_slower=1.3, slower=2.0))
    assert found.drift.answer is Answer.RECALIBRATE
    assert found.table is table


def test_a_change_within_the_held_out_error_of_the_table_means_nothing() -> None:
    machine = Machine(integer_slower=1.1)
    assert check(made_table(), machine).drift.answer is Answer.RECALIBRATE
    rough = made_table(validation={"table": {"mean_absolute": 0.1}})
    assert check(rough, machine).drift.answer is Answer.UNCHANGED


def refused() -> dict[str, CostTable]:
    other = Sketch()
    network = other.network(other.conv(other.input((1, 3, 4, 4)), 4, name="only"))
    return {
        "of another network": backend("analytical:haq").table(
            network, DEFAULT_CHOICES, Metric.LATENCY
        ),
        "measured on another CPU with onnxruntime": made_table(device=elsewhere().to_dict()),
        "was not measured": made_table(device=None),
        "was not measured; only": made_table(device={"cpu": "half a device"}),
        "measured with 4 threads, not 1": made_table(runtime={"threads": 4}),
        "measured with None threads": made_table(runtime=None),
        "holds 0 timed policies, 10 are needed": replace(made_table(), measurements=()),
        "no policies timed beside": replace(made_table(), measurements=[{"samples_s": [1.0]}]),
    }


@pytest.mark.parametrize("message", refused())
def test_a_table_that_cannot_be_checked_here_is_refused_before_anything_is_timed(
    message: str,
) -> None:
    machine = Machine()
    with pytest.raises(TableError, match=message) as found:
        check(refused()[message], machine)
    assert "\n" not in str(found.value)
    assert machine.timed == []


def test_only_tables_of_this_device_get_old() -> None:
    here = detect()
    table = made_table(created_s=1000.0)
    assert not is_old(table, 1000.0 + OLD_S, here)
    assert is_old(table, 1001.0 + OLD_S, here)
    assert is_old(table, 1001.0 + OLD_S)
    assert is_old(table), "now is later than 1970"
    assert not is_old(table, 1001.0 + OLD_S, elsewhere())
    assert not is_old(table, 1001.0 + OLD_S, replace(here, runtime_version="0.1"))


@pytest.mark.parametrize(
    "source",
    [
        {"created_s": None},
        {"created_s": "yesterday"},
        {"device": None},
        {"device": {"cpu": "half a device"}},
        {"device": {**detect().to_dict(), "runtime": "a-runtime-that-is-not-installed"}},
    ],
)
def test_a_table_that_does_not_say_when_and_where_never_gets_old(source: dict[str, Any]) -> None:
    assert not is_old(made_table(**source), 1e12)


def look(costs: Sequence[str], machine: Machine) -> dict[str, DriftCheck]:
    return check_old_tables(
        NETWORK,
        costs,
        data=None,
        threads=1,
        seed=0,
        progress=lambda _share, _what: None,
        measure=machine.measure,
    )


def test_among_all_costs_only_old_tables_measured_here_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tables = {
        "old.json": made_table(),
        "slow.json": made_table(),
        "new.json": made_table(created_s=1e12),
        "there.json": made_table(device=elsewhere().to_dict()),
        "plain.json": backend("analytical:haq").table(NETWORK, DEFAULT_CHOICES, Metric.LATENCY),
    }
    for name, table in tables.items():
        Path(name).write_text(table.to_json())
    Path("old.csv").write_text(made_table().to_csv())
    machine = Machine(slower=1.5)
    others = ["ort", "energy=analytical:haq", "table:new.json", "table:there.json"]
    others += ["table:plain.json", "table:old.csv", "latency=table:old.csv"]
    assert look(others, machine) == {}
    assert machine.timed == []
    found = look([*others, "table:old.json", "latency=table:slow.json"], machine)
    assert list(found) == ["old.json", "slow.json"]
    assert {str(each.drift) for each in found.values()} == {"rescale by 1.5"}


def test_an_old_table_that_is_missing_or_none_is_the_usual_error(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(TableError, match=r"absent\.json: No such file"):
        look([f"table:{tmp_path / 'absent.json'}"], Machine())
    with pytest.raises(TableError, match="no cost table"):
        look([f"table:{tmp_path / 'none.json'}"], Machine())
