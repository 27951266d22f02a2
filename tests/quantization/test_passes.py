"""Each pass changes what it should and leaves what the network computes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from quantization import folding
from quantization.network import Network
from quantization.reading import read_network
from tests.quantization.graphs import Shape, make_model, node, normal


def outputs(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    """Run a model as it stands, without any optimization."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, feeds))


def read_and_compare(model: onnx.ModelProto, rtol: float = 1e-5) -> Network:
    """Read a model and check that the network still computes what the model did."""
    network = read_network(model)
    feeds = {
        name: normal(*network.tensor_by_name[name].shape, seed=9) for name in network.input_names
    }
    for expected, found in zip(outputs(model, feeds), outputs(network.model, feeds), strict=True):
        assert found.shape == expected.shape
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale)
    return network


def norm(channels: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    values = {
        "g": random.uniform(0.5, 1.5, channels),
        "h": random.normal(0, 0.5, channels),
        "m": random.normal(0, 0.5, channels),
        "v": random.uniform(0.2, 2.0, channels),
    }
    return {f"{name}{seed}": value.astype(np.float32) for name, value in values.items()}


def folded(network: Network, what: str) -> int:
    assert network.folded is not None
    return network.folded[what]


def test_folding_batch_norms_keeps_the_outputs() -> None:
    model = make_model(
        [
            node("Conv", "x w1 b1", "a", "first", pads=[1, 1, 1, 1]),
            node("BatchNormalization", "a g1 h1 m1 v1", "b", "n1"),
            node("Relu", "b", "c", "r1"),
            node("Conv", "c w2", "d", "depthwise", group=8, pads=[1, 1, 1, 1]),
            node("BatchNormalization", "d g2 h2 m2 v2", "e", "n2", epsilon=1e-3),
            node("Add", "c e", "f", "sum"),
            node("GlobalAveragePool", "f", "p", "pool"),
            node("Flatten", "p", "q", "flat"),
            node("Gemm", "q w3 b3", "s", "head", transB=1),
            node("BatchNormalization", "s g3 h3 m3 v3", "y", "n3"),
        ],
        {
            "w1": normal(8, 3, 3, 3),
            "b1": normal(8),
            "w2": normal(8, 1, 3, 3, seed=2),
            "w3": normal(5, 8, seed=3),
            "b3": normal(5, seed=4),
            **norm(8, 1),
            **norm(8, 2),
            **norm(5, 3),
        },
        {"x": (2, 3, 8, 8)},
        {"y": (2, 5)},
    )
    network = read_and_compare(model)
    assert folded(network, "BatchNormalization") == 3
    assert not [g for g in network.glue if g.kind == "BatchNormalization"]
    assert network.layer("depthwise").bias_count == 8, "a folded shift becomes a bias"


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (1, 1)])
def test_a_batch_norm_behind_a_gemm_folds_whatever_the_shape_of_its_bias(
    shape: tuple[int, ...],
) -> None:
    model = make_model(
        [node("Gemm", "x w b", "a", "fc"), node("BatchNormalization", "a g1 h1 m1 v1", "y")],
        {"w": normal(3, 4), "b": normal(*shape), **norm(4, 1)},
        {"x": (2, 3)},
        {"y": (2, 4)},
    )
    assert folded(read_and_compare(model), "BatchNormalization") == 1


@pytest.mark.parametrize("constants", [{"b": normal(2, 4)}, {"b": normal(2, 1)}])
def test_a_batch_norm_behind_a_gemm_with_a_bias_per_row_stays(constants: dict[str, Any]) -> None:
    model = make_model(
        [node("Gemm", "x w b", "a", "fc"), node("BatchNormalization", "a g1 h1 m1 v1", "y")],
        {"w": normal(3, 4), **constants, **norm(4, 1)},
        {"x": (2, 3)},
        {"y": (2, 4)},
    )
    assert folded(read_and_compare(model), "BatchNormalization") == 0


