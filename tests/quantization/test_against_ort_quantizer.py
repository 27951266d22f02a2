"""Exported files run the same operators as those that ONNX Runtime's own quantizer writes.

Three differences are meant, and stated here exactly:

- A float operator reads a tensor that was written as floats. The other quantizer lets it read the
  rounded values as soon as an integer operator reads the tensor too (`without_needless_rounding`).
- Softmax is float glue and stays float. A session makes the other quantizer's an integer one, even
  where it was told to leave it alone (`spelled_out`).
- The default session re-quantizes the other file's float layers; ours are guarded.
"""

from collections import Counter
from functools import lru_cache
from pathlib import Path

import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from hil.ort import optimized_graph, session_options
from hil.providers import CPU
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from tests.networks import INPUT, Builder, Subject, random_policy, subject, uniform

Operators = Counter[str]


@lru_cache
def gated() -> Network:
    """What MobileNetV3 adds: HardSwish, and squeeze-excitation that ends in a HardSigmoid."""
    b = Builder(3)
    x = b.glue("HardSwish", b.conv(INPUT, "stem", 3, 16, 3, stride=2), "stem.act")
    x = b.glue("HardSwish", b.conv(x, "depthwise", 16, 16, 3, groups=16), "depthwise.act")
    gate = b.glue("Relu", b.conv(b.glue("GlobalAveragePool", x, "squeeze"), "g1", 16, 8), "g1.act")
    gate = b.glue("HardSigmoid", b.conv(gate, "g2", 8, 16), "g2.act", alpha=1 / 6)
    x = b.conv(b.glue("Mul", f"{x} {gate}", "scale"), "project", 16, 24)
    x = b.glue("HardSwish", b.conv(x, "head", 24, 32), "head.act")
    x = b.glue("Flatten", b.glue("GlobalAveragePool", x, "pool"), "flat")
    b.gemm(x, "classifier", 32, 10)
    return b.network(1, 3, 16, 16)


@pytest.fixture(scope="session")
def excited() -> Subject:
    return subject(gated(), 4)


class OneInput(CalibrationDataReader):  # type: ignore[misc]  # the runtime's classes have no types
    """Ranges from one input are enough: operators do not depend on them."""

    def __init__(self, name: str, image: Float32Array) -> None:
        self._feeds = iter([{name: image}])

    def get_next(self) -> dict[str, Float32Array] | None:
        return next(self._feeds, None)


def theirs(given: Subject, floats: list[str], folder: Path) -> onnx.ModelProto:
    """Quantize by ONNX Runtime's quantizer, with the nodes in `floats` left out."""
    before, behind = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save_model(given.network.model, before)
    quantize_static(
        before,
        behind,
        OneInput(given.network.input_names[0], given.calibration[:1]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=floats,
    )
    return onnx.load_model(behind)


def without_needless_rounding(model: onnx.ModelProto, floats: list[str]) -> onnx.ModelProto:
    """Let the nodes in `floats` read what was written as floats as it was written."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for index, name in enumerate(node.input):
            rounded = made.get(name)
            if node.name not in floats or rounded is None or rounded.op_type != "DequantizeLinear":
                continue
            source = made[rounded.input[0]].input[0]
            if source not in made or made[source].name in floats:
                node.input[index] = source
    return result


def spelled_out(found: Operators) -> Operators:
    """Count each integer Softmax as the float one between conversions that it was made of."""
    made = found.pop("QLinearSoftmax", 0)
    return found + Counter({"DequantizeLinear": made, "Softmax": made, "QuantizeLinear": made})


def operators(graph: onnx.GraphProto) -> Operators:
    return Counter(node.op_type for node in graph.node)


def without_requantization(model: onnx.ModelProto, folder: Path) -> Operators:
    """What a session runs whose optimizer leaves the weights of float layers alone."""
    path = folder / "optimized.onnx"
    options = session_options(1)
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(
        model.SerializeToString(),
        options,
        providers=CPU.session_providers,
        disabled_optimizers=["WeightBiasQuantization"],
    )
    return operators(onnx.load_model(path).graph)


def ours(given: Subject, policy: Policy) -> Operators:
    """What a default session runs of our file."""
    return operators(optimized_graph(given.exporter.build(policy)))


def floats_of(network: Network, policy: Policy) -> list[str]:
    return [name for name, given in formats(network, policy).reads.items() if given.is_float]


@pytest.mark.parametrize("name", ["small", "branching", "digits", "mobilenet"])
def test_uniform_int8_runs_the_same_operators(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    given: Subject = request.getfixturevalue(name)
    model = theirs(given, [], tmp_path)
    expected = operators(optimized_graph(model.SerializeToString()))
    assert ours(given, uniform(given.network, "w8a8")) == expected


def test_attention_at_uniform_int8_differs_by_the_softmax_alone(
    attention: Subject, tmp_path: Path
) -> None:
    model = theirs(attention, [], tmp_path)
    expected = operators(optimized_graph(model.SerializeToString()))
    found = ours(attention, uniform(attention.network, "w8a8"))
    assert expected - found == Counter({"QLinearSoftmax": 1})
    assert found - expected == Counter(DequantizeLinear=1, Softmax=1, QuantizeLinear=1)


def test_glue_behind_float_glue_stays_float_where_the_other_quantizer_returns_to_integers(
    excited: Subject, tmp_path: Path
) -> None:
    """Both ways are equally fast (docs/decisions/0006-exporter-choices.md); ours rounds less."""
    model = theirs(excited, [], tmp_path)
    expected = operators(optimized_graph(model.SerializeToString()))
    found = ours(excited, uniform(excited.network, "w8a8"))
    assert expected - found == Counter(QLinearGlobalAveragePool=2, QLinearMul=1)
    assert found - expected == Counter(GlobalAveragePool=2, Mul=1, Transpose=2)


MIXED = [("small", s) for s in range(3)] + [("branching", s) for s in range(4)]
MIXED += [("attention", s) for s in range(4)] + [("excited", s) for s in range(4)]
MIXED += [("mobilenet", 0), ("digits", 0)]


@pytest.mark.parametrize(("name", "seed"), MIXED)
def test_a_mixed_policy_runs_the_same_operators(
    name: str, seed: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    given: Subject = request.getfixturevalue(name)
    policy = random_policy(given.network, seed, "w8a8 w32a32")
    floats = floats_of(given.network, policy)
    model = without_needless_rounding(theirs(given, floats, tmp_path), floats)
    assert ours(given, policy) == spelled_out(without_requantization(model, tmp_path))


def test_the_default_session_requantizes_the_float_layers_of_the_other_file(
    small: Subject, tmp_path: Path
) -> None:
    policy = random_policy(small.network, 2, "w8a8 w32a32")
    floats = floats_of(small.network, policy)
    model = without_needless_rounding(theirs(small, floats, tmp_path), floats)
    default = operators(optimized_graph(model.SerializeToString()))
    assert default["QLinearConv"] == ours(small, policy)["QLinearConv"] + 1
    assert default["Conv"] == ours(small, policy)["Conv"] - 1
