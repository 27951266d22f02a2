"""The simulation against the exported file, image by image; corrections; undeployable widths."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest

from quantization.bits import BitWidths
from quantization.deployment import Correction
from quantization.errors import DataError, ModelError
from quantization.export import Exporter
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from tests.networks import Subject, random_policy, subject, uniform
from tests.quantization.graphs import make_model, node, normal

UNIFORM = ("w8a8", "w4a8", "w2a8")
MIXED = (0, 1, 2)
CASES: tuple[str | int, ...] = (*UNIFORM, *MIXED)


def run(model: bytes, images: Float32Array) -> Float32Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def policy_of(given: Subject, case: str | int) -> Policy:
    made = random_policy(given.network, case) if isinstance(case, int) else None
    return made or uniform(given.network, str(case))


def requantizations(model: bytes) -> int:
    nodes = onnx.load_from_string(model).graph.node
    return sum(n.op_type == "QuantizeLinear" for n in nodes)


def assert_file_and_simulation_agree(
    given: Subject, policy: Policy, corrections: Mapping[str, Correction] | None
) -> float:
    """Return by how many steps of the output they differ at most."""
    model = given.exporter.build(policy, corrections)
    found = run(model, given.images)
    expected = given.simulation.logits(policy, given.images, corrections)
    steps = float(np.abs(found - expected).max()) / given.output_step
    assert steps <= requantizations(model) * (1 + 1e-5)
    agreement = np.mean(found.argmax(1) == expected.argmax(1))
    assert agreement >= 0.995
    return steps


@pytest.mark.parametrize("corrected", [False, True], ids=["plain", "corrected"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["small", "branching", "attention", "digits"])
def test_the_file_computes_what_the_simulation_does(
    name: str, case: str | int, corrected: bool, request: pytest.FixtureRequest
) -> None:
    given: Subject = request.getfixturevalue(name)
    policy = policy_of(given, case)
    corrections = given.simulation.correct(policy) if corrected else None
    steps = assert_file_and_simulation_agree(given, policy, corrections)
    if isinstance(case, str) and name in ("small", "digits"):
        assert steps <= 2  # nothing but integers in between; only additions can meet a tie


@pytest.mark.parametrize("bits", ["w8a8", "w4a8"])
def test_uniform_integers_of_mobilenet_differ_only_by_ties_of_additions(
    mobilenet: Subject, bits: str
) -> None:
    policy = uniform(mobilenet.network, bits)
    for corrections in (None, mobilenet.simulation.correct(policy)):
        assert assert_file_and_simulation_agree(mobilenet, policy, corrections) <= 10


def test_integer_layers_without_additions_are_simulated_bit_for_bit(small: Subject) -> None:
    """Everything before the first residual addition, as an output of its own."""
    model = onnx.ModelProto()
    model.CopyFrom(small.network.model)
    position = next(i for i, n in enumerate(model.graph.node) if n.op_type == "Add")
    del model.graph.node[position:]
    del model.graph.output[:]
    last = model.graph.node[-1].output[0]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)
    )
    given = subject(read_network(model), 20)
    for bits in UNIFORM:
        policy = uniform(given.network, bits)
        for corrections in (None, given.simulation.correct(policy)):
            found = run(given.exporter.build(policy, corrections), given.images)
            expected = given.simulation.logits(policy, given.images, corrections)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("seed", range(3))
def test_mixed_policies_of_mobilenet_are_simulated_within_the_bound(
    mobilenet: Subject, seed: int
) -> None:
    policy = random_policy(mobilenet.network, seed, "w4a8 w8a8 w32a32")
    model = mobilenet.exporter.build(policy)
    found = run(model, mobilenet.images)
    expected = mobilenet.simulation.logits(policy, mobilenet.images)
    steps = np.abs(found - expected).max() / mobilenet.output_step
    assert steps <= requantizations(model)
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def test_the_float_policy_is_the_float_network(
    small: Subject, branching: Subject, attention: Subject
) -> None:
    for given in (small, branching, attention):
        few = given.images[:20]
        expected = run(given.network.model.SerializeToString(), few)
        np.testing.assert_allclose(
            given.simulation.logits(Policy({}), few), expected, rtol=1e-4, atol=1e-5
        )


def divergence(logits: Float32Array, reference: Float32Array) -> float:
    """Mean KL divergence to the reference."""

    def log_softmax(x: Float32Array) -> Float32Array:
        shifted = x.astype(np.float64) - x.max(1, keepdims=True)
        made: Float32Array = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        return made

    p, q = log_softmax(reference), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum(1).mean())


@pytest.mark.parametrize("bits", ["w2a8", "w3a8"])
def test_corrections_bring_few_bits_closer_to_the_float_network(digits: Subject, bits: str) -> None:
    few = digits.images[:300]
    reference = digits.simulation.logits(Policy({}), few)
    policy = uniform(digits.network, bits)
    plain = divergence(digits.simulation.logits(policy, few), reference)
    corrections = digits.simulation.correct(policy)
    corrected = divergence(digits.simulation.logits(policy, few, corrections), reference)
    assert corrected < 0.7 * plain


def test_corrections_bring_means_and_deviations_back(small: Subject) -> None:
    """Read off the exported network: the last layer's output has no activation behind it."""
    policy = uniform(small.network, "w3a8")
    corrections = small.simulation.correct(policy)
    assert set(corrections) == set(small.network.layer_names)
    reference = small.simulation.logits(Policy({}), small.calibration)
    plain = small.simulation.logits(policy, small.calibration)
    corrected = small.simulation.logits(policy, small.calibration, corrections)
    for statistic in (np.mean, np.std):
        error = np.abs(statistic(corrected, axis=0) - statistic(reference, axis=0)).max()
        before = np.abs(statistic(plain, axis=0) - statistic(reference, axis=0)).max()
        assert error < before / 2
        assert error < small.output_step


