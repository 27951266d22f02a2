"""Reading: names, shapes, and errors of one line."""

import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from costmodels.sketch import Sketch, example_network
from quantization.bits import BitWidths
from quantization.errors import ModelError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from tests.quantization.graphs import Shape, make_model, node, normal
from tests.quantization.test_passes import norm, outputs, read_and_compare

W8A8 = BitWidths.parse("w8a8")


def plain_model(**kwargs: object) -> onnx.ModelProto:
    return make_model(
        [node("Conv", "x w", "a", "c"), node("Relu", "a", "y", "r")],
        {"w": normal(4, 3, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
        **kwargs,  # type: ignore[arg-type]
    )


def names(network: Network) -> list[str]:
    return [step.name for step in network.execution_order]


def test_empty_and_repeated_names_become_operator_and_index_and_stay() -> None:
    model = make_model(
        [
            node("Constant", "", "k", value_float=2.0),
            node("Conv", "x w", "a"),
            node("Identity", "a", "a2"),
            node("Relu", "a2", "b", "same"),
            node("Conv", "b w", "c", "same"),
            node("Mul", "c k", "d"),
            node("Conv", "d w", "e", "Conv_7"),
            node("Conv", "e w", "y"),
        ],
        {"w": normal(3, 3, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4)},
    )
    network = read_network(model)
    assert names(network) == ["Conv_1", "same", "Conv_4", "Mul_5", "Conv_7", "Conv_7_"]
    again = read_network(network.model)
    assert names(again) == names(network)
    assert again.digest == network.digest
    assert again.weights_digest == network.weights_digest


def test_a_prepared_model_reads_back_as_itself() -> None:
    network = example_network()
    again = read_network(network.model)
    assert (again.layers, again.glue, again.tensors) == (
        network.layers,
        network.glue,
        network.tensors,
    )
    assert again.weights_digest == network.weights_digest


def test_reading_does_not_change_the_model_that_was_given() -> None:
    model = plain_model(opset=13, ir_version=8)
    before = model.SerializeToString(deterministic=True)
    read_network(model)
    assert model.SerializeToString(deterministic=True) == before


def test_a_file_and_the_model_in_memory_give_the_same_network(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(plain_model().SerializeToString())
    assert read_network(path).weights_digest == read_network(plain_model()).weights_digest
    assert read_network(str(path)).digest == read_network(path).digest


def test_an_old_opset_is_raised_and_no_operator_gets_lost_on_the_way() -> None:
    """The converter adds nodes without names, and constants that are nodes."""
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("Clip", "a", "b", "clip", min=0.0, max=6.0),
            node("ReduceSum", "b", "d", "sum", axes=[2], keepdims=1),
            node("Squeeze", "d", "e", "squeeze", axes=[2]),
            node("Softmax", "e", "y", "softmax", axis=1),
        ],
        {"w": normal(4, 3, 3, 3)},
        {"x": (1, 3, 8, 8)},
        {"y": (1, 4, 6)},
        opset=9,
        ir_version=4,
    )
    network = read_and_compare(model)
    assert all(names(network))
    assert "Constant" not in [g.kind for g in network.glue]
    assert [g.kind for g in network.glue if g.name in {"clip", "sum", "squeeze", "softmax"}] == [
        *("Clip", "ReduceSum", "Squeeze", "Softmax")
    ]
    assert len(network.glue) + len(network.layers) == len(network.model.graph.node)
    assert next(g for g in network.glue if g.kind == "Clip").fused


def test_a_symbolic_batch_becomes_the_batch_that_was_asked_for() -> None:
    sketch = Sketch()
    y = sketch.conv(sketch.input(("N", 3, 8, 8)), 4, kernel=3, name="c")
    model = sketch.model(y)
    one, four = read_network(model), read_network(model, batch=4)
    assert (one.layers[0].batch, four.layers[0].batch) == (1, 4)
    assert four.macs == 4 * one.macs
    assert four.tensors[0].shape == (4, 3, 8, 8)
    assert four.layers[0].weight_count == one.layers[0].weight_count


def test_a_fixed_batch_is_kept() -> None:
    sketch = Sketch()
    model = sketch.model(sketch.conv(sketch.input((2, 3, 8, 8)), 4))
    assert read_network(model, batch=4).layers[0].batch == 2


def test_activations_fuse_only_where_requantization_can_take_them_over() -> None:
    lower, upper = np.float32(1.0), np.float32(6.0)
    model = make_model(
        [
            node("Conv", "x w", "a", "one"),
            node("Relu", "a", "b", "fused"),
            node("Conv", "b w", "c", "two"),
            node("Clip", "c lower upper", "d", "does_not_span_zero"),
            node("Conv", "d w", "e", "three"),
            node("Relu", "e", "f", "read_twice"),
            node("Add", "e f", "g", "sum"),
            node("Relu", "g", "h", "behind_a_sum"),
            node("Mul", "h upper", "i", "scaled"),
            node("Relu", "i", "y", "behind_a_float_operator"),
        ],
        {"w": normal(3, 3, 1, 1), "lower": np.array(lower), "upper": np.array(upper)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4)},
    )
    network = read_and_compare(model)
    fused = {glue.name: glue.fused for glue in network.glue}
    assert fused == {
        "fused": True,
        "does_not_span_zero": False,
        "read_twice": False,
        "sum": False,
        "behind_a_sum": True,
        "scaled": False,
        "behind_a_float_operator": False,
    }
    integer = {glue.name: glue.integer for glue in network.glue}
    assert integer["sum"]
    assert not integer["scaled"], "a product with a constant has no integer kernel"


