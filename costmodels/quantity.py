"""Numbers that carry their unit and who said so."""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from costmodels.errors import CostError
from quantization.bits import BitWidths


class SourceKind(enum.StrEnum):
    """How a number came to be."""

    PUBLISHED = "published"
    MEASURED = "measured"
    ASSUMED = "assumed"


class CoefficientUnit(enum.StrEnum):
    """What a coefficient is per what; SI without prefixes."""

    JOULES_PER_BYTE = "J/B"
    JOULES_PER_MAC = "J/MAC"
    SECONDS_PER_BYTE = "s/B"
    SECONDS_PER_MAC = "s/MAC"
    JOULES_PER_BIT = "J/bit"
    BITS_PER_SECOND = "bit/s"
    MACS_PER_SECOND = "MAC/s"
    BITS = "bit"
    RATIO = "1"


_MAGNITUDES: Mapping[CoefficientUnit, tuple[float, float]] = MappingProxyType(
    {
        CoefficientUnit.JOULES_PER_BYTE: (1e-14, 1e-7),
        CoefficientUnit.JOULES_PER_MAC: (1e-16, 1e-8),
        CoefficientUnit.SECONDS_PER_BYTE: (1e-14, 1e-5),
        CoefficientUnit.SECONDS_PER_MAC: (1e-16, 1e-4),
        CoefficientUnit.JOULES_PER_BIT: (1e-15, 1e-8),
        CoefficientUnit.BITS_PER_SECOND: (1e5, 1e16),
        CoefficientUnit.MACS_PER_SECOND: (1e4, 1e17),
        CoefficientUnit.BITS: (8.0, 1e13),
        CoefficientUnit.RATIO: (1e-4, 1e4),
    }
)
"""What any hardware could have: a forgotten prefix or a unit per word falls outside."""


OFF_CHIP_JOULES_PER_BIT = (1e-13, 45e-12)
"""Of an outermost memory: stacked memory needs some 4 pJ a bit, DDR3 20 to 40 (1.3 to 2.6 nJ
per 64 bits; Horowitz, ISSCC 2014). 640 pJ is per 32-bit word; per byte it would be 80 pJ a bit."""
ON_CHIP_JOULES_PER_BIT = (1e-15, 4e-12)
"""Of an inner memory: 0.16 pJ a bit for 8 KiB, 1.6 pJ for 1 MiB (the same source)."""


@dataclass(frozen=True)
class Source:
    """Who said so.

    Args:
        ref: the publication, the measurement or the reasoning.
        locator: where in it: page, table, figure.
        kind: how the number came to be.
    """

    ref: str
    locator: str
    kind: SourceKind


@dataclass(frozen=True)
class Quantity:
    """A coefficient with its unit and source.

    Args:
        value: in `unit`, positive.
        unit: SI without prefix.
        source: who said so.

    Raises:
        CostError: if the magnitude is none that hardware has, such as picojoules given as joules.

    >>> said = Source("ISSCC 2014", "640 pJ per 32-bit word", SourceKind.PUBLISHED)
    >>> Quantity(640e-12 / 4, CoefficientUnit.JOULES_PER_BYTE, said).value
    1.6e-10
    """

    value: float
    unit: CoefficientUnit
    source: Source

    def __post_init__(self) -> None:
        low, high = _MAGNITUDES[self.unit]
        if not (math.isfinite(self.value) and low <= self.value <= high):
            raise CostError(
                f"{self.value:g} {self.unit.value} is no plausible magnitude "
                f"({low:g} to {high:g}); check prefix and unit"
            )

    @property
    def is_assumed(self) -> bool:
        """Whether nobody published or measured it."""
        return self.source.kind is SourceKind.ASSUMED

    def within(self, name: str, low: float, high: float) -> None:
        """Raise unless the value lies between two bounds, which are in `unit`.

        Raises:
            CostError: if it does not; names `name`.
        """
        if not low <= self.value <= high:
            raise CostError(
                f"{name}: {self.value:g} {self.unit.value} is not between {low:g} and {high:g}; "
                "is it per byte, per word or per bit?"
            )

    def to_dict(self) -> dict[str, object]:
        """Return value, unit and source as JSON values."""
        source = self.source
        return {
            "value": self.value,
            "unit": self.unit.value,
            "ref": source.ref,
            "locator": source.locator,
            "kind": source.kind.value,
        }


@dataclass(frozen=True)
class Reading:
    """A coefficient read from a curve.

    Args:
        value: in the curve's unit.
        assumed: whether it lies between entries, or its entry is itself assumed.
    """

    value: float
    assumed: bool


@dataclass(frozen=True)
class WidthCurve:
    """A coefficient by operand width, read at the wider operand.

    Between two integer entries the logarithm of the value is linear in the width. Outside the
    entries, and for a floating-point format without one, there is no value.

    Args:
        integer: integer width in bits to coefficient, ascending; rising with the width.
        single: float32, or None.
        half: float16, or None.

    Raises:
        CostError: if units differ, there is no entry, or a value falls while the width rises.
    """

    integer: Mapping[int, Quantity]
    single: Quantity | None = None
    half: Quantity | None = None

    def __post_init__(self) -> None:
        widths, values = list(self.integer), [entry.value for entry in self.integer.values()]
        if not widths or widths != sorted(widths) or values != sorted(values):
            raise CostError("a curve needs integer entries whose widths and values both rise")
        if len({entry.unit for entry in self.entries.values()}) != 1:
            raise CostError("the entries of a curve differ in their units")

    @property
    def entries(self) -> dict[str, Quantity]:
        """All entries by the name of their operand, such as ``int8`` or ``float32``."""
        named = {f"int{bits}": entry for bits, entry in self.integer.items()}
        floats = {"float16": self.half, "float32": self.single}
        return named | {name: entry for name, entry in floats.items() if entry is not None}

    @property
    def unit(self) -> CoefficientUnit:
        """The unit of every entry."""
        return next(iter(self.integer.values())).unit

    def at(self, bits: BitWidths) -> Reading | None:
        """Return the coefficient of a multiply-accumulate at `bits`, or None where there is none.

        The wider operand decides: ``w4a8`` reads int8, ``w8a32`` reads float32.
        """
        if bits.half:
            return _reading(self.half)
        width = max(bits.weights, bits.activations)
        if bits.reads.is_float:
            return _reading(self.single)
        if width in self.integer:
            return _reading(self.integer[width])
        below = [w for w in self.integer if w < width]
        above = [w for w in self.integer if w > width]
        if not below or not above:
            return None
        low, high = max(below), min(above)
        share = (width - low) / (high - low)
        first, last = self.integer[low].value, self.integer[high].value
        return Reading(first ** (1 - share) * last**share, assumed=True)


def _reading(entry: Quantity | None) -> Reading | None:
    return None if entry is None else Reading(entry.value, entry.is_assumed)
