"""Whether a table still holds, judged on made-up timings of the example network."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.context import Context
from costmodels.errors import BackendError, TableError
from costmodels.measurement import Device, Measurement
from costmodels.registry import backend
from costmodels.sketch import Sketch, example_network
from costmodels.table import Cells, CostTable, Once, Provenance
from costmodels.units import Metric
from hil.calibration import Measure, Timed
from hil.design import Pattern
from hil.device import detect
from hil.judgement import Answer
from hil.providers import CUDA
from hil.store import OLD_S
from quantization.bits import DEFAULT_CHOICES
from quantmeter import drifting
from quantmeter.drifting import Checked, DriftCheck, check_tables, drift, is_old, remark_on

NETWORK = example_network()
LAYERS = len(NETWORK.layers)
NOISE = 0.01


@dataclass
class Machine:
    """Each integer layer saves a share of its own of the float network's time.

    Args:
        slower: factor of every time.
        integer_slower: factor of what runs as integers.
        lasts_s: how long a reading takes, the first of them twelve seconds more.
        disturbed: number of a reading in which the policy takes 1.5 times as long.
    """

    slower: float = 1.0
    integer_slower: float = 1.0
    lasts_s: float = 0.3
    disturbed: int | None = None
    now: float = 0.0
    timed: list[Pattern] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._draw = np.random.default_rng(7)

    def clock(self) -> float:
        return self.now

    def measure(self, pattern: Pattern, _seed: int) -> Timed:
        self.now += self.lasts_s + (0.0 if self.timed else 12.0)
        self.timed.append(pattern)
        shares = np.arange(1, LAYERS + 1) / (LAYERS * (LAYERS + 1))
        ratio = 1 - float(shares[pattern].sum()) * (2 - 1.2 * self.integer_slower)
        ratio *= float(np.exp(0.2 * NOISE * self._draw.standard_normal()))
        ratio *= 1.5 if len(self.timed) - 1 == self.disturbed else 1.0
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


GPU = "a GPU, driver 1"


def of_a_gpu() -> CostTable:
    table = made_table(backend="ort:cuda", device=detect(accelerator=GPU).to_dict())
    halves = [
        {"half_layers" if k == "integer_layers" else k: v for k, v in each.items()}
        for each in table.measurements
    ]
    return replace(table, measurements=halves)


def test_a_table_of_a_gpu_is_checked_on_that_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drifting, "find_provider", lambda _name: (CUDA, GPU))
    table, machine, asked = of_a_gpu(), Machine(), list[tuple[object, ...]]()

    class Live:
        def __init__(self, _context: object, *given: object) -> None:
            asked.append(given)

        def measure(self, _network: object) -> Measure:
            return machine.measure

    monkeypatch.setattr(drifting, "OrtLive", Live)
    assert drift(NETWORK, table, clock=machine.clock).drift.answer is Answer.UNCHANGED
    assert asked == [(CUDA, GPU)]
    assert is_old(table, 1e9 + 2 * OLD_S)
    monkeypatch.setattr(drifting, "find_provider", lambda _name: (CUDA, "another GPU"))
    with pytest.raises(TableError, match=r"measured on .* and a GPU, driver 1 .* and another GPU"):
        drift(NETWORK, table, clock=machine.clock)


def test_a_table_of_a_gpu_was_measured_elsewhere_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(_name: str) -> None:
        raise BackendError("no such device")

    monkeypatch.setattr(drifting, "find_provider", absent)
    assert not is_old(of_a_gpu(), 1e9 + 2 * OLD_S)
    assert f"and {GPU} with onnxruntime" in remark_on(of_a_gpu(), 1)


def check(table: CostTable | Path, machine: Machine, threads: int = 1) -> DriftCheck:
    return drift(NETWORK, table, threads=threads, measure=machine.measure, clock=machine.clock)


def test_a_table_that_holds_is_returned_as_it_was() -> None:
    table, machine = made_table(), Machine()
    found = check(table, machine)
    assert found.drift.answer is Answer.UNCHANGED
    assert found.table is table
    assert found.noise == NOISE, "the larger one of that of the calibration and that of now"
    assert [pattern.any() for pattern in machine.timed] == [False] * 4 + [True] * 10


def test_the_readings_of_a_slow_network_end_in_time_without_the_start_of_the_worker() -> None:
    machine = Machine(lasts_s=0.7)
    found = check(made_table(), machine)
    assert (found.drift.answer, found.drift.probes) == (Answer.UNCHANGED, 10)
    assert [pattern.any() for pattern in machine.timed] == [False] * 3 + [True] * 10
    assert machine.now <= 12.7 + 10


def test_of_a_slower_network_fewer_policies_are_timed_and_the_answer_says_so() -> None:
    machine = Machine(lasts_s=2.0, slower=1.5)
    found = check(made_table(), machine)
    assert (str(found.drift), found.drift.probes) == ("rescale by 1.5", 4)
    assert "in the median of 4 policies, 10 would have taken too long" in found.drift.grounds
    assert [pattern.any() for pattern in machine.timed] == [False] * 2 + [True] * 4
    assert machine.now <= 14 + 10
    with pytest.raises(BackendError, match="enough for 2 probes only; 3 are needed"):
        check(made_table(), Machine(lasts_s=3.0))


@pytest.mark.parametrize("lasts_s", [0.3, 0.7, 2.0])
@pytest.mark.parametrize("disturbed", [0, 1])
def test_one_disturbed_reading_of_the_float_network_does_not_widen_the_limits(
    lasts_s: float, disturbed: int
) -> None:
    found = check(made_table(), Machine(lasts_s=lasts_s, disturbed=disturbed))
    assert found.noise == NOISE


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


def look(costs: Sequence[str], machine: Machine, *, old: bool = True) -> dict[str, Checked]:
    return check_tables(NETWORK, costs, old=old, measure=machine.measure, clock=machine.clock)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, CostTable]:
    """Tables in files of the current folder, by name."""
    monkeypatch.chdir(tmp_path)
    tables = {
        "old.json": made_table(),
        "slow.json": made_table(),
        "new.json": made_table(created_s=1e12),
        "there.json": made_table(device=elsewhere().to_dict()),
        "threads.json": made_table(runtime={"threads": 7}),
        "plain.json": backend("analytical:haq").table(NETWORK, DEFAULT_CHOICES, Metric.LATENCY),
    }
    for name, table in tables.items():
        Path(name).write_text(table.to_json())
    Path("old.csv").write_text(made_table().to_csv())
    return tables


@pytest.mark.usefixtures("stored")
def test_among_all_costs_only_old_tables_measured_here_are_timed() -> None:
    machine = Machine(slower=1.5)
    others = ["ort", "energy=analytical:haq", "table:new.json", "table:there.json"]
    others += ["table:plain.json", "table:old.csv", "latency=table:old.csv", "table:threads.json"]
    found = look(others, machine)
    assert machine.timed == []
    assert {name: each.remark for name, each in found.items() if not each.remark} == {
        "new.json": "",
        "plain.json": "",
    }
    assert found["there.json"].remark.startswith("measured on another CPU with onnxruntime")
    assert found["threads.json"].remark == "measured with 7 threads, not 1; used as it is"
    assert found["old.csv"].remark.startswith("not checked, used as it is: ")
    found = look([*others, "table:old.json", "latency=table:slow.json"], machine)
    rescaled = [found[name] for name in ("old.json", "slow.json")]
    assert all(each.remark.startswith("rescale by 1.5 (") for each in rescaled)
    assert all("rescaled for this command" in each.remark for each in rescaled)
    factors = [each.table.source["rescaled"] for each in rescaled]
    assert factors == pytest.approx([1.5, 1.5])


@pytest.mark.usefixtures("stored")
def test_without_a_check_an_old_table_passes_and_a_foreign_one_is_told() -> None:
    machine = Machine()
    found = look(["table:old.json", "table:there.json"], machine, old=False)
    assert machine.timed == []
    assert found["old.json"].remark == ""
    assert "another CPU" in found["there.json"].remark


def test_a_check_that_cannot_be_made_is_told_and_the_table_is_used(
    stored: dict[str, CostTable],
) -> None:
    [found] = look(["table:old.json"], Machine(lasts_s=5.0)).values()
    assert found.remark.startswith("not checked, used as it is: ")
    assert "too slow to be checked" in found.remark
    assert found.table.to_json() == stored["old.json"].to_json()


def test_a_table_whose_ratios_moved_is_used_as_it_is(stored: dict[str, CostTable]) -> None:
    [found] = look(["table:old.json"], Machine(integer_slower=1.3)).values()
    assert found.remark.startswith("recalibrate (")
    assert found.remark.endswith("used as it is")
    assert found.table.to_json() == stored["old.json"].to_json()


def test_a_table_of_another_network_is_the_usual_error(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(replace(made_table(), network="0" * 64).to_json())
    with pytest.raises(TableError, match="of another network"):
        look([f"table:{path}"], Machine())


def test_what_is_said_of_a_table_names_days_device_or_threads() -> None:
    now = 1000.0 + 3 * OLD_S
    table = made_table(created_s=1000.0)
    advice = "quantmeter drift tells whether it holds"
    assert remark_on(table, 1, now) == f"measured 3 days ago; {advice}"
    assert remark_on(table, 1, 1001.0 + OLD_S) == f"measured 1 day ago; {advice}"
    assert remark_on(replace(table, measurements=()), 1, now) == "measured 3 days ago"
    assert remark_on(table, 1, 1000.0 + OLD_S) == ""
    assert remark_on(table, 2, now) == "measured with 1 thread, not 2; used as it is"
    assert remark_on(made_table(device=None), 2, now) == ""
    older = replace(detect(), runtime_version="0.1").to_dict()
    assert "onnxruntime 0.1, this is" in remark_on(made_table(device=older), 1)
    fewer = replace(detect(), isa=("sse4_1",)).to_dict()
    assert "(sse4_1), this is" in remark_on(made_table(device=fewer), 1)


def test_an_old_table_that_is_missing_or_none_is_the_usual_error(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{}")
    with pytest.raises(TableError, match=r"absent\.json: No such file"):
        look([f"table:{tmp_path / 'absent.json'}"], Machine())
    with pytest.raises(TableError, match="no cost table"):
        look([f"table:{tmp_path / 'none.json'}"], Machine())
