"""The audit: passes what is right, catches what is not, traces every layer."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hil.audit import Audit, AuditError, LayerAudit, audit, require_kernels
from hil.ort import optimized_graph
from hil.stored_weights import StoredWeights
from hil.trace import FLOAT_KERNELS, INTEGER_KERNELS, executed_kernels
from quantization.bits import FLOAT32, BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import ExportOptions
from quantization.errors import ModelError, PolicyError
from quantization.export import Exporter
from quantization.network import Network
from quantization.operators import GLUE
from quantization.packing import pack, unpack
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from tests.networks import Subject, random_policy, small_mobilenet, uniform
from tests.quantization.graphs import make_model, node, normal

W8A8 = BitWidths(8, 8)


def checked(network: Network, policy: Policy, options: ExportOptions | None = None) -> Audit:
    exporter = Exporter(network, made_up_ranges(network), options)
    return audit(network, policy, exporter.build(policy), exporter.size_bytes(policy), options)


def executed(found: Audit) -> dict[str, str]:
    return {layer.name: layer.executed for layer in found.layers}


def single(found: Audit, name: str) -> LayerAudit:
    return next(layer for layer in found.layers if layer.name == name)


def chain(middle: list[onnx.NodeProto], constants: dict[str, "np.ndarray[Any, Any]"]) -> Network:
    """Convolutions around `middle`, which makes ``u`` of ``t``; 16 channels of 8x8."""
    nodes = [node("Conv", "x a", "t", "first"), *middle, node("Conv", "u c", "y", "last")]
    weights = {"a": normal(16, 16, 1, 1), "c": normal(16, 16, 1, 1, seed=1)}
    return read_network(
        make_model(nodes, {**weights, **constants}, {"x": (1, 16, 8, 8)}, {"y": None})
    )


DEPTHWISE = {"w": normal(16, 1, 3, 3)}
MIDDLE = {
    "without an activation": [node("Conv", "t w", "u", "middle", group=16, pads=[1] * 4)],
    "with an activation": [
        node("Conv", "t w", "v", "middle", group=16, pads=[1] * 4),
        node("Relu", "v", "u", "act"),
    ],
}
FLOAT_MIDDLE = Policy({"first": W8A8, "last": W8A8})


@pytest.mark.parametrize("name", ["small", "branching", "attention", "digits", "mobilenet"])
@pytest.mark.parametrize("case", ["w8a8", "w3a8", "w32a32", 0, 1])
def test_good_files_pass(name: str, case: str | int, request: pytest.FixtureRequest) -> None:
    given: Subject = request.getfixturevalue(name)
    mixed = isinstance(case, int)
    policy = random_policy(given.network, case) if mixed else uniform(given.network, str(case))
    model = given.exporter.build(policy)
    found = audit(given.network, policy, model, given.exporter.size_bytes(policy))
    assert found.problems == ()
    assert found.ok
    found.require()
    for layer in found.layers:
        integer = not policy[layer.name].is_float
        assert layer.executed in (INTEGER_KERNELS if integer else FLOAT_KERNELS)
        assert layer.asked == str(policy[layer.name])
        assert layer.reason == ""
    assert found.to_dict()["layers"][0]["name"] == given.network.layer_names[0]


def test_stored_widths_are_told_layer_by_layer(small: Subject) -> None:
    names = small.network.layer_names
    widths = {names[0]: "w2a8", names[1]: "w5a8", names[2]: "w8a8", names[3]: "w32a32"}
    policy = Policy({name: BitWidths.parse(bits) for name, bits in widths.items()})
    stored = {layer.name: layer.stored for layer in checked(small.network, policy).layers}
    told = ["int2 (bit planes)", "int5 (bit planes)", "int8", "float32"]
    assert [stored[name] for name in names[:4]] == told


def test_an_unannounced_float_convolution_is_caught() -> None:
    """Without QuantizeLinear behind it, nothing tells the runtime to use the integer kernel."""
    network = chain(MIDDLE["without an activation"], DEPTHWISE)
    policy = uniform(network, "w8a8")
    exporter = Exporter(network, made_up_ranges(network))
    model = onnx.load_from_string(exporter.build(policy))
    [result] = [n for n in model.graph.node if n.name == "middle"]
    [quantize] = [n for n in model.graph.node if result.output[0] in n.input]
    [dequantize] = [n for n in model.graph.node if quantize.output[0] in n.input]
    result.output[0] = dequantize.output[0]
    model.graph.node.remove(quantize)
    model.graph.node.remove(dequantize)
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString()
    found = audit(network, policy, content, len(content))
    assert not found.ok
    assert single(found, "middle").executed in FLOAT_KERNELS
    assert "asked for an integer kernel" in single(found, "middle").reason
    assert single(found, "first").ok
    with pytest.raises(AuditError, match="'middle'"):
        found.require()


@pytest.mark.parametrize("kind", MIDDLE)
def test_a_requantized_float_layer_is_caught(kind: str) -> None:
    network = chain(MIDDLE[kind], DEPTHWISE)
    found = checked(network, FLOAT_MIDDLE, ExportOptions(guard_float=False))
    assert not found.ok
    assert single(found, "middle").executed == "QLinearConv"
    assert "re-quantized at load" in single(found, "middle").reason
    assert single(found, "first").ok
    assert single(found, "last").ok


@pytest.mark.parametrize("kind", MIDDLE)
def test_the_guard_keeps_a_float_layer_float_in_a_default_session(kind: str) -> None:
    network = chain(MIDDLE[kind], DEPTHWISE)
    found = checked(network, FLOAT_MIDDLE)
    assert found.ok
    assert executed(found) == {"first": "QLinearConv", "middle": "Conv", "last": "QLinearConv"}


MOVED: dict[str, tuple[list[onnx.NodeProto], dict[str, "np.ndarray[Any, Any]"], Policy]] = {
    "a slice in between": (
        [
            node("Slice", "t start end axis", "s", "slice"),
            node("Conv", "s w", "u", "middle", pads=[1] * 4),
        ],
        {
            "start": np.array([4]),
            "end": np.array([12]),
            "axis": np.array([1]),
            "w": normal(16, 8, 3, 3),
        },
        FLOAT_MIDDLE,
    ),
    "one channel": (
        [
            node("Conv", "t n", "s", "narrow"),
            node("Conv", "s w", "u", "middle", pads=[1] * 4),
        ],
        {"n": normal(1, 16, 1, 1), "w": normal(16, 1, 3, 3)},
        Policy({"first": W8A8, "narrow": W8A8, "last": W8A8}),
    ),
    "max pooling in between": (
        [
            node("MaxPool", "t", "s", "pool", kernel_shape=[2, 2]),
            node("Conv", "s w", "u", "middle", group=16),
        ],
        DEPTHWISE,
        FLOAT_MIDDLE,
    ),
    "a pad that the convolution takes over": (
        [node("Pad", "t pads", "s", "pad"), node("Conv", "s w", "u", "middle", group=16)],
        {**DEPTHWISE, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])},
        FLOAT_MIDDLE,
    ),
    "an expansion to the same shape": (
        [node("Expand", "t shape", "s", "same"), node("Conv", "s w", "u", "middle", group=16)],
        {**DEPTHWISE, "shape": np.array([1, 16, 8, 8])},
        FLOAT_MIDDLE,
    ),
    "one element": (
        [
            node("GlobalAveragePool", "t", "m", "mean"),
            node("Conv", "m n", "s", "narrow"),
            node("Conv", "s w", "u", "middle"),
        ],
        {"n": normal(1, 16, 1, 1), "w": normal(16, 1, 1, 1)},
        Policy({"first": W8A8, "narrow": W8A8, "last": W8A8}),
    ),
}


@pytest.mark.parametrize("kind", MOVED)
def test_the_guard_holds_with(kind: str) -> None:
    network = chain(*MOVED[kind][:2])
    policy = MOVED[kind][2]
    assert executed(checked(network, policy))["middle"] == "Conv"
    bare = checked(network, policy, ExportOptions(guard_float=False))
    assert executed(bare)["middle"] == "QLinearConv"


def scales(network: Network, policy: Policy, tensor: str) -> int:
    """How many scales `tensor` is dequantized with for its float readers."""
    model = onnx.load_from_string(Exporter(network, made_up_ranges(network)).build(policy))
    [conversion] = [n for n in model.graph.node if tensor in n.output]
    [scale] = [t for t in model.graph.initializer if t.name == conversion.input[1]]
    return numpy_helper.to_array(scale).size


SEPARATING = sorted(kind for kind, traits in GLUE.items() if traits.separates)


@pytest.mark.parametrize("kind", SEPARATING)
def test_one_scale_is_enough_before_glue_that_always_runs_on_floats(kind: str) -> None:
    middle = [node(kind, "t", "s", "glue"), node("Conv", "s w", "u", "middle", group=16)]
    network = chain(middle, DEPTHWISE)
    assert scales(network, FLOAT_MIDDLE, "t") == 1
    assert executed(checked(network, FLOAT_MIDDLE))["middle"] == "Conv"


@pytest.mark.parametrize("kind", ["Add", "Mul", "Concat"])
def test_one_scale_is_enough_beside_a_tensor_that_was_written_as_floats(kind: str) -> None:
    join = node(kind, "t v", "s", "glue", **({"axis": 1} if kind == "Concat" else {}))
    middle = [
        node("Conv", "x w", "v", "beside", group=16, pads=[1] * 4),
        join,
        node("Conv", "s w2", "u", "middle"),
    ]
    weights = {**DEPTHWISE, "w2": normal(16, 32 if kind == "Concat" else 16, 1, 1)}
    network = chain(middle, weights)
    assert scales(network, FLOAT_MIDDLE, "t") == 1
    assert executed(checked(network, FLOAT_MIDDLE))["middle"] == "Conv"


def test_scales_are_repeated_if_a_layer_reads_the_tensor_too() -> None:
    middle = [
        node("HardSwish", "t", "s", "glue"),
        node("Conv", "t w", "v", "middle", group=16, pads=[1] * 4),
        node("Add", "s v", "u", "add"),
    ]
    network = chain(middle, DEPTHWISE)
    assert scales(network, FLOAT_MIDDLE, "t") == 16
    assert executed(checked(network, FLOAT_MIDDLE))["middle"] == "Conv"


@pytest.mark.parametrize("shape", [(1, 8), (4, 8)])
def test_the_guard_holds_for_a_gemm_of_one_feature(shape: tuple[int, int]) -> None:
    names = {"first": "x a t", "middle": "t w u", "last": "u c y"}
    nodes = [node("Gemm", " ".join(n.split()[:2]), n.split()[2], k) for k, n in names.items()]
    constants = {"a": normal(8, 1), "w": normal(1, 8), "c": normal(8, 4)}
    network = read_network(make_model(nodes, constants, {"x": shape}, {"y": None}))
    assert executed(checked(network, FLOAT_MIDDLE))["middle"] == "Gemm"
    bare = checked(network, FLOAT_MIDDLE, ExportOptions(guard_float=False))
    assert executed(bare)["middle"] == "QGemm"


def test_float_glue_between_integer_layers_stays_float() -> None:
    network = chain([node("Softmax", "t", "u", "attention", axis=1)], {})
    exporter = Exporter(network, made_up_ranges(network))
    kinds = [n.op_type for n in optimized_graph(exporter.build(uniform(network, "w8a8"))).node]
    assert "Softmax" in kinds
    assert "QLinearSoftmax" not in kinds


def test_the_guard_keeps_a_float_gemm_float() -> None:
    nodes = [
        node("Gemm", "x a", "t", "first"),
        node("Gemm", "t w b", "u", "middle"),
        node("Gemm", "u c", "y", "last"),
    ]
    constants = {"a": normal(8, 8), "w": normal(8, 8), "b": normal(8), "c": normal(8, 4)}
    network = read_network(make_model(nodes, constants, {"x": (1, 8)}, {"y": None}))
    found = checked(network, FLOAT_MIDDLE)
    assert found.ok
    assert executed(found) == {"first": "QGemm", "middle": "Gemm", "last": "QGemm"}
    bare = checked(network, FLOAT_MIDDLE, ExportOptions(guard_float=False))
    assert single(bare, "middle").executed == "QGemm"
    assert not bare.ok


def test_a_widened_weight_is_caught() -> None:
    """The file holds bytes and uses all of them where 4 bits were asked for."""
    network = small_mobilenet()
    wide, asked = uniform(network, "w8a8"), uniform(network, "w4a8")
    exporter = Exporter(network, made_up_ranges(network))
    found = audit(network, asked, exporter.build(wide), exporter.size_bytes(wide))
    assert not found.ok
    assert all("stored 8-bit" in layer.reason for layer in found.layers)
    assert all("weights use 8 bits, asked for 4" in layer.reason for layer in found.layers)


def test_a_weight_stored_in_more_bits_than_it_uses_is_caught() -> None:
    network = small_mobilenet()
    policy = uniform(network, "w4a8")
    unpacked = Exporter(network, made_up_ranges(network), ExportOptions(pack=False))
    found = audit(network, policy, unpacked.build(policy), unpacked.size_bytes(policy))
    assert not found.ok
    assert all(layer.reason == "asked for 4-bit weights, stored 8-bit" for layer in found.layers)


def test_a_weight_stored_in_more_bits_is_announced_if_packing_is_off() -> None:
    found = checked(
        small_mobilenet(), uniform(small_mobilenet(), "w4a8"), ExportOptions(pack=False)
    )
    assert found.ok
    assert all("packing is off" in layer.reason for layer in found.layers)


def test_a_wrong_byte_count_is_caught(small: Subject) -> None:
    policy = uniform(small.network, "w4a8")
    model, size = small.exporter.build(policy), small.exporter.size_bytes(policy)
    assert audit(small.network, policy, model, size).ok
    found = audit(small.network, policy, model, size + 1)
    assert not found.ok
    assert found.problems == (f"the file has {size} bytes, {size + 1} were predicted",)
    with pytest.raises(AuditError, match=str(size)):
        found.require()


def test_an_audit_error_tells_how_many_more_problems_there_are(small: Subject) -> None:
    model = small.exporter.build(Policy({}))
    found = audit(small.network, uniform(small.network, "w8a8"), model, len(model))
    more = len(small.network.layers) - 1
    with pytest.raises(AuditError, match=rf"layer 'stem'.*\(and {more} more\)"):
        found.require()


def test_a_reduced_range_is_announced_with_its_reason(small: Subject) -> None:
    policy = Policy(
        {small.network.layer_names[0]: W8A8, small.network.layer_names[1]: BitWidths(4, 8)}
    )
    found = checked(small.network, policy, ExportOptions(reduce_range=True))
    assert found.ok
    assert "7-bit values" in found.layers[0].reason
    assert "VNNI" in found.layers[0].reason
    assert [layer.reason for layer in found.layers[1:]] == [""] * (len(found.layers) - 1)


def test_a_range_that_should_be_reduced_and_is_not_is_caught(small: Subject) -> None:
    policy = uniform(small.network, "w8a8")
    model = small.exporter.build(policy)
    found = audit(small.network, policy, model, len(model), ExportOptions(reduce_range=True))
    assert "weights use 8 bits, asked for 7" in found.layers[0].reason
    assert not found.ok


def packed(network: Network, bits: int, planes: int) -> Audit:
    """Export at `bits`, store the weights in so many planes, audit against `bits`."""
    policy = uniform(network, f"w{bits}a8")
    model = onnx.load_from_string(Exporter(network, made_up_ranges(network)).build(policy))
    for tensor in model.graph.initializer:
        if tensor.name.endswith(":p"):
            [shape] = [t for t in model.graph.initializer if t.name == f"{tensor.name[:-2]}:d"]
            values = unpack(numpy_helper.to_array(tensor), bits, numpy_helper.to_array(shape))
            tensor.CopyFrom(numpy_helper.from_array(pack(values, planes), tensor.name))
    content = model.SerializeToString()
    return audit(network, policy, content, len(content))


def test_planes_that_waste_a_width_are_caught_and_told_from_weights_that_use_it() -> None:
    network = small_mobilenet()
    assert packed(network, 4, planes=4).ok
    wasteful = packed(network, 4, planes=5)
    assert {layer.executed for layer in wasteful.layers} <= INTEGER_KERNELS
    assert {layer.reason for layer in wasteful.layers} == {"asked for 4-bit weights, stored 5-bit"}
    wide, asked = uniform(network, "w5a8"), uniform(network, "w4a8")
    exporter = Exporter(network, made_up_ranges(network))
    used = audit(network, asked, exporter.build(wide), exporter.size_bytes(wide))
    both = "asked for 4-bit weights, stored 5-bit; weights use 5 bits, asked for 4"
    assert {layer.reason for layer in used.layers} == {both}


def test_weights_that_happen_to_fit_fewer_bits_than_their_planes_pass() -> None:
    constants = {"w": np.array([1, -1, 0, 0], np.float32).reshape(4, 1, 1, 1)}
    network = read_network(
        make_model([node("Conv", "x w", "y", "only")], constants, {"x": (1, 1, 4, 4)}, {"y": None})
    )
    policy = uniform(network, "w4a8")
    model = onnx.load_from_string(Exporter(network, made_up_ranges(network)).build(policy))
    [planes] = [t for t in model.graph.initializer if t.name.endswith(":p")]
    few = np.array([1, -2, 0, 0]).reshape(4, 1, 1, 1)
    planes.CopyFrom(numpy_helper.from_array(pack(few, 4), planes.name))
    content = model.SerializeToString()
    assert StoredWeights(model).used_bits(network.layers[0]) == 2
    assert audit(network, policy, content, len(content)).ok


GROUPS = ChannelGroups(8, {2: range(9), 8: range(9, 16)})


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_channel_groups_are_stored_as_asked_and_run_as_integers(
    small: Subject, pack: bool, reduce_range: bool
) -> None:
    policy = Policy({**uniform(small.network, "w4a8").layers, "stem": GROUPS})
    options = ExportOptions(pack=pack, reduce_range=reduce_range)
    found = checked(small.network, policy, options)
    assert found.problems == ()
    stem = single(found, "stem")
    assert stem.executed == "QLinearConv"
    assert stem.asked == "w2a8[0-8]+w8a8[9-15]"
    assert stem.stored == ("int2 + int8 (by channel)" if pack else "int8")
    assert ("packing is off" in stem.reason) is not pack
    assert ("7-bit values" in stem.reason) is reduce_range


def test_channels_in_the_wrong_group_are_caught(small: Subject) -> None:
    policy = Policy({"stem": GROUPS})
    exporter = Exporter(small.network, made_up_ranges(small.network))
    model = onnx.load_from_string(exporter.build(policy))
    [order] = [t for t in model.graph.initializer if t.name.endswith(":g")]
    turned = np.roll(numpy_helper.to_array(order), 1)
    order.CopyFrom(numpy_helper.from_array(turned, order.name))
    content = model.SerializeToString()
    found = single(audit(small.network, policy, content, len(content)), "stem")
    assert not found.ok
    assert "asked for 2, 8-bit channels, stored int2 + int8 (by channel)" in found.reason


def test_a_channel_that_uses_more_bits_than_its_group_is_caught(small: Subject) -> None:
    options = ExportOptions(pack=False)
    exporter = Exporter(small.network, made_up_ranges(small.network), options)
    content = exporter.build(Policy({"stem": W8A8}))
    found = audit(small.network, Policy({"stem": GROUPS}), content, len(content), options)
    assert "channel 0 uses 8 bits, asked for 2" in single(found, "stem").reason
    floats = exporter.build(Policy({}))
    found = audit(small.network, Policy({"stem": GROUPS}), floats, len(floats), options)
    assert "asked for 2, 8-bit channels, stored float32" in single(found, "stem").reason


def test_kernels_alone_are_checked_from_the_graph_of_a_loaded_session(small: Subject) -> None:
    mixed = random_policy(small.network, 0)
    graph = optimized_graph(small.exporter.build(mixed))
    require_kernels(small.network, mixed, graph)
    swapped = {n: FLOAT32 if not mixed[n].is_float else W8A8 for n in small.network.layer_names}
    more = len(small.network.layers) - 1
    with pytest.raises(AuditError, match=rf"layer 'stem': asked for .* \(and {more} more\)"):
        require_kernels(small.network, Policy(swapped), graph)


def test_a_file_that_the_runtime_refuses_cannot_be_audited() -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        audit(small_mobilenet(), Policy({}), b"no model", 8)


def test_a_policy_of_another_network_cannot_be_audited(small: Subject) -> None:
    model = small.exporter.build(Policy({}))
    with pytest.raises(PolicyError, match="no layer"):
        audit(small.network, Policy({"elsewhere": W8A8}), model, len(model))


@pytest.mark.parametrize(
    ("values", "bits"),
    [([-4, -4], 3), ([-4, 3], 3), ([0, 4], 4), ([0, 0], 1), ([-1, 0], 1), ([-128, 1], 8), ([5], 4)],
)
def test_used_bits_are_those_of_the_smallest_grid_that_holds_the_values(
    values: list[int], bits: int
) -> None:
    network = read_network(
        make_model([node("Conv", "x w", "y", "conv")], {"w": normal(len(values), 1, 1, 1)},
                   {"x": (1, 1, 4, 4)}, {"y": None})
    )  # fmt: skip
    exporter = Exporter(network, made_up_ranges(network))
    model = onnx.load_from_string(exporter.build(uniform(network, "w8a8")))
    [weight] = [t for t in model.graph.initializer if len(t.dims) == 4]
    replaced = np.array(values, np.int8).reshape(-1, 1, 1, 1)
    weight.CopyFrom(numpy_helper.from_array(replaced, weight.name))
    assert StoredWeights(model).used_bits(network.layers[0]) == bits


def test_a_layer_that_is_missing_in_the_file_is_caught(small: Subject) -> None:
    other = chain(MIDDLE["with an activation"], DEPTHWISE)
    exporter = Exporter(other, made_up_ranges(other))
    model = exporter.build(Policy({}))
    found = audit(small.network, Policy({}), model, len(model))
    assert single(found, "stem").executed == "absent"
    assert not found.ok


def kernels(nodes: list[onnx.NodeProto], constants: dict[str, "np.ndarray[Any, Any]"], *shape: int,
            quantized: tuple[str, ...] = ()) -> dict[str, str]:  # fmt: skip
    network = read_network(make_model(nodes, constants, {"x": shape}, {"y": None}))
    policy = Policy(dict.fromkeys(quantized, W8A8))
    model = Exporter(network, made_up_ranges(network)).build(policy)
    return executed_kernels(network, optimized_graph(model))


CONVS = {k: normal(16, 16, 1, 1, seed=i) for i, k in enumerate("abc")}


def test_float_convolutions_without_bias_are_traced_in_the_blocked_layout() -> None:
    """Their weights are reordered and lose their names."""
    for activation in ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"):
        nodes = [
            node("Conv", "x a", "t", "one"),
            node(activation, "t", "u", "act"),
            node("Conv", "u b", "y", "two"),
        ]
        found = kernels(nodes, CONVS, 1, 16, 8, 8)
        assert set(found) == {"one", "two"}
        assert set(found.values()) <= {"Conv", "FusedConv"}, activation


def test_a_residual_addition_fused_into_a_convolution_does_not_mislead_the_trace() -> None:
    nodes = [
        node("Conv", "x a", "t", "one"),
        node("Conv", "t b", "u", "two"),
        node("Add", "u t", "v", "add"),
        node("Relu", "v", "w", "act"),
        node("Conv", "w c", "y", "three"),
    ]
    assert kernels(nodes, CONVS, 1, 16, 8, 8) == dict.fromkeys(("one", "two", "three"), "Conv")
    # With 3 channels the layout is not blocked, and the addend is read under its own name.
    small = {k: normal(3, 3, 1, 1, seed=i) for i, k in enumerate("abc")}
    found = kernels(nodes, small, 1, 3, 8, 8)
    assert "absent" not in found.values()
    assert set(found.values()) <= FLOAT_KERNELS
    mixed = kernels(nodes, CONVS, 1, 16, 8, 8, quantized=("one", "three"))
    assert mixed == {"one": "QLinearConv", "two": "Conv", "three": "QLinearConv"}


def test_layers_named_like_the_tensors_of_others_are_told_apart() -> None:
    nodes = [
        node("Conv", "x a", "two", "one"),
        node("Relu", "two", "three", "act"),
        node("Conv", "three b", "one", "two"),
        node("Conv", "one c", "y", "three"),
    ]
    for layer in ("one", "two", "three"):
        found = kernels(nodes, CONVS, 1, 16, 8, 8, quantized=(layer,))
        expected = {n: "QLinearConv" if n == layer else "Conv" for n in ("one", "two", "three")}
        assert found == expected


PRODUCTS = [
    node("MatMul", "x m", "t", "matmul"),
    node("Relu", "t", "u", "act"),
    node("Gemm", "u g b", "y", "gemm"),
]
FACTORS = {"m": normal(8, 12), "g": normal(12, 5), "b": normal(5)}


@pytest.mark.parametrize("quantized", [(), ("matmul",), ("gemm",), ("matmul", "gemm")])
def test_matrix_products_are_traced(quantized: tuple[str, ...]) -> None:
    found = kernels(PRODUCTS, FACTORS, 1, 8, quantized=quantized)
    floats = {"matmul": "MatMul", "gemm": "Gemm"}
    integers = {"matmul": "QLinearMatMul", "gemm": "QGemm"}
    assert found == {n: (integers if n in quantized else floats)[n] for n in floats}


def test_a_float_product_that_became_a_gemm_with_its_addition_is_traced() -> None:
    nodes = [node("MatMul", "x m", "t", "matmul"), node("Add", "t b", "y", "add")]
    found = kernels(nodes, {"m": normal(8, 5), "b": normal(5)}, 1, 8)
    assert found == {"matmul": "Gemm"}


@pytest.mark.parametrize("bits", ["w8a8", "w32a32"])
def test_a_product_of_two_layers_outputs_is_not_taken_for_one_of_them(bits: str) -> None:
    nodes = [
        node("MatMul", "x a", "p", "left"),
        node("MatMul", "x b", "q", "right"),
        node("MatMul", "p q", "y", "both"),
    ]
    constants = {"a": normal(6, 6), "b": normal(6, 6)}
    every = ("left", "right", "both") if bits == "w8a8" else ()
    kernel = "QLinearMatMul" if every else "MatMul"
    found = kernels(nodes, constants, 1, 6, 6, quantized=every)
    assert found == dict.fromkeys(("left", "right", "both"), kernel)


def test_an_integer_product_of_activations_that_was_asked_as_float_is_caught() -> None:
    nodes = [
        node("MatMul", "x a", "p", "left"),
        node("MatMul", "x b", "q", "right"),
        node("MatMul", "p q", "y", "both"),
    ]
    constants = {"a": normal(6, 6), "b": normal(6, 6)}
    network = read_network(make_model(nodes, constants, {"x": (1, 6, 6)}, {"y": None}))
    policy = Policy({"left": W8A8, "right": W8A8})
    assert checked(network, policy).ok
    bare = checked(network, policy, ExportOptions(guard_float=False))
    assert single(bare, "both").executed == "MatMulIntegerToFloat"
    assert not bare.ok


def test_float_layers_alone_pass() -> None:
    found = checked(small_mobilenet(), Policy({}))
    assert found.ok
    assert {layer.asked for layer in found.layers} == {str(FLOAT32)}
