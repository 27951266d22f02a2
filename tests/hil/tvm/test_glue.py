"""Kernels between convolutions give what ONNX Runtime's fused operators give, bit by bit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install '.[tvm]'")

import tvm

from hil.ort import load_session, optimized_graph, session_options
from hil.tvm.elementwise import Lookup, ScaledProduct, ScaledSum, product_factors, sum_factors
from hil.tvm.layouts import (
    ChannelsFirst,
    ChannelsLast,
    Concat,
    Dequantize,
    Quantize,
    concat_table,
    grid_factors,
    quantize_factors,
)
from hil.tvm.pooling import (
    AveragePool,
    GlobalAveragePool,
    MaxPool,
    average_factors,
    mean_factors,
    pooled_count,
)
from hil.tvm.shapes import Convolution, channel_step
from quantization.quantizer import AffineGrid

Array = np.ndarray[Any, Any]
NEEDS = {"znver4": "avx512vbmi", "haswell": "fma", "x86-64": "sse2"}
HOST = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu()})
FEATURES = set(tvm.target.codegen.llvm_get_cpu_features(HOST))
PROCESSORS = [name for name, needed in NEEDS.items() if needed in FEATURES]


def random_grid(random: np.random.Generator, scale: float = 0.02) -> AffineGrid:
    drawn = np.float32(scale * np.exp(random.normal(0, 0.7)))
    return AffineGrid(float(drawn), int(random.integers(0, 256)), 8)


def grids_of_means(random: np.random.Generator) -> tuple[AffineGrid, AffineGrid]:
    """Grids of a tensor and its means, whose spread is a third or so."""
    given = AffineGrid(random_grid(random).scale, int(random.integers(100, 156)), 8)
    result = random_grid(random, given.scale / 3)
    middle = 128 - (128 - given.zero_point) * given.scale / result.scale
    return given, AffineGrid(result.scale, int(np.clip(middle, 0, 255)), 8)


def random_bytes(random: np.random.Generator, *shape: int) -> Array:
    return random.integers(0, 256, shape).astype(np.uint8)


def run_kernel(kernel: Any, *given: Array, count: int, content: str, processor: str) -> Array:
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor, "num-cores": 1})
    built = tvm.compile(kernel.function(), target)
    cpu = tvm.cpu(0)
    made = tvm.runtime.tensor(np.full(count, 77, content), cpu)
    built["main"](*(tvm.runtime.tensor(each.ravel(), cpu) for each in given), made)
    found: Array = made.numpy()
    return found


def channels_last(images: Array, pad: float = 123) -> Array:
    """(images, channels, ...) as kernels read them, with `pad` in channels that do not exist."""
    count, channels = images.shape[:2]
    room = np.full((count, images[0, 0].size, channel_step(channels)), pad, images.dtype)
    room[..., :channels] = images.reshape(count, channels, -1).transpose(0, 2, 1)
    return room


def channels_first(found: Array, like: Array) -> Array:
    """The way back, to the shape of what is wanted."""
    count, channels = like.shape[:2]
    rows = found.reshape(count, -1, channel_step(channels))[..., :channels]
    return rows.transpose(0, 2, 1).reshape(like.shape)


def runtime_result(
    kind: str,
    given: Sequence[Array],
    grids: Sequence[AffineGrid],
    result: AffineGrid | None,
    executed: str,
    **attributes: Any,
) -> Array:
    """What ONNX Runtime makes of an operator between (de)quantizers, or of floats without grids."""
    content = TensorProto.UINT8 if grids else TensorProto.FLOAT
    names = [f"x{i}" for i in range(len(given))]
    nodes, constants = [], []

    def add_grid(name: str, grid: AffineGrid) -> list[str]:
        constants.append(helper.make_tensor(f"{name}_s", TensorProto.FLOAT, [], [grid.scale]))
        constants.append(helper.make_tensor(f"{name}_z", TensorProto.UINT8, [], [grid.zero_point]))
        return [f"{name}_s", f"{name}_z"]

    for name, grid in zip(names, grids, strict=False):
        nodes.append(
            helper.make_node("DequantizeLinear", [name, *add_grid(name, grid)], [f"{name}_r"])
        )
    reals = [f"{name}_r" for name in names] if grids else names
    made = "y" if result is None else "y_r"
    nodes.append(helper.make_node(kind, reals, [made], **attributes))
    if result is not None:
        nodes.append(helper.make_node("QuantizeLinear", ["y_r", *add_grid("y", result)], ["y"]))
    graph = helper.make_graph(
        nodes,
        kind,
        [
            helper.make_tensor_value_info(name, content, each.shape)
            for name, each in zip(names, given, strict=True)
        ],
        [helper.make_tensor_value_info("y", content, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    kinds = [node.op_type for node in optimized_graph(model).node]
    assert [each for each in kinds if not each.startswith("Reorder")] == [executed]
    session = load_session(model, session_options(1))
    found: Array = session.run(None, dict(zip(names, given, strict=True)))[0]
    return found


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("content", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("count", [20, 64, 1040])
def test_a_table_is_looked_up(count: int, content: Any, processor: str) -> None:
    random = np.random.default_rng(count)
    given, table = random_bytes(random, count), random.integers(0, 99, 256).astype(content)
    for shuffles in {False, content == "uint8" and processor == "znver4"}:
        kernel = Lookup(count, content, shuffles)
        found = run_kernel(kernel, given, table, count=count, content=content, processor=processor)
        np.testing.assert_array_equal(found, table[given])


def test_shuffles_look_up_bytes_only() -> None:
    with pytest.raises(ValueError, match="uint8 only, not float32"):
        Lookup(64, "float32", shuffles=True)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["Add", "Mul"])
def test_two_tensors_are_added_or_multiplied(kind: str, seed: int, processor: str) -> None:
    random = np.random.default_rng(seed)
    one, other = random_grid(random), random_grid(random)
    result = random_grid(random, 0.03 if kind == "Add" else 0.02 * 0.02 * 99)
    channels = (3, 20, 32, 64)[seed]
    first = random_bytes(random, 1, channels, 61, 64)
    for second in (random_bytes(random, *first.shape), random_bytes(random, 1, channels, 1, 1)):
        wanted = runtime_result(kind, [first, second], [one, other], result, f"QLinear{kind}")
        laid = channels_last(first), channels_last(second)
        step = 0 if second.shape == first.shape else channel_step(channels)
        count = laid[0].size
        kernel: ScaledSum | ScaledProduct
        if kind == "Add":
            kernel, factors = ScaledSum(count, step), sum_factors(one, other, result)
        else:
            kernel, factors = ScaledProduct(count, step), product_factors(one, other, result)
        found = run_kernel(
            kernel, *laid, factors, count=count, content="uint8", processor=processor
        )
        assert len(np.unique(wanted)) > 100
        np.testing.assert_array_equal(channels_first(found, wanted), wanted)


def test_one_value_per_channel_comes_second_in_whichever_order_it_is_named() -> None:
    random = np.random.default_rng(11)
    first, second = random_bytes(random, 1, 256, 1, 1), random_bytes(random, 1, 256, 32, 32)
    for _ in range(4):
        one, other, result = (random_grid(random, scale) for scale in (0.02, 0.02, 0.03))
        wanted = runtime_result("Add", [first, second], [one, other], result, "QLinearAdd")
        kernel, factors = ScaledSum(second.size, 256), sum_factors(other, one, result)
        laid = channels_last(second), channels_last(first)
        found = run_kernel(
            kernel, *laid, factors, count=second.size, content="uint8", processor=PROCESSORS[0]
        )
        np.testing.assert_array_equal(channels_first(found, wanted), wanted)


POOLS = {
    "3x3, strided, pads": ((3, 3), (2, 2), (1, 1, 1, 1)),
    "3x2, pads below and right": ((3, 2), (1, 2), (0, 0, 2, 1)),
    "2x2, no pads": ((2, 2), (2, 2), (0, 0, 0, 0)),
    "5x5, no pads": ((5, 5), (3, 1), (0, 0, 0, 0)),
}


def pool_window(name: str, channels: int, dilation: tuple[int, int] = (1, 1)) -> Convolution:
    kernel, stride, pads = POOLS[name]
    return Convolution(11, 14, channels, channels, kernel, stride, pads, dilation, depthwise=True)


def pool_attributes(name: str) -> dict[str, Any]:
    kernel, stride, pads = POOLS[name]
    return {"kernel_shape": kernel, "strides": stride, "pads": pads}


@pytest.mark.parametrize("content", ["uint8", "float32"])
@pytest.mark.parametrize(("channels", "dilation"), [(3, (1, 1)), (20, (2, 2)), (64, (1, 2))])
@pytest.mark.parametrize("name", POOLS)
def test_the_largest_of_a_window(
    name: str, channels: int, dilation: tuple[int, int], content: Any
) -> None:
    random = np.random.default_rng(channels)
    window = pool_window(name, channels, dilation)
    given = random_bytes(random, 1, channels, 11, 14)
    if content == "float32":
        given = given.astype(np.float32) - 300  # pads would win if they were zeros
    grids, result = [], None
    if content == "uint8":
        result = random_grid(random)
        grids = [result]
    attributes = pool_attributes(name)
    wanted = runtime_result(
        "MaxPool", [given], grids, result, "MaxPool", dilations=dilation, **attributes
    )
    found = run_kernel(
        MaxPool(window, content),
        channels_last(given),
        count=pooled_count(window),
        content=content,
        processor=PROCESSORS[channels % len(PROCESSORS)],
    )
    np.testing.assert_array_equal(channels_first(found, wanted), wanted)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize("channels", [3, 20, 64])
@pytest.mark.parametrize("name", POOLS)
def test_the_mean_of_a_window(
    name: str, channels: int, count_include_pad: bool, processor: str
) -> None:
    random = np.random.default_rng(channels)
    window = pool_window(name, channels)
    grid, result = grids_of_means(random)
    if channels == 64:  # many means lie right between two integers
        result = grid
    given = random_bytes(random, 1, channels, 11, 14)
    attributes = {"count_include_pad": int(count_include_pad), **pool_attributes(name)}
    wanted = runtime_result(
        "AveragePool", [given], [grid], result, "QLinearAveragePool", **attributes
    )
    found = run_kernel(
        AveragePool(window, count_include_pad, "uint8"),
        channels_last(given),
        average_factors(grid, result),
        count=pooled_count(window),
        content="uint8",
        processor=processor,
    )
    assert len(np.unique(wanted)) > 30
    np.testing.assert_array_equal(channels_first(found, wanted), wanted)

    real = np.asarray(random.normal(size=given.shape), np.float32)
    wanted = runtime_result("AveragePool", [real], [], None, "AveragePool", **attributes)
    found = run_kernel(
        AveragePool(window, count_include_pad, "float32"),
        channels_last(real),
        count=pooled_count(window),
        content="float32",
        processor=processor,
    )
    np.testing.assert_allclose(channels_first(found, wanted), wanted, rtol=1e-6, atol=1e-6)


def test_the_mean_of_a_window_with_gaps_counts_what_lies_inside() -> None:
    random = np.random.default_rng(5)
    given = random.normal(size=(1, 20, 11, 14)).astype(np.float32)
    window = pool_window("3x3, strided, pads", 20, (2, 3))
    attributes = {"dilations": (2, 3), **pool_attributes("3x3, strided, pads")}
    wanted = runtime_result("AveragePool", [given], [], None, "AveragePool", **attributes)
    found = run_kernel(
        AveragePool(window, False, "float32"),
        channels_last(given),
        count=pooled_count(window),
        content="float32",
        processor=PROCESSORS[0],
    )
    np.testing.assert_allclose(channels_first(found, wanted), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(("channels", "extents"), [(3, (5, 5)), (20, (7, 7)), (512, (8, 1))])
def test_the_mean_of_all_pixels(channels: int, extents: tuple[int, int], processor: str) -> None:
    random = np.random.default_rng(channels)
    given = random_bytes(random, 1, channels, *extents)
    grid, result = grids_of_means(random)
    pixels, step = extents[0] * extents[1], channel_step(channels)
    wanted = runtime_result(
        "GlobalAveragePool", [given], [grid], result, "QLinearGlobalAveragePool"
    )
    found = run_kernel(
        GlobalAveragePool(pixels, step, "uint8"),
        channels_last(given),
        mean_factors(grid, result, pixels),
        count=step,
        content="uint8",
        processor=processor,
    )
    np.testing.assert_array_equal(channels_first(found, wanted), wanted)

    real = np.asarray(random.uniform(1, 2, given.shape), np.float32)
    wanted = runtime_result("GlobalAveragePool", [real], [], None, "GlobalAveragePool")
    found = run_kernel(
        GlobalAveragePool(pixels, step, "float32"),
        channels_last(real),
        count=step,
        content="float32",
        processor=processor,
    )
    np.testing.assert_allclose(channels_first(found, wanted), wanted, rtol=1e-6)


def quantizer(kind: str, given: Array, grid: AffineGrid) -> Array:
    """What ONNX Runtime makes of a quantizer or its reverse, alone."""
    contents = TensorProto.FLOAT, TensorProto.UINT8
    source, result = contents if kind == "QuantizeLinear" else contents[::-1]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "s", "z"], ["y"])],
        kind,
        [helper.make_tensor_value_info("x", source, given.shape)],
        [helper.make_tensor_value_info("y", result, given.shape)],
        [
            helper.make_tensor("s", TensorProto.FLOAT, [], [grid.scale]),
            helper.make_tensor("z", TensorProto.UINT8, [], [grid.zero_point]),
        ],
    )
    opsets = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = load_session(model.SerializeToString(), session_options(1))
    found: Array = session.run(None, {"x": given})[0]
    return found


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize(
    ("images", "channels", "pixels"), [(1, 3, 150), (2, 20, 49), (1, 100, 1), (2, 5, 7)]
)
def test_floats_become_integers_with_their_channels_last_and_back(
    images: int, channels: int, pixels: int, processor: str
) -> None:
    random = np.random.default_rng(channels)
    grid, shape = random_grid(random), (images, channels, pixels)
    integers = random_bytes(random, *shape)
    halves = (integers.astype(np.float32) - grid.zero_point + 0.5) * np.float32(grid.scale)
    factors = grid_factors(grid)
    for real in (random.normal(size=shape).astype(np.float32), halves):
        wanted = quantizer("QuantizeLinear", real, grid)
        laid = channels_last(wanted, grid.zero_point)
        found = run_kernel(
            ChannelsLast(*shape[1:], images, "uint8", quantized=True),
            real,
            factors,
            count=laid.size,
            content="uint8",
            processor=processor,
        )
        np.testing.assert_array_equal(found, laid.ravel())
        given = channels_last(real)
        found = run_kernel(
            Quantize(given.size),
            given,
            quantize_factors(grid),
            count=given.size,
            content="uint8",
            processor=processor,
        )
        np.testing.assert_array_equal(channels_first(found, wanted), wanted)

    given, wanted = channels_last(integers), quantizer("DequantizeLinear", integers, grid)
    found = run_kernel(
        ChannelsFirst(*shape[1:], images, "uint8", dequantized=True),
        given,
        factors,
        count=wanted.size,
        content="float32",
        processor=processor,
    )
    np.testing.assert_array_equal(found, wanted.ravel())
    found = run_kernel(
        Dequantize(given.size),
        given,
        factors,
        count=given.size,
        content="float32",
        processor=processor,
    )
    np.testing.assert_array_equal(channels_first(found, wanted), wanted)


@pytest.mark.parametrize("content", ["uint8", "int16", "float32"])
@pytest.mark.parametrize(("channels", "pixels"), [(3, 150), (20, 49), (100, 1)])
def test_channels_move_last_and_first_again(channels: int, pixels: int, content: Any) -> None:
    given = np.random.default_rng(3).integers(0, 256, (2, channels, pixels)).astype(content)
    laid = channels_last(given, 0)
    found = run_kernel(
        ChannelsLast(channels, pixels, 2, content),
        given,
        count=laid.size,
        content=content,
        processor=PROCESSORS[0],
    )
    np.testing.assert_array_equal(found, laid.ravel())
    found = run_kernel(
        ChannelsFirst(channels, pixels, 2, content),
        found,
        count=given.size,
        content=content,
        processor=PROCESSORS[0],
    )
    np.testing.assert_array_equal(found, given.ravel())


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("channels", [(20, 3, 24), (1, 2), (64, 128)])
def test_tensors_are_joined_along_their_channels(channels: tuple[int, ...], processor: str) -> None:
    random = np.random.default_rng(len(channels))
    given = [random_bytes(random, 1, each, 5, 7) for each in channels]
    result = random_grid(random)
    grids = [result if i == 1 else random_grid(random) for i in range(len(channels))]
    mapped = tuple(grid != result for grid in grids)
    wanted = runtime_result("Concat", given, grids, result, "QLinearConcat", axis=1)
    tables = [concat_table(grid, result) for grid in grids if grid != result]
    laid = channels_last(wanted, 0)
    found = run_kernel(
        Concat(35, channels, mapped, "uint8", shuffles=processor == "znver4"),
        *(channels_last(each) for each in given),
        *tables,
        count=laid.size,
        content="uint8",
        processor=processor,
    )
    np.testing.assert_array_equal(found, laid.ravel())

    reals = [each.astype(np.float32) for each in given]
    laid = channels_last(np.concatenate(reals, 1), 0)
    found = run_kernel(
        Concat(35, channels, (False,) * len(channels), "float32"),
        *(channels_last(each) for each in reals),
        count=laid.size,
        content="float32",
        processor=processor,
    )
    np.testing.assert_array_equal(found, laid.ravel())


@pytest.mark.parametrize("seed", range(4))
def test_tables_of_a_join_hold_what_onnx_runtime_looks_up(seed: int) -> None:
    random = np.random.default_rng(seed)
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 256)
    grids = [random_grid(random) for _ in range(32)]
    result = random_grid(random)
    wanted = runtime_result("Concat", [every] * 32, grids, result, "QLinearConcat", axis=1)
    np.testing.assert_array_equal([concat_table(grid, result) for grid in grids], wanted[0])