def test_a_convolution_whose_weight_is_computed_is_glue() -> None:
    model = make_model(
        [node("Conv", "x w", "a", "c"), node("Conv", "a k", "y", "dynamic")],
        {"w": normal(3, 3, 1, 1)},
        {"x": (1, 3, 4, 4), "k": (2, 3, 1, 1)},
        {"y": (1, 2, 4, 4)},
    )
    network = read_network(model)
    assert network.layer_names == ("c",)
    assert [(g.kind, g.integer, g.known) for g in network.glue] == [("Conv", False, False)]
    assert network.coverage.unknown == ("Conv",)
    assert network.coverage.unknown_macs == 2 * 4 * 4 * 3
    assert network.macs == 3 * 4 * 4 * 3


def test_initializers_that_are_listed_as_inputs_too_are_none() -> None:
    """Files before IR version 4 list every initializer among the inputs."""
    shapes: dict[str, Shape] = {"x": (1, 3, 4, 4), "w": (4, 3, 1, 1)}
    model = make_model(
        [node("Conv", "x w", "a", "c"), node("BatchNormalization", "a g1 h1 m1 v1", "y", "n")],
        {"w": normal(4, 3, 1, 1), **norm(4, 1)},
        {**shapes, **dict.fromkeys(norm(4, 1), (4,))},
        {"y": (1, 4, 4, 4)},
        ir_version=3,
    )
    network = read_network(model)
    assert network.folded is not None
    assert (network.folded["BatchNormalization"], network.folded["unused inputs"]) == (1, 0)
    assert [value.name for value in network.model.graph.input] == ["x"]
    assert network.input_names == ("x",)
    exported(network)


def test_an_input_that_nobody_reads_is_dropped_and_counted() -> None:
    model = make_model(
        [
            node("Conv", "x w", "y", "c"),
            node("Shape", "only_its_shape", "s", "shape"),
            node("ReduceMax", "s", "unread", "dead"),
        ],
        {"w": normal(4, 3, 1, 1)},
        {"nobody": (2, 2), "x": (1, 3, 4, 4), "only_its_shape": (5,)},
        {"y": (1, 4, 4, 4)},
    )
    network = read_network(model)
    assert network.input_names == ("x",)
    assert [value.name for value in network.model.graph.input] == ["x"]
    assert network.folded is not None
    assert network.folded["unused inputs"] == 2
    exported(network)


