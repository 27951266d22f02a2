"""Sessions on ONNX Runtime's CPU provider, and the backend ``ort`` that times them."""

import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.replay import TableReplay
from costmodels.sketch import Sketch, example_network
from costmodels.table import CostTable
from costmodels.units import Metric
from hil.audit import AuditError
from hil.calibration import TURNS, FailedPolicyError, loudness
from hil.live import OrtLive, create
from hil.ort import (
    Runner,
    load_session,
    load_with_graph,
    one_feed,
    optimized_graph,
    random_inputs,
    recorded_options,
    session_options,
)
from quantization.bits import FLOAT32, BitWidths, parse_choices
from quantization.deployment import ExportOptions
from quantization.errors import DataError, ModelError, PolicyError
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.reading import read_network
from tests.quantization.graphs import make_model, node, normal

CHOICES = parse_choices("w2a8,w3a8,w8a8,w32a32,w4a4,fp16,w16a16,w4a32")
SECONDS = 6.0


def _small() -> Network:
    sketch = Sketch()
    stem = sketch.node("Relu", sketch.conv(sketch.input((1, 3, 16, 16)), 8, kernel=3, name="stem"))
    depthwise = sketch.conv(stem, 8, kernel=3, groups=8, name="depthwise")
    return sketch.network(sketch.conv(sketch.node("Relu", depthwise), 16, name="point"))


@pytest.fixture(scope="module")
def network() -> Network:
    return _small()


@pytest.fixture(scope="module")
def live() -> OrtLive:
    return OrtLive(BackendContext(seconds=SECONDS))


@pytest.fixture(scope="module")
def table(live: OrtLive, network: Network) -> CostTable:
    return live.table(network, CHOICES, Metric.LATENCY)


def test_a_runner_answers_what_the_model_computes_on_fixed_and_on_other_inputs(
    network: Network,
) -> None:
    images = random_inputs(network, 2)
    model = network.model.SerializeToString()
    runner = Runner(model, 1, one_feed(network, images))
    first, again = runner()[0], runner()[0]
    np.testing.assert_array_equal(first, again)
    assert first.shape == (1, 16, 16, 16)
    name = network.input_names[0]
    np.testing.assert_array_equal(runner.run({name: images[:1]})[0], first)
    assert not np.allclose(runner.run({name: images[1:]})[0], first)


def test_a_runner_shows_the_graph_that_its_own_session_executes(network: Network) -> None:
    model, seen = network.model.SerializeToString(), list[onnx.GraphProto]()
    feed = one_feed(network, random_inputs(network, 1))
    runner = Runner(model, 1, feed, seen.append)
    assert [n.op_type for n in seen[0].node] == [n.op_type for n in optimized_graph(model).node]
    np.testing.assert_array_equal(runner()[0], Runner(model, 1, feed)()[0])

    def refuse(graph: onnx.GraphProto) -> None:
        raise AuditError(f"{len(graph.node)} nodes are too many")

    with pytest.raises(AuditError, match="nodes are too many"):
        Runner(model, 1, feed, refuse)


def test_a_graph_comes_with_the_values_of_its_constants_only_on_request(network: Network) -> None:
    model = network.model.SerializeToString()
    _, bare = load_with_graph(model, session_options(1))
    _, full = load_with_graph(model, session_options(1), values=True)
    assert [(t.name, list(t.dims), t.data_type) for t in bare.initializer] == [
        (t.name, list(t.dims), t.data_type) for t in full.initializer
    ]
    assert len(full.initializer) > 3
    assert not any(t.raw_data or t.float_data for t in bare.initializer)
    assert all(onnx.numpy_helper.to_array(t).size for t in full.initializer)
    assert [n.op_type for n in bare.node] == [n.op_type for n in full.node]


def test_loading_with_a_graph_leaves_nothing_open(network: Network) -> None:
    model = network.model.SerializeToString()
    before = len(list(Path("/proc/self/fd").iterdir()))
    load_with_graph(model, session_options(1))
    with pytest.raises(ModelError, match="cannot load"):
        load_with_graph(model[:-100], session_options(1))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_sessions_have_the_threads_that_were_asked_for_and_default_optimization() -> None:
    import onnxruntime as ort

    options = session_options(2)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.graph_optimization_level == ort.SessionOptions().graph_optimization_level
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert recorded_options(2)["threads"] == 2


