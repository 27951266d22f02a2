"""The closed formulas of the field as named models; their coefficients stand in files.

`costmodels.accelerator_files` reads them; `costmodels.calibrated.textbook` fits them to a device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from costmodels.accelerator import ranges
from costmodels.errors import CostError
from costmodels.quantity import CoefficientUnit, Quantity, WidthCurve
from costmodels.units import Metric
from quantization.bits import FLOAT32, INTEGER_WIDTHS, BitWidths


@dataclass(frozen=True)
class LatencyCoefficients:
    """Coefficients of ``alpha * b/8 * params + beta * macs * f(b)``.

    Args:
        alpha: seconds per byte of weights.
        beta: seconds per multiply-accumulate at 8 bits.
        f: time of a multiply-accumulate relative to 8 bits, by width.
        notes: what whoever uses the latencies should know.
    """

    alpha: Quantity
    beta: Quantity
    f: WidthCurve
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _expect("alpha", self.alpha.unit, CoefficientUnit.SECONDS_PER_BYTE)
        _expect("beta", self.beta.unit, CoefficientUnit.SECONDS_PER_MAC)
        _expect("f", self.f.unit, CoefficientUnit.RATIO)


@dataclass(frozen=True)
class EnergyCoefficients:
    """Coefficients of ``b/8 * params * e_mem + macs * e_mac(b)``.

    Args:
        e_mem: joules per byte of weights.
        e_mac: joules per multiply-accumulate, by width.
        notes: what whoever uses the energies should know.
    """

    e_mem: Quantity
    e_mac: WidthCurve
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _expect("e_mem", self.e_mem.unit, CoefficientUnit.JOULES_PER_BYTE)
        _expect("e_mac", self.e_mac.unit, CoefficientUnit.JOULES_PER_MAC)


@dataclass(frozen=True)
class Preset:
    """One set of coefficients.

    Args:
        name: what ``analytical:NAME`` calls it.
        title: what it describes, in one line.
        energy: coefficients of the energy, or None if it gives none.
        latency: coefficients of the latency, or None if it gives none.
    """

    name: str
    title: str
    energy: EnergyCoefficients | None
    latency: LatencyCoefficients | None

    @property
    def metrics(self) -> frozenset[Metric]:
        """What it can price; the size of weights needs no coefficient."""
        given = {Metric.ENERGY: self.energy, Metric.LATENCY: self.latency}
        return frozenset({Metric.SIZE} | {metric for metric, c in given.items() if c is not None})

    @property
    def widths_text(self) -> str:
        """Which bit-widths have a price, for people."""
        priced = ranges(width for width in INTEGER_WIDTHS if self.supports(BitWidths(width, width)))
        floats = [bits for bits in (BitWidths(16, 16, half=True), FLOAT32) if self.supports(bits)]
        return "; ".join([f"wider operand {priced}", *map(str, floats)])

    def supports(self, bits: BitWidths) -> bool:
        """Return whether any of its metrics but the size has a coefficient for `bits`."""
        curves = [self.energy.e_mac] if self.energy is not None else []
        curves += [self.latency.f] if self.latency is not None else []
        return any(curve.at(bits) is not None for curve in curves)

    def numbers(self, metric: Metric) -> Iterator[tuple[str, Quantity]]:
        """Yield every coefficient of `metric` by its name; the size of weights needs none."""
        if metric is Metric.ENERGY and self.energy is not None:
            yield "e_mem", self.energy.e_mem
            for operand, entry in self.energy.e_mac.entries.items():
                yield f"e_mac({operand})", entry
        if metric is Metric.LATENCY and self.latency is not None:
            yield "alpha", self.latency.alpha
            yield "beta", self.latency.beta
            for operand, entry in self.latency.f.entries.items():
                yield f"f({operand})", entry

    def notes(self, metric: Metric) -> tuple[str, ...]:
        """Return what whoever uses its numbers for `metric` should know, one sentence each."""
        coefficients = {Metric.ENERGY: self.energy, Metric.LATENCY: self.latency}.get(metric)
        return () if coefficients is None else coefficients.notes


def _expect(name: str, unit: CoefficientUnit, expected: CoefficientUnit) -> None:
    if unit is not expected:
        raise CostError(f"{name} is given in {unit.value}, expected {expected.value}")