def test_layers_without_bias_or_in_floats_get_no_shift(attention: Subject) -> None:
    policy = Policy({"q": BitWidths(2, 8), "classifier": BitWidths(2, 8)})
    corrections = attention.simulation.correct(policy)
    assert set(corrections) == {"q", "classifier"}
    assert not corrections["q"].shift.any()
    assert corrections["classifier"].shift.any()


def test_half_precision_layers_are_not_corrected(small: Subject) -> None:
    first, second = small.network.layer_names[:2]
    policy = Policy({first: BitWidths.parse("fp16"), second: BitWidths(4, 8)})
    assert set(small.simulation.correct(policy)) == {second}


@pytest.mark.parametrize("name", ["small", "branching", "attention", "digits"])
def test_widths_that_no_runtime_runs_are_simulated_in_the_order_of_their_precision(
    name: str, request: pytest.FixtureRequest
) -> None:
    given: Subject = request.getfixturevalue(name)
    few = given.calibration[:100]  # other images saturate, at any width
    reference = given.simulation.logits(Policy({}), few)

    def error(bits: str) -> float:
        found = given.simulation.logits(uniform(given.network, bits), few)
        assert found.shape == reference.shape
        return float(np.abs(found - reference).mean())

    errors = [error(bits) for bits in ("w2a2", "w4a4", "w8a8")]
    assert errors == sorted(errors, reverse=True)
    for bits in ("w16a16", "fp16"):
        assert 0 < error(bits) < errors[-1] / 10
    assert error("w8a32") < errors[-1]


def test_sixteen_bit_layers_keep_a_bias_beyond_32_bits() -> None:
    """At 16 bits a step of the bias is so small that int32 ends near 3."""
    model = make_model(
        [node("Conv", "x w b", "y", "conv")],
        {"w": 0.1 * normal(3, 3, 1, 1), "b": np.array([20, -30, 0.5], np.float32)},
        {"x": (1, 3, 4, 4)},
        {"y": None},
    )
    given = subject(read_network(model), 5)
    reference = given.simulation.logits(Policy({}), given.images)
    found = given.simulation.logits(uniform(given.network, "w16a16"), given.images)
    np.testing.assert_allclose(found, reference, atol=0.01)


