"""Accelerators as data: what one does a second, what a bit moved costs, which widths it has."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from costmodels.errors import CostError
from costmodels.quantity import (
    OFF_CHIP_JOULES_PER_BIT,
    ON_CHIP_JOULES_PER_BIT,
    CoefficientUnit,
    Quantity,
)
from costmodels.units import Metric
from costmodels.width_rules import WidthRule
from quantization.bits import BitWidths


@dataclass(frozen=True)
class Memory:
    """One level of memory.

    Args:
        name: such as ``DRAM``.
        capacity: bits; None for the outermost level, which holds everything.
        bandwidth: bits per second to and from the next inner level; None where the level is built
            to keep up with the next one, so that it never bounds the time.
        energy: joules per bit moved to or from the next inner level, or None if not known.
        separate_writes: whether reads and writes have a channel each, of `bandwidth`.

    Raises:
        CostError: if a number is in another unit.
    """

    name: str
    capacity: Quantity | None = None
    bandwidth: Quantity | None = None
    energy: Quantity | None = None
    separate_writes: bool = False

    def __post_init__(self) -> None:
        _expect("capacity", self.capacity, CoefficientUnit.BITS)
        _expect("bandwidth", self.bandwidth, CoefficientUnit.BITS_PER_SECOND)
        _expect("energy", self.energy, CoefficientUnit.JOULES_PER_BIT)


@dataclass(frozen=True)
class Array:
    """An array of units, each of which computes one dot product a step.

    `rows` x `columns` outputs are computed at once: `rows` positions (pixels, rows of a matrix)
    by `columns` output channels. Extents that are no multiples leave units idle.

    Args:
        rows: positions at once, a whole number.
        columns: output channels at once, a whole number.
        dot_length: contracted elements that a unit multiplies at once, a whole number.

    Raises:
        CostError: if a number is not whole, or in a unit.
    """

    rows: Quantity
    columns: Quantity
    dot_length: Quantity

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "dot_length"):
            given: Quantity = getattr(self, name)
            _expect(name, given, CoefficientUnit.RATIO)
            if given.value < 1 or given.value != int(given.value):
                raise CostError(f"{name}: {given.value:g} is no whole number above 0")


@dataclass(frozen=True)
class Widths:
    """Which bit-widths run.

    Args:
        weights: integer bits of weights.
        activations: integer bits of activations.
        equal: whether both operands must have equal bits.
        floats: ``fp16``, ``w32a32``, both or none.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]
    equal: bool = False
    floats: tuple[BitWidths, ...] = ()

    def supports(self, bits: BitWidths) -> bool:
        """Return whether `bits` runs."""
        if bits.is_float:
            return bits in self.floats
        listed = bits.weights in self.weights and bits.activations in self.activations
        return listed and (not self.equal or bits.weights == bits.activations)

    def each(self) -> Iterator[BitWidths]:
        """Yield every width that runs."""
        pairs = (BitWidths(w, a) for w in self.weights for a in self.activations)
        yield from (bits for bits in (*pairs, *self.floats) if self.supports(bits))

    def __str__(self) -> str:
        pairs = "equal, " if self.equal else ""
        weights, activations = (ranges(each) for each in (self.weights, self.activations))
        integers = [f"{pairs}w {weights} x a {activations}"] if self.weights else []
        return "; ".join([*integers, *map(str, self.floats)])


