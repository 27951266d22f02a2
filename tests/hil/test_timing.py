"""Interleaved timing, with a clock that the test turns."""

from collections import Counter

import numpy as np
import pytest

from costmodels.errors import CostError
from costmodels.measurement import Measurement
from hil.conditions import Snapshot
from hil.timing import (
    Mode,
    Ratio,
    TimingOptions,
    WarmUp,
    log_ratios,
    low_ratio,
    paired_ratio,
    time_interleaved,
)
from tests.hil.machine import Machine, noisy

BARE = {"turn_s": 0.0, "sample_s": 1e-3, "warm_up": None}
"""Turns of a given number of samples."""


def test_every_candidate_has_one_turn_in_each_block() -> None:
    machine = Machine()
    runs = {n: machine.candidate(n, 2e-3) for n in "abc"}
    options = TimingOptions(blocks=30, samples=2, warm_runs=1, **BARE)  # type: ignore[arg-type]
    time_interleaved(runs, options, clock=machine.clock, observe=machine.observe)
    blocks = np.array(machine.ran).reshape(30, 3, 3)
    for block in blocks:
        assert {row[0] for row in block} == set("abc")
        assert all(len(set(row)) == 1 for row in block)


def test_the_order_within_blocks_is_random_and_follows_the_seed() -> None:
    def order(seed: int) -> list[str]:
        machine = Machine()
        runs = {n: machine.candidate(n, 2e-3) for n in "abc"}
        options = TimingOptions(blocks=200, samples=1, warm_runs=0, seed=seed, **BARE)  # type: ignore[arg-type]
        time_interleaved(runs, options, clock=machine.clock, observe=machine.observe)
        return ["".join(machine.ran[i : i + 3]) for i in range(0, len(machine.ran), 3)]

    counts = Counter(order(0))
    assert len(counts) == 6
    assert min(counts.values()) > 10
    assert order(0) == order(0)
    assert order(0) != order(1)


def test_block_numbers_pair_the_candidates_even_if_one_has_more_samples_a_turn() -> None:
    machine = Machine()
    runs = {n: machine.candidate(n, s) for n, s in (("a", 2e-3), ("b", 6e-3))}
    options = TimingOptions(blocks=3, samples=2, turn_s=9.9e-3, warm_up=None)
    found = time_interleaved(runs, options, clock=machine.clock, observe=machine.observe)
    assert found["a"].block == tuple(np.repeat([0, 1, 2], 5))
    assert found["b"].block == (0, 0, 1, 1, 2, 2)
    np.testing.assert_allclose(log_ratios(found["a"], found["b"]), np.log(1 / 3))


def test_progress_ends_at_one() -> None:
    machine, seen = Machine(), list[float]()
    options = TimingOptions(blocks=4, samples=1)
    time_interleaved(
        {"a": machine.candidate("a", 1e-3)}, options, clock=machine.clock, progress=seen.append
    )
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_what_else_happened_is_noted_and_what_a_turn_was() -> None:
    machine = Machine()
    seen = iter([Snapshot(0.5, {}, 0, 10, 100), Snapshot(2.5, {}, 0, 11, 107)])
    found = time_interleaved(
        {"a": machine.candidate("a", 2e-3)},
        TimingOptions(blocks=1, warm_up=WarmUp(cap_s=0.5)),
        clock=machine.clock,
        observe=lambda: next(seen),
    )
    context = found["a"].context
    assert context["load"] == [0.5, 2.5]
    assert context["interleaved"] == ["a"]
    assert context["conditions"]["voluntary_switches"] == 1
    assert context["conditions"]["involuntary_switches"] == 7
    assert context["turns"]["mode"] == "warm"
    assert context["turns"]["warm_up"]["cap_s"] == 0.5
    assert Measurement.from_dict(found["a"].to_dict()) == found["a"]