def exported(network: Network) -> None:
    """Export at 8 bits, check the file, and run it."""
    exporter = Exporter(network, made_up_ranges(network))
    model = exporter.build(Policy.uniform(network, W8A8))
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)
    feeds = {n: normal(*network.tensor_by_name[n].shape) for n in network.input_names}
    found = outputs(onnx.load_from_string(model), feeds)
    assert len(found) == len(network.output_names)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_a_model_of_another_float_type_is_refused_with_what_to_do(kind: int) -> None:
    model = plain_model()
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(normal(4, 3, 1, 1).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    with pytest.raises(ModelError, match=rf"^input 'x' is {dtype.name}; export .* in float32$"):
        read_network(model)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_weights_of_another_float_type_are_refused_with_their_layer(kind: int) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    model = make_model(
        [
            node("Cast", "x", "a", "in", to=kind),
            node("Conv", "a w", "b", "c"),
            node("Cast", "b", "y", "out", to=TensorProto.FLOAT),
        ],
        {"w": normal(4, 3, 1, 1).astype(dtype)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
        opset=22,
    )
    with pytest.raises(ModelError, match=rf"^layer 'c' has {dtype.name} weights; export .*32$"):
        read_network(model)


def _branching() -> onnx.ModelProto:
    branch = helper.make_graph(
        [node("Relu", "a", "r")],
        "b",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    return make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("If", "flag", "y", "branch", then_branch=branch, else_branch=branch),
        ],
        {"w": normal(4, 3, 1, 1), "flag": np.array(True)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
    )


def _quantized() -> onnx.ModelProto:
    return make_model(
        [
            node("QuantizeLinear", "x s z", "q", "quantize"),
            node("DequantizeLinear", "q s z", "d", "dequantize"),
            node("Conv", "d w", "y", "c"),
        ],
        {"w": normal(4, 3, 1, 1), "s": np.array(0.1, np.float32), "z": np.array(0, np.uint8)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
    )


def _two_networks_in_one_file() -> bytes:
    return struct.pack("<q", -1) + plain_model().SerializeToString()


def _open_size() -> onnx.ModelProto:
    return make_model(
        [node("Conv", "x w", "y", "c")],
        {"w": normal(4, 3, 1, 1)},
        {"x": ("N", 3, "H", "W")},
        {"y": ("N", 4, "H", "W")},
    )


def _no_layer() -> onnx.ModelProto:
    return make_model([node("Relu", "x", "y", "r")], {}, {"x": (1, 3)}, {"y": (1, 3)})


def _contradiction() -> onnx.ModelProto:
    return make_model(
        [node("Conv", "x w", "y", "c")],
        {"w": normal(4, 7, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
    )


def _no_shape() -> onnx.ModelProto:
    return make_model(
        [node("Conv", "x w", "y", "c")], {"w": normal(4, 3, 1, 1)}, {"x": None}, {"y": None}
    )


WHOLE = plain_model().SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no"),
        (b"not an ONNX model at all\n" * 40, "is no ONNX model, or it is truncated"),
        (WHOLE[: len(WHOLE) // 2], "is no"),
        (WHOLE[:-3], "is no"),
        (WHOLE[:20], "is no"),
        (_two_networks_in_one_file(), "is no"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), "is no"),
        (_branching().SerializeToString(), "control flow is not supported: If"),
        (_quantized().SerializeToString(), "already quantized .*; give the float model"),
        (_open_size().SerializeToString(), "input 'x' has an open dimension 2; export with fixed"),
        (_no_layer().SerializeToString(), "no convolution or matrix product to quantize"),
        (_contradiction().SerializeToString(), r"layer 'c': its weight has shape \(4, 7, 1, 1\)"),
        (_no_shape().SerializeToString(), "not known|no valid ONNX model"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_one_line(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_network(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("cut", range(10, len(WHOLE), 37))
def test_a_file_cut_anywhere_is_an_error_or_a_whole_network(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(WHOLE[:cut])
    with pytest.raises(ModelError):
        read_network(path)


@pytest.mark.parametrize("name", ["missing.onnx", "model.json", "."])
def test_a_missing_file_and_a_folder_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file: "):
        read_network(tmp_path / name)


def test_the_ending_of_a_file_does_not_decide_how_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(WHOLE)
    assert read_network(path).layer_names == ("c",)
    path.write_text("{}")
    with pytest.raises(ModelError, match="no ONNX model"):
        read_network(path)
