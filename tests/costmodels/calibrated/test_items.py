"""Rows of networks that are small enough to be counted by hand."""

import json
from collections.abc import Mapping

import numpy as np
import pytest

from costmodels.calibrated.items import (
    FEATURES,
    Items,
    Row,
    is_layer,
    items_of,
    layer_kind,
)
from costmodels.sketch import Sketch, example_network
from hil.probe_timer import ProbeJob, paid_items, policies_of
from quantization.network import Layer, Network
from tests.hil.device_world import drawn


def _numbers(items: Items, row: int) -> Mapping[str, float]:
    return dict(zip(FEATURES, items.features[row].tolist(), strict=True))


def _row(network: Network, name: str) -> tuple[str, str, str, str, Mapping[str, float]]:
    """Kind, maker, reader, near and numbers of a layer or a glue operator."""
    items = items_of(network)
    glue = [glue.name for glue in network.glue]
    part, at = (
        (items.glue, glue.index(name))
        if name in glue
        else (items.layers, network.layer_names.index(name))
    )
    texts = (part.kind[at], part.maker[at], part.reader[at], part.near[at])
    return *(str(text) for text in texts), _numbers(part, at)  # type: ignore[return-value]


def _layer(**changed: object) -> Layer:
    fields: dict[str, object] = {
        "name": "a",
        "kind": "Conv",
        "in_channels": 8,
        "out_channels": 8,
        "kernel": (3, 3),
        "stride": (1, 1),
        "groups": 1,
        "in_size": (4, 4),
        "out_size": (4, 4),
        "batch": 1,
        "inputs": ("x",),
        "output": "y",
    }
    return Layer(**{**fields, **changed})  # type: ignore[arg-type]


_PRODUCT = {"kernel": (), "stride": (), "in_size": (4,), "out_size": (4,)}


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (_layer(), "Conv"),
        (_layer(groups=8), "Conv depthwise"),
        (_layer(groups=8, out_channels=16), "Conv depthwise"),
        (_layer(groups=4), "Conv grouped"),
        (_layer(kernel=(3,), stride=(1,), in_size=(4,), out_size=(4,)), "Conv 1d"),
        (_layer(kind="ConvTranspose"), "ConvTranspose"),
        (_layer(kind="Gemm", **_PRODUCT), "Gemm"),
        (_layer(kind="MatMul", **_PRODUCT), "MatMul"),
        (
            _layer(kind="MatMul", **_PRODUCT, inputs=("x", "z"), factor_counts=(32, 64)),
            "MatMul of activations",
        ),
    ],
)
def test_a_layer_is_of_the_kind_that_runtimes_tell_apart(layer: Layer, kind: str) -> None:
    assert layer_kind(layer) == kind
    assert is_layer(np.array([kind])).all()


def test_glue_and_conversions_are_no_layers() -> None:
    assert not is_layer(np.array(["Add", "quantize", "Mul broadcast", "Convolve"])).any()


def _chain() -> Network:
    """Grouped, depthwise and full convolutions, then a Gemm."""
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 8, 10, 10)), 16, kernel=3, stride=2, groups=4, name="grouped")
    x = sketch.conv(sketch.node("Relu", x, name="relu"), 16, kernel=5, groups=16, name="depthwise")
    x = sketch.conv(x, 12, name="point")
    flat = sketch.node("Flatten", x, name="flat", axis=1)
    return sketch.network(sketch.gemm(flat, 12 * 25, 10, name="head"))


