"""Layers count their work by hand-checkable formulas; networks check themselves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.sketch import Sketch, example_network
from quantization.errors import ModelError, PolicyError
from quantization.network import OUTPUT, Layer, Network
from quantization.reading import read_network
from tests.quantization.graphs import make_model, node, normal


def only_layer(*args: Any, **kwargs: Any) -> Layer:
    [layer] = read_network(make_model(*args, **kwargs)).layers
    return layer


def conv(
    weight: tuple[int, ...], x: tuple[int, ...], y: tuple[int, ...], **attributes: Any
) -> Layer:
    kind = attributes.pop("kind", "Conv")
    return only_layer(
        [node(kind, "x w", "y", "c", **attributes)], {"w": normal(*weight)}, {"x": x}, {"y": y}
    )


def test_the_work_of_a_convolution_is_its_outputs_times_what_each_one_reads() -> None:
    layer = conv((8, 3, 5, 5), (2, 3, 16, 16), (2, 8, 6, 6), strides=[2, 2])
    assert layer.macs == 2 * 8 * 6 * 6 * 3 * 5 * 5
    assert layer.weight_count == 8 * 3 * 5 * 5
    assert layer.input_count == 2 * 3 * 16 * 16
    assert layer.output_count == 2 * 8 * 6 * 6
    assert (layer.kernel, layer.stride, layer.groups) == ((5, 5), (2, 2), 1)


def test_the_work_of_a_depthwise_convolution_is_one_filter_per_channel() -> None:
    layer = conv((6, 1, 3, 3), (1, 6, 8, 8), (1, 6, 6, 6), group=6)
    assert layer.is_depthwise
    assert layer.macs == 6 * 6 * 6 * 9
    assert layer.weight_count == 6 * 9


def test_the_work_of_a_grouped_convolution_is_divided_by_the_groups() -> None:
    layer = conv((8, 2, 3, 3), (1, 4, 8, 8), (1, 8, 6, 6), group=2)
    assert not layer.is_depthwise
    assert layer.macs == 8 * 6 * 6 * 2 * 9
    assert layer.weight_count == 8 * 2 * 9


def test_the_work_of_a_convolution_over_time_counts_one_axis() -> None:
    layer = conv((8, 3, 5), (1, 3, 20), (1, 8, 16))
    assert layer.macs == 8 * 16 * 3 * 5


def test_the_work_of_a_transposed_convolution_is_its_inputs_times_what_each_one_writes() -> None:
    layer = conv((4, 6, 2, 2), (1, 4, 5, 5), (1, 6, 10, 10), kind="ConvTranspose", strides=[2, 2])
    assert layer.macs == 4 * 5 * 5 * 6 * 2 * 2
    assert layer.weight_count == 4 * 6 * 2 * 2
    assert (layer.in_channels, layer.out_channels) == (4, 6)


def test_the_work_of_a_fully_connected_layer_is_rows_times_weights() -> None:
    layer = only_layer(
        [node("Gemm", "x w b", "y", "fc", transB=1)],
        {"w": normal(10, 64), "b": normal(10)},
        {"x": (3, 64)},
        {"y": (3, 10)},
    )
    assert layer.macs == 3 * 64 * 10
    assert (layer.weight_count, layer.bias_count) == (640, 10)
    assert (layer.input_count, layer.output_count) == (3 * 64, 3 * 10)


def test_a_product_with_a_weight_counts_its_leading_extents_as_batch() -> None:
    layer = only_layer(
        [node("MatMul", "x w", "y", "m")], {"w": normal(16, 32)}, {"x": (2, 5, 7, 16)}, {"y": None}
    )
    assert layer.macs == 2 * 5 * 7 * 16 * 32
    assert (layer.batch, layer.in_size, layer.weight_count) == (10, (7,), 16 * 32)


def test_a_product_of_two_activations_is_a_layer_without_weights() -> None:
    layer = only_layer(
        [node("MatMul", "q k", "y", "attention")],
        {},
        {"q": (2, 4, 7, 8), "k": (2, 4, 8, 9)},
        {"y": None},
    )
    assert not layer.has_weights
    assert layer.weight_count == 0
    assert layer.macs == 2 * 4 * 7 * 8 * 9
    assert layer.input_count == 2 * 4 * (7 * 8 + 8 * 9)


def test_a_product_whose_first_factor_is_broadcast_counts_every_product() -> None:
    layer = only_layer([node("MatMul", "a b", "y")], {}, {"a": (5, 3), "b": (2, 3, 4)}, {"y": None})
    assert layer.macs == 2 * 5 * 3 * 4
    assert layer.output_count == 2 * 5 * 4
    assert layer.input_count == 5 * 3 + 2 * 3 * 4


def test_factors_that_are_broadcast_against_each_other_count_what_they_hold() -> None:
    shapes: dict[str, Any] = {"a": (5, 1, 4, 9), "b": (3, 9, 4)}
    layer = only_layer([node("MatMul", "a b", "y")], {}, shapes, {"y": None})
    assert layer.macs == 5 * 3 * 4 * 9 * 4
    assert layer.input_count == 5 * 4 * 9 + 3 * 9 * 4


def test_a_product_with_a_vector_is_glue() -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 4, 4, 4)), 4, name="c")
    vector = sketch.node("ReduceMax", x, sketch.constant(_axes(0, 1, 2)), keepdims=0)
    network = sketch.network(sketch.node("MatMul", x, vector, name="weighted"))
    assert network.layer_names == ("c",)
    assert [g.kind for g in network.glue] == ["ReduceMax", "MatMul"]
    assert network.coverage.unknown == ("MatMul",)
    assert network.coverage.unknown_macs == 1 * 4 * 4 * 4


def _axes(*axes: int) -> Any:
    return np.array(axes, np.int64)


LAYER = Layer("c", "Conv", 4, 8, (3, 3), (1, 1), 2, (8, 8), (6, 6), 1, ("x",), "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Relu"}, "Relu is no layer kind"),
        ({"groups": 3}, "3 groups do not divide 4 -> 8"),
        ({"groups": 0}, "at least 1"),
        ({"kernel": (0, 3)}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"inputs": ()}, "one or two input activations"),
        ({"inputs": ("a", "b", "c")}, "one or two input activations"),
        ({"inputs": ("a", "b")}, "two activations have two counts"),
        ({"factor_counts": (3, 4)}, "two activations have two counts"),
    ],
)
def test_an_impossible_layer_cannot_be_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        replace(LAYER, **change)


def test_a_network_knows_its_wiring() -> None:
    network = example_network()
    stem = network.layer("stem")
    relu = next(glue for glue in network.glue if glue.inputs == (stem.output,))
    assert relu.fused
    assert stem.output in network.inner_tensors
    consumers = network.tensor_by_name[relu.outputs[0]].consumers
    assert len(consumers) == 4
    assert {"depthwise", "side"} <= set(consumers)
    outputs = [network.tensor_by_name[name] for name in network.output_names]
    assert all(OUTPUT in tensor.consumers for tensor in outputs)
    assert network.macs == sum(layer.macs for layer in network.layers)
    assert len(network.execution_order) == len(network.layers) + len(network.glue)


def test_every_tensor_is_made_before_it_is_read() -> None:
    network = example_network()
    made = set(network.input_names)
    for step in network.execution_order:
        assert set(step.inputs) <= made
        made |= set(step.outputs if hasattr(step, "outputs") else (step.output,))
    assert made == set(network.tensor_by_name)


def test_unknown_operators_are_counted_as_such_and_never_as_priced() -> None:
    sketch = Sketch()
    network = sketch.network(sketch.node("Selu", sketch.conv(sketch.input((1, 3, 4, 4)), 4)))
    assert (network.coverage.layers, network.coverage.glue) == (1, 0)
    assert network.coverage.unknown == ("Selu",)
    assert not network.glue[0].integer


def test_the_digest_depends_on_structure_and_the_other_one_on_weights_too() -> None:
    def network(seed: int, channels: int = 4) -> Network:
        sketch = Sketch(seed)
        return sketch.network(sketch.conv(sketch.input((1, 3, 4, 4)), channels, name="c"))

    assert network(0).digest == network(1).digest != network(0, channels=5).digest
    assert network(0).weights_digest == network(0).weights_digest != network(1).weights_digest


def _digest(change: str = "", seed: int = 0) -> str:
    """Read a network of which one thing is changed."""

    def pick(name: str, plain: Any, other: Any) -> Any:
        return other if change == name else plain

    pads = pick("pads of the same size", [1, 1, 1, 1], [2, 2, 0, 0])
    pads, dilations = pick("dilations", (pads, [1, 1]), ([2, 2, 2, 2], [2, 2]))
    kernel, pool_pads = pick("pool kernel", ([2, 2], [0, 0, 1, 1]), ([3, 3], [1, 1, 1, 1]))
    operands = pick("wiring", "c e", "e c")
    power = np.array(pick("exponent", 2, 3), np.float32)
    nodes = [
        node("Conv", "x w", "a", "c", pads=pads, dilations=dilations),
        node("MaxPool", "a", "b", "p", kernel_shape=kernel, strides=[1, 1], pads=pool_pads),
        node("LayerNormalization", "b scale", "n", "norm", epsilon=pick("epsilon", 1e-5, 1e-3)),
        node("Pow", "n power", "s", "square"),
        node("Slice", "s starts ends axes", "c", "slice"),
        node("Relu", "s", "d", "relu"),
        node("Slice", "d starts ends axes", "e", "slice_too"),
        node("Sub", operands, "y", "difference"),
    ]
    begin = pick("slice", 0, 1)
    constants = {
        "w": normal(4, 3, 3, 3, seed=seed),
        "scale": normal(6, seed=seed),
        "power": power,
        "starts": np.array([begin]),
        "ends": np.array([begin + 2]),
        "axes": np.array([1]),
    }
    opset = pick("opset", 21, 22)
    model = make_model(nodes, constants, {"x": (1, 3, 6, 6)}, {"y": None}, opset=opset)
    return read_network(model).digest


@pytest.mark.parametrize(
    "change",
    [
        *("pads of the same size", "dilations", "pool kernel", "wiring", "exponent", "epsilon"),
        *("slice", "opset"),
    ],
)
def test_what_decides_cost_without_changing_a_shape_changes_the_digest(change: str) -> None:
    assert _digest(change) != _digest()


def test_the_digest_of_the_retrained_network_is_the_same() -> None:
    """Also where trained values are constants of glue, such as the scale of a normalization."""
    assert _digest(seed=1) == _digest(seed=0)


def test_a_layer_stands_in_one_tie_at_most_and_every_tied_layer_exists() -> None:
    network = example_network()
    assert network.tied([["stem", "mix"]]).ties == (("stem", "mix"),)
    with pytest.raises(ModelError, match="two ties"):
        network.tied([["stem", "mix"], ["mix", "point"]])
    with pytest.raises(PolicyError, match="did you mean 'mix'"):
        network.tied([["stem", "mixx"]])
    assert network.tied([["stem", "mix"]]).digest == network.digest