def test_what_timing_depends_on_is_given_explicitly_and_recorded() -> None:
    options, recorded = session_options(1), recorded_options(1)
    assert options.enable_cpu_mem_arena is recorded["memory_arena"] is True
    assert options.enable_mem_pattern is recorded["memory_pattern"] is True
    assert options.enable_mem_reuse is recorded["memory_reuse"] is True
    entries = {key: value for key, value in recorded.items() if key.startswith("session.")}
    assert {"session.set_denormal_as_zero", "session.intra_op.allow_spinning"} <= set(entries)
    for key, value in entries.items():
        assert options.get_session_config_entry(key) == value


def test_random_inputs_follow_the_seed_and_are_float32(network: Network) -> None:
    inputs = random_inputs(network, 3, seed=1)
    assert inputs.shape == (3, 3, 16, 16)
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, random_inputs(network, 3, seed=1))
    assert not np.array_equal(inputs, random_inputs(network, 3, seed=2))


def test_a_feed_fills_the_networks_batch_with_repetitions() -> None:
    sketch = Sketch()
    network = sketch.network(sketch.conv(sketch.input((4, 3, 5, 5)), 2, name="only"))
    images = np.random.default_rng(0).standard_normal((3, 3, 5, 5)).astype(np.float32)
    feed = one_feed(network, images)["x"]
    assert feed.shape == (4, 3, 5, 5)
    np.testing.assert_array_equal(feed[:3], images)
    np.testing.assert_array_equal(feed[3], images[0])


def test_the_optimized_graph_holds_fused_nodes(network: Network) -> None:
    kinds = {node.op_type for node in optimized_graph(network.model.SerializeToString()).node}
    assert kinds & {"Conv", "FusedConv"}
    assert "Relu" not in kinds


def test_a_model_that_the_runtime_refuses_is_an_error_of_ours() -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_session(model.SerializeToString(), session_options(1))
    assert isinstance(model, onnx.ModelProto)


def test_choices_that_execute_the_same_kernel_have_the_same_number(table: CostTable) -> None:
    eight = table.choices.index(BitWidths(8, 8))
    for bits in (BitWidths(2, 8), BitWidths(3, 8)):
        column = table.choices.index(bits)
        np.testing.assert_array_equal(table.unary.value[:, column], table.unary.value[:, eight])
        np.testing.assert_array_equal(table.unary.kernel[:, column], table.unary.kernel[:, eight])


def test_kernels_in_the_table_are_those_of_the_optimized_graph(table: CostTable) -> None:
    kernels = {str(c): set(table.unary.kernel[:, k]) for k, c in enumerate(table.choices)}
    assert kernels["w8a8"] == {"QLinearConv"}
    assert kernels["w32a32"] <= {"Conv", "FusedConv"}


@pytest.mark.parametrize("bits", ["w4a4", "fp16", "w16a16", "w4a32"])
def test_what_the_runtime_cannot_run_is_masked(table: CostTable, bits: str) -> None:
    column = table.choices.index(BitWidths.parse(bits))
    assert not table.supported[:, column].any()
    assert set(table.unary.kernel[:, column]) == {""}


def test_no_layer_is_free(table: CostTable) -> None:
    assert (table.unary.value[table.supported] > 0).all()


def test_the_float_column_and_float_glue_add_up_to_the_float_network(
    live: OrtLive, network: Network, table: CostTable
) -> None:
    [cost] = total(table, network, PolicyBatch.of(network, [Policy({})]))
    timed = np.array([np.percentile(m["float"]["samples_s"], 10) for m in table.measurements])
    assert cost == pytest.approx(np.median(timed[loudness(timed) == 1]), rel=1e-9)


def test_the_table_keeps_uncertainties_and_raw_samples(table: CostTable) -> None:
    for cells in (table.unary, table.glue, table.conversion):
        assert cells.uncertainty is not None
        assert (cells.uncertainty[cells.supported] >= 0).all()
        assert cells.uncertainty[cells.supported].any()
    assert len(table.measurements) == table.source["policies"] >= 24
    assert all(set(m["policy"]["block"]) == set(range(TURNS.blocks)) for m in table.measurements)
    assert all(len(m["policy"]["samples_s"]) >= TURNS.blocks for m in table.measurements)


