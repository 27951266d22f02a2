"""Tracing the nodes of an optimized graph, and the shares of a profile."""

from functools import lru_cache

import onnx
import pytest

from hil.ort import one_feed, optimized_graph, random_inputs
from hil.profile import RawProfile, durations, profile_nodes
from hil.trace import owners
from quantization.bits import BitWidths
from quantization.deployment import ExportOptions
from quantization.errors import ModelError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from tests.networks import branching, small_mobilenet
from tests.quantization.graphs import make_model, node, normal

INTEGER = BitWidths(8, 8)


@lru_cache
def _gated() -> Network:
    """Glue that the runtime renames, decomposes or moves into the blocked layout."""
    nodes = [
        node("Conv", "x a", "t", "stem"),
        node("MaxPool", "t", "p", "max", kernel_shape=[2, 2]),
        node("HardSwish", "p", "s", "swish"),
        node("HardSwish", "s", "ss", "swish again"),
        node("Conv", "ss b", "u", "middle"),
        node("GlobalAveragePool", "u", "g", "squeeze"),
        node("HardSigmoid", "g", "h", "gate"),
        node("Mul", "u h", "m", "scale"),
        node("Relu", "m", "r", "cut"),
        node("Mish", "r", "i", "mish"),
        node("Conv", "i c", "v", "taken over"),
        node("HardSigmoid", "v", "w", "over"),
        node("AveragePool", "w", "q", "mean", kernel_shape=[2, 2]),
        node("Conv", "q d", "y", "last"),
    ]
    weights = {name: normal(16, 16, 1, 1, seed=i) for i, name in enumerate("abcd")}
    return read_network(make_model(nodes, weights, {"x": (1, 16, 64, 64)}, {"y": None}))


def _exporter(network: Network) -> Exporter:
    options = ExportOptions(weight_method="minmax", pack=False)
    return Exporter(network, made_up_ranges(network), options)


def _owned(network: Network, policy: Policy) -> dict[str, list[str]]:
    """Operators of the optimized graph by the node of the network that owns them."""
    graph = optimized_graph(_exporter(network).build(policy))
    found: dict[str, list[str]] = {}
    for node_, owner in zip(graph.node, owners(network, graph), strict=True):
        found.setdefault(owner or "", []).append(node_.op_type)
    return found


def test_every_float_glue_operator_that_is_not_fused_owns_its_nodes() -> None:
    network = _gated()
    owned = _owned(network, Policy({}))
    assert set(owned.pop("")) == {"ReorderInput", "ReorderOutput"}
    assert owned.pop("swish") == owned.pop("swish again") == ["HardSigmoid", "Mul"]
    assert owned.pop("mish") == ["Softplus", "Tanh", "Mul"]
    assert owned == {
        **{name: ["Conv"] for name in network.layer_names},
        "max": ["MaxPool"],
        "squeeze": ["GlobalAveragePool"],
        "gate": ["HardSigmoid"],
        "scale": ["Mul"],
        "cut": ["Relu"],
        "mean": ["AveragePool"],
    }  # the convolution took "over" over


@pytest.mark.parametrize("network", [branching(), small_mobilenet()], ids=["branching", "mobile"])
def test_only_conversions_belong_to_no_node(network: Network) -> None:
    for policy in (Policy({}), Policy.uniform(network, INTEGER)):
        owned = _owned(network, policy)
        conversions = {"QuantizeLinear", "DequantizeLinear", "Transpose"}
        assert set(owned.pop("", [])) <= conversions | {"ReorderInput", "ReorderOutput"}
        assert set(network.layer_names) <= set(owned)
        assert set(owned) <= {node.name for node in network.execution_order}


def test_integer_glue_owns_its_integer_kernels() -> None:
    owned = _owned(branching(), Policy.uniform(branching(), INTEGER))
    assert owned["scale"] == ["QLinearMul"]
    assert owned["residual"] == ["QLinearAdd"]
    assert owned["concat"] == ["QLinearConcat"]
    assert owned["pool"] == ["QLinearGlobalAveragePool"]
    assert owned["transpose"] == ["Transpose"]


