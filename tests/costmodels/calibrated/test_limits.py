"""The roofline: bytes, bandwidths and bounds that can be checked by hand."""

import json

import numpy as np
import pytest

from costmodels.calibrated.items import Items, Row
from costmodels.calibrated.limits import Limits
from costmodels.errors import CostError

LIMITS = Limits(1e10, 4e10, ((1e3, 1e11), (1e5, 1e10), (1e7, 1e9)))


def _rows(kind: str, **numbers: float) -> Items:
    return Items.of([Row(kind, "Conv", "Conv", kind, numbers)] * 2)


BOTH = np.array([True, False])
"""The first row reads integers, the second floats."""


def test_a_layer_moves_each_operand_once_at_its_width() -> None:
    rows = _rows("Conv", inputs=100, outputs=50, weights=30)
    assert LIMITS.bytes_of(rows, BOTH).tolist() == [180, 720]


@pytest.mark.parametrize("kind", ["quantize", "dequantize"])
def test_a_conversion_moves_five_bytes_an_element_whatever_its_direction(kind: str) -> None:
    rows = _rows(kind, inputs=100, outputs=100)
    assert LIMITS.bytes_of(rows, BOTH).tolist() == [500, 500]


def test_bandwidth_is_a_line_between_logarithms_and_constant_outside() -> None:
    found = LIMITS.bandwidth_at(np.array([0.0, 1.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e12]))
    expected = [1e11, 1e11, 1e11, 10**10.5, 1e10, 10**9.5, 1e9, 1e9]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_bound_is_the_later_of_computing_and_moving() -> None:
    heavy = _rows("Conv", macs=1e9, inputs=100, outputs=100, weights=50)
    np.testing.assert_allclose(LIMITS.bound_s(heavy, BOTH), [1e9 / 4e10, 1e9 / 1e10])
    wide = _rows("Add", inputs=150_000, outputs=100_000)
    moved = np.array([250_000, 1_000_000])
    np.testing.assert_allclose(LIMITS.memory_s(wide, BOTH), moved / LIMITS.bandwidth_at(moved))
    np.testing.assert_allclose(LIMITS.bound_s(wide, BOTH), LIMITS.memory_s(wide, BOTH))
    np.testing.assert_array_equal(LIMITS.compute_s(wide, BOTH), [0, 0])


def test_a_peak_is_at_least_what_an_operator_reached() -> None:
    rows = _rows("Conv", macs=1e7)
    faster = LIMITS.raised_by(rows, BOTH, np.array([2e-4, 5e-4]))
    assert (faster.integer_peak, faster.float_peak) == (5e10, 2e10)
    assert faster.bandwidth == LIMITS.bandwidth
    assert (faster.bound_s(rows, BOTH) <= [2e-4, 5e-4]).all()
    assert LIMITS.raised_by(rows, BOTH, np.array([1e-3, 5e-3])) == LIMITS


def test_an_operator_that_is_told_too_roughly_raises_no_peak() -> None:
    rows = _rows("Conv", macs=1e7)
    assert LIMITS.raised_by(rows, BOTH, np.array([1e-6, 1e-6])) == LIMITS


def test_no_rows_raise_no_peak() -> None:
    assert LIMITS.raised_by(Items.of([]), np.array([], np.bool_), np.zeros(0)) == LIMITS


def test_no_rows_have_no_bound() -> None:
    assert LIMITS.bound_s(Items.of([]), np.array([], np.bool_)).shape == (0,)


@pytest.mark.parametrize(
    ("float_peak", "integer_peak", "bandwidth"),
    [
        (0.0, 1e10, ((1e3, 1e9),)),
        (1e10, -1.0, ((1e3, 1e9),)),
        (float("nan"), 1e10, ((1e3, 1e9),)),
        (float("inf"), 1e10, ((1e3, 1e9),)),
        (1e10, 1e10, ()),
        (1e10, 1e10, ((1e3, 0.0),)),
        (1e10, 1e10, ((0.0, 1e9),)),
        (1e10, 1e10, ((1e3, float("nan")),)),
    ],
)
def test_limits_that_are_not_positive_and_finite_are_an_error(
    float_peak: float, integer_peak: float, bandwidth: tuple[tuple[float, float], ...]
) -> None:
    with pytest.raises(CostError, match="positive"):
        Limits(float_peak, integer_peak, bandwidth)


@pytest.mark.parametrize("sets", [(2e3, 1e3), (1e3, 1e3)])
def test_working_sets_that_do_not_ascend_are_an_error(sets: tuple[float, float]) -> None:
    with pytest.raises(CostError, match="ascend"):
        Limits(1e10, 1e10, tuple((size, 1e9) for size in sets))


def test_limits_survive_json() -> None:
    assert Limits.from_dict(json.loads(json.dumps(LIMITS.to_dict()))) == LIMITS
