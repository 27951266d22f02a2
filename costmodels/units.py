"""Metrics, units and prefixes: the only module that parses or prints them."""

import enum
import math
import re
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from costmodels.errors import CostError
from quantization.errors import BudgetError


class Metric(enum.StrEnum):
    """What is priced."""

    LATENCY = "latency"
    ENERGY = "energy"
    SIZE = "size"


class Unit(enum.StrEnum):
    """The unit of every value in a table. Cycles are no seconds: they compare among themselves."""

    SECONDS = "s"
    JOULES = "J"
    BYTES = "B"
    CYCLES = "cycles"


UNITS: dict[Metric, frozenset[Unit]] = {
    Metric.LATENCY: frozenset({Unit.SECONDS, Unit.CYCLES}),
    Metric.ENERGY: frozenset({Unit.JOULES}),
    Metric.SIZE: frozenset({Unit.BYTES}),
}
SI_UNIT: dict[Metric, Unit] = {
    Metric.LATENCY: Unit.SECONDS,
    Metric.ENERGY: Unit.JOULES,
    Metric.SIZE: Unit.BYTES,
}

METRIC_OF: dict[Unit, Metric] = {unit: metric for metric in Metric for unit in UNITS[metric]}
EXAMPLES: dict[Unit, str] = {
    Unit.SECONDS: "8ms",
    Unit.JOULES: "2mJ",
    Unit.BYTES: "4MB",
    Unit.CYCLES: "20Mcycles",
}
"""A quantity in each unit, as people write it."""

_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
_LARGE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}
_PREFIXES: dict[Unit, dict[str, float]] = {
    Unit.SECONDS: _SMALL,
    Unit.JOULES: _SMALL,
    Unit.BYTES: {**_LARGE, "K": 1e3, **_BINARY},
    Unit.CYCLES: _LARGE,
}
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµ]*)")
_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?=(?:\.[0-9]+)?\s*cycles)")
_GREEK_MU = "\N{GREEK SMALL LETTER MU}"


def parse_quantity(text: str, metric: Metric) -> tuple[float, Unit]:
    """Read a quantity such as ``8ms``, ``2mJ``, ``4MB`` (10^6 bytes) or ``4MiB`` (2^20 bytes).

    Cycles are read as they are printed, with commas, or with a prefix: ``20Mcycles``.

    Returns:
        The value, and the unit without prefix that it is in: a unit of `metric`.

    Raises:
        BudgetError: if the text is no positive quantity with a unit of that metric.

    >>> parse_quantity("4MiB", Metric.SIZE), parse_quantity("20,000,000 cycles", Metric.LATENCY)
    ((4194304.0, <Unit.BYTES: 'B'>), (20000000.0, <Unit.CYCLES: 'cycles'>))
    """
    plain = _GROUPED.sub(lambda number: number[0].replace(",", ""), text.strip())
    match = _QUANTITY.fullmatch(plain.replace(_GREEK_MU, "µ"))
    read = None if match is None else _read_unit(match[2], UNITS[metric])
    if match is not None and read is not None:
        unit, factor = read
        value = float(match[1]) * factor
        if 0 < value < math.inf:
            return value, unit
    raise BudgetError(
        f"{text!r} is no {metric.value}; write a positive number with unit, such as "
        f"{EXAMPLES[SI_UNIT[metric]]} (or 0.7x, of the float model)"
    )


def parse_unit(text: str) -> tuple[Unit, float]:
    """Read a unit, with or without a prefix, such as ``ms``, ``J`` or ``cycles``.

    Returns:
        The unit without prefix, and what a value in the given unit is multiplied by.

    Raises:
        CostError: if the text is no unit.

    >>> parse_unit("us")
    (<Unit.SECONDS: 's'>, 1e-06)
    """
    read = _read_unit(text.strip().replace(_GREEK_MU, "µ"), Unit)
    if read is None:
        raise CostError(f"{text!r} is no unit; write for example cycles, s, ms, us or mJ")
    return read


_SCALES: dict[str, tuple[str, float, dict[str, float]]] = {
    "J": ("J", 1.0, _SMALL),
    "s": ("s", 1.0, _SMALL),
    "bit": ("bit", 1.0, {**_LARGE, "T": 1e12, **_BINARY}),
    "B": ("bit", 8.0, {**_LARGE, "T": 1e12, **_BINARY}),
    "MAC": ("MAC", 1.0, {**_LARGE, "T": 1e12}),
    "OP": ("MAC", 0.5, {**_LARGE, "T": 1e12}),
}
_PER: dict[str, tuple[str, float]] = {
    "s": ("s", 1.0),
    "MAC": ("MAC", 1.0),
    "OP": ("MAC", 0.5),
    "bit": ("bit", 1.0),
    "B": ("B", 1.0),
    "word32": ("bit", 32.0),
    "word64": ("bit", 64.0),
}