def test_a_batch_norm_stays_if_what_it_reads_is_read_elsewhere_too() -> None:
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("BatchNormalization", "a g1 h1 m1 v1", "b", "n"),
            node("Add", "a b", "y", "sum"),
        ],
        {"w": normal(4, 3, 1, 1), **norm(4, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
    )
    network = read_and_compare(model)
    assert folded(network, "BatchNormalization") == 0
    assert "BatchNormalization" in [g.kind for g in network.glue]


def test_a_batch_norm_behind_a_transposed_convolution_stays() -> None:
    model = make_model(
        [
            node("ConvTranspose", "x w", "a", "up", strides=[2, 2]),
            node("BatchNormalization", "a g1 h1 m1 v1", "y", "n"),
        ],
        {"w": normal(3, 4, 2, 2), **norm(4, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 8, 8)},
    )
    network = read_and_compare(model)
    assert folded(network, "BatchNormalization") == 0
    assert [(g.kind, g.integer) for g in network.glue] == [("BatchNormalization", False)]


def test_shared_weights_get_their_own_batch_norms() -> None:
    model = make_model(
        [
            node("Conv", "x w b", "a1", "one"),
            node("BatchNormalization", "a1 g1 h1 m1 v1", "y1", "n1"),
            node("Conv", "x w b", "a2", "two"),
            node("BatchNormalization", "a2 g2 h2 m2 v2", "y2", "n2"),
            node("Conv", "x w b", "y3", "three"),
        ],
        {"w": normal(4, 3, 1, 1), "b": normal(4), **norm(4, 1), **norm(4, 2)},
        {"x": (1, 3, 4, 4)},
        dict.fromkeys(("y1", "y2", "y3"), (1, 4, 4, 4)),
    )
    assert folded(read_and_compare(model), "BatchNormalization") == 2


def parameters(network: Network) -> dict[str, list[str]]:
    return {n.name: list(n.input[1:]) for n in network.model.graph.node if len(n.input) > 1}


def test_shared_initializers_are_duplicated_and_named_by_their_layer() -> None:
    model = make_model(
        [node("Conv", "x w b", "a", "one"), node("Conv", "a w b", "y", "two")],
        {"w": normal(3, 3, 1, 1), "b": normal(3)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4)},
    )
    network = read_and_compare(model)
    assert folded(network, "shared parameters") == 4
    assert parameters(network) == {
        "one": ["one.weight", "one.bias"],
        "two": ["two.weight", "two.bias"],
    }


def test_an_initializer_that_has_the_name_of_another_layers_weight_does_not_confuse() -> None:
    model = make_model(
        [node("Conv", "x two.weight", "a", "one"), node("Conv", "a one.weight", "y", "two")],
        {"two.weight": normal(3, 3, 1, 1), "one.weight": normal(3, 3, 1, 1, seed=1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4)},
    )
    network = read_and_compare(model)
    assert parameters(network) == {"one": ["one.weight"], "two": ["two.weight"]}


def test_a_weight_that_glue_reads_too_is_copied() -> None:
    model = make_model(
        [
            node("Conv", "x c.weight", "a", "c"),
            node("Add", "a c.weight", "y", "sum"),
        ],
        {"c.weight": normal(3, 3, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (3, 3, 4, 4)},
    )
    network = read_and_compare(model)
    assert parameters(network)["c"] == ["c.weight_"]
    assert folded(read_network(network.model), "shared parameters") == 0


def test_aliases_of_shared_biases_are_resolved_before_they_are_duplicated() -> None:
    model = make_model(
        [
            node("Identity", "b", "b2"),
            node("Identity", "b2", "b3"),
            node("Conv", "x w b", "a", "one"),
            node("Conv", "a w2 b2", "c", "two"),
            node("Identity", "c", "d"),
            node("Conv", "d w3 b3", "y", "three"),
        ],
        {
            "w": normal(3, 3, 1, 1),
            "w2": normal(3, 3, 1, 1),
            "w3": normal(3, 3, 1, 1),
            "b": normal(3),
        },
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4)},
    )
    network = read_and_compare(model)
    assert folded(network, "Identity") == 3
    assert network.glue == ()
    assert {layer.bias_count for layer in network.layers} == {3}
    assert parameters(network)["three"] == ["three.weight", "three.bias"]


def test_an_identity_that_makes_an_output_hands_its_name_back() -> None:
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("Identity", "a", "y", "alias"),
            node("Relu", "a", "z", "r"),
        ],
        {"w": normal(3, 3, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4), "z": (1, 3, 4, 4)},
    )
    network = read_and_compare(model)
    assert [g.kind for g in network.glue] == ["Relu"]
    assert network.output_names == ("y", "z")


@pytest.mark.parametrize(
    ("nodes", "results"),
    [
        ([node("Conv", "x w", "a", "c"), node("Identity", "x", "y", "i")], ("a", "y")),
        ([node("Conv", "x w", "a", "c"), node("Identity", "a", "y", "i")], ("a", "y")),
        ([node("Conv", "x w", "a", "c"), node("Identity", "w", "y", "i")], ("a", "y")),
    ],
)
def test_an_identity_between_names_of_the_interface_stays(
    nodes: Sequence[onnx.NodeProto], results: tuple[str, ...]
) -> None:
    shapes: dict[str, Shape] = dict.fromkeys(results)
    model = make_model(nodes, {"w": normal(3, 3, 1, 1)}, {"x": (1, 3, 4, 4)}, shapes)
    assert read_and_compare(model).output_names == results