@dataclass(frozen=True)
class Accelerator:
    """One accelerator; every number has its unit and source.

    Args:
        name: what ``analytical:NAME`` calls it.
        title: what it is, in one line.
        widths: which bit-widths run.
        memories: levels of memory, the outermost first.
        throughput: multiply-accumulates per second by width, or None if it has no latency.
        mac_energy: joules per multiply-accumulate by width, or None if it has no energy.
        array: how its units are arranged; None counts none of them idle.
        lowered: whether a convolution reads its inputs from the outermost memory as the matrix of
            all windows (im2col), as what only multiplies matrices must.
        remarks: what whoever uses the numbers should know, one sentence each.

    Raises:
        CostError: if a number is in another unit, the levels of memory are not in order, a level
            needs more energy than such a memory can, a width that runs has no price, or nothing
            can be priced.
    """

    name: str
    title: str
    widths: Widths
    memories: tuple[Memory, ...]
    throughput: WidthRule | None = None
    mac_energy: WidthRule | None = None
    array: Array | None = None
    lowered: bool = False
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _expect("throughput", self.throughput, CoefficientUnit.MACS_PER_SECOND)
        _expect("mac_energy", self.mac_energy, CoefficientUnit.JOULES_PER_MAC)
        if not self.memories or self.memories[0].capacity is not None:
            raise CostError("memory: the first level is the outermost and has no capacity")
        if len({memory.name for memory in self.memories}) != len(self.memories):
            raise CostError("memory: two levels have one name")
        if any(memory.capacity is None for memory in self.memories[1:]):
            raise CostError("memory: every level but the first needs a capacity")
        for outer, inner in pairwise(self.memories):
            if _capacity(inner) >= _capacity(outer):
                raise CostError(
                    f"memory: {inner.name} holds no less than {outer.name}; "
                    "list the outermost level first, each larger than the next"
                )
        for memory in self.memories:
            outside = memory is self.memories[0]
            if memory.energy is not None:
                bounds = OFF_CHIP_JOULES_PER_BIT if outside else ON_CHIP_JOULES_PER_BIT
                memory.energy.within(f"{memory.name}.energy", *bounds)
        for name, rule in (("throughput", self.throughput), ("mac_energy", self.mac_energy)):
            if rule is not None:
                self._expect_every_width(name, rule)
        if self.metrics == {Metric.SIZE}:
            raise CostError(
                "nothing is priced: latency needs throughput and a bandwidth, energy needs "
                "mac_energy and an energy of every memory"
            )

    def _expect_every_width(self, name: str, rule: WidthRule) -> None:
        """Raise unless each width that runs has a price, also of a product of two activations."""
        for bits in self.widths.each():
            of_two = BitWidths(bits.activations, bits.activations, bits.half)
            if missing := next((b for b in (bits, of_two) if rule.at(b) is None), None):
                why = (
                    "" if missing == bits else f", which products of two activations need at {bits}"
                )
                raise CostError(
                    f"{name}: no price at {missing}{why}; add its entry, or leave it out of widths"
                )

    @property
    def metrics(self) -> frozenset[Metric]:
        """What it can price; the size of weights needs no number."""
        found = {Metric.SIZE}
        if self.throughput is not None and any(m.bandwidth is not None for m in self.memories):
            found.add(Metric.LATENCY)
        if self.mac_energy is not None and all(m.energy is not None for m in self.memories):
            found.add(Metric.ENERGY)
        return frozenset(found)

    @property
    def widths_text(self) -> str:
        """Which bit-widths run, for people."""
        return str(self.widths)

    def supports(self, bits: BitWidths) -> bool:
        """Return whether `bits` runs."""
        return self.widths.supports(bits)

    def numbers(self, metric: Metric) -> Iterator[tuple[str, Quantity]]:
        """Yield every number that `metric` depends on by its name; size depends on none."""
        if metric not in self.metrics - {Metric.SIZE}:
            return
        latency = metric is Metric.LATENCY
        name = "throughput" if latency else "mac_energy"
        rule = self.throughput if latency else self.mac_energy
        for operand, entry in {} if rule is None else rule.entries.items():
            yield f"{name}({operand})", entry
        for memory in self.memories:
            for field in ("capacity", "bandwidth" if latency else "energy"):
                if (number := getattr(memory, field)) is not None:
                    yield f"{memory.name}.{field}", number
        if self.array is not None:
            for field in ("rows", "columns", "dot_length"):
                yield f"array.{field}", getattr(self.array, field)

    def notes(self, metric: Metric) -> tuple[str, ...]:
        """Return what whoever uses its numbers for `metric` should know, one sentence each."""
        return () if metric is Metric.SIZE else self.remarks


def _capacity(memory: Memory) -> float:
    return math.inf if memory.capacity is None else memory.capacity.value


def _expect(name: str, given: Quantity | WidthRule | None, unit: CoefficientUnit) -> None:
    if given is not None and given.unit is not unit:
        raise CostError(f"{name} is given in {given.unit.value}, expected {unit.value}")


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers with runs of three or more as ranges.

    >>> ranges([2, 3, 4, 8, 16])
    '2-4,8,16'
    """
    texts: list[str] = []
    rest = sorted(numbers)
    while rest:
        length = 1
        while length < len(rest) and rest[length] == rest[0] + length:
            length += 1
        run, rest = rest[:length], rest[length:]
        texts += [f"{run[0]}-{run[-1]}"] if length > 2 else [str(number) for number in run]
    return ",".join(texts)