def parse_coefficient_unit(text: str) -> tuple[str, float]:
    """Read the unit of a coefficient, such as ``pJ/MAC``, ``GB/s``, ``TOP/s``, ``KiB`` or ``1``.

    One multiply-accumulate is 2 operations (``OP``); ``word32`` and ``word64`` are 32 and 64 bits.
    A byte stays a byte only as what something is per: ``pJ/B``, ``s/B``.

    Returns:
        The unit without prefix, and what a value in the given unit is multiplied by.

    Raises:
        CostError: if the text is no such unit.

    >>> parse_coefficient_unit("GB/s"), parse_coefficient_unit("TOP/s")
    (('bit/s', 8000000000.0), ('MAC/s', 500000000000.0))
    >>> unit, factor = parse_coefficient_unit("pJ/word32")
    >>> unit, round(640 * factor * 8 * 1e12)  # picojoules per byte
    ('J/bit', 160)
    """
    if text == "1":
        return "1", 1.0
    above, slash, below = text.partition("/")
    for name, (unit, size, prefixes) in _SCALES.items():
        prefix = prefixes.get(above.removesuffix(name)) if above.endswith(name) else None
        if prefix is not None and not slash:
            return unit, prefix * size
        if prefix is not None and below in _PER:
            per, count = _PER[below]
            return f"{unit}/{per}", prefix * size / count
    raise CostError(
        f"{text!r} is no unit of a coefficient; write for example pJ/MAC, pJ/bit, GB/s, TOP/s, KiB"
    )


def _read_unit(text: str, units: Iterable[Unit]) -> tuple[Unit, float] | None:
    """Return which of `units` a text names, and the factor of its prefix."""
    for unit in units:
        factor = _PREFIXES[unit].get(text.removesuffix(unit.value))
        if factor is not None and text.endswith(unit.value):
            return unit, factor
    return None


def parse_duration(text: str) -> float:
    """Read a span of wall time such as ``60s`` or ``5m``; returns seconds.

    Raises:
        BudgetError: if the text is none.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(s|m|min|h)", text.strip())
    if match is None or not 0 < float(match[1]) < math.inf:
        raise BudgetError(f"{text!r} is no duration; write for example 60s or 5m")
    return float(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3600}[match[2]]


def format_quantity(value: float, unit: Unit) -> str:
    """Print a finite value with three significant digits and a decimal prefix.

    >>> format_quantity(0.00153, Unit.SECONDS), format_quantity(75947, Unit.BYTES)
    ('1.53 ms', '75.9 kB')
    """
    if unit is Unit.CYCLES:
        return f"{value:,.0f} cycles"
    steps = _steps(unit)
    rounded = float(f"{value:.3g}")  # first, because 999.6 µs is 1.00 ms
    prefix, scale = next(
        ((p, s) for p, s in steps if abs(rounded) >= s), steps[-1] if value else ("", 1.0)
    )
    if scale == 1.0 and unit is Unit.BYTES:
        return f"{value:.0f} {unit.value}"
    scaled = float(f"{rounded / scale:.3g}")
    digits = max(0, 3 - len(str(int(abs(scaled)))))
    return f"{scaled:.{digits}f} {prefix}{unit.value}"


def format_bound(value: float, unit: Unit, *, digits: int, upwards: bool) -> str:
    """Print a positive value rounded to one side: what is read back is never on the other.

    Args:
        value: positive and finite.
        unit: its unit.
        digits: how many significant ones, at most.
        upwards: whether to round up.

    >>> format_bound(239_123, Unit.BYTES, digits=4, upwards=True)
    '239.2 kB'
    >>> format_bound(0.0015304, Unit.SECONDS, digits=4, upwards=False)
    '1.53 ms'
    """
    exact = Decimal(repr(float(value)))
    unit_step = Decimal(1).scaleb(exact.adjusted() + 1 - digits)
    rounded = exact.quantize(unit_step, ROUND_CEILING if upwards else ROUND_FLOOR)
    if unit is Unit.CYCLES:
        return f"{_plain(rounded, grouped=True)} cycles"
    steps = [(prefix, Decimal(repr(scale))) for prefix, scale in _steps(unit)]
    prefix, scale = next((step for step in steps if rounded >= step[1]), steps[-1])
    return f"{_plain(rounded / scale)} {prefix}{unit.value}"


def _plain(number: Decimal, *, grouped: bool = False) -> str:
    text = f"{number:,f}" if grouped else f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _steps(unit: Unit) -> list[tuple[str, float]]:
    """Return prefixes and their scales, the largest first."""
    if unit is Unit.BYTES:
        return [("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)]
    return [("", 1.0), ("m", 1e-3), ("µ", 1e-6), ("n", 1e-9), ("p", 1e-12)]
