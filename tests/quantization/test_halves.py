"""Half precision in exported files: bits, sizes, formats, and the numbers that come out."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from costmodels.size import ExportedSize
from costmodels.units import Metric
from hil.audit import AuditError, audit, require_kernels
from hil.ort import Runner
from quantization.bits import FLOAT32, BitWidths, Format
from quantization.deployment import CUDA_TARGET, not_deployable
from quantization.errors import PolicyError
from quantization.export import Exporter, half_name
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.quantizer import Float32Array
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from tests.networks import Subject, random_policy, uniform
from tests.quantization.graphs import make_model, node, normal

HALF = BitWidths.parse("fp16")
CHOICES = "fp16 w32a32"
SUBJECTS = ("small", "branching", "attention")
EPSILON = float(np.finfo(np.float16).eps)


def half_exporter(network: Network) -> Exporter:
    return Exporter(network, made_up_ranges(network), target=CUDA_TARGET)


def outputs(model: bytes, images: Float32Array) -> Float32Array:
    name = onnx.load_from_string(model).graph.input[0].name
    runner = Runner(model, 1, {name: images[:1]})
    return np.concatenate([runner.run({name: image[None]})[0] for image in images])


def policy_of(network: Network, case: str | int) -> Policy:
    drawn = isinstance(case, int)
    return random_policy(network, case, CHOICES) if drawn else uniform(network, str(case))


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("case", ["fp16", "w32a32", 0, 1, 2])
def test_files_are_valid_and_as_long_as_predicted(subject: Subject, case: str | int) -> None:
    network, exporter = subject.network, half_exporter(subject.network)
    policy = policy_of(network, case)
    built = exporter.build(policy)
    assert len(built) == exporter.size_bytes(policy)
    model = onnx.load_from_string(built)
    onnx.checker.check_model(model, full_check=True)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))


def test_size_by_table_is_the_size_of_the_file(subject: Subject) -> None:
    network, exporter = subject.network, half_exporter(subject.network)
    policies = [policy_of(network, case) for case in ("fp16", "w32a32", 0, 1)]
    found = ExportedSize(CUDA_TARGET).total(network, PolicyBatch.of(network, policies), Metric.SIZE)
    assert found.tolist() == [len(exporter.build(policy)) for policy in policies]


@pytest.mark.parametrize("case", ["fp16", 0, 1, 2])
def test_outputs_are_the_float_networks_within_half_precision(
    subject: Subject, case: str | int
) -> None:
    """Each of the L roundings along a path errs by half an epsilon at most, of its magnitude."""
    network, exporter = subject.network, half_exporter(subject.network)
    images = subject.images[:8]
    exact = outputs(exporter.build(Policy({})), images)
    found = outputs(exporter.build(policy_of(network, case)), images)
    roundings = 3 * len(network.layers) + len(network.glue)
    difference = float(np.abs(found - exact).max())
    assert 0 < difference <= roundings * EPSILON / 2 * float(np.abs(exact).max())
    assert (found.argmax(1) == exact.argmax(1)).all()


@pytest.mark.parametrize("case", ["fp16", 0])
def test_the_simulation_computes_what_the_file_does(subject: Subject, case: str | int) -> None:
    """The CPU provider leaves some roundings between casts out; a weight's never."""
    exporter, policy = half_exporter(subject.network), policy_of(subject.network, case)
    images = subject.images[:16]
    simulated = Simulation(exporter, subject.calibration).logits(policy, images)
    found = outputs(exporter.build(policy), images)
    largest = float(np.abs(found).max())
    roundings = 2 * len(subject.network.layers) + len(subject.network.glue)
    assert float(np.abs(simulated - found).max()) <= roundings * EPSILON / 2 * largest


def test_a_bias_is_simulated_in_half_precision() -> None:
    """The input takes it away: were one of both rounded and the other not, 8e-5 would be left."""
    third = np.full((2, 1, 1), 1 / 3, np.float32)
    constants = {"a": -np.ones((1, 1, 1, 1), np.float32), "b": third[0].reshape(1)}
    network = read_network(
        make_model(
            [node("Conv", "x a b", "y", "only")], constants, {"x": (1, 1, 1, 1)}, {"y": None}
        )
    )
    exporter, images = half_exporter(network), third[:, None]
    policy = uniform(network, "fp16")
    np.testing.assert_array_equal(Simulation(exporter, images).logits(policy, images), 0)


def test_weights_and_biases_in_the_file_are_those_of_the_policy(subject: Subject) -> None:
    network, exporter = subject.network, half_exporter(subject.network)
    policy = policy_of(network, 1)
    graph = onnx.load_from_string(exporter.build(policy)).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {n.name: n for n in graph.node}
    given = {t.name: numpy_helper.to_array(t) for t in network.model.graph.initializer}
    exact = {n.name: n for n in network.model.graph.node}
    for layer in network.layers:
        for at, name in enumerate(exact[layer.name].input):
            if name not in given:
                continue
            tensor = stored[nodes[layer.name].input[at]]
            half = policy[layer.name].half
            assert tensor.data_type == (TensorProto.FLOAT16 if half else TensorProto.FLOAT)
            expected = given[name].astype(np.float16 if half else np.float32)
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected)


