"""The path of a GPU on the CPU: half precision beside float32, bound buffers, an own profiler.

Float32 kernels stand in for those of half precision, so the times mean nothing; all else is real.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.sketch import Sketch
from costmodels.table import CostTable
from costmodels.units import Metric
from hil import policy_timer
from hil.calibration import InspectRaw, Measure, Timed, as_policy
from hil.design import Pattern
from hil.effects import Effects
from hil.live import OrtLive
from hil.ort import one_feed, optimized_graph, random_inputs
from hil.policy_timer import Job, PolicyTimer, ProfileJob, Profiler, RefusedPolicyError, Setup
from hil.profile import profile_of
from hil.providers import CPU, CUDA
from hil.records import Record
from hil.timing import TimingOptions
from hil.trace import FLOAT_KERNELS, executed_kernels, owners
from quantization.bits import FLOAT32, BitWidths, Format, parse_choices
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import made_up_ranges
from quantmeter.costs import parse_costs
from tests.networks import attention, branching, small_mobilenet, uniform

EMULATED = replace(CUDA, chain=CPU.chain, device="cpu", parts=CPU.parts, emulated=True)
HALF = BitWidths.parse("fp16")
CHOICES = parse_choices("fp16,w32a32,w8a8,w4a8")
BRIEF = TimingOptions(blocks=2, samples=1, warm_runs=1, turn_s=1e-4, sample_s=1e-5, warm_up=None)


def setup_of(network: Network, provider: object = EMULATED) -> Setup:
    feed = one_feed(network, random_inputs(network, 1))
    options = ExportOptions(weight_method="minmax", pack=False)
    made = Setup(network, made_up_ranges(network), feed, options, timing=BRIEF)
    return replace(made, provider=provider)


@pytest.fixture(scope="module")
def network() -> Network:
    sketch = Sketch()
    x = sketch.node("Relu", sketch.conv(sketch.input((1, 3, 16, 16)), 8, kernel=3, name="stem"))
    x = sketch.node("HardSwish", sketch.conv(x, 8, kernel=3, groups=8, name="depthwise"))
    return sketch.network(sketch.conv(x, 16, name="point"))


@pytest.fixture(scope="module")
def live() -> OrtLive:
    return OrtLive(BackendContext(), EMULATED, "an emulated GPU")


class InProcess(OrtLive):
    """Times policies in this process; each takes a second by its own account, on any machine."""

    def measure(self, network: Network) -> Measure:
        timer = PolicyTimer(setup_of(network))

        def measure(pattern: Pattern, seed: int) -> Timed:
            record = timer(Job(as_policy(network, pattern, HALF), seed))
            assert isinstance(record, Record)
            return replace(Timed.of(pattern, record), wall_s=1.0)

        return measure

    def raw_profile(self, network: Network) -> InspectRaw:
        profiler = Profiler(setup_of(network))
        return lambda policy: profiler(ProfileJob(policy))


@pytest.fixture(scope="module")
def table(network: Network) -> CostTable:
    live = InProcess(BackendContext(seconds=45.0), EMULATED, "an emulated GPU")
    return live.table(network, CHOICES, Metric.LATENCY)


def test_a_calibration_prices_half_precision_beside_float(
    table: CostTable, network: Network
) -> None:
    supported = {
        str(bits): bool(ok.all()) for bits, ok in zip(table.choices, table.supported.T, strict=True)
    }
    assert supported == {"fp16": True, "w32a32": True, "w8a8": False, "w4a8": False}
    assert (table.unary.value[table.supported] > 0).all()
    batch = PolicyBatch.of(network, [uniform(network, "fp16"), Policy({"stem": HALF}), Policy({})])
    assert np.isfinite(total(table, network, batch)).all()


def test_the_table_says_who_measured(table: CostTable) -> None:
    source = table.source
    assert source["backend"] == "ort:cuda"
    assert source["device"]["accelerator"] == "an emulated GPU"
    assert (source["runtime"]["buffers"], source["runtime"]["emulated"]) == ("cpu:0", True)
    assert all(len(m["half_layers"]) == 3 for m in table.measurements)


def test_the_stored_table_prices_half_precision_beside_the_sizes_of_its_files(
    table: CostTable, network: Network, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    path.write_text(table.to_json(), encoding="utf-8")
    costs = parse_costs([f"table:{path}"], BackendContext())
    policy = uniform(network, "fp16")
    built = Exporter(network, made_up_ranges(network), target=CUDA.target).build(policy)
    assert costs.total(network, [policy], Metric.SIZE)[0] == len(built)
    assert costs.total(network, [policy], Metric.LATENCY)[0] > 0


def test_every_glue_operator_and_conversion_has_a_cell_in_half_precision(table: CostTable) -> None:
    half, single = (table.formats.index(f) for f in (Format.FLOAT16, Format.FLOAT32))
    assert np.isfinite(table.glue.value[:, [half, single]]).all()
    assert np.isfinite(table.conversion.value[:, half, single]).all()
    assert (table.conversion.value[:, half, half] == 0).all()


def test_totals_build_and_time_half_precision(live: OrtLive, network: Network) -> None:
    batch = PolicyBatch.of(network, [Policy({}), uniform(network, "fp16"), Policy({"stem": HALF})])
    times = live.total(network, batch, Metric.LATENCY)
    assert (times > 0).all()
    integers = PolicyBatch.of(network, [uniform(network, "w8a8")])
    with pytest.raises(UnsupportedChoiceError, match="runs as float on the CUDA provider"):
        live.total(network, integers, Metric.LATENCY)
    with pytest.raises(BackendError, match="ort:cuda measures latency, not energy"):
        live.total(network, batch, Metric.ENERGY)


def test_effects_count_what_a_policy_of_two_float_formats_pays() -> None:
    network = attention()  # a softmax has no integer kernel, but half precision
    effects = Effects(network, HALF)
    assert set(effects.glue) == {glue.name for glue in network.glue} != set(Effects(network).glue)
    mixed = as_policy(network, [i % 2 == 0 for i in range(len(network.layers))], HALF)
    columns = (*effects.layers, *effects.glue, *effects.conversions)
    row = dict(zip(columns, effects.row(mixed), strict=True))
    chosen = formats(network, mixed)
    for name in (*effects.layers, *effects.glue):
        assert row[name] == (chosen.reads[name] is Format.FLOAT16)
    paid = {key for key in effects.conversions if row[key]}
    assert paid == {(name, target) for name, _, target in chosen.conversions}
    assert effects.row(as_policy(network, [False] * len(effects.layers), HALF)).sum() == 0


@pytest.mark.parametrize("make", [branching, small_mobilenet, attention])
def test_casts_belong_to_no_node_of_the_network(make: Callable[[], Network]) -> None:
    network = make()
    mixed = as_policy(network, [i % 2 == 0 for i in range(len(network.layers))], HALF)
    built = Exporter(network, made_up_ranges(network), target=CUDA.target).build(mixed)
    kept = onnx.load_from_string(built).graph  # as a provider with kernels of halves keeps it
    for graph in (kept, optimized_graph(built)):
        found = list(zip(graph.node, owners(network, graph), strict=True))
        casts = [owner for node, owner in found if node.op_type == "Cast"]
        assert casts
        assert set(casts) == {None}
        assert set(network.layer_names) <= {owner for _, owner in found}
    assert set(executed_kernels(network, kept).values()) <= FLOAT_KERNELS


def test_a_timer_measures_half_precision_in_bound_buffers(network: Network) -> None:
    record = PolicyTimer(setup_of(network))(Job(uniform(network, "fp16"), 1))
    assert isinstance(record, Record)
    assert set(record.measurements) == {"policy", "float"}


def test_a_cpu_that_widens_half_precision_fails_the_audit_unless_that_is_said(
    network: Network,
) -> None:
    timer = PolicyTimer(setup_of(network, replace(EMULATED, emulated=False)))
    with pytest.raises(RefusedPolicyError, match="asked for half precision, executed Conv of floa"):
        timer(Job(uniform(network, "fp16"), 1))


def test_profiles_on_a_device_are_taken_with_launches_that_block(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")  # so that it is as it was afterwards
    blocking: list[str | None] = []

    class Watched(Profiler):
        def __init__(self, setup: Setup) -> None:
            blocking.append(os.environ.get("CUDA_LAUNCH_BLOCKING"))
            super().__init__(setup)

    monkeypatch.setattr(policy_timer, "Profiler", Watched)
    profiler = policy_timer.blocking_profiler(setup_of(network))
    found = profile_of(network, profiler(ProfileJob(uniform(network, "fp16"))))
    assert blocking == ["1"]  # before any session: the driver reads it once
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert set(network.layer_names) <= set(found.shares)


def test_layers_at_float32_keep_their_float_kernels(network: Network) -> None:
    policy = Policy({"stem": HALF, "depthwise": FLOAT32, "point": HALF})
    record = PolicyTimer(setup_of(network))(Job(policy, 1))
    assert isinstance(record, Record)
    assert record.facts["model_bytes"] > 0
