"""Interleaved timing, with a clock that the test turns."""

from collections import Counter

import numpy as np
import pytest

from costmodels.errors import CostError
from costmodels.measurement import Measurement
from hil.timing import Ratio, TimingOptions, machine_load, paired_ratio, time_interleaved


class Machine:
    """A clock, and candidates that make it go on; each run is noted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float) -> "Candidate":
        return Candidate(self, name, seconds)


class Candidate:
    def __init__(self, machine: Machine, name: str, seconds: float) -> None:
        self.machine, self.name, self.seconds = machine, name, seconds

    def __call__(self) -> None:
        self.machine.ran.append(self.name)
        self.machine.now += self.seconds


def test_inner_loops_make_a_sample_last_long_enough() -> None:
    machine = Machine()
    runs = {n: machine.candidate(n, s) for n, s in (("quick", 3e-5), ("slow", 4e-3))}
    found = time_interleaved(runs, TimingOptions(blocks=2), clock=machine.clock)
    assert found["quick"].inner_loops * 3e-5 >= 1e-3
    assert (found["quick"].inner_loops - 1) * 3e-5 < 1e-3
    assert found["slow"].inner_loops == 1
    np.testing.assert_allclose(found["quick"].samples_s, 3e-5)
    np.testing.assert_allclose(found["slow"].samples_s, 4e-3)


def test_inner_loops_are_chosen_by_the_fastest_of_the_first_runs() -> None:
    machine = Machine()
    run = machine.candidate("slow at first", 0.5)

    def warming() -> None:
        run()
        run.seconds = 1e-4

    found = time_interleaved({"it": warming}, TimingOptions(blocks=1), clock=machine.clock)
    assert found["it"].inner_loops in (10, 11)  # sums of floats


@pytest.mark.parametrize("slow_runs", [4, 6, 7, 40])
def test_every_sample_lasts_long_enough_even_if_a_candidate_warms_up_late(slow_runs: int) -> None:
    machine = Machine()
    run = machine.candidate("late", 1e-3)

    def warming() -> None:
        run.seconds = 1e-3 if len(machine.ran) < slow_runs else 1e-4
        run()

    options = TimingOptions(blocks=8, samples=5, warm_runs=2)
    found = time_interleaved({"late": warming}, options, clock=machine.clock)["late"]
    assert len(found.samples_s) == len(found.block) == 40
    loops = found.context.get("inner_loops", [found.inner_loops] * 40)
    assert loops[-1] == found.inner_loops in (10, 11)  # sums of floats
    assert min(s * n for s, n in zip(found.samples_s, loops, strict=True)) >= 0.999e-3
    assert found.samples_s[-1] == pytest.approx(1e-4)
    assert sum(found.warmups_s) + np.dot(found.samples_s, loops) <= machine.now


def test_a_clock_that_moves_in_steps_needs_more_runs_and_no_end_of_them() -> None:
    machine = Machine()
    options = TimingOptions(blocks=2, samples=2)
    found = time_interleaved(
        {"quick": machine.candidate("quick", 1e-5)},
        options,
        clock=lambda: machine.now // 15e-3 * 15e-3,
    )["quick"]
    assert found.inner_loops < 1e6
    loops = found.context.get("inner_loops", [found.inner_loops] * 4)
    assert min(s * n for s, n in zip(found.samples_s, loops, strict=True)) > 1e-3


def test_samples_that_were_too_short_count_as_warm_ups() -> None:
    machine = Machine()
    run = machine.candidate("it", 4e-3)

    def once_faster() -> None:
        run.seconds = 4e-3 if len(machine.ran) < 7 else 3e-4
        run()

    options = TimingOptions(blocks=1, samples=3, warm_runs=2)
    found = time_interleaved({"it": once_faster}, options, clock=machine.clock)["it"]
    # four first runs, two warm ones, a sample of one slow run, and a fast one that is too short
    np.testing.assert_allclose(found.warmups_s, [4e-3, 4e-3, 3e-4])
    np.testing.assert_allclose(found.samples_s, [4e-3, 3e-4, 3e-4])
    assert found.context["inner_loops"] == [1, 4, 4]


def test_the_load_of_the_machine_is_noted_before_and_after() -> None:
    machine, loads = Machine(), iter([0.5, 2.5])
    found = time_interleaved(
        {"a": machine.candidate("a", 2e-3)},
        TimingOptions(blocks=1),
        clock=machine.clock,
        load=lambda: next(loads),
    )
    assert found["a"].context == {"load": [0.5, 2.5], "interleaved": ["a"]}


def test_the_load_that_is_noted_otherwise_is_the_machines_own() -> None:
    assert 0 <= machine_load() < float("inf")


def test_warm_runs_of_a_turn_are_kept_apart_from_its_samples() -> None:
    machine = Machine()
    options = TimingOptions(blocks=4, samples=3, warm_runs=2)
    runs = {n: machine.candidate(n, 2e-3) for n in "ab"}
    found = time_interleaved(runs, options, clock=machine.clock)
    for measurement in found.values():
        assert len(measurement.warmups_s) == 4 * 2
        assert len(measurement.samples_s) == 4 * 3
    # each turn: warm runs first, then samples
    assert machine.ran[8:13] == [machine.ran[8]] * 5


def test_the_first_run_after_another_candidate_never_counts() -> None:
    machine = Machine()
    inner = {n: machine.candidate(n, 0.0) for n in "ab"}

    def cold(name: str) -> None:
        before = machine.ran[-1:]
        inner[name]()
        machine.now += 9e-3 if before != [name] else 1e-3

    runs = {"a": lambda: cold("a"), "b": lambda: cold("b")}
    options = TimingOptions(blocks=10, samples=3, warm_runs=1)
    found = time_interleaved(runs, options, clock=machine.clock)
    for measurement in found.values():
        np.testing.assert_allclose(measurement.samples_s, 1e-3)
    assert max(found["a"].warmups_s) == pytest.approx(9e-3)


def test_every_candidate_has_one_turn_in_each_block() -> None:
    machine = Machine()
    runs = {n: machine.candidate(n, 2e-3) for n in "abc"}
    options = TimingOptions(blocks=30, samples=2, warm_runs=1)
    time_interleaved(runs, options, clock=machine.clock)
    blocks = np.array(machine.ran[3 * 4 :]).reshape(30, 3, 3)
    for block in blocks:
        assert {row[0] for row in block} == set("abc")
        assert all(len(set(row)) == 1 for row in block)


def test_the_order_within_blocks_is_random_and_follows_the_seed() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        runs = {n: machine.candidate(n, 2e-3) for n in "abc"}
        options = TimingOptions(blocks=200, samples=1, warm_runs=0, seed=seed)
        time_interleaved(runs, options, clock=machine.clock)
        return ["".join(machine.ran[i : i + 3]) for i in range(12, len(machine.ran), 3)]

    counts = Counter(order(0))
    assert len(counts) == 6
    assert min(counts.values()) > 10
    assert order(0) == order(0)
    assert order(0) != order(1)


def test_block_numbers_pair_the_candidates() -> None:
    machine = Machine()
    runs = {n: machine.candidate(n, 2e-3) for n in "ab"}
    found = time_interleaved(runs, TimingOptions(blocks=3, samples=2), clock=machine.clock)
    assert found["a"].block == found["b"].block == (0, 0, 1, 1, 2, 2)


def test_progress_ends_at_one() -> None:
    machine, seen = Machine(), list[float]()
    options = TimingOptions(blocks=4, samples=1)
    time_interleaved(
        {"a": machine.candidate("a", 1e-3)}, options, clock=machine.clock, progress=seen.append
    )
    assert seen == [0.25, 0.5, 0.75, 1.0]


def _noisy(ratio: float, seed: int, blocks: int = 20) -> Ratio:
    """Time two candidates of a known ratio on a machine that drifts by a factor of 3."""
    machine, draw = Machine(), np.random.default_rng(seed)

    def run(seconds: float) -> None:
        drift = 1 + 2 * machine.now / (blocks * 14 * 1.5e-3)
        machine.now += seconds * drift * float(np.exp(0.05 * draw.standard_normal()))

    options = TimingOptions(blocks=blocks, seed=seed)
    found = time_interleaved(
        {"new": lambda: run(ratio * 1e-3), "old": lambda: run(1e-3)}, options, clock=machine.clock
    )
    return paired_ratio(found["new"], found["old"], seed=seed)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 1.7])
def test_a_known_ratio_is_recovered_under_a_drift_that_both_share(ratio: float) -> None:
    found = _noisy(ratio, seed=3)
    assert found.mid == pytest.approx(ratio, rel=0.04)
    assert found.low < found.mid < found.high


def test_the_interval_of_two_equal_candidates_holds_one_about_as_often_as_it_says() -> None:
    holds = [r.low <= 1 <= r.high for r in (_noisy(1.0, seed) for seed in range(60))]
    assert np.mean(holds) > 0.85


def test_a_ratio_without_noise_is_exact() -> None:
    new = Measurement("new", (2.0, 4.0, 8.0), block=(0, 1, 2))
    old = Measurement("old", (1.0, 2.0, 4.0), block=(0, 1, 2))
    assert paired_ratio(new, old).to_dict() == pytest.approx({"low": 2, "mid": 2, "high": 2})


def test_only_blocks_that_both_have_are_compared() -> None:
    new = Measurement("new", (3.0, 100.0), block=(0, 1))
    old = Measurement("old", (1.0, 1.0), block=(0, 2))
    assert paired_ratio(new, old).mid == pytest.approx(3.0)


def test_candidates_that_were_not_timed_together_have_no_ratio() -> None:
    new, old = (Measurement(n, (1.0,), block=(b,)) for n, b in (("new", 0), ("old", 1)))
    with pytest.raises(CostError, match="new and old share no block"):
        paired_ratio(new, old)