WHOLE = {
    "network": 16 * 2 * 9 + 16 * 25 + 12 * 16 + 10 * 300,
    "passed": 800 + 3 * 400 + 2 * 300 + 10,
    "work": 16 * 25 * 2 * 9 + 16 * 25 * 25 + 12 * 25 * 16 + 3000,
}
"""Weights, activations and multiply-accumulates of all of `_chain`."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "grouped",
            {
                "macs": 16 * 25 * 2 * 9,
                "inputs": 800,
                "outputs": 400,
                "weights": 288,
                "depth": 18,
                "in_channels": 8,
                "out_channels": 16,
                "pixels": 25,
                "window": 9,
                "stride": 2,
                "groups": 4,
                "added": 1,
                "smallest": 800,
                "even_in": 8,
                "even_out": 16,
            },
        ),
        (
            "depthwise",
            {
                "macs": 16 * 25 * 25,
                "inputs": 400,
                "outputs": 400,
                "weights": 400,
                "depth": 25,
                "in_channels": 16,
                "out_channels": 16,
                "pixels": 25,
                "window": 25,
                "stride": 1,
                "groups": 16,
                "added": 0,
                "smallest": 400,
                "even_in": 16,
                "even_out": 16,
            },
        ),
        (
            "point",
            {
                "macs": 12 * 25 * 16,
                "inputs": 400,
                "outputs": 300,
                "weights": 192,
                "depth": 16,
                "in_channels": 16,
                "out_channels": 12,
                "pixels": 25,
                "window": 1,
                "stride": 1,
                "groups": 1,
                "added": 0,
                "smallest": 400,
                "even_in": 16,
                "even_out": 4,
            },
        ),
        (
            "head",
            {
                "macs": 3000,
                "inputs": 300,
                "outputs": 10,
                "weights": 3000,
                "depth": 300,
                "in_channels": 300,
                "out_channels": 10,
                "pixels": 1,
                "window": 1,
                "stride": 1,
                "groups": 1,
                "added": 0,
                "smallest": 300,
                "even_in": 4,
                "even_out": 2,
            },
        ),
    ],
)
def test_the_numbers_of_a_layer_are_those_counted_by_hand(
    name: str, expected: Mapping[str, float]
) -> None:
    numbers = _row(_chain(), name)[-1]
    assert numbers == {**expected, "operands": 1, "readers": 1, **WHOLE}


def test_a_product_of_activations_reads_two_operands_and_has_no_weight() -> None:
    kind, _, _, _, numbers = _row(example_network(), "product")
    assert kind == "MatMul of activations"
    expected = {"macs": 8 * 8 * 64, "inputs": 1024, "outputs": 64, "weights": 0, "operands": 2}
    assert {name: numbers[name] for name in expected} == expected
    assert (numbers["depth"], numbers["smallest"], numbers["pixels"]) == (64, 512, 8)


def test_makers_and_readers_of_layers_skip_activations_that_are_taken_over() -> None:
    network = _chain()
    assert _row(network, "grouped")[:3] == ("Conv grouped", "outside", "Conv depthwise")
    assert _row(network, "depthwise")[:3] == ("Conv depthwise", "Conv grouped", "Conv")
    assert _row(network, "point")[:3] == ("Conv", "Conv depthwise", "Flatten")
    assert _row(network, "head")[:3] == ("Gemm", "Flatten", "outside")


def test_other_activations_are_makers_and_readers() -> None:
    sketch = Sketch()
    first = sketch.conv(sketch.input((1, 8, 4, 4)), 8, name="first")
    gate = sketch.node("Sigmoid", first)
    network = sketch.network(sketch.conv(gate, 8, name="second"))
    assert _row(network, "first")[2] == "Sigmoid"
    assert _row(network, "second")[1] == "Sigmoid"


def _residual() -> Network:
    """A sum behind two convolutions, the second of which is also read elsewhere."""
    sketch = Sketch()
    x = sketch.input((1, 8, 4, 4))
    left, right = sketch.conv(x, 8, name="left"), sketch.conv(x, 8, name="right")
    end = sketch.node("Relu", sketch.node("Add", left, right, name="sum"), name="end")
    other = sketch.conv(right, 4, name="other")
    return sketch.network(end, other)


def test_near_names_what_stands_before_and_who_else_reads_it() -> None:
    network = _residual()
    assert _row(network, "sum")[3] == "Add behind Conv, Conv+"
    assert _row(network, "end")[3] == "fused Relu behind Add"


def test_near_says_which_activations_an_integer_kernel_takes_over() -> None:
    assert _row(_chain(), "relu")[3] == "fused Relu behind Conv grouped"


def test_sums_and_activations_right_behind_a_layer_are_counted_unless_others_read_too() -> None:
    network = _residual()
    added = {name: _row(network, name)[-1]["added"] for name in network.layer_names}
    assert added == {"left": 2, "right": 0, "other": 0}
    assert _row(network, "right")[-1]["readers"] == 2


def test_elementwise_glue_tells_broadcasts_and_constants() -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 8, 4, 4)), 8)
    y = sketch.conv(x, 8)
    half = sketch.constant(np.full((1,), 0.5, np.float32))
    pooled = sketch.node("GlobalAveragePool", y, name="pool")
    same = sketch.node("Add", x, y, name="same")
    scaled = sketch.node("Mul", same, pooled, name="scaled")
    shifted = sketch.node("Sub", scaled, half, name="shifted")
    network = sketch.network(shifted)
    kinds = {name: _row(network, name)[0] for name in ("same", "scaled", "shifted", "pool")}
    assert kinds == {
        "same": "Add",
        "scaled": "Mul broadcast",
        "shifted": "Sub constant",
        "pool": "GlobalAveragePool",
    }
    numbers = _row(network, "scaled")[-1]
    assert (numbers["inputs"], numbers["smallest"], numbers["operands"]) == (136, 8, 2)
    assert (numbers["outputs"], numbers["pixels"], numbers["out_channels"]) == (128, 16, 8)


@pytest.mark.parametrize(
    ("attributes", "kind"),
    [
        ({"perm": [0, 2, 1, 3]}, "Transpose"),
        ({"perm": [0, 2, 3, 1]}, "Transpose inner"),
        ({"perm": [0, 1, 3, 2]}, "Transpose inner"),
        ({}, "Transpose inner"),
    ],
)
def test_a_transpose_that_moves_the_last_axis_is_another_kind(
    attributes: dict[str, list[int]], kind: str
) -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 8, 4, 4)), 8)
    network = sketch.network(sketch.node("Transpose", x, name="turn", **attributes))
    assert _row(network, "turn")[0] == kind


def test_a_pooling_has_its_window_and_stride() -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 8, 9, 9)), 8)
    pooled = sketch.node("MaxPool", x, name="pool", kernel_shape=[3, 3], strides=[2, 2])
    numbers = _row(sketch.network(pooled), "pool")[-1]
    assert (numbers["window"], numbers["stride"], numbers["pixels"]) == (9, 2, 16)
    assert (numbers["inputs"], numbers["outputs"]) == (648, 128)


def test_a_conversion_is_as_large_as_its_tensor_and_says_between_whom() -> None:
    network = _residual()
    items = items_of(network)
    tensors = {tensor.name: i for i, tensor in enumerate(network.tensors)}
    at = tensors[network.layer("right").output]
    assert items.quantize.near[at] == "conversion from Conv to Add, Conv"
    assert items.dequantize.near[at] == items.quantize.near[at]
    assert (items.quantize.kind[at], items.dequantize.kind[at]) == ("quantize", "dequantize")
    numbers = _numbers(items.quantize, at)
    assert (numbers["inputs"], numbers["outputs"], numbers["readers"]) == (128, 128, 2)
    assert (numbers["in_channels"], numbers["pixels"], numbers["even_out"]) == (8, 16, 8)
    assert items.quantize.near[tensors["x"]] == "conversion from outside to Conv"


def test_channels_of_tokens_are_the_last_axis() -> None:
    sketch = Sketch()
    network = sketch.network(sketch.matmul(sketch.input((1, 7, 24)), 24, 12))
    numbers = _numbers(items_of(network).quantize, 0)
    assert (numbers["in_channels"], numbers["pixels"], numbers["even_in"]) == (24, 7, 8)


@pytest.mark.parametrize("seed", range(4))
def test_rows_are_those_of_the_network_in_its_order(seed: int) -> None:
    network = drawn(seed) if seed else example_network()
    items = items_of(network)
    assert items.layers.kind.tolist() == [layer_kind(layer) for layer in network.layers]
    assert items.layers.column("macs").tolist() == [layer.macs for layer in network.layers]
    glue = [kind.split(" ")[0] for kind in items.glue.kind.tolist()]
    assert glue == [glue.kind for glue in network.glue]
    counts = [tensor.count for tensor in network.tensors]
    for part, kind in ((items.quantize, "quantize"), (items.dequantize, "dequantize")):
        assert part.column("inputs").tolist() == counts
        assert set(part.kind.tolist()) == {kind}
    rows = Items.joined([items.layers, items.glue, items.quantize])
    assert (rows.column("outputs") > 0).all()
    assert np.isfinite(rows.features).all()
    assert set(rows.column("network").tolist()) == {sum(x.weight_count for x in network.layers)}


def test_only_conversions_that_a_policy_pays_are_rows() -> None:
    network = example_network()
    paid = {
        name: paid_items(network, policy)
        for name, policy in policies_of(network, ProbeJob(0)).items()
    }
    floats, none_integer = paid["float"]
    assert len(floats) == len(network.layers) + len(network.glue)
    assert not none_integer.any()
    mixed, integer = paid["integer"]
    crossed = np.isin(mixed.kind, ("quantize", "dequantize"))
    assert crossed.any()
    np.testing.assert_array_equal(integer[crossed], (mixed.kind == "quantize")[crossed])
    assert integer[: len(network.layers)].all()


def test_a_number_that_is_not_given_is_zero() -> None:
    items = Items.of([Row("Add", "Conv", "Conv", "Add", {"inputs": 3})])
    assert items.column("inputs").tolist() == [3.0]
    assert items.features.sum() == 3.0


def test_rows_survive_json_and_can_be_picked_and_joined() -> None:
    items = items_of(example_network()).glue
    for rows in (items, items.at(np.zeros(len(items), np.bool_))):
        again = Items.from_dict(json.loads(json.dumps(rows.to_dict())))
        assert again.to_dict() == rows.to_dict()
        assert again.features.shape == (len(rows), len(FEATURES))
    halves = [items.at(np.arange(2)), items.at(np.arange(2, len(items)))]
    assert Items.joined(halves).to_dict() == items.to_dict()
