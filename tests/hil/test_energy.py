"""Energy per run from counters that are synthetic, replayed, or (where there are any) real."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.errors import CostError
from hil.counters import measurable, open_meter
from hil.energy import EnergyOptions, MeasuredEnergy, NotMeasured, Repeat, measure_energy
from hil.energy_windows import find_pace
from hil.meters import Counter, EnergyError, Meter, Part, Reading, ReplayedMeter
from tests.hil.power import BRIEF, TRACE, SyntheticMeter, recording

NET_W = 15.0
RUN_S = 3e-3


def _measure(meter: SyntheticMeter, run_s: float = RUN_S) -> MeasuredEnergy | NotMeasured:
    return measure_energy(meter, {"subject": meter.running(run_s)}, BRIEF)["subject"]


def _measured(meter: SyntheticMeter, run_s: float = RUN_S) -> MeasuredEnergy:
    found = _measure(meter, run_s)
    assert isinstance(found, MeasuredEnergy), found
    return found


@pytest.mark.parametrize("update_s", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("run_s", [2e-5, 3e-4, 3e-3, 2.34e-2])
def test_a_known_energy_is_within_its_interval(run_s: float, update_s: float) -> None:
    found = _measured(SyntheticMeter(update_s=update_s, range_j=None), run_s)
    assert found.low_j <= NET_W * run_s <= found.high_j
    assert found.energy_j == pytest.approx(NET_W * run_s, rel=0.03)
    assert found.intervals_s == pytest.approx((update_s,), rel=0.05)
    assert min(repeat.updates for repeat in found.repeats) >= 50
    assert found.idle_w == pytest.approx(10.0, rel=0.03)


def test_longer_windows_tell_more() -> None:
    meter = SyntheticMeter(range_j=None)
    options = EnergyOptions(repeats=3, window_s=1.0, settle_s=0.01)
    found = measure_energy(meter, {"subject": meter.running(RUN_S)}, options)["subject"]
    assert isinstance(found, MeasuredEnergy)
    assert found.low_j <= NET_W * RUN_S <= found.high_j
    assert found.half_width_j < 0.01 * found.energy_j
    assert _measured(SyntheticMeter()).half_width_j > 0.01 * found.energy_j


def test_a_run_that_outlasts_many_updates_is_measured() -> None:
    found = _measured(SyntheticMeter(range_j=None), 0.8)
    assert found.low_j <= NET_W * 0.8 <= found.high_j
    assert found.repeats[0].runs == 1


def test_the_synthetic_recording_replays_to_the_known_energy() -> None:
    meter = ReplayedMeter.read_file(TRACE)
    assert meter.described.startswith("replayed: synthetic")
    found = measure_energy(meter, {"subject": meter.running(RUN_S)}, BRIEF)["subject"]
    assert isinstance(found, MeasuredEnergy)
    assert found.low_j <= NET_W * RUN_S <= found.high_j
    assert found.energy_j == pytest.approx(_measured(SyntheticMeter()).energy_j, rel=1e-3)
    shown = [reading.joules[0] for reading in meter.readings]
    assert min(np.diff(shown)) < -200, "it wraps"


def test_the_synthetic_recording_is_what_its_maker_writes() -> None:
    assert TRACE.read_text() == recording()


def test_a_recording_that_is_over_says_so() -> None:
    meter = ReplayedMeter.read_file(TRACE)
    meter.advance(100.0)
    with pytest.raises(EnergyError, match=r"the recording ends at [\d.]+ s"):
        meter.read()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2 is not known"),
        ({"readings": []}, "readings in order of time"),
        ({"readings": [[0.2, 1.0], [0.1, 2.0]]}, "readings in order of time"),
        ({"readings": [[0.1, 1.0, 2.0]]}, "as many joules"),
        ({"counters": [{"name": "p", "part": "processor", "range_j": -1.0}]}, "range of -1 J"),
        ({"counters": [{"name": "p", "part": "heater", "range_j": None}]}, "heater"),
        ({"read_s": "soon"}, "no recording"),
    ],
)
def test_a_file_that_is_no_recording_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({**json.loads(TRACE.read_text()), **change}))
    with pytest.raises(EnergyError, match=message):
        ReplayedMeter.read_file(path)
    with pytest.raises(EnergyError, match="No such file"):
        ReplayedMeter.read_file(tmp_path / "none.json")


def test_a_counter_that_wraps_counts_on() -> None:
    straight = _measured(SyntheticMeter(range_j=None, starts_j=257.0))
    wrapped = _measured(SyntheticMeter(range_j=262.0, starts_j=257.0))
    assert wrapped.energy_j == pytest.approx(straight.energy_j, rel=1e-9)


@pytest.mark.parametrize("range_j", [None, 262_143.0])
def test_a_counter_that_is_reset_is_refused(range_j: float | None) -> None:
    meter = SyntheticMeter(range_j=range_j, starts_j=200_000.0)
    runs = 0

    def run() -> None:
        nonlocal runs
        runs += 1
        meter.running(RUN_S)()
        if runs == 15:
            meter.reset()

    found = measure_energy(meter, {"subject": run}, BRIEF)["subject"]
    assert isinstance(found, NotMeasured)
    assert "went back from 200" in found.reason
    assert "reset" in found.reason


def test_readings_so_far_apart_that_wraps_are_lost_are_refused() -> None:
    counter = Counter("package-0", Part.PROCESSOR, 65_532.0)
    assert counter.gained(65_530.0, 3.0, 1.0) == pytest.approx(5.0)
    with pytest.raises(EnergyError, match="could have wrapped twice"):
        counter.gained(65_530.0, 3.0, 40.0)
    with pytest.raises(EnergyError, match="more than hardware can draw"):
        Counter("gpu-0", Part.GPU).gained(0.0, 1e6, 1.0)


def test_a_counter_that_stands_still_is_no_counter() -> None:
    with pytest.raises(EnergyError, match=r"moved 0 times in .*: the counter stands still"):
        find_pace(SyntheticMeter(frozen=lambda _now: True, read_s=1e-3))


def test_a_window_with_too_few_updates_is_refused() -> None:
    meter = SyntheticMeter(frozen=lambda now: now > 0.05)
    found = _measure(meter)
    assert isinstance(found, NotMeasured)
    assert "was updated" in found.reason
    assert "a window needs 50 updates" in found.reason


def test_a_window_waits_for_updates_that_are_missing() -> None:
    drawn = np.random.default_rng(0)
    lost = {n for n in range(5_000) if drawn.random() < 0.4}
    meter = SyntheticMeter(frozen=lambda now: round(now / 1e-3) in lost)
    found = _measured(meter)
    assert min(repeat.updates for repeat in found.repeats) >= 50
    assert found.low_j <= NET_W * RUN_S <= found.high_j


def test_a_counter_that_slows_down_is_refused() -> None:
    meter = SyntheticMeter(frozen=lambda now: now > 0.5 and round(now / 1e-3) % 7 != 0)
    found = _measure(meter)
    assert found == NotMeasured("package-0 was updated each 0.001 s before, and each 0.007 s after")


def test_fewer_than_fifty_updates_or_three_repeats_cannot_be_asked_for() -> None:
    for wrong in ({"updates": 49}, {"repeats": 2}, {"window_s": -1.0}):
        with pytest.raises(CostError, match="3 repeats of 50 updates"):
            replace(BRIEF, **wrong)  # type: ignore[arg-type]


def test_idle_power_that_drifts_by_more_than_the_signal_is_refused() -> None:
    found = _measure(SyntheticMeter(lambda now: 10.0 if now < 0.2 else 40.0))
    assert isinstance(found, NotMeasured)
    assert "idle power drifted by" in found.reason
    assert "keep the machine idle" in found.reason


def test_a_subject_that_draws_less_than_the_idle_machine_is_told_so() -> None:
    found = _measure(SyntheticMeter(load_w=5.0))
    assert isinstance(found, NotMeasured)
    assert found.reason.startswith("it draws no more than the idle machine: 5 W, and idle 9.99 W")
    assert "drifted" not in found.reason


def test_a_counter_that_freezes_after_the_last_window_leaves_a_reason_for_each_subject() -> None:
    def measured(froze_s: float) -> tuple[SyntheticMeter, dict[str, MeasuredEnergy | NotMeasured]]:
        meter = SyntheticMeter(range_j=None, frozen=lambda now: now > froze_s, read_s=1e-4)
        watts = {"light": 20.0, "less": 5.0, "heavy": 40.0}
        subjects = {name: meter.running(RUN_S, drawn) for name, drawn in watts.items()}
        return meter, measure_energy(meter, subjects, BRIEF)

    meter, whole = measured(math.inf)
    assert isinstance(whole["light"], MeasuredEnergy)
    _, found = measured(meter.now - 0.02)  # the last look at its pace takes 21 updates
    assert list(found) == ["light", "less", "heavy"]
    assert found["less"] == whole["less"], "it keeps its own reason"
    for name in ("light", "heavy"):
        one = found[name]
        assert isinstance(one, NotMeasured)
        assert one.reason.startswith("after the last window, package-0 moved ")
        assert one.reason.endswith("the counter stands still")


def test_idle_power_that_drifts_a_little_is_told_and_its_mean_subtracted() -> None:
    found = _measured(SyntheticMeter(lambda now: 10.0 + 20.0 * now, load_w=40.0))
    assert any("idle power drifted by up to" in note for note in found.notes)
    assert _measured(SyntheticMeter()).notes == ()


def test_subjects_take_turns_and_one_that_fails_leaves_the_others() -> None:
    meter = SyntheticMeter(range_j=None)
    subjects = {
        "light": meter.running(RUN_S, 20.0),
        "nothing": meter.running(RUN_S, 10.0),
        "heavy": meter.running(RUN_S, 40.0),
    }
    found = measure_energy(meter, subjects, BRIEF)
    assert list(found) == ["light", "nothing", "heavy"]
    light, heavy = found["light"], found["heavy"]
    assert isinstance(light, MeasuredEnergy)
    assert isinstance(heavy, MeasuredEnergy)
    assert light.low_j <= 10 * RUN_S <= light.high_j < heavy.low_j <= 30 * RUN_S <= heavy.high_j
    assert len(light.repeats) == len(heavy.repeats) == BRIEF.repeats


class _Two:
    """Two synthetic counters on one clock; the second moves slowly and sees a third as much."""

    described = "synthetic"

    def __init__(self) -> None:
        self._fast = SyntheticMeter(range_j=None)
        self.counters = (*self._fast.counters, Counter("dram-0", Part.MEMORY))
        self.running = self._fast.running

    def clock(self) -> float:
        return self._fast.clock()

    def sleep(self, seconds: float, /) -> None:
        self._fast.sleep(seconds)

    def read(self) -> Reading:
        reading = self._fast.read()
        slow_s = 1e-2 * math.floor(reading.time_s / 1e-2)
        self._slow = self._slow if slow_s == self._slow_s else reading.joules[0] / 3
        self._slow_s = slow_s
        return Reading(reading.time_s, (*reading.joules, self._slow))

    _slow, _slow_s = 0.0, 0.0


def test_counters_are_summed_and_the_slowest_sets_the_window() -> None:
    meter: Meter = (two := _Two())
    found = measure_energy(meter, {"subject": two.running(RUN_S)}, BRIEF)["subject"]
    assert isinstance(found, MeasuredEnergy)
    assert found.intervals_s == pytest.approx((1e-3, 1e-2), rel=0.05)
    assert found.repeats[0].seconds > 0.5
    assert found.low_j <= NET_W * RUN_S * 4 / 3 <= found.high_j
    processor, memory = found.repeats[0].energy_j
    assert memory == pytest.approx(processor / 3, rel=0.03)


def test_the_interval_is_students_t_widened_by_the_resolution() -> None:
    one = Repeat((1.0,), (25.0,), (10.0,), (10.0,), 20, 1.0, 60, 0.01)
    repeats = tuple(replace(one, energy_j=(joules,)) for joules in (1.0, 1.1, 1.2, 0.9, 0.8))
    found = MeasuredEnergy(("package-0",), repeats, (1e-3,), "by hand")
    error = math.sqrt(0.025) / math.sqrt(5)
    assert found.energy_j == pytest.approx(1.0)
    assert found.half_width_j == pytest.approx(2.7764 * error + 0.01, rel=1e-4)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["provenance"] == "measured"
    assert content["low_j"] < content["energy_j"] < content["high_j"]
    assert len(content["repeats"]) == 5
    apart = tuple(replace(one, energy_j=(joules,)) for joules in (1.0, -1.0, 3.0))
    [note] = replace(found, repeats=apart).notes
    assert "reaches zero" in note


def _noisy(seed: int) -> MeasuredEnergy | NotMeasured:
    drawn = np.random.default_rng(seed)
    phase = float(drawn.uniform(0, 2 * math.pi))
    meter = SyntheticMeter(lambda now: 10.0 + 3.0 * math.sin(31.0 * now + phase), range_j=None)

    def run() -> None:
        meter.running(RUN_S, 25.0 + float(drawn.normal(0, 10.0)))()

    return measure_energy(meter, {"subject": run}, BRIEF)["subject"]


def test_the_interval_holds_the_truth_when_power_is_noisy() -> None:
    found = [_noisy(seed) for seed in range(40)]
    measured = [one for one in found if isinstance(one, MeasuredEnergy)]
    assert len(measured) >= 36, "the others drifted by more than the signal"
    held = sum(one.low_j <= NET_W * RUN_S <= one.high_j for one in measured)
    assert held >= 0.9 * len(measured)


def test_the_counters_of_this_machine_measure_work() -> None:
    available = measurable()
    if available.reason is not None:
        pytest.skip(str(available))
    work = np.ones((256, 256), np.float32)
    options = EnergyOptions(repeats=3, window_s=0.5)
    found = measure_energy(open_meter(), {"work": lambda: work @ work}, options)["work"]
    if isinstance(found, NotMeasured):
        pytest.skip(found.reason)
    assert 0 < found.energy_j < 10
    assert all(interval > 0 for interval in found.intervals_s)
