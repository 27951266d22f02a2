"""Bit planes: packing, unpacking, folding by a default session, bytes in the file."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from hil.ort import optimized_graph
from quantization import packing
from quantization.bits import BitWidths
from quantization.export import Exporter, parameter_names
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from tests.quantization.graphs import make_model, node, normal

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4)


def integers(bits: int, shape: tuple[int, ...], seed: int = 0) -> "np.ndarray[Any, Any]":
    half = 2 ** (bits - 1)
    return np.random.default_rng(seed).integers(-half, half, shape).astype(np.int8)


@given(st.integers(1, 8), SHAPES, st.integers(0, 1000))
def test_unpacking_inverts_packing(bits: int, shape: list[int], seed: int) -> None:
    values = integers(bits, tuple(shape), seed)
    planes = packing.pack(values, bits)
    assert planes.dtype == np.uint8
    assert planes.shape == (bits, -(-values.size // 8))
    np.testing.assert_array_equal(packing.unpack(planes, bits, tuple(shape)), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_ends_of_the_grid_survive(bits: int) -> None:
    values = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1], np.int8)
    assert packing.unpack(packing.pack(values, bits), bits, (2,)).tolist() == values.tolist()


def test_plane_p_holds_bit_p_of_the_shifted_integers_the_first_one_lowest() -> None:
    planes = packing.pack(np.array([-2, 1, 0], np.int8), 2)  # shifted: 0b00, 0b11, 0b10
    assert planes.tolist() == [[0b010], [0b110]]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(3, 5, 3, 3), (1, 1), (17,)])
def test_the_function_in_the_model_unpacks_as_unpack_does(
    bits: int, shape: tuple[int, ...]
) -> None:
    values = integers(bits, shape, seed=bits)
    inputs = [
        numpy_helper.from_array(packing.pack(values, bits), "planes"),
        numpy_helper.from_array(np.array(shape, np.int64), "shape"),
    ]
    call = helper.make_node(packing.FUNCTION, ["planes", "shape"], ["y"], domain=packing.DOMAIN)
    output = helper.make_tensor_value_info("y", onnx.TensorProto.INT8, shape)
    graph = helper.make_graph([call], "g", [], [output], inputs)
    model = helper.make_model(
        graph,
        functions=[packing.unpack_function(21)],
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid(packing.DOMAIN, 1)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    folded = optimized_graph(model.SerializeToString())
    assert not folded.node
    [made] = folded.initializer
    np.testing.assert_array_equal(numpy_helper.to_array(made), values)


Layers = tuple[list[onnx.NodeProto], Mapping[str, "np.ndarray[Any, Any]"], tuple[int, ...], str]
LAYERS: dict[str, Layers] = {
    "Conv 3x3": (
        [node("Conv", "x w b", "y", "layer", pads=[1] * 4)],
        {"w": normal(9, 5, 3, 3), "b": normal(9)},
        (1, 5, 7, 7),
        "QLinearConv",
    ),
    "depthwise": (
        [node("Conv", "x w", "y", "layer", group=6, pads=[1] * 4)],
        {"w": normal(6, 1, 3, 3)},
        (1, 6, 5, 5),
        "QLinearConv",
    ),
    "pointwise": (
        [node("Conv", "x w b", "y", "layer")],
        {"w": normal(11, 7, 1, 1), "b": normal(11)},
        (1, 7, 3, 3),
        "QLinearConv",
    ),
    "convolution along one axis": (
        [node("Conv", "x w", "y", "layer")],
        {"w": normal(4, 3, 3)},
        (1, 3, 9),
        "QLinearConv",
    ),
    "Gemm": (
        [node("Gemm", "x w b", "y", "layer")],
        {"w": normal(13, 5), "b": normal(5)},
        (1, 13),
        "QGemm",
    ),
    "Gemm, transposed": (
        [node("Gemm", "x w", "y", "layer", transB=1)],
        {"w": normal(5, 13)},
        (1, 13),
        "QGemm",
    ),
    "MatMul": (
        [node("MatMul", "x w", "y", "layer")],
        {"w": normal(13, 5)},
        (1, 3, 13),
        "QLinearMatMul",
    ),
}


def layer_network(kind: str) -> Network:
    nodes, constants, shape, _ = LAYERS[kind]
    return read_network(make_model(nodes, constants, {"x": shape}, {"y": None}))


@pytest.mark.parametrize("bits", [2, 3, 5, 7, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_default_session_executes_an_integer_kernel_on_exactly_these_integers(
    kind: str, bits: int
) -> None:
    network = layer_network(kind)
    exporter = Exporter(network, made_up_ranges(network))
    model = exporter.build(Policy.uniform(network, BitWidths(bits, 8)))
    graph = optimized_graph(model)
    [kernel] = [n for n in graph.node if n.op_type == LAYERS[kind][3]]
    known = set(parameter_names(network, "layer"))
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    weights = [held[n] for n in kernel.input if n in known and held[n].dtype == np.int8]
    expected = exporter.parameters.weight("layer", bits).values
    assert any(w.shape == expected.shape and np.array_equal(w, expected) for w in weights), (
        f"{kernel.op_type} reads other weights"
    )
    assert packing.FUNCTION not in {n.op_type for n in graph.node}


@pytest.mark.parametrize("bits", [2, 3, 5, 7])
def test_a_file_of_one_packed_layer_has_less_than_two_kilobytes_besides_its_parameters(
    bits: int,
) -> None:
    """Measured: 1,814 bytes, of them 1,188 for the unpacking function and 450 for the layer."""
    sizes = {}
    for channels in (64, 128):
        weight = normal(channels, 64, 3, 3)
        model = make_model(
            [node("Conv", "x w", "y", "layer", pads=[1] * 4)],
            {"w": weight},
            {"x": (1, 64, 4, 4)},
            {"y": None},
        )
        network = read_network(model)
        exporter = Exporter(network, made_up_ranges(network))
        policy = Policy.uniform(network, BitWidths(bits, 8))
        sizes[channels] = exporter.size_bytes(policy)
        ideal = weight.size * bits // 8
        per_channel = 4 + 4  # weight scale, bias
        assert 0 < sizes[channels] - ideal - per_channel * channels < 1900
    grown = sizes[128] - sizes[64] - 64 * 64 * 9 * bits // 8 - 64 * 8
    assert abs(grown) < 16  # lengths of lengths
    plain = 64 * 64 * 9 * 4
    assert sizes[64] < plain * bits / 32 + 3000


def test_packing_a_layer_instead_of_bytes_costs_less_than_two_hundred_bytes() -> None:
    model = make_model(
        [node("Conv", "x w", "t", "a"), node("Conv", "t v", "y", "b")],
        {"w": normal(8, 8, 1, 1), "v": normal(8, 8, 1, 1)},
        {"x": (1, 8, 4, 4)},
        {"y": None},
    )
    network = read_network(model)
    exporter = Exporter(network, made_up_ranges(network))
    packed = exporter.layer_bytes("b", BitWidths(7, 8)) - 7 * 8
    stored = exporter.layer_bytes("b", BitWidths(8, 8)) - 64
    assert 0 < packed - stored < 200