def test_the_table_says_who_measured_and_how(table: CostTable) -> None:
    source = table.source
    assert source["backend"] == "ort"
    assert source["device"]["runtime"] == "onnxruntime"
    assert source["runtime"]["threads"] == 1
    assert source["inputs"] == "random"
    assert source["validation"] is None, "of its eight policies, too few are left to be fitted"
    assert not any(m["judged"] for m in table.measurements)
    assert (source["failed_policies"], source["profile_failure"]) == ([], None)
    assert 0 <= source["disturbed_policies"] <= source["policies"]
    assert table.statistic == "p10"


def test_a_network_is_calibrated_once(live: OrtLive, network: Network, table: CostTable) -> None:
    fewer = live.table(network, parse_choices("w32a32,w2a8"), Metric.LATENCY)
    restricted = table.restrict(parse_choices("w32a32,w2a8"))
    np.testing.assert_array_equal(fewer.unary.value, restricted.unary.value)
    np.testing.assert_array_equal(fewer.conversion.value, restricted.conversion.value)


def test_the_total_of_a_policy_is_remembered_for_all_widths_of_one_kernel(
    live: OrtLive, network: Network
) -> None:
    policies = [
        Policy({"stem": BitWidths(8, 8)}),
        Policy({"stem": BitWidths(8, 8)}),
        Policy({"stem": BitWidths(2, 8)}),
        Policy({}),
    ]
    first, again, two, floats = live.total(
        network, PolicyBatch.of(network, policies), Metric.LATENCY
    )
    assert first == again == two
    assert 0 < first < 1
    [later] = live.total(network, PolicyBatch.of(network, [Policy({})]), Metric.LATENCY)
    assert later == floats


def test_a_fresh_backend_gives_the_float_network_one_time_whatever_is_asked_first(
    network: Network,
) -> None:
    fresh = OrtLive(BackendContext())
    batch = PolicyBatch.of(network, [Policy({}), Policy({"stem": BitWidths(8, 8)}), Policy({})])
    first, _, again = fresh.total(network, batch, Metric.LATENCY)
    assert first == again


def test_total_says_how_far_it_is(network: Network) -> None:
    seen: list[tuple[float, str]] = []
    fresh = OrtLive(BackendContext(progress=lambda share, what: seen.append((share, what))))
    batch = PolicyBatch.of(network, [Policy({}), Policy({"stem": BitWidths(8, 8)})])
    fresh.total(network, batch, Metric.LATENCY)
    assert seen == [(0.0, "0 policies timed"), (0.5, "1 policies timed")]


def test_unsupported_bits_are_an_error_that_names_layer_and_reason(
    live: OrtLive, network: Network
) -> None:
    batch = PolicyBatch.of(network, [Policy({"point": BitWidths(4, 4)})])
    with pytest.raises(UnsupportedChoiceError, match=r"'point' at w4a4: no kernels .* below 8"):
        live.total(network, batch, Metric.LATENCY)


def test_policies_of_another_network_are_an_error(live: OrtLive, network: Network) -> None:
    other = example_network()
    batch = PolicyBatch.of(other, [Policy.uniform(other, FLOAT32)])
    with pytest.raises(PolicyError, match="no layer"):
        live.total(network, batch, Metric.LATENCY)


@pytest.mark.parametrize("metric", [Metric.ENERGY, Metric.SIZE])
def test_only_latency_is_measured(live: OrtLive, network: Network, metric: Metric) -> None:
    with pytest.raises(BackendError, match=f"measures latency, not {metric.value}"):
        live.table(network, CHOICES, metric)
    with pytest.raises(BackendError, match=metric.value):
        live.total(network, PolicyBatch.of(network, [Policy({})]), metric)


def test_too_little_time_is_an_error(network: Network) -> None:
    with pytest.raises(BackendError, match="give more time"):
        OrtLive(BackendContext(seconds=1e-6)).table(network, CHOICES, Metric.LATENCY)


