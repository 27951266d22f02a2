"""Calibration of one network, on times that the test makes up."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pytest

from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from costmodels.pricing import total
from costmodels.sketch import Sketch, example_network
from costmodels.table import FloatArray
from hil.audit import AuditError
from hil.calibration import Calibration, Effects, Timed, as_policy, calibrate_network
from hil.design import Pattern
from hil.ort import one_feed, random_inputs
from hil.profile import node_shares
from hil.tables import measured_table, spread_table
from quantization.bits import FLOAT32, BitWidths, Format, parse_choices
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from tests.quantization.graphs import make_model, node, normal

FLOAT_S = 1e-3


@lru_cache
def _network() -> Network:
    return example_network()


@lru_cache
def _exporter() -> Exporter:
    options = ExportOptions(weight_method="minmax", pack=False)
    return Exporter(_network(), made_up_ranges(_network()), options)


@dataclass
class World:
    """Times that follow the linear model exactly, but for noise; a policy takes a second."""

    truth: FloatArray
    noise: float = 0.0
    now: float = 0.0

    def clock(self) -> float:
        return self.now

    def measure(self, pattern: Pattern, seed: int) -> Timed:
        self.now += 1.0
        row = Effects(_network()).row(as_policy(_network(), pattern))
        wobble = float(np.exp(self.noise * np.random.default_rng(seed).standard_normal()))
        ratio = float(1 + row @ self.truth) * wobble
        policy = Measurement("policy", (ratio * FLOAT_S,))
        return Timed(pattern, ratio, policy, Measurement("float", (FLOAT_S,)))


def _world(noise: float = 0.0, *, gain: float = -0.4) -> World:
    """Every layer gains the same share of the whole; conversions cost a little."""
    effects, layers = Effects(_network()), len(_network().layers)
    truth = np.zeros(effects.count)
    truth[:layers] = gain / layers
    truth[layers + len(effects.glue) :] = 0.004
    return World(truth, noise)


def _calibrate(world: World, seconds: float = 80) -> Calibration:
    return calibrate_network(
        _exporter(),
        random_inputs(_network(), 1),
        seconds=seconds,
        threads=1,
        seed=0,
        progress=lambda _share, _what: None,
        measure=world.measure,
        clock=world.clock,
    )


@dataclass
class Shared(World):
    """A world whose machine has other users, who are busy for a share of every 30 s."""

    share: float = 1 / 3
    disturbed: int = 0

    def measure(self, pattern: Pattern, seed: int) -> Timed:
        quiet = super().measure(pattern, seed)
        if self.now % 30 >= 30 * self.share:
            return quiet
        self.disturbed += 1
        ratio = 1 + (quiet.ratio - 1) * 0.8  # integer kernels suffer more
        policy = Measurement("policy", (ratio * FLOAT_S * 1.15,))
        return Timed(pattern, ratio, policy, Measurement("float", (FLOAT_S * 1.15,)))


def _random_patterns(count: int) -> list[Pattern]:
    draw = np.random.default_rng(99)
    return [draw.random(len(_network().layers)) < 0.5 for _ in range(count)]


def test_a_row_counts_integer_layers_glue_and_paid_conversions() -> None:
    effects = Effects(_network())
    np.testing.assert_array_equal(effects.row(Policy({})), np.zeros(effects.count))
    row = effects.row(Policy({"stem": BitWidths(8, 8)}))
    layers = row[: len(effects.layers)]
    assert layers[effects.layers.index("stem")] == 1
    assert layers.sum() == 1
    columns = effects.conversions
    paid = row[len(effects.layers) + len(effects.glue) :]
    stem = _network().layer("stem")
    assert any(paid[i] for i, (name, _) in enumerate(columns) if name == stem.inputs[0])
    assert effects.blocks.shape == row.shape
    assert set(effects.blocks) == {0, 1, 2, 3}


def test_stored_widths_do_not_change_a_row() -> None:
    effects = Effects(_network())
    rows = [effects.row(Policy.uniform(_network(), BitWidths(b, 8))) for b in (2, 5, 8)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_the_prior_is_the_difference_of_profiles() -> None:
    effects = Effects(_network())
    mean, spread = effects.prior({"stem": 0.5, "mix": 0.5}, {"stem": 0.25, "mix": 0.75}, 0.4)
    stem, mix = effects.layers.index("stem"), effects.layers.index("mix")
    assert mean[stem] == pytest.approx(0.25 * 0.4 - 0.5)
    assert mean[mix] == pytest.approx(0.75 * 0.4 - 0.5)
    assert (spread > 0).all()


def test_the_prior_expects_no_conversion_to_cost_anything_but_large_ones_to_differ_more() -> None:
    effects = Effects(_network())
    first = len(effects.layers) + len(effects.glue)
    mean, spread = effects.prior({"stem": 1.0}, {"stem": 1.0}, 0.5)
    np.testing.assert_array_equal(mean[first:], 0.0)
    counts = [_network().tensor_by_name[name].count for name, _ in effects.conversions]
    order = np.argsort(counts)
    assert (np.diff(spread[first:][order]) >= 0).all()
    assert spread[first:].max() > 2 * spread[first:].min()


def test_as_policy_is_integer_where_the_pattern_is() -> None:
    policy = as_policy(_network(), [True] + [False] * (len(_network().layers) - 1))
    first, *others = _network().layer_names
    assert policy[first] == BitWidths(8, 8)
    assert {policy[name] for name in others} == {FLOAT32}


def test_calibration_stops_when_its_time_is_over_and_says_how_far_it_is() -> None:
    world, seen = _world(), list[float]()
    found = calibrate_network(
        _exporter(),
        random_inputs(_network(), 1),
        seconds=30,
        threads=1,
        seed=0,
        progress=lambda share, _: seen.append(share),
        measure=world.measure,
        clock=world.clock,
    )
    assert 30 <= len(found.timed) <= 32
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert found.held_out == len(found.timed) // 7


def test_the_first_two_policies_are_all_integer_and_all_float() -> None:
    first, second, *_ = _calibrate(_world(), 30).timed
    assert first.pattern.all()
    assert not second.pattern.any()


def test_too_little_time_is_an_error_that_says_so() -> None:
    with pytest.raises(BackendError, match=r"enough for 11 policies only; 24 are needed"):
        _calibrate(_world(), 10)


def test_times_that_follow_the_model_are_predicted_exactly() -> None:
    world = _world()
    found = _calibrate(world)
    assert found.held_out_error < 0.005
    assert found.float_s == FLOAT_S
    effects = Effects(_network())
    for pattern in _random_patterns(20):
        row = effects.row(as_policy(_network(), pattern))
        assert found.fit.predict(row[None])[0] == pytest.approx(row @ world.truth, abs=0.01)


def test_the_held_out_error_reports_the_noise_and_the_fit_averages_it() -> None:
    world = _world(noise=0.03)
    found = _calibrate(world, 150)
    assert 0.01 < found.held_out_error < 0.06
    effects = Effects(_network())
    rows = np.array([effects.row(as_policy(_network(), p)) for p in _random_patterns(40)])
    error = found.fit.predict(rows) - rows @ world.truth
    assert np.abs(error).mean() < 0.02


def test_a_table_adds_up_to_the_predictions() -> None:
    world = _world()
    found = _calibrate(world)
    network = _network()
    kernels = np.full((len(network.layers), 2), "kernel")
    table = measured_table(network, found, kernels, {"backend": "test"})
    floor = table.unary.value[:, 0] <= 0.0201 * table.unary.value[:, 1]
    patterns = [p & ~floor for p in _random_patterns(20)]
    batch = PolicyBatch.of(network, [as_policy(network, p) for p in patterns])
    effects = Effects(network)
    rows = np.array([effects.row(as_policy(network, p)) for p in patterns])
    expected = (1 + found.fit.predict(rows)) * FLOAT_S
    np.testing.assert_allclose(total(table, network, batch), expected, rtol=0.01)


def test_a_layer_that_gains_more_than_it_costs_keeps_a_small_cost() -> None:
    found = _calibrate(_world(gain=-0.95))
    network = _network()
    kernels = np.full((len(network.layers), 2), "kernel")
    table = measured_table(network, found, kernels, {"backend": "test"})
    integer, floats = table.unary.value.T
    assert (integer > 0).all()
    assert (integer >= 0.0199 * floats).all()
    assert (integer <= 0.0201 * floats).any()


def test_cells_that_no_timed_policy_ever_paid_are_assumed_and_not_calibrated() -> None:
    found, network = _calibrate(_world(), 30), _network()
    kernels = np.full((len(network.layers), 2), "kernel")
    table = measured_table(network, found, kernels, {"backend": "test"})
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
    assert set(table.unary.provenance.flat) == {"measured"}
    nothing = replace(found, paid=np.zeros_like(found.paid))
    bare = measured_table(network, nothing, kernels, {"backend": "test"})
    assert set(bare.glue.provenance[:, integer]) == {"assumed"}
    assert set(bare.conversion.provenance.flat) == {"assumed", "exact"}
    wide = spread_table(table, network, parse_choices("w32a32,w4a8,w16a16"))
    both = np.ix_(range(len(table.tensors)), *[[wide.formats.index(f) for f in table.formats]] * 2)
    np.testing.assert_array_equal(wide.conversion.provenance[both], table.conversion.provenance)


def test_what_was_never_paid_gets_no_price_from_the_sizes_of_tensors() -> None:
    found = _calibrate(_world(noise=0.03))
    first = len(found.effects.layers) + len(found.effects.glue)
    unpaid = ~found.paid[first:]
    assert unpaid.any()
    np.testing.assert_array_equal(found.fit.coefficients[first:][unpaid], 0.0)


@pytest.mark.parametrize("choices", ["w16a16,w8a8", "fp16,w32a32", "w16a16,fp16", "w2a8"])
def test_formats_that_were_not_measured_are_absent_and_the_others_keep_their_cells(
    choices: str,
) -> None:
    found, network = _calibrate(_world(), 30), _network()
    kernels = np.full((len(network.layers), 2), "kernel")
    table = measured_table(network, found, kernels, {"backend": "test"})
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
    found, network = _calibrate(_world(), 30), _network()
    kernels = np.full((len(network.layers), 2), "kernel")
    table = measured_table(network, found, kernels, {"backend": "test"})
    assert table.constant == 0.0
    floats = table.formats.index(Format.FLOAT32)
    whole = table.unary.value[:, 1].sum() + table.glue.value[:, floats].sum()
    assert whole == pytest.approx(found.float_s, rel=1e-12)


def test_a_spread_table_prices_every_width_of_a_kernel_alike_and_masks_the_rest() -> None:
    found = _calibrate(_world(), 30)
    network = _network()
    kernels = np.full((len(network.layers), 2), ["QLinearConv", "Conv"])
    table = measured_table(network, found, kernels, {"backend": "test"})
    wide = spread_table(table, network, parse_choices("fp16,w4a4,w5a8,w32a32,w2a8"))
    np.testing.assert_array_equal(wide.unary.value[:, 2], table.unary.value[:, 0])
    np.testing.assert_array_equal(wide.unary.value[:, 4], table.unary.value[:, 0])
    np.testing.assert_array_equal(wide.unary.value[:, 3], table.unary.value[:, 1])
    assert np.isinf(wide.unary.value[:, :2]).all()
    policy = Policy({"stem": BitWidths(5, 8), "mix": BitWidths(2, 8)})
    same = Policy({"stem": BitWidths(8, 8), "mix": BitWidths(8, 8)})
    first = total(wide, network, PolicyBatch.of(network, [policy]))
    np.testing.assert_allclose(first, total(table, network, PolicyBatch.of(network, [same])))


def test_shares_of_a_profile_add_up_to_one_and_name_every_layer() -> None:
    network = _network()
    feed = one_feed(network, random_inputs(network, 1))
    for policy in (Policy({}), Policy.uniform(network, BitWidths(8, 8))):
        shares = node_shares(_exporter(), policy, 1, feed)
        assert sum(shares.values()) == pytest.approx(1.0)
        assert set(shares) <= {node.name for node in network.execution_order}
        assert set(network.layer_names) <= set(shares)


def test_a_policy_that_the_runtime_does_not_execute_as_asked_never_enters_the_fit() -> None:
    """Without the guard, a float layer between integer ones is re-quantized at load."""
    nodes = [node("Conv", f"{a} w{b}", b, f"conv-{b}") for a, b in ("xs", "st", "tu")]
    weights = {f"w{b}": normal(16, 16, 1, 1, seed=i) for i, b in enumerate("stu")}
    network = read_network(make_model(nodes, weights, {"x": (1, 16, 8, 8)}, {"u": None}))
    options = ExportOptions(weight_method="minmax", pack=False, guard_float=False)
    exporter = Exporter(network, made_up_ranges(network), options)
    with pytest.raises(AuditError, match=r"layer 'conv-t'.*re-quantized at load"):
        calibrate_network(
            exporter,
            random_inputs(network, 1),
            seconds=60,
            threads=1,
            seed=0,
            progress=lambda _share, _what: None,
        )


def test_a_network_without_an_integer_kernel_cannot_be_calibrated() -> None:
    sketch = Sketch()
    x = sketch.input((1, 4, 5, 5))
    weight = sketch.constant(np.ones((4, 3, 2, 2), np.float32))
    network = sketch.network(sketch.node("ConvTranspose", x, weight, name="only"))
    exporter = Exporter(network, made_up_ranges(network))
    with pytest.raises(BackendError, match="no layer of this network runs as integers"):
        calibrate_network(
            exporter,
            random_inputs(network, 1),
            seconds=1,
            threads=1,
            seed=0,
            progress=lambda _share, _what: None,
        )


@pytest.mark.parametrize("share", [0.0, 1 / 3])
def test_what_was_timed_on_a_disturbed_machine_is_left_out(share: float) -> None:
    world = Shared(_world().truth, share=share)
    found = _calibrate(world)
    rows = np.array([found.effects.row(as_policy(_network(), p)) for p in _random_patterns(40)])
    errors = np.abs((1 + found.fit.predict(rows)) / (1 + rows @ world.truth) - 1)
    assert found.disturbed == world.disturbed
    assert (world.disturbed > 20) == (share > 0)
    assert errors.mean() < 0.01
    assert found.float_s == FLOAT_S


def test_where_little_was_undisturbed_enough_is_kept() -> None:
    found = _calibrate(Shared(_world().truth, share=0.9))
    assert len(found.timed) >= 24