def test_one_sweep_equals_single_simulations(small: Subject) -> None:
    choices = [BitWidths.parse(b) for b in ("w2a8", "w4a4", "fp16", "w32a32")]
    few = small.images[:70]  # more than one block
    found = list(small.simulation.sweep(choices, few))
    assert len(found) == len(choices) * len(small.network.layers)
    for layer, bits, logits in found:
        policy = Policy({layer: bits})
        expected = small.simulation.logits(policy, few, small.simulation.correct(policy))
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_outputs_of_a_split_that_nobody_reads_do_not_shift_the_others() -> None:
    model = make_model(
        [
            node("Conv", "x w", "t", "conv"),
            node("Split", "t", "unread second", "split", axis=1, num_outputs=2),
            node("Conv", "second v", "y", "last"),
        ],
        {"w": normal(4, 3, 1, 1), "v": normal(2, 2, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": None},
    )
    given = subject(read_network(model), 10)
    assert_file_and_simulation_agree(given, uniform(given.network, "w8a8"), None)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bits", ["w4a32", "w8a8", "fp16"])
def test_transposed_convolutions_are_simulated(group: int, bits: str) -> None:
    model = make_model(
        [node("ConvTranspose", "x w b", "y", "up", strides=[2, 2], group=group)],
        {"w": normal(4, 6 // group, 2, 2), "b": normal(6)},
        {"x": (1, 4, 5, 5)},
        {"y": None},
    )
    given = subject(read_network(model), 8)
    policy = uniform(given.network, bits)
    reference = given.simulation.logits(Policy({}), given.images)
    found = given.simulation.logits(policy, given.images, given.simulation.correct(policy))
    deviation = np.abs(found - reference).mean() / np.abs(reference).mean()
    assert 0 < deviation < {"w4a32": 0.15, "w8a8": 0.02, "fp16": 0.001}[bits]


@pytest.mark.parametrize("seed", range(3))
def test_glue_that_has_no_integer_kernel_is_simulated_between_integer_layers(seed: int) -> None:
    model = make_model(
        [
            node("Conv", "x w", "t", "a"),
            node("HardSwish", "t", "u", "act"),
            node("Slice", "u start end axis", "s", "slice"),
            node("Conv", "s v", "r", "b"),
            node("Clip", "r lo hi", "c", "clip"),
            node("Conv", "c z", "y", "last"),
        ],
        {
            "w": normal(8, 3, 1, 1),
            "v": normal(4, 6, 1, 1),
            "z": normal(5, 4, 1, 1),
            "lo": np.array(-0.5, np.float32),
            "hi": np.array(2, np.float32),
            "start": np.array([1]),
            "end": np.array([7]),
            "axis": np.array([1]),
        },
        {"x": (1, 3, 4, 4)},
        {"y": None},
    )
    given = subject(read_network(model), 10)
    assert_file_and_simulation_agree(given, random_policy(given.network, seed), None)


def test_a_network_with_a_larger_fixed_batch_is_simulated_on_any_number_of_images() -> None:
    model = make_model(
        [
            node("Conv", "x w", "t", "conv"),
            node("Flatten", "t", "f", "flat"),
            node("Gemm", "f v", "y", "gemm"),
        ],
        {"w": normal(4, 3, 2, 2), "v": normal(16, 5)},
        {"x": (4, 3, 3, 3)},
        {"y": None},
    )
    given = subject(read_network(model), 5)
    assert given.simulation.logits(uniform(given.network, "w8a8"), given.images).shape == (5, 5)


def test_images_that_do_not_fit_are_an_error(small: Subject) -> None:
    for attempt in (
        lambda x: small.simulation.logits(Policy({}), x),
        lambda x: Simulation(small.exporter, x),
        lambda x: list(small.simulation.sweep([BitWidths(8, 8)], x)),
    ):
        with pytest.raises(DataError, match="shape"):
            attempt(small.images[:, :2])


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("SpaceToDepth", "t", "y", "glue", blocksize=2)], {}),
        ([node("ReduceSum", "t all", "y", "glue", keepdims=0)], {"all": np.array([0])}),
        ([node("Reshape", "t k", "y", "glue")], {"k": np.array([3, -1])}),
    ],
    ids=["unknown operator", "sum over the batch", "batch lost in a reshape"],
)
def test_what_cannot_be_simulated_on_many_images_is_an_error(
    nodes: list[onnx.NodeProto], constants: dict[str, Float32Array]
) -> None:
    """Never wrong numbers: the float network is compared with the runtime at the start."""
    conv = node("Conv", "x w", "t", "conv")
    weights = {"w": normal(3, 3, 1, 1)}
    model = make_model([conv, *nodes], {**weights, **constants}, {"x": (1, 3, 4, 4)}, {"y": None})
    network = read_network(model)
    with pytest.raises(ModelError, match="simulat"):
        Simulation(Exporter(network, made_up_ranges(network)), normal(3, 3, 4, 4))
