"""Every torch operator against ONNX Runtime, one operator a model."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from quantization.errors import ModelError
from quantization.torch_operators import _OPERATORS, attributes, constant, operator
from tests.quantization.graphs import make_model, node, normal

IMAGE = (1, 4, 7, 6)


@dataclass(frozen=True)
class Case:
    """One operator; `x` is its input, `constants` the rest in the order of `inputs`."""

    kind: str
    constants: dict[str, "np.ndarray[Any, Any]"] = field(default_factory=dict)
    shape: tuple[int, ...] = IMAGE
    inputs: str = ""
    outputs: str = "y"
    positive: bool = False
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> onnx.NodeProto:
        inputs = self.inputs or " ".join(["x", *self.constants])
        return node(self.kind, inputs, self.outputs, "node", **self.given)

    @property
    def label(self) -> str:
        told = ",".join(f"{k}={v}" for k, v in self.given.items())
        return f"{self.kind}({told};{','.join(str(v.shape) for v in self.constants.values())})"


def case(kind: str, *constants: "np.ndarray[Any, Any]", **given: Any) -> Case:
    shape = given.pop("shape", IMAGE)
    inputs, outputs = given.pop("inputs", ""), given.pop("outputs", "y")
    named = {f"c{i}": np.asarray(value) for i, value in enumerate(constants)}
    positive = given.pop("positive", False)
    return Case(kind, named, shape, inputs, outputs, positive, given)


def ints(*values: int) -> "np.ndarray[Any, Any]":
    return np.array(values, np.int64)


def real(value: float) -> "np.ndarray[Any, Any]":
    return np.array(value, np.float32)


W = normal(6, 4, 3, 3)
CASES = [
    *(case(k) for k in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "HardSwish")),
    *(case(k, positive=True) for k in ("Log", "Sqrt")),
    *(case(k, normal(4, 1, 1)) for k in ("Add", "Sub", "Mul", "Min", "Max")),
    *(case(k, inputs="x x") for k in ("Add", "Mul")),
    *(case(k, normal(4, 1, 1), normal(6, seed=2)) for k in ("Min", "Max")),
    *(case(k, inputs="x") for k in ("Min", "Max")),
    case("Div", 2 + np.abs(normal(4, 1, 1))),
    case("Sub", real(1.5), inputs="c0 x"),
    case("Pow", real(2.0)),
    case("Pow", real(0.3), positive=True),
    case("Identity"),
    case("Clip", real(-0.5), real(0.7)),
    case("Clip", real(-0.5)),
    case("Clip", real(0.7), inputs="x - c0"),
    case("LeakyRelu"),
    case("LeakyRelu", alpha=0.3),
    case("Elu"),
    case("Elu", alpha=0.5),
    case("PRelu", normal(4, 1, 1)),
    case("HardSigmoid"),
    case("HardSigmoid", alpha=0.1, beta=0.4),
    case("Gelu"),
    case("Gelu", approximate="tanh"),
    case("Softmax"),
    case("Softmax", axis=1),
    case("LogSoftmax", axis=2),
    case("Conv", W),
    case("Conv", W, normal(6)),
    case("Conv", W, pads=[1, 1, 1, 1], strides=[2, 2]),
    case("Conv", W, pads=[0, 1, 2, 1]),
    case("Conv", W, pads=[2, 0, 1, 3], strides=[2, 1]),
    case("Conv", W, dilations=[2, 2], pads=[2, 2, 2, 2]),
    case("Conv", W, auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", W, auto_pad="SAME_LOWER", strides=[2, 2]),
    case("Conv", normal(6, 4, 2, 2), auto_pad="SAME_UPPER"),
    case("Conv", normal(6, 4, 2, 2), auto_pad="SAME_LOWER"),
    case("Conv", W, auto_pad="VALID", strides=[2, 2]),
    case("Conv", normal(6, 2, 3, 3), group=2),
    case("Conv", normal(8, 1, 3, 3), normal(8), group=4, pads=[1, 1, 1, 1]),
    case("Conv", normal(5, 3, 3), shape=(1, 3, 9), pads=[1, 0]),
    case("Conv", normal(5, 3, 2, 2, 2), shape=(1, 3, 4, 5, 4), pads=[1, 0, 0, 0, 1, 0]),
    case("ConvTranspose", normal(4, 5, 3, 3), normal(5), strides=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose", normal(4, 5, 3, 3), strides=[2, 2], output_padding=[1, 1]),
    case("ConvTranspose", normal(4, 3, 3, 3), group=2, dilations=[2, 1]),
    case("ConvTranspose", normal(3, 5, 3), shape=(1, 3, 6)),
    case("Gemm", normal(6, 5), shape=(1, 6)),
    case("Gemm", normal(5, 6), normal(5), shape=(1, 6), transB=1),
    case("Gemm", normal(6, 5), normal(1, 5), shape=(1, 6), alpha=0.5, beta=2.0),
    case("MatMul", normal(6, 5), shape=(1, 4, 6)),
    case("MatMul", inputs="x x", shape=(1, 3, 5, 5)),
    case("Concat", inputs="x x", axis=1),
    case("Concat", normal(1, 4, 7, 2), axis=-1),
    case("GlobalAveragePool"),
    case("GlobalMaxPool"),
    *(
        case(k, kernel_shape=[3, 2], **given)
        for k in ("MaxPool", "AveragePool")
        for given in (
            {},
            {"strides": [2, 2]},
            {"pads": [1, 1, 1, 0]},
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER"},
        )
    ),
    case("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 1], count_include_pad=1),
    case("AveragePool", kernel_shape=[3, 3], auto_pad="SAME_UPPER", strides=[2, 2]),
    case("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    case("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, pads=[1, 0, 0, 1]),
    case("MaxPool", kernel_shape=[2, 2], dilations=[2, 3]),
    case("Reshape", ints(1, -1)),
    case("Reshape", ints(-1, 6)),
    case("Reshape", ints(0, 2, -1, 6)),
    case("Reshape", ints(1, 28, 6)),
    case("Flatten"),
    case("Flatten", axis=2),
    case("Flatten", axis=3),
    case("Transpose", perm=[0, 2, 3, 1]),
    case("Squeeze", ints(2, -1), shape=(1, 4, 1, 1)),
    case("Squeeze", ints(3), shape=(1, 4, 1, 1)),
    case("Unsqueeze", ints(1, 3)),
    case("Unsqueeze", ints(-1)),
    *(case(k, ints(2, 3)) for k in ("ReduceMean", "ReduceSum", "ReduceMax")),
    *(case(k, ints(-1), keepdims=0) for k in ("ReduceMean", "ReduceSum", "ReduceMax")),
    case("Slice", ints(1), ints(3), ints(1)),
    case("Slice", ints(0, -3), ints(2**62, -1), ints(1, 2)),
    case("Slice", ints(0, 1), ints(4, 6), ints(1, 3), ints(2, 3)),
    case("Slice", ints(-100), ints(100), ints(2)),
    case("Split", axis=1, num_outputs=2, outputs="y z"),
    case("Split", axis=2, num_outputs=3, outputs="y z u"),
    case("Split", ints(1, 3), axis=1, outputs="y z"),
    case("Split", ints(4, 2), axis=-1, outputs="y z"),
    case("Pad", ints(0, 0, 1, 2, 0, 0, 0, 1)),
    case("Pad", ints(0, 1, 0, 0, 0, 0, 0, 1), real(0.5)),
    case("Gather", ints(2, 0), axis=1),
    case("Gather", np.array(1), axis=2),
    case("Gather", ints(0, -1), axis=-1),
    case("Gather", np.array([[0, 1], [2, 3]]), axis=1),
    case("LayerNormalization", normal(6)),
    case("LayerNormalization", normal(6), normal(6), epsilon=1e-2),
    case("LayerNormalization", normal(7, 6), normal(7, 6), axis=2),
    case("BatchNormalization", normal(4), normal(4), normal(4), np.abs(normal(4)), epsilon=1e-3),
]


def image(given: Case, count: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    x = normal(count, *given.shape[1:], seed=9)
    return np.abs(x) + 0.1 if given.positive else x


def by_runtime(given: Case, x: "np.ndarray[Any, Any]") -> list["np.ndarray[Any, Any]"]:
    outputs: dict[str, Any] = dict.fromkeys(given.outputs.split())
    model = make_model([given.node], given.constants, {"x": given.shape}, outputs)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return [np.asarray(value) for value in session.run(None, {"x": x})]


def by_torch(given: Case, x: "np.ndarray[Any, Any]") -> list["np.ndarray[Any, Any]"]:
    known = {"x": torch.from_numpy(x), **{k: constant(v) for k, v in given.constants.items()}}
    inputs = [known[name] if name else None for name in given.node.input]
    made = operator(given.kind)(inputs, attributes(given.node))
    return [value.numpy() for value in (made if isinstance(made, tuple) else (made,))]


def assert_close(found: "np.ndarray[Any, Any]", expected: "np.ndarray[Any, Any]") -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("given", CASES, ids=lambda given: given.label)
def test_an_operator_agrees_with_the_runtime(given: Case) -> None:
    x = image(given, 1)
    found, expected = by_torch(given, x), by_runtime(given, x)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)


# A constant that is concatenated has the batch of the export.
ANY_BATCH = [given for given in CASES if not (given.kind == "Concat" and given.constants)]


@pytest.mark.parametrize("given", ANY_BATCH, ids=lambda given: given.label)
def test_a_batch_of_three_equals_three_batches_of_one(given: Case) -> None:
    x = image(given, 3)
    whole = by_torch(given, x)
    parts = [by_runtime(given, row[None]) for row in x]
    for position, found in enumerate(whole):
        assert_close(found, np.concatenate([part[position] for part in parts]))


def test_every_operator_is_tested() -> None:
    assert {given.kind for given in CASES} == set(_OPERATORS)


def test_an_unknown_operator_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"Resize is not known.*without --data"):
        operator("Resize")


@pytest.mark.parametrize(
    "given",
    [
        case("AveragePool", kernel_shape=[2, 2], ceil_mode=1),
        case("AveragePool", kernel_shape=[2, 2], dilations=[2, 2]),
        case("MaxPool", kernel_shape=[2], shape=(1, 3, 8)),
        case("ConvTranspose", normal(4, 5, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
        case("ConvTranspose", normal(4, 5, 3, 3), pads=[0, 0, 1, 1]),
        case("ConvTranspose", normal(4, 5, 3, 3), output_shape=[9, 8]),
        case("Slice", ints(5), ints(0), ints(2), ints(-1)),
        case("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"),
    ],
    ids=lambda given: given.label,
)
def test_what_cannot_be_simulated_is_an_error_and_never_wrong_numbers(given: Case) -> None:
    with pytest.raises(ModelError, match="simulated"):
        by_torch(given, image(given, 1))
