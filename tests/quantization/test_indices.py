"""Networks with values that are not float32: indices, masks, counts."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hil.audit import audit
from quantization.bits import BitWidths
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import RANGE_METHODS, RangeMethod, collect_ranges
from quantization.reading import read_network
from tests.quantization.graphs import make_model, node, normal
from tests.quantization.test_passes import outputs

W8A8 = BitWidths.parse("w8a8")


def indexed() -> onnx.ModelProto:
    """Indices of a pool and of an ArgMax, which are cast, reshaped, looked up with, and put out."""
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("MaxPool", "a", "p where", "pool", kernel_shape=[2, 2], strides=[2, 2]),
            node("Cast", "where", "place", "as_float", to=TensorProto.FLOAT),
            node("Add", "p place", "q", "add"),
            node("ArgMax", "q", "k", "best", axis=1, keepdims=1),
            node("Reshape", "k flat", "listed", "list"),
            node("Slice", "listed begin end", "two", "first_two"),
            node("Conv", "q v", "z", "d"),
            node("Gather", "z two", "y", "take", axis=1),
        ],
        {
            "w": normal(4, 3, 1, 1),
            "v": normal(4, 4, 1, 1),
            "flat": np.array([-1]),
            "begin": np.array([0]),
            "end": np.array([2]),
        },
        {"x": (1, 3, 6, 6)},
        {"y": None},
    )
    model.graph.output.append(helper.make_tensor_value_info("k", TensorProto.INT64, None))
    return model


def decided(kind: str) -> onnx.ModelProto:
    """The only output holds no reals."""
    model = make_model(
        [
            node("Conv", "x w", "a", "c"),
            node("Relu", "a", "b", "r"),
            node(kind, "b" if kind == "ArgMax" else "b half", "y", "decision"),
        ],
        {"w": normal(4, 3, 1, 1), "half": np.array(0.5, np.float32)},
        {"x": (1, 3, 6, 6)},
        {},
    )
    result = TensorProto.INT64 if kind == "ArgMax" else TensorProto.BOOL
    model.graph.output.append(helper.make_tensor_value_info("y", result, None))
    return model


def built(network: Network, method: RangeMethod) -> tuple[Exporter, bytes]:
    exporter = Exporter(network, collect_ranges(network, normal(4, 3, 6, 6), method))
    return exporter, exporter.build(Policy.uniform(network, W8A8))


def test_only_float_values_are_tensors() -> None:
    network = read_network(indexed())
    assert [tensor.name for tensor in network.tensors] == ["x", "a", "p", "place", "q", "z", "y"]
    glue = {g.name: g for g in network.glue}
    assert (glue["best"].inputs, glue["best"].outputs) == (("q",), ())
    assert (glue["take"].inputs, glue["take"].outputs) == (("z",), ("y",))
    assert (glue["list"].inputs, glue["list"].outputs) == ((), ())
    assert not glue["pool"].integer, "its integer kernel makes no indices"
    assert glue["add"].integer


@pytest.mark.parametrize("method", RANGE_METHODS)
def test_a_network_with_indices_is_exported_at_8_bits(method: RangeMethod) -> None:
    network = read_network(indexed())
    exporter, model = built(network, method)
    image = {"x": normal(4, 3, 6, 6)[:1]}
    found, best = outputs(onnx.load_from_string(model), image)
    expected, expected_best = outputs(indexed(), image)
    np.testing.assert_array_equal(best, expected_best)
    assert np.abs(found - expected).max() < 2 * exporter.ranges.grid("y", 8).scale
    predicted = exporter.size_bytes(Policy.uniform(network, W8A8))
    assert audit(network, Policy.uniform(network, W8A8), model, predicted).problems == ()


@pytest.mark.parametrize("kind", ["ArgMax", "Greater"])
def test_a_network_that_puts_out_decisions_is_exported_at_8_bits(kind: str) -> None:
    network = read_network(decided(kind))
    assert network.output_names == ("y",)
    exporter, model = built(network, "minmax")
    image = {"x": normal(1, 3, 6, 6)}
    [found], [expected] = (
        outputs(onnx.load_from_string(model), image),
        outputs(decided(kind), image),
    )
    assert found.dtype == expected.dtype
    assert np.mean(found == expected) > 0.9
    predicted = exporter.size_bytes(Policy.uniform(network, W8A8))
    assert audit(network, Policy.uniform(network, W8A8), model, predicted).problems == ()
