"""Roofline latency and the energy of computing and moving, of layers on an accelerator.

    seconds = max(busy * s(w, a), bits across each level / its bandwidth)
    joules  = macs * e(w, a) + sum over levels of bits across it * joules per bit

`busy` counts idle units (`Extents.occupied`), `macs` does not. Weights move at w bits, inputs at a,
and outputs at the width that they are written in (`BitWidths.writes`: 8 bits, 16 or float). A
product of two activations has no weight: both factors have a bits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.accelerator import Accelerator
from costmodels.cells import BoolArray, FloatArray
from costmodels.errors import BackendError
from costmodels.quantity import Quantity
from costmodels.tiling import Extents, reads_of_array, reads_with_buffer
from costmodels.units import Metric
from costmodels.width_rules import WidthRule
from quantization.bits import BitWidths
from quantization.network import Layer


@dataclass(frozen=True)
class Moved:
    """What crosses between a level of memory and the next inner one, in bits, (L, K) each.

    Args:
        inputs: read.
        weights: read.
        outputs: written, with what is written and read again of unfinished sums.
    """

    inputs: FloatArray
    weights: FloatArray
    outputs: FloatArray

    @property
    def total(self) -> FloatArray:
        """All of it, (L, K)."""
        return self.inputs + self.weights + self.outputs

    def times(self, factor: float) -> "Moved":
        """Return each multiplied by `factor`, such as joules per bit."""
        return Moved(self.inputs * factor, self.weights * factor, self.outputs * factor)


@dataclass(frozen=True)
class EnergyBreakdown:
    """Where the joules of L layers at K choices go.

    Args:
        macs: of the multiply-accumulates, (L, K).
        levels: of moving each operand across each level of memory, by its name, the outermost
            first; (L, K) each.
    """

    macs: FloatArray
    levels: Mapping[str, Moved]

    @property
    def total(self) -> FloatArray:
        """All joules, (L, K): what `price` answers."""
        return self.macs + sum(moved.total for moved in self.levels.values())


@dataclass(frozen=True)
class Roofline:
    """L layers, each at its own width, under the roofs of an accelerator.

    Args:
        computed: the widths that each layer's products have; both those of the activations where
            two activations are multiplied.
        outermost: name of the outermost memory.
        intensity: (L,) multiply-accumulates per byte that crosses the outermost memory.
        achieved: (L,) multiply-accumulates per second by `price`; idle units do not count.
        peaks: multiply-accumulates per second of each width in `computed`.
        bandwidths: bytes per second of each memory that may bound the time, the outermost first;
            of both directions where reads and writes have a channel each. A layer is at most at
            its intensity *at that memory* times this.
    """

    computed: tuple[BitWidths, ...]
    outermost: str
    intensity: FloatArray
    achieved: FloatArray
    peaks: Mapping[BitWidths, float]
    bandwidths: Mapping[str, float]


def price(
    accelerator: Accelerator,
    layers: Sequence[Layer],
    choices: Sequence[BitWidths],
    metric: Metric,
) -> tuple[FloatArray, BoolArray]:
    """Price L layers at K choices.

    Args:
        accelerator: what prices; `metric` is one of its metrics.
        layers: L layers.
        choices: K bit-widths.
        metric: latency, energy, or the size of the weights.

    Returns:
        (L, K) seconds, joules or bytes, infinite where the width does not run; (K,) whether
        anything that went in is assumed.
    """
    runs = np.array([accelerator.widths.supports(bits) for bits in choices], np.bool_)
    extents = Extents.of(layers)
    if metric is Metric.SIZE:
        weights = np.array([bits.weights for bits in choices])
        return np.where(runs, extents.parameters * weights / 8, np.inf), np.zeros_like(runs)
    if metric is Metric.LATENCY:
        value, assumed = _seconds(accelerator, extents, choices)
    else:
        joules, assumed = _joules(accelerator, extents, choices)
        value = joules.total
    return np.where(runs, value, np.inf), assumed & runs


def moved_bits(
    accelerator: Accelerator, extents: Extents, choices: Sequence[BitWidths]
) -> list[Moved]:
    """Return what crosses each level of memory, the outermost first.

    What an outer level hands inward passes every level on its way to the units, so no level moves
    fewer bits of inputs or of weights than the one outside it.
    """
    array = accelerator.array
    weight_bits = np.array([bits.weights for bits in choices], np.float64)
    input_bits = np.array([bits.reads.bits for bits in choices], np.float64)
    output_bits = np.array([bits.writes.bits for bits in choices], np.float64)
    of_two = (extents.parameters == 0) & (extents.weights > 0)
    if accelerator.lowered:
        extents = extents.lowered(1.0 if array is None else array.dot_length.value)
    weights = extents.weights * np.where(of_two, input_bits, weight_bits)
    inputs, outputs = extents.inputs * input_bits, extents.outputs * output_bits
    found: list[Moved] = []
    passed_inputs, passed_weights = inputs, weights
    for inner in accelerator.memories[1:]:
        capacity = 0.0 if inner.capacity is None else inner.capacity.value
        of_inputs, of_weights = reads_with_buffer(extents, inputs, weights, capacity)
        passed_inputs = np.maximum(passed_inputs, of_inputs)
        passed_weights = np.maximum(passed_weights, of_weights)
        found.append(Moved(passed_inputs, passed_weights, outputs))
    of_inputs, of_weights, sums = reads_of_array(extents, inputs, weights, array)
    passed_inputs = np.maximum(passed_inputs, of_inputs)
    passed_weights = np.maximum(passed_weights, of_weights)
    found.append(Moved(passed_inputs, passed_weights, outputs + sums))
    return found


def energy_breakdown(
    accelerator: Accelerator, layers: Sequence[Layer], choices: Sequence[BitWidths]
) -> EnergyBreakdown:
    """Return where the joules of each layer at each choice go.

    Args:
        accelerator: one that prices energy.
        layers: L layers.
        choices: K bit-widths that run.

    Raises:
        BackendError: if it prices no energy.
    """
    if Metric.ENERGY not in accelerator.metrics:
        raise BackendError(f"{accelerator.name} does not price energy")
    return _joules(accelerator, Extents.of(layers), choices)[0]


def roofline(
    accelerator: Accelerator, layers: Sequence[Layer], bits: Sequence[BitWidths]
) -> Roofline:
    """Return where each layer is under the roofs of the accelerator.

    Args:
        accelerator: one that prices latency.
        layers: L layers.
        bits: for each layer its bit-widths, which run.

    Raises:
        BackendError: if it prices no latency.
    """
    throughput = accelerator.throughput
    if throughput is None or Metric.LATENCY not in accelerator.metrics:
        raise BackendError(f"{accelerator.name} does not price latency")
    choices = tuple(dict.fromkeys(bits))
    at = np.arange(len(layers)), np.array([choices.index(b) for b in bits], np.intp)
    seconds, _ = price(accelerator, layers, choices, Metric.LATENCY)
    extents = Extents.of(layers)
    crossed = moved_bits(accelerator, extents, choices)[0].total[at] / 8
    macs = extents.macs[:, 0]
    computed = tuple(
        b if layer.has_weights else BitWidths(b.activations, b.activations, b.half)
        for layer, b in zip(layers, bits, strict=True)
    )
    peaks = {b: 1 / reading.value for b in computed if (reading := throughput.at(b)) is not None}
    bandwidths = {
        memory.name: memory.bandwidth.value / 8 * (2 if memory.separate_writes else 1)
        for memory in accelerator.memories
        if memory.bandwidth is not None
    }
    outermost = accelerator.memories[0].name
    return Roofline(computed, outermost, macs / crossed, macs / seconds[at], peaks, bandwidths)


def _seconds(
    accelerator: Accelerator, extents: Extents, choices: Sequence[BitWidths]
) -> tuple[FloatArray, BoolArray]:
    throughput = accelerator.throughput
    assert throughput is not None
    per_mac, assumed = _per_mac(throughput, extents, choices)
    seconds = extents.occupied(accelerator.array) * per_mac
    levels = moved_bits(accelerator, extents, choices)
    for memory, moved in zip(accelerator.memories, levels, strict=True):
        if memory.bandwidth is None:
            continue
        reads, writes = moved.inputs + moved.weights, moved.outputs
        bits = np.maximum(reads, writes) if memory.separate_writes else reads + writes
        seconds = np.maximum(seconds, bits / memory.bandwidth.value)
    return seconds, assumed | _any_assumed(accelerator, "bandwidth", "capacity")


def _joules(
    accelerator: Accelerator, extents: Extents, choices: Sequence[BitWidths]
) -> tuple[EnergyBreakdown, BoolArray]:
    mac_energy = accelerator.mac_energy
    assert mac_energy is not None  # `metrics` says so, as of every memory below
    per_mac, assumed = _per_mac(mac_energy, extents, choices)
    levels = {}
    crossed = moved_bits(accelerator, extents, choices)
    for memory, moved in zip(accelerator.memories, crossed, strict=True):
        assert memory.energy is not None
        levels[memory.name] = moved.times(memory.energy.value)
    found = EnergyBreakdown(extents.macs * per_mac, levels)
    return found, assumed | _any_assumed(accelerator, "energy", "capacity")


def _per_mac(
    rule: WidthRule, extents: Extents, choices: Sequence[BitWidths]
) -> tuple[FloatArray, BoolArray]:
    """Return (L, K) costs of a multiply-accumulate, and (K,) whether each is assumed."""
    plain, assumed = rule.read(choices)
    both = [BitWidths(c.activations, c.activations, c.half) for c in choices]
    of_two, guessed = rule.read(both)
    products = (extents.parameters == 0) & (extents.weights > 0)
    if not products.any():
        return np.where(products, of_two, plain), assumed
    return np.where(products, of_two, plain), assumed | guessed


def _any_assumed(accelerator: Accelerator, *fields: str) -> bool:
    """Return whether a number that bounds or moves is assumed, the array's shape included."""
    numbers: list[Quantity | None] = [
        getattr(memory, field) for memory in accelerator.memories for field in fields
    ]
    if accelerator.array is not None:
        array = accelerator.array
        numbers += [array.rows, array.columns, array.dot_length]
    return any(number is not None and number.is_assumed for number in numbers)
