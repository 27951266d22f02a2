"""The drift check: judged on made-up readings, and on a machine that changes as the test says."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from costmodels.errors import BackendError, CostError, TableError
from costmodels.measurement import Measurement
from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.table import CostTable
from costmodels.units import Metric
from hil.calibration import Timed
from hil.design import Pattern, patterns
from hil.drift import check_drift, choose_probes
from hil.judgement import Answer, Probe, judge_drift, noise_of
from quantization.bits import DEFAULT_CHOICES

LAYERS = 20
NOISE = 0.01


@dataclass
class Machine:
    """Every integer layer saves 3 % of the float network's time; a probe takes 0.3 s.

    Args:
        seed: of its noise.
        noise: relative deviation of a ratio and of a time.
        slower: factor of every time.
        integer_slower: factor of what runs as integers.
        disturbed: share of the readings in which the policy takes 15 % longer.
        lasts_s: how long a probe takes.
    """

    seed: int
    noise: float = NOISE
    slower: float = 1.0
    integer_slower: float = 1.0
    disturbed: float = 0.0
    lasts_s: float = 0.3
    now: float = 0.0
    seeds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = np.random.default_rng(self.seed)

    def clock(self) -> float:
        return self.now

    def measure(self, pattern: Pattern, seed: int) -> Timed:
        self.now += self.lasts_s
        self.seeds.append(seed)
        integer = 0.05 * pattern.sum()
        ratio = 1 - integer + 0.4 * integer * self.integer_slower
        wobble, float_wobble = np.exp(self.noise * self.draw.standard_normal(2))
        ratio *= wobble * (1.15 if self.draw.random() < self.disturbed else 1.0)
        float_s = 1e-3 * self.slower * float_wobble
        policy = Measurement("policy", (float_s * ratio,))
        return Timed(pattern, ratio, policy, Measurement("float", (float_s,)), self.lasts_s)


TEMPLATE = backend("analytical:haq").table(example_network(), DEFAULT_CHOICES, Metric.LATENCY)


def table_by(machine: Machine, count: int = 200) -> CostTable:
    """A table that holds `count` policies timed by `machine`: all integer, all float, others."""
    free = np.ones(LAYERS, np.bool_)
    drawn = patterns(free, 0)
    chosen = [free, ~free, *(next(drawn) for _ in range(count - 2))]
    timed = [machine.measure(pattern, 0) for pattern in chosen]
    return replace(
        TEMPLATE,
        measurements=[
            {
                "integer_layers": [bool(b) for b in t.pattern],
                "ratio_to_float": t.ratio,
                "policy": t.measurement.to_dict(),
                "float": t.reference.to_dict(),
            }
            for t in timed
        ],
    )


def answers(now: Sequence[Machine], noise: float = NOISE) -> list[Answer]:
    """What the check says on each machine, of a table made with the usual noise."""
    table = table_by(Machine(seed=1000))
    return [check_drift(table, m.measure, noise, clock=m.clock).answer for m in now]


def test_an_unchanged_machine_keeps_its_table() -> None:
    machine = Machine(seed=1)
    drift = check_drift(table_by(Machine(seed=0)), machine.measure, NOISE, clock=machine.clock)
    assert str(drift) == drift.answer == Answer.UNCHANGED
    assert drift.probes == len(set(machine.seeds)) == 10
    assert drift.scale == pytest.approx(1.0, abs=0.03)


def test_a_machine_that_is_slower_at_everything_gets_the_factor() -> None:
    found = [
        check_drift(table_by(Machine(seed=0)), m.measure, NOISE, clock=m.clock)
        for m in (Machine(seed, slower=1.3) for seed in range(20))
    ]
    assert {drift.answer for drift in found} == {Answer.RESCALE}
    assert [drift.scale for drift in found] == pytest.approx([1.3] * 20, rel=0.02)
    assert str(replace(found[0], scale=1.3)) == "rescale by 1.3"


@pytest.mark.parametrize("slower", [1.0, 1.3])
@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_a_machine_whose_integer_kernels_alone_changed_is_calibrated_anew(
    slower: float, factor: float
) -> None:
    now = [Machine(seed, slower=slower, integer_slower=factor) for seed in range(20)]
    assert set(answers(now)) == {Answer.RECALIBRATE}


def test_false_answers_are_rare_at_the_stated_noise() -> None:
    """At most 5 %; tables and machines are new in every round, so that their luck differs too."""
    found = []
    for seed in range(200):
        table, machine = table_by(Machine(2 * seed), 60), Machine(2 * seed + 1)
        found.append(check_drift(table, machine.measure, NOISE, clock=machine.clock).answer)
    assert sum(answer is not Answer.UNCHANGED for answer in found) <= 0.05 * len(found)


@pytest.mark.parametrize("probes", [3, 4, 10])
def test_readings_that_are_judged_once_are_rarely_false(probes: int) -> None:
    """Without a second reading; each limit has the share of false answers that it claims."""
    draw = np.random.default_rng(4)
    median = large = false = 0
    for _ in range(4000):
        first, then = np.exp(NOISE * draw.standard_normal((2, probes, 2)))
        before, after = ([Probe(s, 0.5 * r) for s, r in each.tolist()] for each in (first, then))
        drift = judge_drift(before, after, NOISE)
        median += drift.median_change > drift.median_limit
        large += drift.large_change > drift.large_limit
        false += drift.answer is not Answer.UNCHANGED
    assert 0.005 < median / 4000 < 0.015
    assert 0.005 < large / 4000 < 0.015
    assert false / 4000 < 0.03


def test_disturbances_that_pass_raise_few_alarms() -> None:
    """One reading in 20 is 15 % off; a second reading tells it from a change."""
    found = answers([Machine(seed, disturbed=0.05) for seed in range(100)])
    assert sum(answer is not Answer.UNCHANGED for answer in found) <= 0.05 * len(found)


def test_noise_that_is_stated_too_low_raises_alarms_and_the_stated_one_does_not() -> None:
    def machines() -> list[Machine]:
        return [Machine(seed, noise=0.04) for seed in range(50)]

    assert answers(machines(), NOISE).count(Answer.RECALIBRATE) > 25
    assert answers(machines(), 0.04).count(Answer.UNCHANGED) >= 47


def test_a_change_within_the_error_of_the_table_is_no_reason_to_make_it_anew() -> None:
    before = [Probe(1e-3, ratio) for ratio in np.linspace(0.4, 0.9, 10).tolist()]
    after = [Probe(1e-3, 1.03 * probe.ratio) for probe in before]
    assert judge_drift(before, after, 0.005).answer is Answer.RECALIBRATE
    assert judge_drift(before, after, 0.005, table_error=0.03).answer is Answer.UNCHANGED


def test_one_reading_far_off_is_forgiven_and_two_are_not() -> None:
    before = [Probe(1e-3, ratio) for ratio in np.linspace(0.4, 0.9, 10).tolist()]
    one = [replace(before[0], ratio=0.8), *before[1:]]
    two = [*one[:-1], replace(before[-1], ratio=0.6)]
    assert judge_drift(before, one, NOISE).answer is Answer.UNCHANGED
    assert judge_drift(before, two, NOISE).answer is Answer.RECALIBRATE


def test_the_grounds_are_the_change_that_decided() -> None:
    before = [Probe(1e-3, ratio) for ratio in np.linspace(0.4, 0.9, 10).tolist()]
    some = [replace(p, ratio=2 * p.ratio) if i < 2 else p for i, p in enumerate(before)]
    found = judge_drift(before, some, NOISE)
    assert (found.answer, found.median_change) == (Answer.RECALIBRATE, 0.0)
    limit = np.expm1(found.large_limit)
    text = f"off by 100.0% or more in two of 10 policies; up to {limit:.1%} means nothing"
    assert text in found.grounds
    every = [replace(p, ratio=1.1 * p.ratio) for p in before]
    assert "off by 10.0% in the median of 10 policies" in judge_drift(before, every, NOISE).grounds
    slow = [replace(p, float_s=2e-3) for p in before]
    found = judge_drift(before, slow, NOISE)
    limit = np.expm1(found.scale_limit)
    assert found.grounds.startswith(
        f"float network 2.000x as slow as then, up to {limit:.1%} means nothing; "
    )


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_noise_of_readings_is_right_in_the_median_and_forgives_one(count: int) -> None:
    draw = np.random.default_rng(count)
    equals = np.exp(NOISE * draw.standard_normal((4000, count)))
    found = [noise_of(row) for row in equals.tolist()]
    assert np.median(found) == pytest.approx(NOISE, rel=0.05)
    equals[:, 0] = 1.5
    assert np.median([noise_of(row) for row in equals.tolist()]) < 4 * NOISE
    with pytest.raises(CostError, match="two readings"):
        noise_of([1.0])


def test_a_factor_within_the_spread_of_the_old_float_times_is_none() -> None:
    wide = [Probe(s, 0.5) for s in np.linspace(0.9e-3, 1.1e-3, 10).tolist()]
    narrow = [Probe(1e-3, 0.5)] * 10
    after = [Probe(1.1e-3, 0.5)] * 10
    assert judge_drift(wide, after, NOISE).answer is Answer.UNCHANGED
    assert str(judge_drift(narrow, after, NOISE)) == "rescale by 1.1"


def test_probes_are_the_all_integer_policy_and_others_spread_over_the_ratios() -> None:
    table = table_by(Machine(seed=0, noise=0.0))
    chosen = choose_probes(table)
    assert len({p.pattern.tobytes() for p in chosen}) == len(chosen) == 10
    assert chosen[0].pattern.all()
    assert all(p.pattern.any() for p in chosen)
    ratios = [p.probe.ratio for p in chosen[1:]]
    every = [m["ratio_to_float"] for m in table.measurements]
    assert ratios == sorted(ratios)
    assert ratios[-1] - ratios[0] > 0.75 * (max(every) - min(every))
    assert np.diff(ratios).max() < 0.3 * (max(every) - min(every))


def test_the_extremes_of_many_readings_are_not_among_the_probes() -> None:
    table = table_by(Machine(seed=0))
    ratios = sorted(m["ratio_to_float"] for m in table.measurements if any(m["integer_layers"]))
    chosen = [p.probe.ratio for p in choose_probes(table)[1:]]
    assert ratios.index(min(chosen)) > 5
    assert ratios.index(max(chosen)) < len(ratios) - 6


def test_slow_networks_get_fewer_probes_in_the_same_time_and_too_few_are_an_error() -> None:
    table = table_by(Machine(seed=0))
    machine = Machine(seed=1, lasts_s=1.5)
    assert check_drift(table, machine.measure, NOISE, clock=machine.clock).probes == 6
    assert machine.now <= 10
    machine = Machine(seed=1, lasts_s=4.0)
    with pytest.raises(BackendError, match="10 s were enough for 2 probes only; 3 are needed"):
        check_drift(table, machine.measure, NOISE, clock=machine.clock)
    assert machine.now <= 10


def test_second_readings_stay_within_the_time() -> None:
    machine = Machine(seed=1, integer_slower=1.5, lasts_s=0.9)
    drift = check_drift(table_by(Machine(seed=0)), machine.measure, NOISE, clock=machine.clock)
    assert drift.answer is Answer.RECALIBRATE
    assert len(set(machine.seeds)) == len(machine.seeds) == 11
    assert machine.now <= 10


def test_tables_without_timed_policies_and_impossible_probes_are_refused() -> None:
    machine, table = Machine(seed=0), table_by(Machine(seed=0), 8)
    with pytest.raises(TableError, match="holds 7 timed policies, 10 are needed"):
        check_drift(table, machine.measure, NOISE, clock=machine.clock)
    for other in ({"samples_s": [1.0]}, {**table.measurements[0], "ratio_to_float": 0.0}):
        with pytest.raises(TableError, match="no policies timed beside the float network"):
            choose_probes(replace(table, measurements=[other]))
    probes = [Probe(1e-3, 0.5)] * 10
    for before, after in ((probes, probes[:9]), (probes[:2], probes[:2])):
        with pytest.raises(CostError, match="at least 3 probes"):
            judge_drift(before, after, NOISE)
    for noise in (0.0, float("nan"), -1.0):
        with pytest.raises(CostError, match="noise of the probes must be positive"):
            judge_drift(probes, probes, noise)
    with pytest.raises(CostError, match="a positive time and a positive ratio"):
        Probe(0.0, 1.0)


def test_what_the_table_was_rescaled_by_counts_as_measured() -> None:
    table = table_by(Machine(seed=0)).scaled(1.3)
    found = [
        check_drift(table, m.measure, NOISE, clock=m.clock)
        for m in (Machine(seed=1, slower=1.3), Machine(seed=1))
    ]
    assert [drift.answer for drift in found] == [Answer.UNCHANGED, Answer.RESCALE]
    assert [drift.scale for drift in found] == pytest.approx([1.0, 1 / 1.3], rel=0.02)
