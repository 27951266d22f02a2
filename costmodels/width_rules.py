"""Named rules of how the cost of a multiply-accumulate depends on the bits of its operands."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.cells import BoolArray, FloatArray
from costmodels.errors import CostError
from costmodels.quantity import CoefficientUnit, Quantity, Reading
from quantization.bits import BitWidths

_NARROWEST_UNIT = 2
"""Bits that the smallest unit of a fused array multiplies (Sharma et al., ISCA 2018: BitBrick)."""


class Rule(enum.StrEnum):
    """How a cost depends on w bits of a weight and a bits of an activation.

    LISTED: the entry of the wider operand; no entry, no price.
    NEXT_LISTED: the entry of the wider operand, or the next wider one: narrow values are widened.
    INTERPOLATED: the same, but between two entries the logarithm is linear in the width.
    PRODUCT: one entry at width n; cost(w, a) = cost(n, n) * w*a / n^2, as of bit-serial arrays and
        of multipliers made of gates.
    FUSED_POWERS_OF_TWO: one entry at width n; as PRODUCT, with w and a rounded up to 2, 4, 8, 16:
        units for 2 bits are fused to wider ones.
    """

    LISTED = "listed"
    NEXT_LISTED = "next-listed"
    INTERPOLATED = "interpolated"
    PRODUCT = "product"
    FUSED_POWERS_OF_TWO = "fused-powers-of-two"


_OF_ONE_ENTRY = (Rule.PRODUCT, Rule.FUSED_POWERS_OF_TWO)


@dataclass(frozen=True)
class WidthRule:
    """The cost of a multiply-accumulate at any widths, from a few numbers and a rule.

    Args:
        rule: how integers are priced.
        integer: integer width in bits to number, in joules per multiply-accumulate, or in
            multiply-accumulates per second; one entry for `PRODUCT` and `FUSED_POWERS_OF_TWO`.
        single: float32, or None where it does not run.
        half: float16, or None where it does not run.

    Raises:
        CostError: if the entries do not fit the rule, differ in their units, or a wider operand
            costs less.
    """

    rule: Rule
    integer: Mapping[int, Quantity]
    single: Quantity | None = None
    half: Quantity | None = None

    def __post_init__(self) -> None:
        if len({entry.unit for entry in self.entries.values()}) != 1:
            raise CostError("no entry, or entries of different units")
        if self.unit not in (CoefficientUnit.JOULES_PER_MAC, CoefficientUnit.MACS_PER_SECOND):
            raise CostError(f"given in {self.unit.value}, expected J/MAC or MAC/s")
        if self.rule in _OF_ONE_ENTRY and len(self.integer) != 1:
            raise CostError(f"the rule {self.rule.value} takes one integer entry")
        costs = [self._cost(self.integer[width]) for width in sorted(self.integer)]
        if costs != sorted(costs):
            raise CostError("a wider operand costs less than a narrower one")

    @property
    def entries(self) -> dict[str, Quantity]:
        """All entries by the name of their operands, such as ``int8`` or ``float32``."""
        named = {f"int{width}": entry for width, entry in self.integer.items()}
        floats = {"float16": self.half, "float32": self.single}
        return named | {name: entry for name, entry in floats.items() if entry is not None}

    @property
    def unit(self) -> CoefficientUnit:
        """The unit of every entry."""
        return next(iter(self.entries.values())).unit

    def at(self, bits: BitWidths) -> Reading | None:
        """Return the cost at `bits`, or None where there is none.

        Joules per multiply-accumulate, or seconds per multiply-accumulate if entries are rates.
        """
        if bits.half:
            return self._reading(self.half)
        if bits.reads.is_float:
            return self._reading(self.single)
        if self.rule in _OF_ONE_ENTRY:
            return self._scaled(bits.weights, bits.activations)
        return self._of_wider(max(bits.weights, bits.activations))

    def read(self, choices: Sequence[BitWidths]) -> tuple[FloatArray, BoolArray]:
        """Return (K,) costs, infinite where there is none, and (K,) whether each is assumed."""
        missing = Reading(np.inf, assumed=False)
        readings = [self.at(bits) or missing for bits in choices]
        return np.array([r.value for r in readings]), np.array([r.assumed for r in readings])

    def _cost(self, entry: Quantity) -> float:
        rate = entry.unit is CoefficientUnit.MACS_PER_SECOND
        return 1 / entry.value if rate else entry.value

    def _reading(self, entry: Quantity | None) -> Reading | None:
        return None if entry is None else Reading(self._cost(entry), entry.is_assumed)

    def _scaled(self, weights: int, activations: int) -> Reading:
        [(width, entry)] = self.integer.items()
        if self.rule is Rule.FUSED_POWERS_OF_TWO:
            weights, activations, width = (
                power_of_two(max(_NARROWEST_UNIT, bits)) for bits in (weights, activations, width)
            )
        share = weights * activations / width**2
        return Reading(self._cost(entry) * share, entry.is_assumed)

    def _of_wider(self, width: int) -> Reading | None:
        if width in self.integer:
            return self._reading(self.integer[width])
        above = [w for w in self.integer if w > width]
        below = [w for w in self.integer if w < width]
        if self.rule is Rule.NEXT_LISTED and above:
            return self._reading(self.integer[min(above)])
        if self.rule is not Rule.INTERPOLATED or not above or not below:
            return None
        low, high = max(below), min(above)
        share = (width - low) / (high - low)
        first, last = self._cost(self.integer[low]), self._cost(self.integer[high])
        return Reading(first ** (1 - share) * last**share, assumed=True)


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a positive `number`.

    >>> [power_of_two(n) for n in (1, 2, 3, 8, 9)]
    [1, 2, 4, 8, 16]
    """
    return 1 << (number - 1).bit_length()
