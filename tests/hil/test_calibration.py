"""Calibration of one network, on times that the test makes up."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice

import numpy as np
import pytest

from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from costmodels.pricing import total
from costmodels.replay import TableReplay
from costmodels.sketch import Sketch, example_network
from costmodels.spread import spread_table
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric
from hil.audit import AuditError
from hil.bench import MemoryStore
from hil.calibration import (
    Calibration,
    Effects,
    FailedPolicyError,
    Inspect,
    Measure,
    Timed,
    as_policy,
    calibrate_network,
    loudness,
    most_integers,
    never_judged,
    rows_of,
)
from hil.design import Pattern, mixture, patterns
from hil.ort import one_feed, random_inputs
from hil.policy_bench import PolicyBench
from hil.policy_timer import Job, Setup
from hil.profile import Profile
from hil.records import Failure, FailureKind, Record
from hil.tables import measured_table
from hil.worker import WorkerError
from quantization.bits import FLOAT32, BitWidths, Format, parse_choices
from quantization.errors import ModelError
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import made_up_ranges

FLOAT_S = 1e-3
SOURCE = {"backend": "test"}
CRASH = Failure(FailureKind.KILLED, "killed by SIGSEGV")


@lru_cache
def _network() -> Network:
    return example_network()


def _inspect(policy: Policy) -> Profile:
    """All nodes take the same share of the time."""
    nodes = [*_network().layer_names, *(glue.name for glue in _network().glue)]
    names = _network().layer_names
    kernels = {n: "Conv" if policy[n].reads.is_float else "QLinearConv" for n in names}
    return Profile(dict.fromkeys(nodes, 1 / len(nodes)), kernels)


@dataclass
class World:
    """Times that follow the linear model exactly, but for noise; a policy takes a second.

    Args:
        truth: effects.
        noise: relative deviation of a ratio.
        apart: what it costs when one of the layers ``stem`` and ``smooth`` runs as integers and
            the other as floats. The glue between them has no integer kernel, so that no conversion
            depends on both: no table can hold it.
        distorted: factor of the ratios of some positions in the design.
        now: seconds.
    """

    truth: FloatArray
    noise: float = 0.0
    apart: float = 0.0
    distorted: dict[int, float] = field(default_factory=dict)
    now: float = 0.0

    def ratio(self, pattern: Pattern) -> float:
        row = Effects(_network()).row(as_policy(_network(), pattern))
        stem, smooth = (pattern[_network().layer_names.index(n)] for n in ("stem", "smooth"))
        return float(1 + row @ self.truth) + (0.0 if stem == smooth else self.apart)

    def measure(self, pattern: Pattern, seed: int) -> Timed:
        self.now += 1.0
        wobble = float(np.exp(self.noise * np.random.default_rng(seed).standard_normal()))
        ratio = self.ratio(pattern) * wobble * self.distorted.get(seed, 1.0)
        policy = Measurement("policy", (ratio * FLOAT_S,))
        return Timed(pattern, ratio, policy, Measurement("float", (FLOAT_S,)), wall_s=1.0)


def _world(noise: float = 0.0, *, gain: float = -0.4, apart: float = 0.0) -> World:
    """Every layer gains the same share of the whole; conversions cost a little."""
    effects, layers = Effects(_network()), len(_network().layers)
    truth = np.zeros(effects.count)
    truth[:layers] = gain / layers
    truth[layers + len(effects.glue) :] = 0.004
    return World(truth, noise, apart)


def _calibrate(
    world: World,
    seconds: float = 80,
    *,
    measure: Measure | None = None,
    inspect: Inspect = _inspect,
    seed: int = 0,
) -> Calibration:
    return calibrate_network(
        _network(),
        measure or world.measure,
        inspect,
        seconds=seconds,
        seed=seed,
        progress=lambda _share, _what: None,
    )


def _errors(found: Calibration, world: World) -> tuple[FloatArray, FloatArray]:
    """Relative errors of total and table on fresh policies, as their world has them unperturbed."""
    chosen = _random_patterns(60)
    truth = np.array([world.ratio(pattern) for pattern in chosen])
    model = found.model
    return np.abs(model.total(chosen) / truth - 1), np.abs(model.table(chosen) / truth - 1)


@dataclass
class Shared(World):
    """A world whose machine has other users, who are busy for a share of every 30 s.

    Args:
        share: that share.
        told: whether the float network beside a policy is slowed down as well.
        disturbed: how many policies were timed meanwhile.
    """

    share: float = 1 / 3
    told: bool = True
    disturbed: int = 0

    def measure(self, pattern: Pattern, seed: int) -> Timed:
        quiet = super().measure(pattern, seed)
        if self.now % 30 >= 30 * self.share:
            return quiet
        self.disturbed += 1
        ratio = 1 + (quiet.ratio - 1) * 0.8  # integer kernels suffer more
        float_s = FLOAT_S * (1.15 if self.told else 1.0)
        policy, reference = (
            Measurement(n, (t,)) for n, t in (("p", ratio * float_s), ("f", float_s))
        )
        return Timed(pattern, ratio, policy, reference, wall_s=1.0)


@dataclass
class Crashing(World):
    """A world in which the policies at some positions crash, which takes 3 s."""

    crashes: frozenset[int] = frozenset()

    def measure(self, pattern: Pattern, seed: int) -> Timed:
        if seed in self.crashes:
            raise FailedPolicyError(CRASH, wall_s=3.0)
        return super().measure(pattern, seed)


def _random_patterns(count: int) -> list[Pattern]:
    draw = np.random.default_rng(99)
    return [draw.random(len(_network().layers)) < 0.5 for _ in range(count)]


def test_as_policy_is_integer_where_the_pattern_is() -> None:
    policy = as_policy(_network(), [True] + [False] * (len(_network().layers) - 1))
    first, *others = _network().layer_names
    assert policy[first] == BitWidths(8, 8)
    assert {policy[name] for name in others} == {FLOAT32}


def test_calibration_stops_when_its_time_is_over_and_says_how_far_it_is() -> None:
    world, seen = _world(), list[float]()
    found = calibrate_network(
        _network(),
        world.measure,
        _inspect,
        seconds=50,
        seed=0,
        progress=lambda share, _: seen.append(share),
    )
    assert len(found.timed) == 51  # the last one began when all of the time, but no more, was spent
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_calibration_that_is_repeated_from_its_records_ends_where_it_ended() -> None:
    """Records of an earlier run come at no time, yet they took theirs; so did its failures."""
    kept: dict[int, Timed | FailedPolicyError] = {}
    world = Crashing(_world().truth, crashes=frozenset(range(4, 120, 5)))

    def remembered(pattern: Pattern, seed: int) -> Timed:
        if seed not in kept:
            try:
                kept[seed] = world.measure(pattern, seed)
            except FailedPolicyError as error:
                kept[seed] = error
        found = kept[seed]
        if isinstance(found, FailedPolicyError):
            raise found
        return found

    first = _calibrate(world, 100, measure=remembered)
    taken = len(kept)
    again = _calibrate(world, 100, measure=remembered)
    assert len(kept) == taken
    assert (len(again.timed), again.failed) == (len(first.timed), first.failed)
    assert len(first.failed) > 10


def test_the_first_two_policies_are_all_integer_and_all_float() -> None:
    first, second, *_ = _calibrate(_world(), 50).timed
    assert first.pattern.all()
    assert not second.pattern.any()


def test_two_of_five_policies_judge_and_one_of_ten_when_there_are_thirty() -> None:
    found = _calibrate(_world(), 191)
    assert len(found.timed) == 192
    after = np.concatenate([[False] * 2, np.isin(np.arange(1, 191) % 5, (2, 4))])
    after[2 + 74 :] = np.arange(75, 191) % 10 == 0
    np.testing.assert_array_equal(found.judged, after)
    assert found.validation is not None
    assert found.validation.policies == found.judged.sum() == 42
    free = np.ones(len(_network().layers), np.bool_)
    streams = {True: mixture(free, 0), False: patterns(free, 0)}
    for timed, judges in islice(zip(found.timed, found.judged, strict=True), 2, None):
        np.testing.assert_array_equal(timed.pattern, next(streams[bool(judges)]))


def test_too_little_time_is_an_error_that_says_so() -> None:
    with pytest.raises(BackendError, match=r"for 11 policies only, 7 of them to fit; 24 are need"):
        _calibrate(_world(), 10)


def test_times_that_follow_the_model_are_predicted_exactly() -> None:
    world = _world()
    found = _calibrate(world)
    assert found.validation is not None
    assert found.validation.total.mean_absolute < 0.005
    assert found.float_s == FLOAT_S
    of_total, of_table = _errors(found, world)
    assert max(of_total.max(), of_table.max()) < 0.01


def test_the_validation_reports_the_noise_and_the_fit_averages_it() -> None:
    world = _world(noise=0.03)
    found = _calibrate(world, 150)
    validation = found.validation
    assert validation is not None
    assert 0.01 < validation.total.mean_absolute < 0.06
    assert validation.half_width is not None
    assert 0.03 < validation.half_width < 0.1
    of_total, of_table = _errors(found, world)
    assert of_total.mean() < 0.02
    assert of_table.mean() < 0.02


def test_policies_that_judge_are_not_fitted_by_the_model_that_they_judge() -> None:
    """Were they, their own times would draw its predictions towards them, and their order too."""
    straight = _calibrate(_world(noise=0.01), 100)
    judging = np.flatnonzero(straight.judged)
    world = replace(_world(noise=0.01), distorted=dict.fromkeys(judging.tolist(), 1.5))
    bent = _calibrate(world, 100)
    before, after = straight.validation, bent.validation
    assert before is not None
    assert after is not None
    assert after.policies == len(judging) >= 30
    for name in ("total", "table"):
        one, other = getattr(before, name), getattr(after, name)
        assert one.rank_correlation == pytest.approx(other.rank_correlation, rel=1e-12)
        assert one.mean_absolute < 0.03
        assert other.mean_absolute == pytest.approx(1 - 1 / 1.5, abs=0.02)
        assert other.near == 0
    fitted = [t for t, judges in zip(straight.timed, straight.judged, strict=True) if not judges]
    assert [world.distorted.get(i, 1.0) for i in judging] == [1.5] * len(judging)
    assert len(fitted) + len(judging) == len(straight.timed)


def test_what_two_layers_do_together_is_in_the_context_and_total_beats_the_table() -> None:
    world = _world(noise=0.005, apart=0.1)
    found = _calibrate(world, 150)
    of_total, of_table = _errors(found, world)
    assert of_total.mean() < 0.75 * of_table.mean()
    validation, context = found.validation, found.model.context
    assert validation is not None
    assert validation.total.mean_absolute < 0.75 * validation.table.mean_absolute
    largest = int(np.argmax(np.abs(context.values)))
    position = {name: i for i, name in enumerate(_network().layer_names)}
    assert set(context.groups[largest]) == {position["stem"], position["smooth"], -1}
    assert -0.05 < context.values[largest] < -0.015  # the table took a part of its 0.05


def test_a_context_that_explains_nothing_stays_small() -> None:
    found = _calibrate(_world(noise=0.02), 150)
    index = np.array(_random_patterns(60), np.uint8)
    correction = found.model.context.correction(index, (FLOAT32, BitWidths(8, 8)))
    assert np.abs(correction).max() < 0.02


def test_the_same_records_give_the_same_table_to_the_last_bit() -> None:
    one, two = (
        measured_table(_network(), _calibrate(_world(noise=0.02)), SOURCE).to_json()
        for _ in range(2)
    )
    assert one == two


def test_failures_are_counted_and_the_run_goes_on() -> None:
    crashes = frozenset(range(4, 120, 5))
    world = Crashing(_world().truth, crashes=crashes)
    found = _calibrate(world, 100)
    tried = len(found.timed) + len(found.failed)
    assert found.failed == (CRASH,) * sum(position < tried for position in crashes)
    assert len(found.failed) > 10
    assert len(found.timed) + 3 * len(found.failed) == pytest.approx(102, abs=2)  # both took time
    assert _errors(found, world)[0].max() < 0.01
    assert len(found.judged) == len(found.timed)


@pytest.mark.parametrize("timed_before", [0, 2, 20])
def test_where_most_policies_fail_the_failure_is_the_error(timed_before: int) -> None:
    crashes = frozenset(range(timed_before, 1000))
    with pytest.raises(FailedPolicyError, match=r"could not be timed: killed: killed by SIGSEGV"):
        _calibrate(Crashing(_world().truth, crashes=crashes), 1000)


def test_the_prior_is_scaled_by_the_all_integer_policy_or_the_nearest_that_did_not_fail() -> None:
    world = Crashing(_world().truth, crashes=frozenset({0}))
    whole, without = _calibrate(_world(), 60), _calibrate(world, 60)
    assert most_integers(whole.timed) is whole.timed[0]
    assert without.failed == (CRASH,)
    assert not without.timed[0].pattern.any()  # the float network is the first that was timed
    nearly = [t for t in without.timed if not t.pattern.all()]
    layers = max(int(t.pattern.sum()) for t in nearly)
    assert layers == len(_network().layers) - 1
    assert most_integers(nearly).pattern.sum() == layers
    assert _errors(without, world)[0].mean() < 0.005


def _refusing(refuses: Callable[[Policy], bool], error: Exception) -> Inspect:
    def inspect(policy: Policy) -> Profile:
        if refuses(policy):
            raise error
        return _inspect(policy)

    return inspect


def _is_float(policy: Policy) -> bool:
    return all(policy[name].reads.is_float for name in _network().layer_names)


def test_where_all_integers_crash_the_nearest_that_does_not_is_profiled() -> None:
    """Its kernels are known of the layers that ran as integers in it."""
    world, asked = _world(), list[Policy]()

    def measure(pattern: Pattern, seed: int) -> Timed:
        if pattern.all():
            raise FailedPolicyError(CRASH, wall_s=1.0)
        return world.measure(pattern, seed)

    def inspect(policy: Policy) -> Profile:
        asked.append(policy)
        return _inspect(policy)

    found = _calibrate(world, 60, measure=measure, inspect=inspect)
    nearest = most_integers(found.timed).pattern
    assert set(found.failed) == {CRASH}
    assert found.profile_failure is None
    assert asked == [as_policy(_network(), p) for p in (np.zeros_like(nearest), nearest)]
    [left] = np.flatnonzero(~nearest)
    kernels = measured_table(_network(), found, SOURCE).unary.kernel
    assert kernels[:, 1].tolist() == ["Conv"] * len(nearest)
    assert kernels[:, 0].tolist() == [
        "" if i == left else "QLinearConv" for i in range(len(kernels))
    ]


@pytest.mark.parametrize("error", [WorkerError(CRASH), ModelError("other operators were profiled")])
def test_where_no_integers_can_be_profiled_timings_have_to_do_and_the_failure_is_told(
    error: Exception,
) -> None:
    world = _world(noise=0.01)
    found = _calibrate(world, inspect=_refusing(lambda policy: not _is_float(policy), error))
    assert found.profile_failure is not None
    assert found.profile_failure.text in {CRASH.text, "other operators were profiled"}
    assert _errors(found, world)[0].mean() < 0.02
    table = measured_table(_network(), found, SOURCE)
    assert set(table.unary.kernel[:, 0]) == {""}
    assert set(table.unary.kernel[:, 1]) == {"Conv"}


def test_where_the_float_network_cannot_be_profiled_the_error_says_so() -> None:
    match = r"float network could not be profiled \(killed: killed by SIGSEGV\).*same command"
    with pytest.raises(BackendError, match=match):
        _calibrate(_world(), inspect=_refusing(_is_float, WorkerError(CRASH)))


def test_a_float_network_that_fails_its_audit_ends_the_calibration() -> None:
    """What the runtime does not execute as asked never enters a fit."""

    def refuse(pattern: Pattern, seed: int) -> Timed:
        raise AuditError("layer 'mix' was re-quantized at load")

    with pytest.raises(AuditError, match="re-quantized at load"):
        _calibrate(_world(), measure=refuse)


@dataclass
class Bench:
    """Times by a world behind a real bench and a store; may be killed before any new timing."""

    world: World
    store: MemoryStore = field(default_factory=MemoryStore)
    killed_before: int | None = None
    jobs: list[tuple[bytes, int]] = field(default_factory=list)

    def call(self, job: object) -> object:
        assert isinstance(job, Job)
        assert job.seed is not None
        if len(self.jobs) == self.killed_before:
            raise KeyboardInterrupt
        pattern = np.array([not job.policy[n].reads.is_float for n in _network().layer_names])
        self.jobs.append((pattern.tobytes(), job.seed))
        try:
            timed = self.world.measure(pattern, job.seed)
        except FailedPolicyError as error:
            raise WorkerError(error.failure) from None
        facts = {"build_s": 0.25, "load_s": 0.25, "timing_s": 0.5}
        return Record({"policy": timed.measurement, "float": timed.reference}, facts=facts)

    def measures(self) -> Measure:
        feed = one_feed(_network(), random_inputs(_network(), 1))
        bench = PolicyBench(Setup(_network(), made_up_ranges(_network()), feed), self, self.store)
        return lambda p, seed: Timed.of(p, bench.measure(as_policy(_network(), p), seed))


def test_a_killed_calibration_goes_on_to_the_same_end_and_takes_nothing_twice() -> None:
    whole = Bench(_world(noise=0.02))
    expected = _calibrate(whole.world, measure=whole.measures())
    bench = Bench(_world(noise=0.02))
    for killed_before in (1, 2, 7, 30, 31, 60):
        bench.killed_before = killed_before
        with pytest.raises(KeyboardInterrupt):
            _calibrate(bench.world, measure=bench.measures())
        assert len(bench.jobs) == killed_before
    bench.killed_before = None
    found = _calibrate(bench.world, measure=bench.measures())
    assert bench.jobs == whole.jobs
    assert len(set(bench.jobs)) == len(bench.jobs) == len(found.timed) == 81
    one, two = (measured_table(_network(), f, SOURCE).to_json() for f in (expected, found))
    assert one == two
    assert len(_calibrate(bench.world, measure=bench.measures()).timed) == 81
    assert len(bench.jobs) == 81


def test_a_calibration_that_ended_by_failures_is_tried_again_by_the_next_run() -> None:
    """Three policies found no memory; there is enough now."""
    bench = Bench(Crashing(_world().truth, crashes=frozenset(range(3))))
    with pytest.raises(FailedPolicyError, match="killed by SIGSEGV"):
        _calibrate(bench.world, measure=bench.measures())
    assert len(bench.jobs) == 3
    bench.world = _world()
    found = _calibrate(bench.world, measure=bench.measures())
    assert (len(found.timed), found.failed) == (81, ())
    assert bench.jobs[3:6] == bench.jobs[:3]


def test_a_table_adds_up_to_what_the_model_predicts_and_its_replay_to_the_total() -> None:
    found = _calibrate(_world(noise=0.02, apart=0.1))
    network, model = _network(), found.model
    table = measured_table(network, found, SOURCE)
    chosen = _random_patterns(40)
    batch = PolicyBatch.of(network, [as_policy(network, p) for p in chosen])
    sums = total(table, network, batch)
    np.testing.assert_allclose(sums, model.table(chosen) * found.float_s, rtol=1e-9)
    replayed = TableReplay(table).total(network, batch, Metric.LATENCY)
    np.testing.assert_allclose(replayed, model.total(chosen) * found.float_s, rtol=1e-9)
    assert np.abs(replayed / sums - 1).max() > 0.02


def test_the_table_says_which_of_its_policies_judged() -> None:
    found = _calibrate(_world())
    table = measured_table(_network(), found, SOURCE)
    assert [m["judged"] for m in table.measurements] == found.judged.tolist()
    assert {True, False} == set(found.judged.tolist())
    for stored, timed in zip(table.measurements, found.timed, strict=True):
        assert stored["integer_layers"] == timed.pattern.tolist()
        assert stored["ratio_to_float"] == timed.ratio


def test_a_layer_that_gains_more_than_it_costs_keeps_a_small_cost() -> None:
    found = _calibrate(_world(gain=-0.95))
    network = _network()
    table = measured_table(network, found, SOURCE)
    integer, floats = table.unary.value.T
    assert (integer > 0).all()
    assert (integer >= 0.0199 * floats).all()
    assert (integer <= 0.0201 * floats).any()


def test_cells_that_no_timed_policy_ever_paid_are_assumed_and_not_calibrated() -> None:
    found, network = _calibrate(_world(), 50), _network()
    table = measured_table(network, found, SOURCE)
    chosen = [formats(network, as_policy(network, t.pattern)) for t in found.timed]
    integer, floats = table.formats.index(Format.INT8), table.formats.index(Format.FLOAT32)
    paid = {(name, target) for each in chosen for name, _, target in each.conversions}
    for row, tensor in enumerate(table.tensors):
        for target, cell in ((Format.INT8, (floats, integer)), (Format.FLOAT32, (integer, floats))):
            known = "calibrated" if (tensor, target) in paid else "assumed"
            assert table.conversion.provenance[row][cell] == known
    assert {"calibrated", "assumed"} <= set(table.conversion.provenance.flat)
    for row, name in enumerate(table.glue_names):
        ran = any(each.reads[name] is Format.INT8 for each in chosen)
        assert table.glue.provenance[row, integer] == ("calibrated" if ran else "assumed")
        assert table.glue.provenance[row, floats] == "calibrated"
    assert set(table.unary.provenance.flat) == {"calibrated"}
    nothing = replace(found, paid=np.zeros_like(found.paid))
    bare = measured_table(network, nothing, SOURCE)
    assert set(bare.glue.provenance[:, integer]) == {"assumed"}
    assert set(bare.conversion.provenance.flat) == {"assumed", "exact"}
    wide = spread_table(table, network, parse_choices("w32a32,w4a8,w16a16"))
    both = np.ix_(range(len(table.tensors)), *[[wide.formats.index(f) for f in table.formats]] * 2)
    np.testing.assert_array_equal(wide.conversion.provenance[both], table.conversion.provenance)


def test_conversions_that_were_never_paid_have_the_price_of_those_that_were() -> None:
    """There and back, that is: what goes to integers comes back, so that times tell the sum."""
    found = _calibrate(_world(noise=0.01), 150)
    first = len(found.model.effects.layers) + len(found.model.effects.glue)
    unpaid = ~found.paid[first:]
    assert unpaid.any()
    guessed = found.model.fit.coefficients[first:]
    there = np.array([target is Format.INT8 for _, target in found.model.effects.conversions])
    one_way = [guessed[unpaid & direction].mean() for direction in (there, ~there)]
    assert sum(one_way) == pytest.approx(0.008, abs=0.002)


@pytest.mark.parametrize("choices", ["w16a16,w8a8", "fp16,w32a32", "w16a16,fp16", "w2a8"])
def test_formats_that_were_not_measured_are_absent_and_the_others_keep_their_cells(
    choices: str,
) -> None:
    found, network = _calibrate(_world(), 50), _network()
    table = measured_table(network, found, SOURCE)
    wide = spread_table(table, network, parse_choices(choices))
    for i, written in enumerate(wide.formats):
        known = written in table.formats
        glue = wide.glue.value[:, i]
        column = table.formats.index(written) if known else None
        expected = np.inf if column is None else table.glue.value[:, column]
        np.testing.assert_array_equal(glue, np.broadcast_to(expected, glue.shape))
        for j, read in enumerate(wide.formats):
            cells = wide.conversion.value[:, i, j]
            if i == j:
                np.testing.assert_array_equal(cells, 0.0)
            elif column is None or read not in table.formats:
                assert np.isinf(cells).all()
            else:
                measured = table.conversion.value[:, column, table.formats.index(read)]
                np.testing.assert_array_equal(cells, measured)


def test_the_constant_is_nothing_because_layers_and_glue_share_the_whole_time() -> None:
    found, network = _calibrate(_world(), 50), _network()
    table = measured_table(network, found, SOURCE)
    assert table.constant == 0.0
    floats = table.formats.index(Format.FLOAT32)
    whole = table.unary.value[:, 1].sum() + table.glue.value[:, floats].sum()
    assert whole == pytest.approx(found.float_s, rel=1e-12)


def test_a_spread_table_prices_every_width_of_a_kernel_alike_and_masks_the_rest() -> None:
    found = _calibrate(_world(), 50)
    network = _network()
    table = measured_table(network, found, SOURCE)
    wide = spread_table(table, network, parse_choices("fp16,w4a4,w5a8,w32a32,w2a8"))
    np.testing.assert_array_equal(wide.unary.value[:, 2], table.unary.value[:, 0])
    np.testing.assert_array_equal(wide.unary.value[:, 4], table.unary.value[:, 0])
    np.testing.assert_array_equal(wide.unary.value[:, 3], table.unary.value[:, 1])
    assert np.isinf(wide.unary.value[:, :2]).all()
    policy = Policy({"stem": BitWidths(5, 8), "mix": BitWidths(2, 8)})
    same = Policy({"stem": BitWidths(8, 8), "mix": BitWidths(8, 8)})
    first = total(wide, network, PolicyBatch.of(network, [policy]))
    np.testing.assert_allclose(first, total(table, network, PolicyBatch.of(network, [same])))


def test_a_spread_table_keeps_the_context() -> None:
    network, found = _network(), _calibrate(_world(noise=0.02, apart=0.1))
    table = measured_table(network, found, SOURCE)
    wide = spread_table(table, network, parse_choices("w2a8,w32a32,w8a8"))
    assert table.context is not None
    assert wide.context is not None
    np.testing.assert_array_equal(wide.context.groups, table.context.groups)
    np.testing.assert_array_equal(wide.context.values, table.context.values)
    chosen = [as_policy(network, pattern) for pattern in _random_patterns(20)]
    two = [
        Policy({n: BitWidths(2, 8) if not p[n].reads.is_float else p[n] for n in table.layers})
        for p in chosen
    ]
    first, again = (
        TableReplay(t).total(network, PolicyBatch.of(network, p), Metric.LATENCY)
        for t, p in ((table, chosen), (wide, two))
    )
    np.testing.assert_allclose(first, again, rtol=1e-12)
    assert isinstance(CostTable.from_json(wide.to_json()), CostTable)


def test_a_network_without_an_integer_kernel_cannot_be_calibrated() -> None:
    sketch = Sketch()
    x = sketch.input((1, 4, 5, 5))
    weight = sketch.constant(np.ones((4, 3, 2, 2), np.float32))
    network = sketch.network(sketch.node("ConvTranspose", x, weight, name="only"))
    with pytest.raises(BackendError, match="no layer of this network runs as integers"):
        calibrate_network(
            network,
            _world().measure,
            _inspect,
            seconds=1,
            seed=0,
            progress=lambda _share, _what: None,
        )


def test_loudness_grows_with_what_the_float_network_took_longer() -> None:
    references = np.full(100, 1e-3)
    references[50:53] = 1.02e-3, 1.08e-3, 1.13e-3
    loud = loudness(references)
    np.testing.assert_allclose(loud[50:53], [1.0, 2.0, 3.0])
    assert (np.delete(loud, [51, 52]) == 1).all()
    np.testing.assert_allclose(loudness(references * 7), loud)


@pytest.mark.parametrize("share", [0.0, 1 / 3])
def test_what_was_timed_on_a_disturbed_machine_counts_for_less(share: float) -> None:
    world = Shared(_world().truth, share=share)
    found = _calibrate(world)
    assert found.disturbed == world.disturbed
    assert (world.disturbed > 20) == (share > 0)
    assert _errors(found, world)[0].mean() < 0.01
    assert found.float_s == FLOAT_S
    assert len(found.timed) == 81  # none is left out for it


def test_a_disturbance_that_the_float_network_tells_of_does_less_harm() -> None:
    told, untold = (Shared(_world().truth, told=told) for told in (True, False))
    with_weights, without = (_errors(_calibrate(w), w)[0].mean() for w in (told, untold))
    assert with_weights < without / 2


def test_policies_unlike_all_others_are_left_out_and_counted() -> None:
    world = replace(_world(noise=0.005), distorted={10: 1.5, 30: 0.6, 52: 1.4})
    found = _calibrate(world)
    assert 3 <= found.model.unlike <= 8
    assert _errors(found, world)[0].mean() < 0.01
    rows = rows_of(found.model.effects, [t.pattern for t in found.timed])
    assert len(rows) == 81  # they stay among the measurements


def test_where_little_was_undisturbed_calibration_goes_on() -> None:
    found = _calibrate(Shared(_world().truth, share=0.9))
    assert found.disturbed > len(found.timed) / 2
    assert found.float_s == FLOAT_S


def test_what_judges_is_never_fitted_even_if_the_design_draws_it_too() -> None:
    found = _calibrate(_world(noise=0.02), 150)
    fitted = never_judged(found.timed, found.judged)
    patterns_ = np.array([t.pattern for t in found.timed])
    judging = {pattern.tobytes() for pattern in patterns_[found.judged]}
    assert fitted.sum() >= 24
    assert not judging & {pattern.tobytes() for pattern in patterns_[fitted]}


def test_a_network_of_too_few_policies_is_fitted_to_all_and_judged_by_none() -> None:
    """Of two layers: four policies, all of which judge sooner or later."""
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 3, 8, 8)), 4, kernel=3, name="one")
    network = sketch.network(sketch.conv(x, 4, kernel=3, name="two"))

    def measure(pattern: Pattern, seed: int) -> Timed:
        ratio = 1 - 0.2 * float(pattern.sum())
        policy, reference = (Measurement("t", (r * FLOAT_S,)) for r in (ratio, 1.0))
        return Timed(pattern, ratio, policy, reference, wall_s=1.0)

    def inspect(policy: Policy) -> Profile:
        names = network.layer_names
        return Profile(dict.fromkeys(names, 0.5), dict.fromkeys(names, "Conv"))

    found = calibrate_network(
        network, measure, inspect, seconds=80, seed=0, progress=lambda _share, _what: None
    )
    assert found.validation is None
    assert not found.judged.any()
    table = measured_table(network, found, SOURCE)
    assert not any(m["judged"] for m in table.measurements)
    predicted = found.model.total([np.array(p, np.bool_) for p in ((0, 0), (0, 1), (1, 1))])
    np.testing.assert_allclose(predicted, [1.0, 0.8, 0.6], atol=0.02)
