"""The exported file: its size, its validity, its names, what can be deployed."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from costmodels.sketch import example_network
from hil.ort import Runner, optimized_graph
from quantization.bits import FLOAT32, BitWidths
from quantization.deployment import Correction, ExportOptions
from quantization.errors import DataError, PolicyError
from quantization.export import Exporter, parameter_names, stored_name
from quantization.network import Network
from quantization.operators import GLUE
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.ranges import collect_ranges, made_up_ranges
from quantization.reading import read_network
from tests.networks import Subject, random_policy, uniform
from tests.quantization.graphs import make_model, node, normal

W8A8 = BitWidths(8, 8)
DEPLOYABLE = ("w2a8", "w3a8", "w4a8", "w5a8", "w6a8", "w7a8", "w8a8", "w32a32")
SUBJECTS = ("small", "branching", "attention", "digits", "mobilenet")


def run(model: bytes, images: Float32Array) -> Float32Array:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: image[None]})[0] for image in images]
    return np.asarray(np.concatenate(parts))


def kinds(model: bytes) -> list[str]:
    return [n.op_type for n in optimized_graph(model).node]


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.getfixturevalue(request.param)
    return found


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_the_predicted_size_is_the_size_of_the_file(subject: Subject, data: st.DataObject) -> None:
    names = subject.network.layer_names
    choice = st.sampled_from(DEPLOYABLE).map(BitWidths.parse)
    drawn = data.draw(st.lists(choice, min_size=len(names), max_size=len(names)))
    policy = Policy(dict(zip(names, drawn, strict=True)))
    assert subject.exporter.size_bytes(policy) == len(subject.exporter.build(policy))


def test_corrections_do_not_change_the_size(subject: Subject) -> None:
    policy = random_policy(subject.network, 0)
    corrections = {
        layer.name: Correction(
            np.full(layer.out_channels, 1.1, np.float32), np.ones(layer.out_channels, np.float32)
        )
        for layer in subject.network.layers
        if layer.has_weights
    }
    corrected = subject.exporter.build(policy, corrections)
    assert corrected != subject.exporter.build(policy)
    assert len(corrected) == subject.exporter.size_bytes(policy)


@pytest.mark.parametrize("seed", range(3))
def test_the_checker_accepts_mixed_files(subject: Subject, seed: int) -> None:
    model = onnx.load_from_string(subject.exporter.build(random_policy(subject.network, seed)))
    onnx.checker.check_model(model, full_check=True)
    names = [tensor.name for tensor in model.graph.initializer]
    assert len(names) == len(set(names))
    assert [v.name for v in model.graph.output] == list(subject.network.output_names)


def test_a_float_policy_computes_what_the_original_computes(
    digits: Subject, small: Subject, branching: Subject, attention: Subject
) -> None:
    for subject in (digits, small, branching, attention):
        few = subject.images[:20]
        expected = run(subject.network.model.SerializeToString(), few)
        found = run(subject.exporter.build(Policy({})), few)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_float_policy_of_mobilenet_computes_what_the_model_as_built_computes(
    mobilenet: Subject, mobilenet_model: onnx.ModelProto
) -> None:
    """Batch-norms are folded in between."""
    expected = run(mobilenet_model.SerializeToString(), mobilenet.images)
    found = run(mobilenet.exporter.build(Policy({})), mobilenet.images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    prepared = run(mobilenet.network.model.SerializeToString(), mobilenet.images)
    np.testing.assert_allclose(found, prepared, rtol=1e-5, atol=1e-5)


def test_fewer_bits_make_smaller_files(digits: Subject) -> None:
    sizes = [digits.exporter.size_bytes(uniform(digits.network, b)) for b in DEPLOYABLE]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 3 * sizes[-2]


def test_without_packing_every_integer_weight_takes_a_byte(small: Subject) -> None:
    exporter = Exporter(small.network, small.exporter.ranges, ExportOptions(pack=False))
    sizes = {exporter.size_bytes(uniform(small.network, b)) for b in ("w2a8", "w4a8", "w8a8")}
    assert len(sizes) == 1
    policy = uniform(small.network, "w3a8")
    packed = run(small.exporter.build(policy), small.images[:5])
    np.testing.assert_array_equal(run(exporter.build(policy), small.images[:5]), packed)


@pytest.mark.parametrize(
    ("bits", "reason"),
    [("w4a4", "below 8 bits"), ("w16a16", "16-bit"), ("fp16", "16-bit"), ("w4a32", "as float")],
)
def test_a_choice_that_cannot_be_deployed_is_an_error_with_layer_and_reason(
    small: Subject, bits: str, reason: str
) -> None:
    name = small.network.layer_names[4]
    for policy in (Policy({name: BitWidths.parse(bits)}), uniform(small.network, bits)):
        named = name if len(policy.layers) == 1 else small.network.layer_names[0]
        for attempt in (small.exporter.build, small.exporter.size_bytes):
            with pytest.raises(PolicyError, match=f"'{named}' at {bits}.*{reason}"):
                attempt(policy)


def test_an_unknown_layer_is_an_error(small: Subject) -> None:
    with pytest.raises(PolicyError, match="did you mean 'head'"):
        small.exporter.build(Policy({"heed": W8A8}))


def single(
    nodes: list[onnx.NodeProto],
    constants: dict[str, "np.ndarray[Any, Any]"],
    *shape: int,
    opset: int = 21,
) -> Network:
    return read_network(make_model(nodes, constants, {"x": shape}, {"y": None}, opset=opset))


def deviation_in_steps(network: Network, policy: Policy | None = None) -> float:
    """How far the file is from the float network on average, in steps of the output."""
    shape = network.tensor_by_name["x"].shape
    images = np.random.default_rng(5).standard_normal((16, *shape[1:])).astype(np.float32)
    exporter = Exporter(network, collect_ranges(network, images))
    model = exporter.build(policy or Policy.uniform(network, W8A8))
    found, expected = run(model, images), run(network.model.SerializeToString(), images)
    return float(np.abs(found - expected).mean()) / exporter.ranges.grid("y", 8).scale


BIASES: dict[str, "np.ndarray[Any, Any] | None"] = {
    "(N,)": 3 * normal(6),
    "(1, N)": 3 * normal(1, 6),
    "scalar": np.array(2.5, np.float32),
    "one element": np.array([2.5], np.float32),
    "none": None,
}


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("shape", BIASES)
def test_a_gemm_keeps_its_bias_of_any_shape(shape: str, rows: int) -> None:
    bias = BIASES[shape]
    constants = {"w": normal(9, 6)} | ({} if bias is None else {"b": bias})
    gemm = node("Gemm", "x w" + (" b" if bias is not None else ""), "y", "gemm")
    network = single([gemm], constants, rows, 9)
    images = normal(rows, 9)
    exporter = Exporter(network, collect_ranges(network, images))
    model = exporter.build(uniform(network, "w8a8"))
    assert "QGemm" in kinds(model)
    expected = images @ constants["w"] + (0 if bias is None else bias)
    for made in (model, exporter.build(Policy({}))):
        [found] = Runner(made, 1, {"x": images})()
        assert np.abs(found - expected).max() < 3 * exporter.ranges.grid("y", 8).scale


LAYERS = {
    "Gemm with bias": (
        [node("Gemm", "x w b", "y", "l")],
        {"w": normal(9, 6), "b": 3 * normal(6)},
        (1, 9),
    ),
    "Gemm with scalar bias": (
        [node("Gemm", "x w b", "y", "l")],
        {"w": normal(9, 6), "b": np.array(2.0, np.float32)},
        (1, 9),
    ),
    "Gemm without bias": ([node("Gemm", "x w", "y", "l")], {"w": normal(9, 6)}, (1, 9)),
    "Conv without bias": ([node("Conv", "x w", "y", "l")], {"w": normal(4, 3, 3, 3)}, (1, 3, 8, 8)),
    "Conv with bias": (
        [node("Conv", "x w b", "y", "l", strides=[2, 2])],
        {"w": normal(4, 3, 3, 3), "b": 3 * normal(4)},
        (1, 3, 8, 8),
    ),
    "MatMul with weights": ([node("MatMul", "x w", "y", "l")], {"w": normal(9, 6)}, (1, 4, 9)),
    "MatMul of two activations": (
        [node("Transpose", "x", "t", "t", perm=[0, 2, 1]), node("MatMul", "x t", "y", "l")],
        {},
        (1, 4, 9),
    ),
    "MatMul of a tensor with itself": ([node("MatMul", "x x", "y", "l")], {}, (1, 5, 5)),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_an_integer_layer_computes_what_the_float_layer_computes(kind: str) -> None:
    nodes, constants, shape = LAYERS[kind]
    network = single(nodes, constants, *shape)
    assert deviation_in_steps(network) < 1
    assert deviation_in_steps(network, Policy({})) < 1e-3


def test_a_dead_channel_keeps_its_bias() -> None:
    """Its weight scale would be so small that the bias does not fit into 32 bits."""
    weight, bias = normal(4, 3, 1, 1), np.array([0.5, -3.0, 1.0, 2.0], np.float32)
    weight[1], weight[2] = 0.0, 1e-9
    network = single([node("Conv", "x w b", "y", "l")], {"w": weight, "b": bias}, 1, 3, 4, 4)
    assert deviation_in_steps(network) < 1


def test_a_layer_behind_an_input_that_is_always_zero_keeps_its_bias() -> None:
    nodes = [
        node("Mul", "x nothing", "t", "mul"),
        node("Conv", "t w b", "y", "l"),
    ]
    constants = {
        "nothing": np.zeros(1, np.float32),
        "w": normal(4, 3, 1, 1),
        "b": np.array([0.5, -3.0, 1.0, 2.0], np.float32),
    }
    assert deviation_in_steps(single(nodes, constants, 1, 3, 4, 4)) < 1


def test_glue_that_shares_constants_gets_its_own() -> None:
    nodes = [
        node("Conv", "x w", "t", "a"),
        node("Clip", "t lo hi", "u", "c1"),
        node("Conv", "u v", "s", "b"),
        node("Clip", "s lo hi", "y", "c2"),
    ]
    bounds = {"lo": np.array(0.1, np.float32), "hi": np.array(1, np.float32)}
    weights = {"w": normal(3, 3, 1, 1), "v": normal(3, 3, 1, 1)}
    network = single(nodes, {**bounds, **weights}, 1, 3, 4, 4)
    for policy in (Policy({}), uniform(network, "w8a8"), Policy({"a": W8A8})):
        model = onnx.load_from_string(Exporter(network, made_up_ranges(network)).build(policy))
        names = [tensor.name for tensor in model.graph.initializer]
        assert len(names) == len(set(names))
        assert sum(name.startswith("G") for name in names) == 4
    assert deviation_in_steps(network) < 1


def test_names_of_the_model_may_look_like_the_exporters() -> None:
    nodes = [
        node("Conv", "x L0:i", "T1:q", "a"),
        node("Relu", "T1:q", "_T0:s", "G0"),
        node("Conv", "_T0:s L1:m", "y", "L0"),
    ]
    constants = {"L0:i": normal(3, 3, 1, 1), "L1:m": normal(3, 3, 1, 1)}
    network = single(nodes, constants, 1, 3, 4, 4)
    assert parameter_names(network, "L0")[1].startswith("__L1:")
    assert stored_name(network, "_T0:s") == "__T2:q"
    for policy in (None, Policy({"a": W8A8}), Policy({"L0": W8A8})):
        assert deviation_in_steps(network, policy) < 1
    model = Exporter(network, made_up_ranges(network)).build(uniform(network, "w4a8"))
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)


def test_parameter_names_are_those_in_the_file(small: Subject) -> None:
    for name in small.network.layer_names:
        known = set(parameter_names(small.network, name))
        for bits in ("w4a8", "w8a8", "w32a32"):
            alone = Policy({name: BitWidths.parse(bits)})
            model = onnx.load_from_string(small.exporter.build(alone))
            held = {t.name for t in model.graph.initializer} & known
            zero_points = bits != "w32a32" and small.network.layer(name).kind != "Conv"
            assert len(held) == {"w4a8": 4, "w8a8": 3, "w32a32": 2}[bits] + zero_points
            others = set(small.network.layer_names) - {name}
            assert not any(held & set(parameter_names(small.network, o)) for o in others)


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_models_of_older_opsets_are_exported(opset: int) -> None:
    nodes = [
        node("Conv", "x w b", "t", "conv", pads=[1] * 4),
        node("Relu", "t", "u", "act"),
        node("GlobalAveragePool", "u", "p", "pool"),
        node("Squeeze", "p axes", "s", "squeeze"),
        node("Gemm", "s v c", "y", "gemm"),
    ]
    constants = {
        "w": normal(8, 3, 3, 3),
        "b": normal(8),
        "v": normal(8, 5),
        "c": normal(5),
        "axes": np.array([2, 3]),
    }
    network = single(nodes, constants, 1, 3, 6, 6, opset=opset)
    assert deviation_in_steps(network) < 1
    model = Exporter(network, made_up_ranges(network)).build(uniform(network, "w3a8"))
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    assert {"QLinearConv", "QGemm", "QLinearGlobalAveragePool"} <= set(kinds(model))


def test_functions_of_the_model_are_kept() -> None:
    body = [node("Exp", "a", "b"), node("Neg", "b", "c")]
    opset = [onnx.helper.make_opsetid("", 21)]
    function = onnx.helper.make_function("own", "NegExp", ["a"], ["c"], body, opset)
    model = make_model(
        [
            node("Conv", "x w", "t", "conv"),
            onnx.helper.make_node("NegExp", ["t"], ["y"], "custom", domain="own"),
        ],
        {"w": normal(3, 3, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4)},
    )
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    network = read_network(model)
    for bits in ("w4a8", "w8a8", "w32a32"):
        assert deviation_in_steps(network, uniform(network, bits)) < (6 if bits == "w4a8" else 1)


# Each integer glue operator between two integer convolutions, or an integer product behind it.
BEFORE = [
    node("Conv", "x a", "s", "first"),
    node("MaxPool", "s", "t", "before", kernel_shape=[1, 1]),
]
WEIGHTS = {"a": normal(4, 4, 1, 1), "b": normal(4, 4, 1, 1, seed=1)}
GLUED: dict[str, tuple[list[onnx.NodeProto], dict[str, "np.ndarray[Any, Any]"], str]] = {
    "Sigmoid": ([node("Sigmoid", "t", "u", "glue")], {}, "QLinearSigmoid"),
    "LeakyRelu": ([node("LeakyRelu", "t", "u", "glue", alpha=0.2)], {}, "QLinearLeakyRelu"),
    "AveragePool": (
        [node("AveragePool", "t", "u", "glue", kernel_shape=[2, 2])],
        {},
        "QLinearAveragePool",
    ),
    "GlobalAveragePool": (
        [node("GlobalAveragePool", "t", "u", "glue")],
        {},
        "QLinearGlobalAveragePool",
    ),
    "Add": ([node("Add", "t s", "u", "glue")], {}, "QLinearAdd"),
    "Mul": ([node("Mul", "t s", "u", "glue")], {}, "QLinearMul"),
    "Concat": ([node("Concat", "t s", "u", "glue", axis=2)], {}, "QLinearConcat"),
    "MaxPool": (
        [node("MaxPool", "t", "u", "glue", kernel_shape=[3, 3], strides=[2, 2])],
        {},
        "NhwcMaxPool",
    ),
    "Transpose": ([node("Transpose", "t", "u", "glue", perm=[0, 1, 3, 2])], {}, "Transpose"),
    "Reshape": ([node("Reshape", "t k", "u", "glue")], {"k": np.array([1, 4, 2, 32])}, "Reshape"),
    "Flatten": (
        [node("Flatten", "t", "f", "glue"), node("Reshape", "f k", "u", "back")],
        {"k": np.array([1, 4, 8, 8])},
        "Flatten",
    ),
    "Unsqueeze": (
        [node("Unsqueeze", "t k", "f", "glue"), node("Squeeze", "f k", "u", "squeeze")],
        {"k": np.array([4])},
        "",
    ),
    "Squeeze": (
        [node("GlobalAveragePool", "t", "f", "p"), node("Squeeze", "f k", "g", "glue"),
         node("Unsqueeze", "g k", "u", "back")],
        {"k": np.array([2, 3])},
        "",
    ),
}  # fmt: skip


def test_every_operator_that_is_claimed_to_run_on_integers_is_tested() -> None:
    assert {kind for kind, traits in GLUE.items() if traits.integer} == set(GLUED)


def glued(kind: str) -> Network:
    nodes, constants, _ = GLUED[kind]
    behind = node("Conv", "u b", "y", "last")
    return single([*BEFORE, *nodes, behind], {**WEIGHTS, **constants}, 1, 4, 8, 8)


@pytest.mark.parametrize("kind", GLUED)
def test_claimed_glue_runs_on_integers_in_a_default_session(kind: str) -> None:
    network = glued(kind)
    exporter = Exporter(network, made_up_ranges(network))
    graph = optimized_graph(exporter.build(uniform(network, "w8a8")))
    found = [n.op_type for n in graph.node]
    # Only the network's ends are floats: nothing is dequantized in between.
    assert found.count("QuantizeLinear") == 1
    assert found.count("DequantizeLinear") == 1
    assert found.count("QLinearConv") == 2
    assert GLUED[kind][2] in found or not GLUED[kind][2]
    dequantized = next(n for n in graph.node if n.op_type == "DequantizeLinear").output[0]
    assert dequantized == "y"


@pytest.mark.parametrize("kind", GLUED)
def test_claimed_glue_computes_what_the_float_operator_computes(kind: str) -> None:
    assert deviation_in_steps(glued(kind)) < 1


@pytest.mark.parametrize("kind", ["Add", "Mul"])
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_an_activation_behind_integer_arithmetic_vanishes(kind: str, activation: str) -> None:
    bounds = " lo hi" if activation == "Clip" else ""
    nodes = [node(kind, "t s", "v", "glue"), node(activation, f"v{bounds}", "u", "act")]
    constants = {"lo": np.array(0, np.float32), "hi": np.array(6, np.float32)} if bounds else {}
    behind = node("Conv", "u b", "y", "last")
    network = single([*BEFORE, *nodes, behind], {**WEIGHTS, **constants}, 1, 4, 8, 8)
    found = kinds(Exporter(network, made_up_ranges(network)).build(uniform(network, "w8a8")))
    assert f"QLinear{kind}" in found
    assert activation not in found
    assert found.count("DequantizeLinear") == 1
    assert deviation_in_steps(network) < 1


@pytest.mark.parametrize("kind", ["Relu", "Clip"])
def test_an_activation_that_is_not_fused_runs_on_floats_and_is_right(kind: str) -> None:
    bounds = {"lo": np.array(-0.5, np.float32), "hi": np.array(0.5, np.float32)}
    inputs = "t lo hi" if kind == "Clip" else "t"
    nodes = [*BEFORE, node(kind, inputs, "u", "act"), node("Conv", "u b", "y", "last")]
    network = single(nodes, {**WEIGHTS, **(bounds if kind == "Clip" else {})}, 1, 4, 8, 8)
    [act] = [glue for glue in network.glue if glue.kind == kind]
    assert not act.fused
    assert not act.integer
    found = kinds(Exporter(network, made_up_ranges(network)).build(uniform(network, "w8a8")))
    assert found.count("DequantizeLinear") == 2
    assert deviation_in_steps(network) < 2


def test_concatenation_with_a_constant_runs_on_floats_and_is_right() -> None:
    nodes = [*BEFORE, node("Concat", "t k", "u", "cat", axis=2), node("Conv", "u b", "y", "last")]
    network = single(nodes, {**WEIGHTS, "k": normal(1, 4, 1, 8)}, 1, 4, 8, 8)
    assert not next(glue for glue in network.glue if glue.kind == "Concat").integer
    assert deviation_in_steps(network) < 1


@pytest.mark.parametrize("seed", range(4))
def test_a_default_session_runs_float_products_of_integer_tensors(
    attention: Subject, seed: int
) -> None:
    """Two dequantized operands would become an integer product that rejects the guard's scales."""
    weights = dict.fromkeys("qkv", W8A8)
    policy = Policy(weights | ({"scores": W8A8} if seed % 2 else {}))
    assert np.isfinite(run(attention.exporter.build(policy), attention.images[seed:][:2])).all()
    assert "MatMulIntegerToFloat" not in kinds(attention.exporter.build(policy))


