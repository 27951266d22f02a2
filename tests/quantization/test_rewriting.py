"""Operators are written in the form that has an integer kernel, and compute what they did."""

from typing import Any

import numpy as np
import onnx
import pytest

from hil.ort import Runner
from quantization.errors import ModelError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import collect_ranges
from quantization.reading import read_network
from tests.networks import uniform
from tests.quantization.graphs import make_model, node, normal
from tests.quantization.test_export import kinds
from tests.quantization.test_passes import folded, norm, read_and_compare

GEMMS: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], tuple[int, int]]] = {
    "alpha": ([node("Gemm", "x w b", "y", "l", alpha=0.25)], {"b": normal(6)}, (5, 9)),
    "beta": ([node("Gemm", "x w b", "y", "l", beta=-3.0)], {"b": normal(6)}, (5, 9)),
    "no beta at all": ([node("Gemm", "x w b", "y", "l", beta=0.0)], {"b": normal(6)}, (5, 9)),
    "everything at once": (
        [node("Gemm", "x w b", "y", "l", alpha=2.0, beta=0.5, transA=1)],
        {"b": normal(5, 6)},
        (9, 5),
    ),
    "transA": ([node("Gemm", "x w b", "y", "l", transA=1)], {"b": normal(6)}, (9, 5)),
    "bias per row": ([node("Gemm", "x w b", "y", "l")], {"b": normal(5, 6)}, (5, 9)),
    "one bias for a row": ([node("Gemm", "x w b", "y", "l")], {"b": normal(5, 1)}, (5, 9)),
    "bias behind a MatMul": (
        [node("MatMul", "x w", "t", "l"), node("Add", "b t", "y", "add")],
        {"b": normal(1, 6)},
        (5, 9),
    ),
}


@pytest.mark.parametrize("kind", GEMMS)
def test_a_gemm_of_any_form_runs_on_integers_and_is_right(kind: str) -> None:
    nodes, constants, shape = GEMMS[kind]
    raw = make_model(nodes, {"w": normal(9, 6), **constants}, {"x": shape}, {"y": None})
    network = read_network(raw)
    assert (network.layer_names, network.coverage.unknown) == (("l",), ())
    assert network.macs == 5 * 9 * 6
    image = normal(*shape, seed=5)
    exporter = Exporter(network, collect_ranges(network, image))
    model = exporter.build(uniform(network, "w8a8"))
    assert "QGemm" in kinds(model)
    [expected] = Runner(raw.SerializeToString(), 1, {"x": image})()
    [found], [exact] = (Runner(m, 1, {"x": image})() for m in (model, exporter.build(Policy({}))))
    np.testing.assert_allclose(exact, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - expected).max() < 3 * exporter.ranges.grid("y", 8).scale


def test_a_transposed_gemm_gets_a_transpose_before_it() -> None:
    model = make_model(
        [node("Gemm", "x w", "y", "l", transA=1)], {"w": normal(9, 6)}, {"x": (9, 5)}, {"y": None}
    )
    network = read_and_compare(model)
    assert [(g.kind, g.integer, g.moves_only) for g in network.glue] == [("Transpose", True, True)]
    assert network.layer("l").in_size == (5,)


def test_weights_that_are_shared_are_scaled_for_each_gemm_on_its_own() -> None:
    model = make_model(
        [
            node("Gemm", "x w b", "s", "one", alpha=0.5, beta=4.0),
            node("Gemm", "x w b", "t", "two", alpha=3.0),
            node("Gemm", "x w b", "u", "three"),
            node("Sum", "s t u", "y", "sum"),
        ],
        {"w": normal(9, 6), "b": normal(6)},
        {"x": (5, 9)},
        {"y": None},
    )
    assert folded(read_and_compare(model), "Gemm") == 2


def test_a_batch_norm_behind_a_scaled_gemm_folds() -> None:
    model = make_model(
        [
            node("Gemm", "x w b", "a", "l", alpha=0.5, beta=4.0, transB=1),
            node("BatchNormalization", "a g1 h1 m1 v1", "y", "n"),
        ],
        {"w": normal(4, 3), "b": normal(4), **norm(4, 1)},
        {"x": (2, 3)},
        {"y": None},
    )
    network = read_and_compare(model)
    assert (folded(network, "BatchNormalization"), network.glue) == (1, ())


def test_an_addend_that_is_computed_becomes_an_add_of_two_tensors() -> None:
    model = make_model(
        [node("Relu", "x", "r", "r"), node("Gemm", "x w r", "y", "l", alpha=2.0)],
        {"w": normal(6, 6)},
        {"x": (6, 6)},
        {"y": None},
    )
    network = read_and_compare(model)
    assert network.layer_names == ("l",)
    assert [(g.kind, g.integer) for g in network.glue] == [("Relu", False), ("Add", True)]


@pytest.mark.parametrize(
    "gemm",
    [
        node("Gemm", "x r", "y", "l"),
        node("Gemm", "w r", "y", "l", transA=1),
        node("Gemm", "x w r", "y", "l", beta=2.0, transA=1),
    ],
    ids=["two activations", "weight on the left", "computed addend with a factor"],
)
def test_a_gemm_that_is_no_layer_is_unknown_and_its_work_is_counted(gemm: onnx.NodeProto) -> None:
    model = make_model(
        [node("Relu", "x", "r", "r"), node("MatMul", "x v", "z", "m"), gemm],
        {"w": normal(6, 6), "v": normal(6, 2)},
        {"x": (6, 6)},
        {"y": None, "z": None},
    )
    network = read_and_compare(model)
    assert network.layer_names == ("m",)
    assert network.coverage.unknown == ("Gemm",)
    assert (network.macs, network.coverage.unknown_macs) == (6 * 6 * 2, 6 * 6 * 6)


