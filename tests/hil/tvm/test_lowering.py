"""Networks as kernels give what ONNX Runtime makes of the exported file, and what is simulated."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install 'quantmeter[tvm]'")

import tvm

from costmodels.errors import BackendError
from costmodels.sketch import Sketch
from hil.ort import Runner, one_feed, random_inputs
from hil.tvm.channelwise import Extent, FloatChain, Operand, PickChannels
from hil.tvm.compiling import CompiledNetwork, build
from hil.tvm.imported import OnnxOperator
from hil.tvm.lowering import lower
from hil.tvm.machine import this_machine
from hil.tvm.operations import Operation
from hil.tvm.products import ActivationProduct
from hil.tvm.program import Kernel, Program
from hil.tvm.shapes import channel_step
from hil.tvm.tiles import Tile
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.deployment import TVM_TARGET, ExportOptions, not_deployable
from quantization.execution import Executor
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import collect_ranges

Array = np.ndarray[Any, Any]
MACHINE = this_machine()


def windows(sketch: Sketch) -> list[str]:
    """Convolutions of every kind, pools, joins, and matrix products behind an image."""
    x = sketch.input((1, 3, 13, 11))
    x = sketch.node("Relu", sketch.conv(x, 20, kernel=3, stride=2))
    depthwise = sketch.node("Clip", sketch.conv(x, 20, kernel=3, groups=20), *_limits(sketch, 0, 6))
    x = sketch.node("Add", x, sketch.conv(depthwise, 20))
    x = sketch.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    multiplied = sketch.conv(sketch.conv(x, 4, kernel=3), 8, kernel=3, groups=4)
    dilated = _dilated(sketch, x, 20, 12)
    x = sketch.concat(multiplied, sketch.conv(dilated, 6, kernel=3, groups=2), x)
    x = sketch.node("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    x = sketch.node("Relu", sketch.conv(x, 5))
    x = sketch.node("Relu", sketch.gemm(sketch.node("Flatten", x), 5 * 4 * 3, 33))
    return [sketch.gemm(x, 33, 10)]


def gates(sketch: Sketch) -> list[str]:
    """Squeeze-excite with both gates, and activations that are looked up."""
    x = sketch.input((1, 3, 8, 6))
    x = sketch.node("HardSwish", sketch.conv(x, 24, kernel=3))
    x = sketch.node("Mul", x, _gate(sketch, x, 24, "HardSigmoid"))
    x = sketch.conv(x, 24)
    x = sketch.node("Mul", x, sketch.node("Sigmoid", x))
    x = sketch.conv(sketch.node("Mul", x, _gate(sketch, x, 24, "Sigmoid")), 20)
    x = sketch.node("LeakyRelu", x, alpha=0.1)
    x = sketch.node("GlobalAveragePool", sketch.conv(x, 18, stride=2))
    return [sketch.gemm(sketch.node("Flatten", x), 18, 7)]


def tokens(sketch: Sketch) -> list[str]:
    """What transformers are made of, on two sequences."""
    x = sketch.input((2, 6, 20))
    x = sketch.node("Add", sketch.matmul(x, 20, 24), sketch.constant(_normal(2, 6, 24)))
    normal = _norm(sketch, x, 24)
    query, key, value = (_heads(sketch, sketch.matmul(normal, 24, 24)) for _ in range(3))
    key = sketch.node("Transpose", key, perm=[0, 1, 3, 2])
    scores = sketch.node("MatMul", query, key)
    shares = sketch.node("Softmax", sketch.node("Mul", scores, _number(sketch, 0.3)), axis=-1)
    mixed = sketch.node("Transpose", sketch.node("MatMul", shares, value), perm=[0, 2, 1, 3])
    x = sketch.node("Add", x, sketch.matmul(sketch.reshape(mixed, (2, 6, 24)), 24, 24))
    hidden = sketch.matmul(_norm(sketch, x, 24), 24, 40)
    scaled = sketch.node("Div", hidden, _number(sketch, 2**0.5))
    raised = sketch.node("Add", sketch.node("Erf", scaled), _number(sketch, 1))
    half = sketch.node("Mul", sketch.node("Mul", hidden, raised), _number(sketch, 0.5))
    return [sketch.node("Add", x, sketch.matmul(half, 40, 24))]


def rows(sketch: Sketch) -> list[str]:
    """A convolution along one axis, and channels that a layer norm wants last."""
    x = sketch.node("Relu", _line(sketch, sketch.input((1, 6, 19)), 6, 12))
    x = sketch.node("Transpose", _line(sketch, x, 12, 20), perm=[0, 2, 1])
    return [sketch.matmul(_norm(sketch, x, 20), 20, 9)]


def per_channel(sketch: Sketch) -> list[str]:
    """Floats between layers: constants per channel, a batch norm, sums and activations."""
    x = sketch.conv(sketch.input((1, 3, 7, 5)), 18, kernel=3)
    both = sketch.concat(x, sketch.conv(x, 14))
    x = sketch.conv(sketch.node("Relu", _batch_norm(sketch, both, 32)), 18)
    for kind in ("Mul", "Add", "Div"):
        x = sketch.node(kind, x, sketch.constant(np.abs(_normal(18, 1, 1)) + np.float32(0.5)))
    y = sketch.conv(x, 18)
    x = sketch.node("Clip", sketch.node("Sub", x, y), *_limits(sketch, -1, 2))
    shift = sketch.constant(_normal(1, 18, 1, 1))
    less = sketch.node("Sub", shift, sketch.conv(x, 18), channels=18)
    x = sketch.conv(sketch.node("Relu", sketch.node("Sub", less, y)), 18)
    return [sketch.node("Mul", x, sketch.node("GlobalMaxPool", x)), sketch.node("Relu", y)]


def shuffled(sketch: Sketch) -> list[str]:
    """Channels that are split, joined and shuffled, and other moves."""
    x = sketch.node("Relu", sketch.conv(sketch.input((1, 3, 6, 6)), 24, kernel=3))
    for _ in range(2):
        kept, given = sketch.split(x, 2)
        x = sketch.concat(kept, sketch.node("Relu", sketch.conv(given, 12)))
        apart = sketch.node("Reshape", x, _extents(sketch, 1, 2, 12, 6, 6))
        turned = sketch.node("Transpose", apart, perm=[0, 2, 1, 3, 4])
        x = sketch.node("Reshape", turned, _extents(sketch, 1, 24, 6, 6), channels=24)
    part = sketch.node("Slice", x, *(_extents(sketch, each) for each in (3, 20, 1)), channels=17)
    rows = [_extents(sketch, each) for each in (0, 4, 2)]
    low = sketch.node("Slice", sketch.conv(part, 10), *rows)
    last = sketch.node("Transpose", low, perm=[0, 2, 3, 1])
    return [sketch.matmul(last, 10, 6)]


NETWORKS: dict[str, Any] = {
    each.__name__: each for each in (windows, gates, tokens, rows, per_channel, shuffled)
}
INTEGER_KERNELS = {
    "windows": {
        *("DenseKernel", "DepthwiseKernel", "MaxPool", "AveragePool", "Concat", "ScaledSum"),
        *("ChannelsLast", "ChannelsFirst"),
    },
    "gates": {"Lookup", "GlobalAveragePool", "ScaledProduct", "FloatChain", "DenseKernel"},
    "tokens": {"ActivationProduct", "FloatChain", "OnnxOperator", "Lookup"},
    "rows": {"DenseKernel", "OnnxOperator", "FloatChain", "Dequantize"},
    "per_channel": {"FloatChain", "DenseKernel", "Concat"},
    "shuffled": {"PickChannels", "Concat", "OnnxOperator", "Quantize"},
}
"""Kernels that each network has at w8a8."""
IMPORTED = {
    "windows": set(),
    "gates": set(),
    "tokens": {"LayerNormalization", "Softmax", "Erf", "Transpose"},
    "rows": {"LayerNormalization", "Transpose"},
    "per_channel": {"GlobalMaxPool"},
    "shuffled": {"Slice"},
}
"""Operators of each network that have no kernel of ours."""
W8A8, FLOAT32 = BitWidths(8, 8), BitWidths(32, 32)
NARROW = tuple(BitWidths(width, 8) for width in range(2, 9))
OPEN_FLOATS = {"tokens", "rows"}
"""Networks whose float sums, of layer norms and softmaxes, ONNX Runtime adds in another order."""


@cache
def prepared(name: str) -> tuple[Network, Exporter, Mapping[str, Array]]:
    sketch = Sketch(seed=7)
    network = sketch.network(*NETWORKS[name](sketch))
    inputs = random_inputs(network, 8, seed=3)
    ranges = collect_ranges(network, inputs)
    exporter = Exporter(network, ranges, ExportOptions(weight_method="minmax"))
    return network, exporter, one_feed(network, inputs)


def lowered(name: str, policy: Policy) -> Program:
    return lower(prepared(name)[1], policy, MACHINE, first_tile)


def first_tile(operation: Operation) -> Tile:
    return operation.kernels(MACHINE.instructions)[0].tile


def results(name: str, policy: Policy) -> list[Array]:
    feed = prepared(name)[2]
    return CompiledNetwork.of(lowered(name, policy), MACHINE.target).run(feed)


def deployed(name: str, policy: Policy) -> list[Array]:
    _, exporter, feed = prepared(name)
    return Runner(exporter.build(policy), 1, feed)()


def uniform(name: str, bits: BitWidths) -> Policy:
    network = prepared(name)[0]
    products = W8A8 if bits.activations < 8 else FLOAT32 if bits.activations > 8 else bits
    return Policy(
        {
            layer.name: products if not_deployable(layer, bits, TVM_TARGET) else bits
            for layer in network.layers
        }
    )


def mixed(name: str, choices: tuple[BitWidths, ...], seed: int) -> Policy:
    network, draw = prepared(name)[0], np.random.default_rng(seed)
    found = {}
    for layer in network.layers:
        bits = choices[draw.integers(len(choices))]
        found[layer.name] = bits if layer.has_weights or bits == FLOAT32 else W8A8
    return Policy(found)


def kernel_names(program: Program) -> set[str]:
    return {type(step.kernel).__name__ for step in program.steps}


def imported_operators(program: Program) -> set[str]:
    return {
        onnx.load_model_from_string(step.kernel.model).graph.node[0].op_type
        for step in program.steps
        if isinstance(step.kernel, OnnxOperator)
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_takes_the_kernels_that_are_made_for_it(name: str) -> None:
    program = lowered(name, uniform(name, W8A8))
    assert kernel_names(program) >= INTEGER_KERNELS[name]
    assert imported_operators(program) == IMPORTED[name]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *((name, bits) for name in NETWORKS for bits in ("w8a8", "w4a8", "w2a8")),
        *((name, "w6a8") for name in ("windows", "tokens")),
    ],
)
def test_uniform_integers_are_those_of_onnx_runtime(name: str, bits: str) -> None:
    policy = uniform(name, BitWidths.parse(bits))
    for got, want in zip(results(name, policy), deployed(name, policy), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", NETWORKS)
def test_mixed_integers_are_those_of_onnx_runtime(name: str) -> None:
    policy = mixed(name, NARROW, seed=0)
    for got, want in zip(results(name, policy), deployed(name, policy), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", NETWORKS)
def test_floats_are_those_of_onnx_runtime_but_for_the_order_of_sums(name: str) -> None:
    policy = uniform(name, FLOAT32)
    for got, want in zip(results(name, policy), deployed(name, policy), strict=True):
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("seed", range(2))
def test_integers_beside_floats_are_those_of_onnx_runtime(name: str, seed: int) -> None:
    # Sums of floats in another order may round to another integer, rarely: the bound is less than
    # a step of any grid of 8 bits, so with these seeds none does that comes through to an output.
    policy = mixed(name, (*NARROW[::2], FLOAT32), seed)
    for got, want in zip(results(name, policy), deployed(name, policy), strict=True):
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    ("name", "bits"),
    [("windows", "w2a2"), ("windows", "w4a4"), ("gates", "w2a2"), ("tokens", "w2a2")],
)
def test_narrow_activations_are_as_simulated(name: str, bits: str) -> None:
    # Sums of integers below 2^24 are exact there too; sums of floats may fall beside a tie.
    policy = uniform(name, BitWidths.parse(bits))
    got, want = results(name, policy)[0], simulated(name, policy)
    assert np.abs(got - want).max() <= (step_of(name, 8) * 1.001 if name in OPEN_FLOATS else 0)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("windows", "w8a16"), *((name, "w16a16") for name in ("windows", "gates", "tokens", "rows"))],
)
def test_wide_activations_are_as_simulated(name: str, bits: str) -> None:
    # The simulation rounds sums beyond 2^24, so that ties fall elsewhere: a step of 16 bits, and
    # another where a residual adds two such tensors.
    policy = uniform(name, BitWidths.parse(bits))
    got, want = results(name, policy)[0], simulated(name, policy)
    assert np.abs(got - want).max() <= 2 * step_of(name, 16)


def simulated(name: str, policy: Policy) -> Array:
    network, exporter, feed = prepared(name)
    executor = Executor(exporter)
    plan = executor.plan(policy)
    values = {key: torch.from_numpy(value) for key, value in feed.items()}
    with torch.inference_mode():
        for node in network.execution_order:
            executor.step(node, plan, values)
        return executor.output(plan, values).numpy()


def step_of(name: str, bits: int) -> float:
    """Return the distance of neighbouring values of the first output on a grid of so many bits."""
    network, exporter, _ = prepared(name)
    return exporter.ranges.grid(network.output_names[0], bits).scale


def test_channel_groups_are_those_of_onnx_runtime() -> None:
    network = prepared("windows")[0]
    found: dict[str, BitWidths] = {}
    for layer in network.layers:
        odd, even = range(1, layer.out_channels, 2), range(0, layer.out_channels, 2)
        found[layer.name] = ChannelGroups(8, {2: odd, 6: even})
    policy = Policy(found)
    for got, want in zip(results("windows", policy), deployed("windows", policy), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_squeeze_and_excitation_stays_channels_last_and_in_one_step() -> None:
    program = lowered("gates", uniform("gates", W8A8))
    gated = [step for step in program.steps if isinstance(step.kernel, FloatChain)]
    assert [step.kernel.operators for step in gated] == [("Mul",)]
    assert [operand.extent for operand in gated[0].kernel.operands] == [Extent.WHOLE, Extent.PIXEL]
    assert gated[0].output.content == "uint8"  # its only reader is a layer


def test_what_moves_bytes_never_makes_floats_of_them() -> None:
    program = lowered("shuffled", uniform("shuffled", W8A8))
    moves = [step for step in program.steps if isinstance(step.kernel, PickChannels | OnnxOperator)]
    kept = [(step.inputs[0].content, step.output.content) for step in moves]
    assert kept.count(("uint8", "uint8")) == 3
    assert set(kept) == {("uint8", "uint8"), ("float32", "float32")}


def test_a_layer_without_a_kernel_is_told_in_one_line() -> None:
    sketch = Sketch()
    x = sketch.conv(sketch.input((2, 4, 5, 5)), 8)
    network = sketch.network(x)
    inputs = random_inputs(network, 4)
    exporter = Exporter(network, collect_ranges(network, inputs))
    policy = Policy(dict.fromkeys(network.layer_names, W8A8))
    with pytest.raises(
        BackendError, match=r"\(Conv\) has no integer kernel in TVM at w8a8"
    ) as told:
        lower(exporter, policy, MACHINE, first_tile)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("shape", [(2, 3, 5, 2), (1, 9, 600, 37), (3, 4, 256, 16)])
def test_a_product_of_bytes_is_exact_however_long_its_sums(shape: tuple[int, ...]) -> None:
    pairs, rows, inner, columns = shape
    draw = np.random.default_rng(1)
    first = draw.integers(0, 256, (pairs, rows, inner)).astype(np.uint8)
    second = draw.integers(0, 256, (pairs, inner, columns)).astype(np.uint8)
    factors = np.array([3, 250, 2e-5, 128], np.float32)
    sums = (first.astype(np.int64) - 3) @ (second.astype(np.int64) - 250)
    scaled = np.rint(sums.astype(np.float32) * factors[2]) + factors[3]
    kernel = ActivationProduct(pairs, rows, inner, columns, "uint8")
    got = run_kernel(kernel, [_padded(first), _padded(second), factors], _padded(first @ second))
    found = got.reshape(pairs, rows, -1)[..., :columns]
    np.testing.assert_array_equal(found, scaled.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "picked", [(0, 1, 2), tuple(range(5, 37)), (0, 12, 1, 13, 2, 14), (7, 3, 3, 20, 21, 0, 39)]
)
def test_channels_are_picked_in_any_order(picked: tuple[int, ...]) -> None:
    given = np.arange(6 * 40, dtype=np.uint8).reshape(6, 40)
    want = _padded(given[:, picked])
    got = run_kernel(PickChannels(6, 40, picked, "uint8"), [_padded(given)], want)
    np.testing.assert_array_equal(got, want)


def test_kernels_of_nonsense_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="no channels"):
        PickChannels(6, 4, (0, 4), "uint8")
    with pytest.raises(ValueError, match="operators on 1 operands"):
        FloatChain(8, 8, (Operand(),), ("Add",))
    with pytest.raises(ValueError, match="no pixels of 3"):
        FloatChain(8, 3, (Operand(),))


def run_kernel(kernel: Kernel, given: list[Array], like: Array) -> Array:
    built = tvm.compile(kernel.function("main"), MACHINE.target)
    made = tvm.runtime.tensor(np.full(like.size, 77, like.dtype), tvm.cpu(0))
    built["main"](*(tvm.runtime.tensor(each.ravel(), tvm.cpu(0)) for each in given), made)
    found: Array = made.numpy().reshape(like.shape)
    return found


def _padded(rows: Array) -> Array:
    """Rows as kernels read them, with zeros in columns that do not exist."""
    room = np.zeros((*rows.shape[:-1], channel_step(rows.shape[-1])), rows.dtype)
    room[..., : rows.shape[-1]] = rows
    return room


def _normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def _number(sketch: Sketch, value: float) -> str:
    return sketch.constant(np.array(value, np.float32))


def _limits(sketch: Sketch, low: float, high: float) -> tuple[str, str]:
    return _number(sketch, low), _number(sketch, high)


def _extents(sketch: Sketch, *values: int) -> str:
    return sketch.constant(np.array(values, np.int64))


def _dilated(sketch: Sketch, x: str, given: int, channels: int) -> str:
    weight = sketch.constant(_normal(channels, given, 3, 3) / np.float32(10))
    shape = {"kernel_shape": [3, 3], "pads": [2] * 4, "dilations": [2, 2]}
    return sketch.node("Conv", x, weight, channels=channels, **shape)


def _line(sketch: Sketch, x: str, given: int, channels: int) -> str:
    weight = sketch.constant(_normal(channels, given, 3) / np.float32(3))
    return sketch.node("Conv", x, weight, channels=channels, kernel_shape=[3], pads=[1, 1])


def _gate(sketch: Sketch, x: str, channels: int, kind: str) -> str:
    pooled = sketch.node("GlobalAveragePool", x)
    squeezed = sketch.node("Relu", sketch.conv(pooled, 8))
    return sketch.node(kind, sketch.conv(squeezed, channels))


def _norm(sketch: Sketch, x: str, channels: int) -> str:
    scale = sketch.constant(np.abs(_normal(channels)) + np.float32(0.5))
    return sketch.node("LayerNormalization", x, scale, sketch.constant(_normal(channels)))


def _batch_norm(sketch: Sketch, x: str, channels: int) -> str:
    draw = np.random.default_rng(5)
    arrays = [draw.uniform(0.5, 1.5, channels).astype(np.float32) for _ in range(4)]
    return sketch.node("BatchNormalization", x, *(sketch.constant(each) for each in arrays))


def _heads(sketch: Sketch, x: str) -> str:
    apart = sketch.node("Reshape", x, _extents(sketch, 2, 6, 2, 12))
    return sketch.node("Transpose", apart, perm=[0, 2, 1, 3])


def test_buffers_between_steps_are_reused() -> None:
    sketch = Sketch()
    x = sketch.input((1, 16, 8, 8))
    for _ in range(8):
        x = sketch.conv(x, 16, kernel=3)
    network = sketch.network(x)
    exporter = Exporter(network, collect_ranges(network, random_inputs(network, 4)))
    policy = Policy.uniform(network, BitWidths(4, 8))
    program = lower(exporter, policy, MACHINE, first_tile)
    stated = build(program, MACHINE.target).as_text()
    assert stated.count("call  k") == len(program.steps) == 10
    assert 2 <= stated.count("vm.builtin.alloc_storage") <= 4