POOLED = Policy({"first": FLOAT32, "last": W8A8})


def _pooled(channels: int) -> Network:
    """A float convolution and a pooling before an integer convolution."""
    nodes = [
        node("Conv", "x a", "s", "first"),
        node("MaxPool", "s", "t", "pool", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "t b", "y", "last"),
    ]
    constants = {"a": normal(channels, 4, 1, 1), "b": normal(4, channels, 1, 1, seed=1)}
    return single(nodes, constants, 1, 4, 8, 8)


def _makes_the_pooled(model: bytes) -> str:
    """What makes the input of the only pooling in a default session."""
    graph = optimized_graph(model)
    [pool] = [each for each in graph.node if "MaxPool" in each.op_type]
    return next(each.op_type for each in graph.node if pool.input[0] in each.output)


def test_a_float_pooling_before_a_quantization_stays_float() -> None:
    network = _pooled(16)
    ranges = made_up_ranges(network)
    bare = Exporter(network, ranges, ExportOptions(guard_float=False)).build(POOLED)
    assert _makes_the_pooled(bare) == "QuantizeLinear", "the hazard is gone; so could the guard"
    guarded = Exporter(network, ranges).build(POOLED)
    assert _makes_the_pooled(guarded) == "Conv"
    images = normal(3, 4, 8, 8)
    np.testing.assert_array_equal(run(guarded, images), run(bare, images))


