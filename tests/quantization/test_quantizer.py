"""Quantizer arithmetic: grids, rounding, errors, biases, and agreement with ONNX Runtime."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from quantization.errors import DataError
from quantization.quantizer import (
    AffineGrid,
    Float32Array,
    QuantizedWeight,
    WeightMethod,
    quantize_bias,
    quantize_weight,
)

WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 16])
METHODS = st.sampled_from(["minmax", "mse"])
FINITE = st.floats(-1e4, 1e4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-4)
WEIGHTS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=FINITE
)
RANGES = st.tuples(FINITE, FINITE).map(sorted)


def rows(weight: Float32Array, axis: int) -> Float32Array:
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def squared_error(weight: Float32Array, made: QuantizedWeight) -> Float32Array:
    return np.square(rows(made.dequantize() - weight, made.axis).astype(np.float64)).sum(1)


@given(WEIGHTS, WIDTHS, METHODS)
def test_weights_lie_on_the_signed_grid(
    weight: Float32Array, bits: int, method: WeightMethod
) -> None:
    made = quantize_weight(weight, bits, 0, method)
    assert made.values.min() >= -(2 ** (bits - 1))
    assert made.values.max() <= 2 ** (bits - 1) - 1
    assert made.values.shape == weight.shape
    assert made.values.dtype == (np.int8 if bits <= 8 else np.int16)
    assert (made.scale > 0).all()
    assert (made.values[weight == 0] == 0).all()


@given(WEIGHTS, st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]), st.integers(0, 1))
def test_minmax_errs_by_at_most_half_a_step(weight: Float32Array, bits: int, axis: int) -> None:
    made = quantize_weight(weight, bits, axis, "minmax")
    error = np.abs(rows(made.dequantize() - weight, axis)).max(1)
    rounding = 4e-7 * np.abs(rows(weight, axis)).max(1)  # of the products in float32
    assert (error <= made.scale / 2 + rounding).all()


@given(WEIGHTS, WIDTHS, st.integers(0, 1))
def test_mse_is_never_worse_than_minmax(weight: Float32Array, bits: int, axis: int) -> None:
    best = squared_error(weight, quantize_weight(weight, bits, axis, "mse"))
    plain = squared_error(weight, quantize_weight(weight, bits, axis, "minmax"))
    assert (best <= plain * (1 + 1e-5)).all()


def test_mse_is_better_than_minmax_where_one_weight_sticks_out() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 500)).astype(np.float32)
    weight[0, 0] = 8.0
    errors = [squared_error(weight, quantize_weight(weight, 3, 0, m)) for m in ("mse", "minmax")]
    assert errors[0] < 0.6 * errors[1]


def test_weights_between_two_levels_round_to_the_even_one() -> None:
    weight = np.array([[-8.0, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 7.0]], np.float32)
    made = quantize_weight(weight, 4, 0, "minmax")
    assert made.scale.tolist() == [1.0]
    assert made.values.tolist() == [[-8, -2, -2, 0, 0, 2, 2, 7]]


def test_activations_between_two_levels_round_to_the_even_one() -> None:
    grid = AffineGrid(0.5, 3, 8)
    halves = np.array([-0.75, -0.25, 0.25, 0.75, 1.25], np.float32)
    assert grid.quantize(halves).tolist() == [1, 3, 3, 5, 5]


def test_the_grid_reaches_one_step_further_down_than_up() -> None:
    weight = np.array([[-4.0, 1.0], [-1.0, 3.0], [-2.0, 3.0]], np.float32)
    made = quantize_weight(weight, 3, 0, "minmax")
    assert made.scale.tolist() == [1.0, 1.0, 1.0]
    assert made.values.tolist() == [[-4, 1], [-1, 3], [-2, 3]]


@given(WEIGHTS, st.integers(0, 1))
def test_each_channel_is_quantized_on_its_own(weight: Float32Array, axis: int) -> None:
    whole = quantize_weight(weight, 4, axis)
    for channel in range(weight.shape[axis]):
        alone = quantize_weight(np.take(weight, [channel], axis), 4, axis)
        assert alone.scale[0] == whole.scale[channel]
        np.testing.assert_array_equal(alone.values, np.take(whole.values, [channel], axis))


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_no_scale_goes_below_the_smallest_one(method: WeightMethod) -> None:
    weight = np.array([[1e-7, -1e-7], [1.0, -1.0]], np.float32)
    smallest = np.array([1e-3, 1e-3], np.float32)
    made = quantize_weight(weight, 8, 0, method, smallest)
    assert made.scale[0] == smallest[0]
    assert made.scale[1] == quantize_weight(weight, 8, 0, method).scale[1]
    assert not made.values[0].any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_an_error(wrong: float) -> None:
    with pytest.raises(DataError, match="not finite"):
        quantize_weight(np.array([[1.0, wrong]], np.float32), 8, 0)


@pytest.mark.parametrize("bits", [0, 9, 15, 17, 32, -1])
def test_a_width_without_a_grid_is_an_error(bits: int) -> None:
    with pytest.raises(DataError, match=str(bits)):
        quantize_weight(np.ones((1, 1), np.float32), bits, 0)


@given(RANGES, st.integers(1, 16))
def test_zero_is_exactly_on_the_grid_of_activations(limits: list[float], bits: int) -> None:
    grid = AffineGrid.of_range(*limits, bits)
    assert 0 <= grid.zero_point < 2**bits
    zero = np.zeros(1, np.float32)
    assert grid.quantize(zero)[0] == grid.zero_point
    assert grid.dequantize(grid.quantize(zero))[0] == 0.0


@given(RANGES, st.integers(1, 16), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_activations_inside_the_range_err_by_at_most_half_a_step(
    limits: list[float], bits: int, places: list[float]
) -> None:
    low, high = limits
    grid = AffineGrid.of_range(low, high, bits)
    real = np.clip(low + np.array(places) * (high - low), low, high).astype(np.float32)
    error = np.abs(grid.dequantize(grid.quantize(real)) - real)
    assert (error <= grid.scale / 2 + 4e-7 * max(abs(low), abs(high))).all()


@given(RANGES, st.integers(1, 16), FINITE)
def test_activations_outside_the_range_saturate(
    limits: list[float], bits: int, real: float
) -> None:
    grid = AffineGrid.of_range(*limits, bits)
    [integer] = grid.quantize(np.array([real], np.float32))
    assert 0 <= integer < 2**bits
    if real > max(limits[1], 0) + grid.scale:
        assert integer == 2**bits - 1
    if real < min(limits[0], 0) - grid.scale:
        assert integer == 0


def test_a_tensor_that_is_always_zero_has_a_grid() -> None:
    grid = AffineGrid.of_range(0.0, 0.0, 8)
    assert grid.scale > 0
    assert grid.dequantize(grid.quantize(np.zeros(3, np.float32))).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "limits", [(np.nan, 1.0), (0.0, np.nan), (-np.inf, 1.0), (0.0, np.inf), (1.0, -1.0)]
)
def test_a_range_that_is_not_finite_or_reversed_is_an_error(limits: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="range"):
        AffineGrid.of_range(*limits, 8)


@given(
    hnp.arrays(np.float32, 6, elements=st.floats(-100, 100, width=32)),
    st.floats(1e-4, 1.0),
    st.floats(1e-4, 1.0),
)
def test_a_bias_errs_by_at_most_half_a_step(
    bias: Float32Array, input_scale: float, weight_scale: float
) -> None:
    scales = np.full(6, weight_scale, np.float32)
    made = quantize_bias(bias, input_scale, scales)
    assert made.dtype == np.int32
    step = float(np.float32(input_scale) * scales[0])
    reached = np.abs(bias) < 2**30 * step
    error = np.abs(made * step - bias)[reached]
    assert (error <= step / 2 * (1 + 1e-6) + 1e-6 * np.abs(bias[reached])).all()


def test_a_bias_rounds_half_to_even_and_saturates() -> None:
    bias = np.array([0.5, 1.5, 2.5, -0.5, 1e20, -1e20], np.float32)
    made = quantize_bias(bias, 1.0, np.ones(6, np.float32))
    assert made.tolist() == [0, 2, 2, 0, 2**31 - 1, -(2**31)]


def _session(grid: AffineGrid) -> onnxruntime.InferenceSession:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "grid",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [
            helper.make_tensor_value_info("q", TensorProto.UINT8, [None]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [None]),
        ],
        [
            numpy_helper.from_array(np.array(grid.scale, np.float32), "s"),
            numpy_helper.from_array(np.array(grid.zero_point, np.uint8), "z"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


@settings(max_examples=30, deadline=None)
@given(RANGES, st.integers(0, 2**32 - 1))
def test_the_grid_agrees_with_the_runtime_bit_for_bit(limits: list[float], seed: int) -> None:
    grid = AffineGrid.of_range(*limits, 8)
    random = np.random.default_rng(seed)
    spread = 300 * grid.scale
    real = (random.standard_normal(1000) * spread).astype(np.float32)
    ties = ((np.arange(-300, 300) + 0.5) * grid.scale).astype(np.float32)
    real = np.concatenate([real, ties])
    integers, back = _session(grid).run(None, {"x": real})
    np.testing.assert_array_equal(grid.quantize(real), integers)
    np.testing.assert_array_equal(grid.dequantize(grid.quantize(real)), back)
