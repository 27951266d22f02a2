"""Coefficients of the analytical backend, each with its unit and source."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from costmodels.errors import CostError
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind, WidthCurve
from costmodels.units import Metric

_PICO = 1e-12


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

    def notes(self, metric: Metric) -> tuple[str, ...]:
        """Return what whoever uses its numbers for `metric` should know, one sentence each."""
        coefficients = {Metric.ENERGY: self.energy, Metric.LATENCY: self.latency}.get(metric)
        return () if coefficients is None else coefficients.notes


def _expect(name: str, unit: CoefficientUnit, expected: CoefficientUnit) -> None:
    if unit is not expected:
        raise CostError(f"{name} is given in {unit.value}, expected {expected.value}")


def _per_mac(picojoules: float, source: Source) -> Quantity:
    return Quantity(picojoules * _PICO, CoefficientUnit.JOULES_PER_MAC, source)


def _per_byte(picojoules: float, source: Source) -> Quantity:
    return Quantity(picojoules * _PICO, CoefficientUnit.JOULES_PER_BYTE, source)


def _ratio(value: float, source: Source) -> Quantity:
    return Quantity(value, CoefficientUnit.RATIO, source)


_ARTICLE = "Quantization Part 8: Mixed-Precision Quantization (2025-07-10), Hardware Cost Models"
_ARTICLE_MAC = Source(_ARTICLE, "Energy, table 'Energy per MAC'", SourceKind.PUBLISHED)
_ARTICLE_MEMORY = Source(_ARTICLE, "Energy, 'e.g., 640 pJ/byte for DRAM'", SourceKind.PUBLISHED)
_ARTICLE_F = Source(_ARTICLE, "Latency, 'f(8) = 1; f(4) = 0.3'", SourceKind.PUBLISHED)
_GUESSED_F = Source(
    "no publication", "f(2) = f(4)^2; above 8 bits in proportion to the width", SourceKind.ASSUMED
)

HAQ = Preset(
    name="haq",
    title="the numbers that texts on hardware-aware quantization print",
    energy=EnergyCoefficients(
        e_mem=_per_byte(640, _ARTICLE_MEMORY),
        e_mac=WidthCurve(
            integer={
                2: _per_mac(0.01, _ARTICLE_MAC),
                4: _per_mac(0.05, _ARTICLE_MAC),
                8: _per_mac(0.2, _ARTICLE_MAC),
                16: _per_mac(1.1, _ARTICLE_MAC),
            },
            single=_per_mac(4.6, _ARTICLE_MAC),
        ),
        notes=(
            "DRAM at 640 pJ per byte is four times the published figure: 640 pJ is per 32-bit "
            "word, 160 pJ per byte (preset horowitz)",
            "INT16 at 1.1 pJ per MAC equals the published energy of an FP16 multiply without its "
            "add",
            "e_mac at every width between entries is assumed",
        ),
    ),
    latency=LatencyCoefficients(
        alpha=Quantity(
            1e-10,
            CoefficientUnit.SECONDS_PER_BYTE,
            Source("no publication", "weights stream at 10 GB/s", SourceKind.ASSUMED),
        ),
        beta=Quantity(
            1e-11,
            CoefficientUnit.SECONDS_PER_MAC,
            Source(
                "no publication",
                "100 G multiply-accumulates a second at 8 bits",
                SourceKind.ASSUMED,
            ),
        ),
        f=WidthCurve(
            integer={
                2: _ratio(0.09, _GUESSED_F),
                4: _ratio(0.3, _ARTICLE_F),
                8: _ratio(1.0, _ARTICLE_F),
                16: _ratio(2.0, _GUESSED_F),
            },
            single=_ratio(4.0, _GUESSED_F),
        ),
        notes=("alpha, beta, and f at every width but 4 and 8 bits are assumed",),
    ),
)

_HOROWITZ = "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014"
_HOROWITZ_MAC = Source(_HOROWITZ, "45 nm, 0.9 V, operations: multiply + add", SourceKind.PUBLISHED)
_HOROWITZ_DRAM = Source(
    _HOROWITZ,
    "45 nm, memory: DRAM 1.3 nJ per 64 bits, i.e. 640 pJ per 32-bit word",
    SourceKind.PUBLISHED,
)

HOROWITZ = Preset(
    name="horowitz",
    title="published energies of operations and memory accesses at 45 nm",
    energy=EnergyCoefficients(
        e_mem=_per_byte(640 / 4, _HOROWITZ_DRAM),
        e_mac=WidthCurve(
            integer={
                8: _per_mac(0.2 + 0.03, _HOROWITZ_MAC),
                32: _per_mac(3.1 + 0.1, _HOROWITZ_MAC),
            },
            half=_per_mac(1.1 + 0.4, _HOROWITZ_MAC),
            single=_per_mac(3.7 + 0.9, _HOROWITZ_MAC),
        ),
        notes=(
            "energies of the data path only: no instruction, control or cache energy",
            "DRAM at 160 pJ per byte is the lower end of the published 1.3 to 2.6 nJ per 64 bits",
            "INT16 lies between the published INT8 and INT32 and is assumed; the wider operand "
            "decides (w2a8 is priced as INT8), so that nothing is priced where both have fewer "
            "than 8 bits",
        ),
    ),
    latency=None,
)

PRESETS: Mapping[str, Preset] = MappingProxyType({p.name: p for p in (HAQ, HOROWITZ)})
"""The presets by name."""