def test_dropout_vanishes() -> None:
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("Dropout", "a", "b", "d"),
            node("Relu", "b", "y", "r"),
        ],
        {"w": normal(3, 3, 1, 1)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 3, 4, 4)},
    )
    network = read_and_compare(model)
    assert [g.kind for g in network.glue] == ["Relu"]
    assert network.glue[0].fused


def test_shapes_and_casts_that_only_depend_on_constants_are_folded() -> None:
    """What torch exports for ``y / sqrt(x.shape[1])`` and ``y.view(x.shape[0], -1)``."""
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("Shape", "x", "count", "shape", start=1, end=2),
            node("Cast", "count", "as_float", "cast", to=1),
            node("Sqrt", "as_float", "root", "root"),
            node("CastLike", "root a", "alike", "alike"),
            node("Div", "a alike", "d", "scale"),
            node("Shape", "a", "all", "all"),
            node("Gather", "all zero", "rows", "rows"),
            node("Unsqueeze", "rows zero", "rows1", "rows1"),
            node("Concat", "rows1 minus", "target", "target", axis=0),
            node("Reshape", "d target", "y", "view"),
        ],
        {"w": normal(4, 4, 1, 1), "zero": np.array(0), "minus": np.array([-1])},
        {"x": (2, 4, 3, 3)},
        {"y": (2, 36)},
    )
    network = read_and_compare(model)
    assert [g.kind for g in network.glue] == ["Div", "Reshape"]
    assert network.coverage.unknown == ()


def test_constant_nodes_become_initializers() -> None:
    value = numpy_helper.from_array(normal(4, 3, 1, 1))
    model = make_model(
        [node("Constant", "", "w", value=value), node("Conv", "x w", "y", "c")],
        {},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
    )
    network = read_and_compare(model)
    assert folded(network, "Constant") == 1
    assert network.layer("c").weight_count == 12


def test_random_numbers_are_never_frozen_into_constants() -> None:
    model = make_model(
        [
            node("RandomNormalLike", "w", "noise", "noise"),
            node("Conv", "x w", "a", "c"),
            node("Add", "a noise", "y", "sum"),
        ],
        {"w": normal(4, 4, 1, 1)},
        {"x": (1, 4, 4, 4)},
        {"y": None},
    )
    assert "RandomNormalLike" in read_network(model).coverage.unknown


def test_a_constant_that_cannot_be_evaluated_is_left_to_run_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no such operator here")

    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("Neg", "k", "minus", "neg"),
            node("Add", "a minus", "y"),
        ],
        {"w": normal(4, 4, 1, 1), "k": normal(1)},
        {"x": (1, 4, 4, 4)},
        {"y": None},
    )
    monkeypatch.setattr(folding, "ReferenceEvaluator", refuse)
    assert "Neg" in [g.kind for g in read_network(model).glue]


@pytest.mark.parametrize(
    ("keepdims", "kinds"), [(1, ["GlobalAveragePool"]), (0, ["GlobalAveragePool", "Flatten"])]
)
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
def test_a_mean_over_the_image_becomes_a_pool(
    keepdims: int, kinds: list[str], axes: list[int]
) -> None:
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("ReduceMean", "a axes", "y", "mean", keepdims=keepdims),
        ],
        {"w": normal(4, 3, 1, 1), "axes": np.array(axes)},
        {"x": (2, 3, 4, 4)},
        {"y": None},
    )
    network = read_and_compare(model)
    assert [g.kind for g in network.glue] == kinds


def test_a_mean_over_channels_stays_a_mean() -> None:
    model = make_model(
        [node("Conv", "x w", "a", "c"), node("ReduceMean", "a axes", "y", "mean")],
        {"w": normal(4, 3, 1, 1), "axes": np.array([1])},
        {"x": (2, 3, 4, 4)},
        {"y": None},
    )
    assert [g.kind for g in read_and_compare(model).glue] == ["ReduceMean"]


def test_what_nobody_reads_is_dropped() -> None:
    model = make_model(
        [
            node("Conv", "x w", "y", "c"),
            node("Relu", "y", "z", "dead"),
            node("Relu", "z", "zz", "deader"),
        ],
        {"w": normal(4, 3, 1, 1), "unused": normal(100)},
        {"x": (1, 3, 4, 4)},
        {"y": (1, 4, 4, 4)},
    )
    network = read_and_compare(model)
    assert network.glue == ()
    assert [t.name for t in network.model.graph.initializer] == ["c.weight"]