def matmul_and_add(
    bias: tuple[int, ...], x: tuple[int, ...] = (5, 9), nodes: tuple[onnx.NodeProto, ...] = ()
) -> Network:
    given = [node("MatMul", "x w", "t", "fc"), node("Add", "t b", "y", "add")]
    outputs = {"y": None} if not nodes else {"y": None, "z": None}
    return read_and_compare(
        make_model([*given, *nodes], {"w": normal(9, 6), "b": normal(*bias)}, {"x": x}, outputs)
    )


@pytest.mark.parametrize("bias", [(6,), (1, 6), (1,), ()])
def test_the_bias_behind_a_matrix_product_becomes_part_of_the_layer(bias: tuple[int, ...]) -> None:
    network = matmul_and_add(bias)
    assert folded(network, "Add") == 1
    assert network.glue == ()
    assert (network.layer("fc").kind, network.layer("fc").output) == ("Gemm", "y")
    assert network.layer("fc").bias_count == (bias[-1] if bias else 1)


@pytest.mark.parametrize(
    ("bias", "x"),
    [
        ((5, 6), (5, 9)),
        ((5, 1), (5, 9)),
        ((1, 1, 6), (5, 9)),
        ((6,), (2, 5, 9)),
        ((3, 1, 1), (5, 9)),
    ],
)
def test_what_is_no_bias_per_column_of_a_matrix_stays_an_add(
    bias: tuple[int, ...], x: tuple[int, ...]
) -> None:
    network = matmul_and_add(bias, x)
    assert folded(network, "Add") == 0
    assert [g.kind for g in network.glue] == ["Add"]


def test_a_product_that_is_read_elsewhere_too_keeps_its_bias_behind_it() -> None:
    network = matmul_and_add((6,), nodes=(node("Relu", "t", "z", "r"),))
    assert sorted(g.kind for g in network.glue) == ["Add", "Relu"]


def test_an_addition_that_widens_a_product_of_one_column_stays() -> None:
    model = make_model(
        [node("MatMul", "x w", "t", "fc"), node("Add", "t b", "y", "add")],
        {"w": normal(9, 1), "b": normal(6)},
        {"x": (5, 9)},
        {"y": (5, 6)},
    )
    assert [g.kind for g in read_and_compare(model).glue] == ["Add"]


def sequence(
    size: "np.ndarray[Any, Any] | None", reads: tuple[int, ...], **given: int
) -> onnx.ModelProto:
    """Read some parts of a sequence; the last one is an output of its own."""
    constants = {"w": normal(7, 3, 1, 1)} | ({} if size is None else {"size": size})
    nodes = [
        node("Conv", "x w", "a", "c"),
        node("SplitToSequence", "a" + (" size" if size is not None else ""), "s", "cut", **given),
    ]
    for i, position in enumerate(reads):
        constants[f"p{i}"] = np.array(position)
        nodes.append(node("SequenceAt", f"s p{i}", f"part{i}", f"at{i}"))
    nodes.append(node("Concat", " ".join(f"part{i}" for i in range(len(reads))), "y", axis=1))
    shapes = {"y": None, f"part{len(reads) - 1}": None}
    return make_model(nodes, constants, {"x": (1, 3, 4, 4)}, shapes)


@pytest.mark.parametrize(
    ("size", "reads", "given"),
    [
        (np.array(3), (0, 1, 2), {"axis": 1}),
        (np.array(3), (2, 0, 0), {"axis": -3}),
        (np.array([2, 5]), (-1, 0), {"axis": 1}),
        (np.array([2, 5]), (1, 1, 1), {"axis": 1, "keepdims": 0}),
        (None, (3, 6), {"axis": 1}),
    ],
)
def test_parts_of_a_sequence_become_those_of_a_split(
    size: "np.ndarray[Any, Any] | None", reads: tuple[int, ...], given: dict[str, int]
) -> None:
    network = read_and_compare(sequence(size, reads, **given))
    assert folded(network, "SplitToSequence") == 1
    assert [g.kind for g in network.glue] == ["Split", "Concat"]


def test_a_sequence_that_cannot_be_split_is_named() -> None:
    model = sequence(None, (0, 1), axis=1, keepdims=0)
    with pytest.raises(ModelError, match=r"^SplitToSequence 'cut' makes a sequence"):
        read_network(model)


def test_a_module_that_chunks_is_exported_and_quantized() -> None:
    import torch

    from quantization.torch_export import export_module

    class Gated(torch.nn.Module):
        """A gated linear unit."""

        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Conv2d(3, 9, 1)
            self.head = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b, c = self.mix(x).chunk(3, dim=1)
            logits: torch.Tensor = self.head(a * torch.sigmoid(b) + c)
            return logits

    torch.manual_seed(0)
    module = Gated()
    network = read_network(export_module(module, torch.zeros(1, 3, 4, 4)))
    assert [g.kind for g in network.glue] == ["Split", "Sigmoid", "Mul", "Add"]
    images = normal(8, 3, 4, 4)
    exporter = Exporter(network, collect_ranges(network, images))
    [found] = Runner(exporter.build(uniform(network, "w8a8")), 1, {"x": images[:1]})()
    with torch.no_grad():
        expected = module(torch.from_numpy(images[:1])).numpy()
    step = exporter.ranges.grid(network.output_names[0], 8).scale
    assert np.abs(found - expected).mean() < 2 * step
