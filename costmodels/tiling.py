"""How many bits of each operand cross between two levels of memory, with the best of tilings.

Every layer is a matrix product per group: inputs of `positions` x `depth` by weights of `depth` x
`columns`. An operand that does not fit the inner level is split into tiles, and another is read
once for each:

    weights stay     weights once, inputs once for each tile of weights
    inputs stay      inputs once, weights once for each tile of inputs
    outputs stay     inputs once for each tile of columns, weights once for each tile of positions

The order that moves the fewest bits is taken, layer by layer and width by width. Outputs are
written once: accumulators stay inside. Half of the inner level holds what stays, the other half
what streams (double buffering). That windows of neighbouring tiles overlap is not counted: it is a
lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.accelerator import Array
from costmodels.cells import FloatArray
from costmodels.width_rules import power_of_two
from quantization.network import Layer

ACCUMULATOR_BITS = 32
"""Bits of a sum that is not finished."""
STAYS = 0.5
"""Share of the inner level that holds what stays."""


@dataclass(frozen=True)
class Extents:
    """What of each layer determines its cost, (L, 1) each.

    Args:
        macs: multiply-accumulates.
        groups: independent matrix products.
        positions: rows of each product: pixels of all images.
        depth: contracted extent of each product.
        columns: columns of each product: output channels of a group.
        inputs: elements of the input; of the first factor of a product of two activations.
        weights: elements of the weight; of the second factor of such a product.
        outputs: elements of the output.
        parameters: elements that the size of a model counts: weights, none of such a product.
    """

    macs: FloatArray
    groups: FloatArray
    positions: FloatArray
    depth: FloatArray
    columns: FloatArray
    inputs: FloatArray
    weights: FloatArray
    outputs: FloatArray
    parameters: FloatArray

    @classmethod
    def of(cls, layers: Sequence[Layer]) -> "Extents":
        """Read the extents of L layers."""
        rows = np.array([_extents(layer) for layer in layers], np.float64)
        return cls(*(rows[:, [i]] for i in range(rows.shape[1])))

    def padded_depth(self, dot_length: float) -> FloatArray:
        """Return (L, 1) the contracted extent with the idle lanes of its last dot product.

        Groups whose depth is below `dot_length` share a dot product in slices of a power of two.
        """
        whole = np.ceil(self.depth / dot_length) * dot_length
        slices = np.array([[power_of_two(int(d))] for d in self.depth[:, 0]], np.float64)
        return np.where(self.groups > 1, np.minimum(slices, whole), whole)

    def occupied(self, array: Array | None) -> FloatArray:
        """Return (L, 1) the multiply-accumulates that `array` is busy for, idle units counted."""
        if array is None:
            return self.macs
        rows, columns = array.rows.value, array.columns.value
        per_group = np.ceil(self.positions / rows) * rows * np.ceil(self.columns / columns)
        return self.groups * per_group * columns * self.padded_depth(array.dot_length.value)

    def lowered(self, dot_length: float) -> "Extents":
        """Return the extents with inputs as the matrix of all windows, and padded depths."""
        depth = self.padded_depth(dot_length)
        inputs = self.groups * self.positions * depth
        weights = self.groups * self.columns * depth
        return Extents(
            self.macs,
            self.groups,
            self.positions,
            self.depth,
            self.columns,
            inputs,
            weights,
            self.outputs,
            self.parameters,
        )


def _extents(layer: Layer) -> tuple[int, ...]:
    """Return the fields of `Extents` for one layer."""
    outputs, parameters = layer.output_count, layer.weight_count
    if layer.factor_counts is not None:
        first, second = layer.factor_counts
        groups, depth, columns = layer.batch, layer.in_channels, layer.out_channels
        positions = layer.macs // (groups * depth * columns)
        return layer.macs, groups, positions, depth, columns, first, second, outputs, parameters
    depth = layer.in_channels // layer.groups
    columns = layer.out_channels // layer.groups
    taps = parameters // (layer.groups * depth * columns)
    if layer.kind == "ConvTranspose":  # each input pixel makes a window of outputs
        columns *= taps
    else:
        depth *= taps
    positions = layer.macs // (layer.groups * depth * columns)
    counts = layer.input_count, parameters, outputs, parameters
    return layer.macs, layer.groups, positions, depth, columns, *counts


def reads_with_buffer(
    extents: Extents, inputs: FloatArray, weights: FloatArray, capacity: float
) -> tuple[FloatArray, FloatArray]:
    """Return how many bits of inputs and of weights are read into a level of `capacity` bits.

    Args:
        extents: of L layers.
        inputs: (L, K) bits of the inputs.
        weights: (L, K) bits of the weights.
        capacity: bits that the inner level holds.

    Returns:
        (L, K) bits of inputs, (L, K) bits of weights, each at least what is given.
    """
    stays = capacity * STAYS
    positions, columns = extents.positions, extents.columns
    a_column = weights / (extents.groups * columns)
    a_position = inputs / (extents.groups * positions)
    weights_stay = np.ceil(columns / np.maximum(1.0, stays // a_column))
    inputs_stay = np.ceil(positions / np.maximum(1.0, stays // a_position))
    once = np.ones_like(weights_stay)
    passes = [(weights_stay, once), (once, inputs_stay)]
    # Tiles of m x n outputs, m * n <= sums: inputs / n + weights / m is least where the derivative
    # is zero, at n^2 = sums * (inputs * columns) / (weights * positions). Tiles are whole, so both
    # neighbours of that are tried, from the side of the columns and from that of the positions.
    sums = max(1.0, stays // ACCUMULATOR_BITS)
    n = np.clip(np.sqrt(sums * inputs * columns / (weights * positions)), 1, sums)
    for rounded in (np.floor, np.ceil):
        passes.append(_tiles(columns, positions, rounded(columns / n), sums))
        passes.append(_tiles(positions, columns, rounded(positions * n / sums), sums)[::-1])
    found_inputs = inputs * passes[0][0]
    found_weights = weights * passes[0][1]
    for of_inputs, of_weights in passes[1:]:
        other_inputs, other_weights = inputs * of_inputs, weights * of_weights
        better = other_inputs + other_weights < found_inputs + found_weights
        found_inputs = np.where(better, other_inputs, found_inputs)
        found_weights = np.where(better, other_weights, found_weights)
    return found_inputs, found_weights


def _tiles(
    split: FloatArray, rest: FloatArray, count: FloatArray, sums: float
) -> tuple[FloatArray, FloatArray]:
    """Split one extent into about `count` equal tiles; the rest gets what `sums` leaves of each.

    Returns:
        How many tiles of the one extent there are, and how many of the other.
    """
    size = np.minimum(np.ceil(split / np.clip(count, 1, split)), sums)
    return np.ceil(split / size), np.ceil(rest / np.floor(sums / size))


def reads_of_array(
    extents: Extents, inputs: FloatArray, weights: FloatArray, array: Array | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return how many bits the innermost level hands to the units and back.

    An input serves all columns of the array. Either unfinished sums stay in the units, and a weight
    serves all rows; or weights stay while all positions pass, each is read once, and sums over
    depths beyond one dot product are written and read between. What moves the fewest bits is taken.
    Without an array each operand is counted once, the least that is possible; what an outer level
    reads again passes here too, which `costmodels.roofline.moved_bits` sees to.

    Returns:
        (L, K) bits of inputs, (L, K) bits of weights, (L, K) bits of unfinished sums.
    """
    if array is None:
        return inputs, weights, np.zeros_like(weights)
    columns = np.ceil(extents.columns / array.columns.value)
    rows = np.ceil(extents.positions / array.rows.value)
    dots = np.ceil(extents.padded_depth(array.dot_length.value) / array.dot_length.value)
    sums = 2 * ACCUMULATOR_BITS * extents.outputs * (dots - 1)
    weights_stay = weights + sums < weights * rows
    return (
        inputs * columns,
        np.where(weights_stay, weights, weights * rows),
        np.where(weights_stay, sums, 0.0),
    )