def test_cold_runs_follow_an_eviction_each_and_count_from_the_first() -> None:
    machine, evictions = Machine(), list[int]()

    def evict() -> None:
        evictions.append(len(machine.ran))
        machine.now += 5e-3

    runs = {n: machine.candidate(n, 1e-3) for n in "ab"}
    options = TimingOptions(blocks=4, samples=1, mode=Mode.COLD, warm_up=None)
    found = time_interleaved(
        runs, options, clock=machine.clock, observe=machine.observe, evict=evict
    )
    assert evictions == list(range(len(machine.ran)))
    for measurement in found.values():
        np.testing.assert_allclose(measurement.samples_s, 1e-3)
        assert len(measurement.samples_s) == 4 * 2  # 10 ms hold two runs and their evictions
        assert measurement.warmups_s == ()
        assert measurement.context["turns"]["mode"] == "cold"


def test_cold_mode_sweeps_a_buffer_of_its_own_and_says_how_large() -> None:
    options = TimingOptions(blocks=2, samples=1, turn_s=0.0, mode=Mode.COLD, warm_up=None)
    found = time_interleaved({"sum": lambda: sum(range(100))}, options)
    assert found["sum"].context["swept_bytes"] >= 2**16
    assert len(found["sum"].samples_s) == 2


def _noisy(ratio: float, seed: int, blocks: int = 20) -> Ratio:
    """Time two candidates of a known ratio on a machine that drifts by a factor of 3."""
    machine, draw = Machine(), np.random.default_rng(seed)

    def noise() -> float:
        drift = 1 + 2 * machine.now / (blocks * 14 * 1.5e-3)
        return drift * float(np.exp(0.05 * draw.standard_normal()))

    runs = {"new": noisy(machine, ratio * 1e-3, noise), "old": noisy(machine, 1e-3, noise)}
    options = TimingOptions(blocks=blocks, samples=5, seed=seed, turn_s=0.0, warm_up=None)
    found = time_interleaved(runs, options, clock=machine.clock, observe=machine.observe)
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


def test_a_low_quantile_of_the_blocks_is_compared_on_request() -> None:
    new = Measurement("new", (2.0, 9.0, 9.0), block=(0, 0, 0))
    old = Measurement("old", (1.0, 1.0, 1.0), block=(0, 0, 0))
    assert log_ratios(new, old)[0] == pytest.approx(np.log(9.0))
    assert log_ratios(new, old, 0.0)[0] == pytest.approx(np.log(2.0))


@pytest.mark.parametrize("ratio", [Ratio(0.9, 0.95, 1.0), Ratio(1.0, 1.05, 1 / 0.9)])
def test_an_interval_reaches_as_far_from_one_on_either_side(ratio: Ratio) -> None:
    assert ratio.furthest == pytest.approx(1 / 0.9 - 1)


def _turns(name: str, *quickest: float) -> Measurement:
    """Two samples a turn, of which the first is disturbed."""
    samples = tuple(value for low in quickest for value in (5 * low, low))
    return Measurement(name, samples, block=tuple(np.repeat(range(len(quickest)), 2).tolist()))


def test_a_low_ratio_compares_the_quickest_runs_of_each_turn() -> None:
    new, old = _turns("new", 2.0, 4.0, 6.0), _turns("old", 1.0, 2.0, 3.0)
    assert low_ratio(new, old) == pytest.approx(2.0)


@pytest.mark.parametrize("disturbed", [0.01, 100.0])
def test_one_disturbed_turn_of_five_does_not_change_a_low_ratio(disturbed: float) -> None:
    new, old = _turns("new", 3.0, 3.0, disturbed, 3.0, 3.0), _turns("old", *[1.0] * 5)
    assert low_ratio(new, old) == pytest.approx(3.0)


def test_a_low_ratio_is_of_candidates_that_were_timed_together() -> None:
    new, old = (Measurement(n, (1.0,), block=(b,)) for n, b in (("new", 0), ("old", 1)))
    with pytest.raises(CostError, match="new and old share no block"):
        low_ratio(new, old)