def test_a_cast_stands_exactly_where_the_rule_converts(subject: Subject) -> None:
    network, policy = subject.network, policy_of(subject.network, 2)
    graph = onnx.load_from_string(half_exporter(network).build(policy)).graph
    casts = {(n.input[0], n.output[0]) for n in graph.node if n.op_type == "Cast"}
    expected = set()
    for tensor, written, _ in formats(network, policy).conversions:
        ends = (tensor, half_name(network, tensor))
        expected.add(ends if written is Format.FLOAT32 else ends[::-1])
    assert casts == expected


def test_the_audit_knows_the_bits_and_that_a_cpu_widens_them(small: Subject) -> None:
    network, exporter = small.network, half_exporter(small.network)
    policy = policy_of(network, 0)
    built = exporter.build(policy)
    found = audit(network, policy, built, len(built))
    for layer in found.layers:
        half = policy[layer.name].half
        assert layer.stored == ("float16" if half else "float32")
        assert layer.ok is not half
        assert ("asked for half precision" in layer.reason) is half
    kept = onnx.load_from_string(built).graph  # as a provider with such kernels keeps it
    require_kernels(network, policy, kept)
    swapped = {name: FLOAT32 if policy[name].half else HALF for name in network.layer_names}
    with pytest.raises(AuditError, match=r"asked for .*float32.* \(and \d+ more\)"):
        require_kernels(network, Policy(swapped), kept)


@pytest.mark.parametrize(
    "middle",
    [
        [node("Clip", "t low high", "u", "middle")],
        [node("Resize", "t - scales", "u", "middle", mode="nearest")],
        [node("Cast", "t", "u", "middle", to=TensorProto.FLOAT)],
        [node("Pad", "t pads value", "u", "middle")],
        [node("BatchNormalization", "t s s s s", "u", "middle")],
        [node("Celu", "t", "u", "middle")],
        [node("LpNormalization", "t", "u", "middle", axis=1)],
        [node("Concat", "t more", "u", "middle", axis=0)],
    ],
    ids=lambda middle: middle[0].op_type,
)
def test_glue_keeps_its_meaning_in_half_precision(middle: list[onnx.NodeProto]) -> None:
    constants: dict[str, np.ndarray[Any, Any]] = {
        "a": normal(4, 4, 1, 1),
        "c": normal(4, 4, 1, 1, seed=1),
        "low": np.array(np.finfo(np.float32).min, np.float32),
        "high": np.array(0.7, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "value": np.array(0.5, np.float32),
        "s": np.array([0.5, 1, 1.5, 2], np.float32),
        "more": normal(1, 4, 6, 6, seed=2),
    }
    nodes = [node("Conv", "x a", "t", "first"), *middle, node("Conv", "u c", "y", "last")]
    used = {name for n in nodes for name in n.input}
    kept = {name: value for name, value in constants.items() if name in used}
    network = read_network(make_model(nodes, kept, {"x": (1, 4, 6, 6)}, {"y": None}))
    exporter, images = half_exporter(network), normal(4, 4, 6, 6, seed=3)
    model = exporter.build(uniform(network, "fp16"))
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    exact, found = outputs(exporter.build(Policy({})), images), outputs(model, images)
    assert 0 < float(np.abs(found - exact).max()) <= 6 * EPSILON * float(np.abs(exact).max())


def test_a_parameter_beyond_half_precision_is_refused() -> None:
    nodes = [node("Conv", "x a", "y", "first")]
    network = read_network(
        make_model(
            nodes, {"a": np.full((2, 2, 1, 1), 1e5, np.float32)}, {"x": (1, 2, 4, 4)}, {"y": None}
        )
    )
    with pytest.raises(PolicyError, match=r"'first' has a parameter of 100000, beyond half"):
        half_exporter(network).build(uniform(network, "fp16"))


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w16a16", "w8a32"])
def test_integers_run_as_float_on_cuda_and_are_refused(small: Subject, bits: str) -> None:
    layer = small.network.layers[0]
    reason = not_deployable(layer, BitWidths.parse(bits), CUDA_TARGET)
    assert reason == "runs as float on the CUDA provider, which has no integer kernels"
    with pytest.raises(PolicyError, match=reason):
        half_exporter(small.network).build(uniform(small.network, bits))


def test_half_precision_is_for_cuda_only(small: Subject) -> None:
    layer = small.network.layers[0]
    assert not_deployable(layer, HALF, CUDA_TARGET) == ""
    assert not_deployable(layer, FLOAT32, CUDA_TARGET) == ""
    with pytest.raises(PolicyError, match="no 16-bit kernels on the CPU provider"):
        small.exporter.build(uniform(small.network, "fp16"))