def test_scales_are_repeated_behind_a_pooling_only() -> None:
    network = _pooled(16)
    for policy, expected in ((POOLED, [(16,)]), (uniform(network, "w8a8"), [()])):
        model = onnx.load_from_string(Exporter(network, made_up_ranges(network)).build(policy))
        shapes = {each.name: tuple(each.dims) for each in model.graph.initializer}
        entering = [
            shapes[each.input[1]]
            for each in model.graph.node
            if each.op_type == "QuantizeLinear" and each.input[0] in ("x", "s", "t")
        ]
        assert entering == expected


def test_a_pooling_of_one_channel_is_exported_too() -> None:
    assert deviation_in_steps(_pooled(1), POOLED) < 1


def test_moved_values_keep_the_range_of_their_input_even_if_it_is_made_up() -> None:
    network = single([*BEFORE, node("Conv", "t b", "y", "last")], WEIGHTS, 1, 4, 8, 8)
    for ranges in (made_up_ranges(network), collect_ranges(network, normal(3, 4, 8, 8))):
        assert ranges.limits["t"] == ranges.limits["s"]
    fused = [node("Conv", "x a", "v", "first"), node("Relu", "v", "s", "act"), BEFORE[1]]
    network = single([*fused, node("Conv", "t b", "y", "last")], WEIGHTS, 1, 4, 8, 8)
    assert made_up_ranges(network).limits["t"] == made_up_ranges(network).limits["s"] == (0, 6)