def test_real_inputs_give_the_ranges_and_must_fit(network: Network) -> None:
    images = np.random.default_rng(0).uniform(0, 9, (12, 3, 16, 16)).astype(np.float32)
    given = OrtLive(BackendContext(seconds=2, inputs=images))
    batch = PolicyBatch.of(network, [Policy({"stem": BitWidths(8, 8)})])
    assert given.total(network, batch, Metric.LATENCY)[0] > 0
    wrong = OrtLive(BackendContext(seconds=2, inputs=images[:, :1]))
    with pytest.raises(DataError, match="shape"):
        wrong.total(network, batch, Metric.LATENCY)


def test_a_network_of_two_inputs_is_an_error() -> None:
    sketch = Sketch()
    left, right = sketch.input((1, 4, 5, 5)), sketch.input((1, 4, 5, 5))
    network = sketch.network(sketch.conv(sketch.node("Add", left, right), 4, name="only"))
    batch = PolicyBatch.of(network, [Policy({})])
    with pytest.raises(DataError, match="one input"):
        OrtLive(BackendContext()).total(network, batch, Metric.LATENCY)


def test_the_backend_without_an_argument_is_the_cpu() -> None:
    assert create("", BackendContext()).name == "ort"


def test_what_the_runtime_does_not_execute_as_asked_is_never_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without the guard, the float layer in the middle is re-quantized when the session loads."""
    nodes = [node("Conv", f"{a} w{b}", b, f"conv-{b}") for a, b in ("xs", "st", "tu")]
    weights = {f"w{b}": normal(16, 16, 1, 1, seed=i) for i, b in enumerate("stu")}
    network = read_network(make_model(nodes, weights, {"x": (1, 16, 8, 8)}, {"u": None}))
    choices = (BitWidths(8, 8), FLOAT32)
    mixed = PolicyBatch(network.layer_names, choices, np.array([[0, 1, 0]], np.uint8))
    assert OrtLive(BackendContext()).total(network, mixed, Metric.LATENCY)[0] > 0
    unguarded = partial(ExportOptions, guard_float=False)
    monkeypatch.setattr("hil.live.ExportOptions", unguarded)
    with pytest.raises(FailedPolicyError, match=r"'conv-t'.*re-quantized at load"):
        OrtLive(BackendContext()).total(network, mixed, Metric.LATENCY)
    found = OrtLive(BackendContext(seconds=6)).table(network, choices, Metric.LATENCY)
    failed = found.source["failed_policies"]
    assert failed
    for failure in failed:
        assert failure["kind"] == "exception"
        assert re.search(r"'conv-[st]'.*re-quantized at load", failure["text"])
    refused = sum(m["integer_layers"] == [True, False, True] for m in found.measurements)
    assert refused == 0, "it was never timed"


def test_a_calibration_of_which_all_is_stored_takes_nothing_again(
    network: Network, tmp_path: Path
) -> None:
    context = BackendContext(seconds=SECONDS, store=tmp_path / "store.sqlite")
    first = OrtLive(context).table(network, CHOICES, Metric.LATENCY)
    again = OrtLive(context).table(network, CHOICES, Metric.LATENCY)
    assert list(again.measurements) == list(first.measurements)  # to the last sample


def test_the_total_of_a_stored_table_knows_the_context_that_its_sum_does_not(
    network: Network, table: CostTable
) -> None:
    assert table.context is not None
    index = np.array(list(np.ndindex(2, 2, 2)), np.uint8)
    batch = PolicyBatch(network.layer_names, (BitWidths(8, 8), FLOAT32), index)
    gap = TableReplay(table).total(network, batch, Metric.LATENCY) - total(table, network, batch)
    np.testing.assert_allclose(gap, table.context.correction(index, batch.choices), atol=1e-12)


def test_reading_the_executed_graph_leaves_the_null_device_as_it_is() -> None:
    """The runtime removes a file before it writes it, and root may remove that one."""
    null = Path(os.devnull)
    if not null.is_char_device():
        pytest.skip(f"{null} is no device here")
    load_with_graph(_small().model.SerializeToString(), session_options(1))
    assert null.is_char_device()
