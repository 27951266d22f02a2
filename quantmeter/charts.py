"""The report's charts: a row for each policy, its value across with its 95 % interval.

Places are in percent of a chart's width, so that the page may draw it as wide as there is room.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from costmodels.units import Unit, format_quantity

_MARGIN = 3.0  # free on both sides of what is drawn
_PITCH = 11.0  # least distance of two ticks, so that their texts stay apart


@dataclass(frozen=True)
class Tick:
    """A labelled position along the axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A row of a chart.

    Args:
        name: of the policy.
        kind: ``searched``, ``uniform`` or ``float``.
        deployed: whether this policy is.
        low: start of the interval.
        x: the value.
        high: end of the interval.
        text: what stands at the end of the row.
        met: whether the budget that `text` is about is met.
        predicted: what was predicted for `x`, if anything was.
    """

    name: str
    kind: str
    deployed: bool
    low: float
    x: float
    high: float
    text: str
    met: bool
    predicted: float | None = None


@dataclass(frozen=True)
class Chart:
    """Rows, the ticks of their common axis, and a line that all are compared with."""

    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]
    line: Tick


def accuracy_chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw accuracy on the held-out images, compared with the last row; the text is the size.

    The axis is linear in the square root of the error, where intervals of equal counts are about
    equally wide, and which has a place for no error at all.
    """
    marks = [
        Mark(
            row["name"],
            row["kind"],
            row["deployed"],
            row["interval"][0],
            row["accuracy"],
            row["interval"][1],
            format_quantity(row["size_bytes"], Unit.BYTES),
            row["size_met"],
        )
        for row in rows
    ]
    steps = (1.0, 0.99, 0.98, 0.95, 0.9, 0.8, 0.7, 0.5, 0.3, 0.1, 0.0)
    ticks = [Tick(accuracy, f"{100 * accuracy:.0f} %") for accuracy in steps]
    line = Tick(rows[-1]["accuracy"], f"{rows[-1]['name']} {100 * rows[-1]['accuracy']:.1f} %")
    return _place(marks, ticks, line, lambda accuracy: -math.sqrt(1.0 - accuracy))


def latency_chart(rows: Sequence[Mapping[str, Any]], budget_ratio: float) -> Chart:
    """Draw predicted and measured latency relative to float, compared with the budget."""
    marks = [
        Mark(
            row["name"],
            row["kind"],
            row["deployed"],
            row["ratio"]["low"],
            row["ratio"]["mid"],
            row["ratio"]["high"],
            f"{row['ratio']['mid']:.3f}x",
            row["latency_met"],
            row["predicted"],
        )
        for row in rows
    ]
    low, high = _ends(marks, budget_ratio)
    step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, math.inf) if high - low <= 7 * s)
    first, last = math.ceil(low / step - 0.4), math.floor(high / step + 0.4)
    ticks = [Tick(n * step, f"{n * step:.2f}") for n in range(first, last + 1)]
    return _place(marks, ticks, Tick(budget_ratio, f"budget {budget_ratio:.2f}x"))


def _ends(marks: Sequence[Mark], line: float) -> tuple[float, float]:
    """Return the least and the greatest of what is drawn."""
    drawn = [v for m in marks for v in (m.low, m.x, m.high, m.predicted) if v is not None]
    return min(*drawn, line), max(*drawn, line)


def _place(
    marks: Sequence[Mark],
    ticks: Sequence[Tick],
    line: Tick,
    scale: Callable[[float], float] = float,
) -> Chart:
    """Turn values into places; ticks that are outside or too close to the one before are left out.

    `scale` rises; equal differences of it are drawn equally wide.
    """
    low, high = map(scale, _ends(marks, line.at))
    slope = (100.0 - 2.0 * _MARGIN) / ((high - low) or 1.0)

    def across(value: float) -> float:
        return _MARGIN + slope * (scale(value) - low)

    kept: list[Tick] = []
    for tick in (replace(tick, at=across(tick.at)) for tick in ticks):
        if 0.0 <= tick.at <= 100.0 and (not kept or abs(tick.at - kept[-1].at) >= _PITCH):
            kept.append(tick)
    placed = [
        replace(
            mark,
            low=across(mark.low),
            x=across(mark.x),
            high=across(mark.high),
            predicted=None if mark.predicted is None else across(mark.predicted),
        )
        for mark in marks
    ]
    return Chart(tuple(placed), tuple(kept), replace(line, at=across(line.at)))