def test_a_range_that_is_not_finite_is_an_error() -> None:
    network = single([*BEFORE, node("Conv", "t b", "y", "last")], WEIGHTS, 1, 4, 8, 8)
    ranges = made_up_ranges(network)
    broken = type(ranges)(ranges.network, {**ranges.limits, "t": (0.0, float("inf"))}, "", 0)
    with pytest.raises(DataError, match="range"):
        Exporter(network, broken).build(uniform(network, "w8a8"))


def test_a_reduced_range_uses_seven_bits(small: Subject) -> None:
    exporter = Exporter(small.network, small.exporter.ranges, ExportOptions(reduce_range=True))
    for name in small.network.layer_names:
        values = exporter.parameters.weight(name, 8).values
        assert values.min() >= -64
        assert values.max() <= 63
        assert small.exporter.parameters.weight(name, 8).values.max() > 63
    policy = uniform(small.network, "w8a8")
    assert exporter.size_bytes(policy) == small.exporter.size_bytes(policy)


def test_the_bytes_of_parts_add_up(small: Subject) -> None:
    exporter, network = small.exporter, small.network
    policy = Policy({network.layer_names[2]: BitWidths(4, 8)})
    name = network.layer_names[2]
    grown = exporter.size_bytes(policy) - exporter.size_bytes(Policy({}))
    layer = exporter.layer_bytes(name, BitWidths(4, 8)) - exporter.layer_bytes(name, FLOAT32)
    assert layer < 0
    assert grown - layer < 2500  # conversions and the unpacking function


def test_an_option_that_is_not_known_is_refused_with_close_matches() -> None:
    network = example_network()
    exporter = Exporter(network, made_up_ranges(network))
    assert exporter.build(Policy({}, {"accuracy_level": 4})) == exporter.build(Policy({}))
    with pytest.raises(PolicyError, match=r"ranges is 'kl'; choose minmax, percentile, mse"):
        exporter.build(Policy({}, {"ranges": "kl"}))
    with pytest.raises(PolicyError, match=r"'accuracy_levl'.*did you mean 'accuracy_level'"):
        exporter.build(Policy({}, {"accuracy_levl": 4}))