def test_conversions_in_several_steps_belong_to_no_node() -> None:
    """The second operand of a float product is dequantized by a cast and two operators."""
    nodes = [
        node("MatMul", "x a", "p", "left"),
        node("MatMul", "x b", "q", "right"),
        node("Transpose", "q", "k", "turn", perm=[0, 2, 1]),
        node("MatMul", "p k", "y", "both"),
        node("Softmax", "k", "z", "weigh"),  # or the last step would be fused into the product
    ]
    constants = {name: normal(6, 6, seed=i) for i, name in enumerate("ab")}
    network = read_network(make_model(nodes, constants, {"x": (1, 6, 6)}, {"y": None, "z": None}))
    owned = _owned(network, Policy({"left": INTEGER, "right": INTEGER}))
    assert owned["turn"] == ["Transpose"]
    assert {"Cast", "Sub", "Mul"} <= set(owned[""])


def test_every_glue_operator_that_is_not_fused_has_a_share_of_the_float_network() -> None:
    network = _gated()
    shares = profile_nodes(
        _exporter(network), Policy({}), 1, one_feed(network, random_inputs(network, 1))
    ).shares
    glue = {glue.name for glue in network.glue} - {"over"}
    assert {name for name, share in shares.items() if share > 0} == {*network.layer_names, *glue}
    assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("bits", ["w32a32", "w8a8"])
def test_a_profile_has_shares_of_all_layers_that_add_up_to_one_and_their_kernels(bits: str) -> None:
    network = small_mobilenet()
    policy = Policy.uniform(network, BitWidths.parse(bits))
    feed = one_feed(network, random_inputs(network, 1))
    found = profile_nodes(_exporter(network), policy, 1, feed)
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert set(network.layer_names) <= set(found.shares)
    assert set(found.shares) <= {node.name for node in network.execution_order}
    assert set(found.kernels) == set(network.layer_names)
    integer = {"QLinearConv", "QGemm", "QLinearMatMul"}
    assert set(found.kernels.values()) <= (
        integer if bits == "w8a8" else {"Conv", "FusedConv", "Gemm"}
    )


def _event(number: int, kind: str, microseconds: int) -> dict[str, object]:
    about = {"node_index": str(number), "op_name": kind}
    return {"cat": "Node", "name": f"{kind}_kernel_time", "dur": microseconds, "args": about}


def _durations(
    events: list[dict[str, object]], kinds: list[str], names: list[str] | None = None
) -> list[float]:
    graph = onnx.GraphProto()
    for kind, name in zip(kinds, names or [""] * len(kinds), strict=True):
        graph.node.append(onnx.NodeProto(op_type=kind, name=name))
    return durations(RawProfile.of(events, graph), graph)


def test_durations_are_told_apart_by_number_and_averaged_over_the_quicker_runs() -> None:
    runs = [(1, 20), (3, 10), (2, 5000), (0, 12), (9000, 11)]  # two were interrupted
    events = [_event(n, "Mul", us) for run in runs for n, us in zip((7, 3), run, strict=True)]
    events.append({"cat": "Session", "name": "model_run", "dur": 99})
    assert _durations(events, ["Mul", "Mul"]) == pytest.approx([4 / 3, 14])


def test_operators_that_ran_in_another_order_are_found_by_their_names() -> None:
    events = []
    for number, (name, us) in enumerate((("b", 4), ("a", 6), ("c", 8))):
        event = _event(number, "Mul" if name != "c" else "Add", us)
        events.append({**event, "name": f"{name}_kernel_time"})
    events.append({"cat": "Kernel", "name": "a kernel of the device", "dur": 3, "args": {}})
    assert _durations(events, ["Mul", "Add", "Mul"], ["a", "c", "b"]) == [6, 8, 4]
    swapped = [event for event in events if event["name"] != "c_kernel_time"]
    assert _durations(swapped, ["Mul", "Mul"], ["a", "b"]) == [6, 4]  # though the kinds agree
    with pytest.raises(ModelError, match="profiled other operators"):
        _durations(events, ["Mul", "Add", "Mul"], ["a", "c", "d"])
    with pytest.raises(ModelError, match="profiled other operators"):
        _durations(events, ["Mul", "Add", "Mul"])


def test_a_profile_of_other_operators_than_those_of_the_graph_is_an_error() -> None:
    with pytest.raises(ModelError, match="profiled other operators"):
        _durations([_event(0, "Mul", 1)], ["Add"])
