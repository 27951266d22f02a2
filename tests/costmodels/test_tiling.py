"""Bits that cross between levels of memory: by hand, and against trying every tiling."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.accelerator import Array
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind
from costmodels.sketch import Sketch, example_network
from costmodels.tiling import ACCUMULATOR_BITS, STAYS, Extents, reads_of_array, reads_with_buffer
from quantization.network import Layer

SAID = Source("a test", "here", SourceKind.ASSUMED)


def array(rows: int, columns: int, dot: int) -> Array:
    return Array(*(Quantity(n, CoefficientUnit.RATIO, SAID) for n in (rows, columns, dot)))


def matmul(positions: int, depth: int, columns: int) -> Extents:
    layer = Layer(
        *("m", "MatMul", depth, columns, (), (), 1, (positions,), (positions,), 1, ("x",), "y")
    )
    return Extents.of([layer])


def reads(extents: Extents, bits: float, capacity: float) -> float:
    """Bits of inputs and weights, all of `bits` bits."""
    found = reads_with_buffer(
        extents, extents.inputs * [[bits]], extents.weights * [[bits]], capacity
    )
    return float(sum(part.sum() for part in found))


@pytest.mark.parametrize("name", [layer.name for layer in example_network().layers])
def test_the_extents_multiply_to_the_multiply_accumulates(name: str) -> None:
    layer = example_network().layer(name)
    e = Extents.of([layer])
    assert (e.groups * e.positions * e.depth * e.columns).item() == layer.macs == e.macs.item()
    assert e.inputs.item() + e.weights.item() == layer.input_count + layer.weight_count
    assert e.parameters.item() == layer.weight_count


def test_the_extents_of_a_transposed_convolution_are_those_of_its_input_pixels() -> None:
    layer = Layer(
        *("t", "ConvTranspose", 4, 6, (2, 2), (2, 2), 2, (5, 5), (10, 10), 3, ("x",), "y")
    )
    e = Extents.of([layer])
    found = [each.item() for each in (e.groups, e.positions, e.depth, e.columns)]
    assert found == [2, 3 * 25, 2, 3 * 4]
    assert e.weights.item() == layer.weight_count


def test_what_fits_is_read_once() -> None:
    e = matmul(64, 32, 16)
    everything = (64 * 32 + 32 * 16) * 8
    assert reads(e, 8, capacity=2 * 32 * 16 * 8) == everything, "the weights fit a half"
    assert reads(e, 8, capacity=1e12) == everything


def test_weights_twice_as_large_as_what_stays_read_the_inputs_twice() -> None:
    e = matmul(10_000, 64, 64)
    inputs, weights = 10_000 * 64 * 8, 64 * 64 * 8
    assert reads(e, 8, capacity=weights) == 2 * inputs + weights


def test_groups_need_only_their_own_inputs() -> None:
    """A depthwise convolution never reads anything twice, however small the buffer is."""
    sketch = Sketch()
    x = sketch.input((1, 64, 32, 32))
    network = sketch.network(sketch.conv(x, 64, kernel=3, groups=64, name="depthwise"))
    e = Extents.of(network.layers)
    assert reads(e, 8, capacity=2 * 9 * 8) == (e.inputs + e.weights).item() * 8


def tried(positions: int, depth: int, columns: int, bits: int, capacity: float) -> float:
    """The fewest bits over every tiling of the three orders, one by one."""
    stays, best = capacity * STAYS, math.inf
    inputs, weights = positions * depth * bits, depth * columns * bits
    for m, n in itertools.product(range(1, positions + 1), range(1, columns + 1)):
        tiles_m, tiles_n = math.ceil(positions / m), math.ceil(columns / n)
        if depth * n * bits <= stays or n == 1:
            best = min(best, weights + inputs * tiles_n)
        if depth * m * bits <= stays or m == 1:
            best = min(best, inputs + weights * tiles_m)
        if m * n * ACCUMULATOR_BITS <= stays or m == n == 1:
            best = min(best, inputs * tiles_n + weights * tiles_m)
    return best


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 24),
    st.sampled_from([2, 8, 32]),
    st.floats(64, 40_000),
)
def test_no_tiling_moves_much_less_than_the_closed_form(
    positions: int, depth: int, columns: int, bits: int, capacity: float
) -> None:
    found = reads(matmul(positions, depth, columns), bits, capacity)
    least = tried(positions, depth, columns, bits, capacity)
    assert least <= found <= least * 1.25, "only the tile of outputs is not searched"
    assert found >= (positions * depth + depth * columns) * bits


@settings(max_examples=60, deadline=None)
@given(st.floats(1e3, 1e7), st.floats(1.0, 50.0))
def test_twice_the_buffer_or_more_moves_at_most_a_tenth_more(
    capacity: float, factor: float
) -> None:
    layers = example_network().layers
    e = Extents.of(layers)
    bits = np.array([2.0, 8.0, 32.0])
    total = [
        np.add(*reads_with_buffer(e, e.inputs * bits, e.weights * bits, c))
        for c in (capacity, 2 * factor * capacity)
    ]
    assert (total[1] <= total[0] * 1.1).all()


def test_an_input_serves_all_columns_of_the_array_and_a_weight_all_rows() -> None:
    e = matmul(100, 32, 40)
    found = reads_of_array(e, e.inputs * [[8.0]], e.weights * [[4.0]], array(10, 16, 8))
    inputs, weights, sums = (each.item() for each in found)
    assert inputs == 100 * 32 * 8 * 3, "40 columns are 3 times up to 16"
    assert (weights, sums) == (32 * 40 * 4 * 10, 0), "sums of 4 dot products would move more"
    plain = reads_of_array(e, e.inputs * [[8.0]], e.weights * [[4.0]], None)
    assert [each.item() for each in plain] == [100 * 32 * 8, 32 * 40 * 4, 0]


def test_weights_stay_in_the_units_where_that_moves_less() -> None:
    e = matmul(100, 32, 40)
    one = reads_of_array(e, e.inputs * [[8.0]], e.weights * [[8.0]], array(1, 16, 32))
    assert [each.item() for each in one] == [100 * 32 * 8 * 3, 32 * 40 * 8, 0]
    # In two dot products: every sum is written once and read once, of 32 bits.
    two = reads_of_array(e, e.inputs * [[8.0]], e.weights * [[8.0]], array(1, 16, 16))
    assert [each.item() for each in two] == [100 * 32 * 8 * 3, 32 * 40 * 8, 2 * 32 * 100 * 40]


def test_extents_that_are_no_multiples_leave_units_idle() -> None:
    e = matmul(9, 30, 17)
    assert e.occupied(array(8, 16, 32)).item() == 16 * 32 * 32
    assert e.occupied(None).item() == 9 * 30 * 17


def test_groups_share_a_dot_product_in_slices_of_a_power_of_two() -> None:
    sketch = Sketch()
    x = sketch.input((1, 32, 8, 8))
    network = sketch.network(sketch.conv(x, 32, kernel=3, groups=32, name="depthwise"))
    e = Extents.of(network.layers)
    assert e.padded_depth(256).item() == 16, "9 weights in a slice of 16"
    assert e.padded_depth(4).item() == 12, "and no slice beyond what three products hold"
    assert matmul(1, 9, 1).padded_depth(256).item() == 256


def test_a_lowered_convolution_reads_every_window() -> None:
    sketch = Sketch()
    network = sketch.network(sketch.conv(sketch.input((2, 4, 8, 8)), 6, kernel=3, name="only"))
    e = Extents.of(network.layers)
    lowered = e.lowered(1)
    assert e.inputs.item() == 2 * 4 * 64
    assert lowered.inputs.item() == 2 * 64 * 4 * 9
    assert e.lowered(16).inputs.item() == 2 * 64 * 48, "36 elements are padded to 48"
