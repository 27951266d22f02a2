"""The geometry of the report's charts; templates only draw what is computed here.

Lengths are in pixels of the chart's own coordinates, y downwards.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from costmodels.units import Unit, format_quantity

_CHARACTER, _LINE = 6.8, 15.0  # width and height of a character of a chart's text
_PITCH = 9.0  # least distance of two whiskers
_LEFT, _TOP, _RIGHT, _BOTTOM = 46.0, 26.0, 612.0, 330.0  # the plot of the accuracy chart
_ROW = 30.0  # height of a row of the latency chart
_LATENCY_LEFT, _LATENCY_RIGHT = 204.0, 470.0

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Label:
    """Text beside a mark: where its baseline starts, and the line that leads to it, if any."""

    text: str
    x: float
    y: float
    leader: str = ""

    @property
    def box(self) -> Box:
        """What the text covers."""
        return self.x, self.y - 12.0, self.x + _CHARACTER * len(self.text), self.y + 3.0


@dataclass(frozen=True)
class Mark:
    """A row of the run in a chart: its point, and its interval from `low` to `high`.

    In the accuracy chart `low` and `high` are heights; in the latency chart they are along x, and
    `predicted` too.
    """

    name: str
    kind: str
    deployed: bool
    x: float
    y: float
    low: float
    high: float
    predicted: float | None = None
    label: Label | None = None


@dataclass(frozen=True)
class Chart:
    """Marks with their axes; `line` is where the budget is along x."""

    width: float
    height: float
    plot: Box
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line: float


def accuracy_chart(rows: Sequence[Mapping[str, Any]], budget_bytes: float) -> Chart:
    """Draw test accuracy (log scale of the error) against bytes (log scale)."""
    sizes = [math.log(row["size_bytes"]) for row in rows] + [math.log(budget_bytes)]
    across = _scale(min(sizes), max(sizes), _LEFT + 60.0, _RIGHT - 24.0)
    errors = [min(max(1.0 - a, 1e-3), 1.0) for row in rows for a in row["interval"]]
    up = _scale(math.log(max(errors)), math.log(min(errors)), _BOTTOM - 26.0, _TOP + 8.0)

    def height(accuracy: float) -> float:
        return up(math.log(min(max(1.0 - accuracy, min(errors)), 1.0)))

    line = across(math.log(budget_bytes))
    spread = spread_sideways([across(math.log(row["size_bytes"])) for row in rows], line)
    marks = []
    for row, x in zip(rows, spread, strict=True):
        low, high = (height(share) for share in row["interval"])
        y = height(row["accuracy"])
        marks.append(Mark(row["name"], row["kind"], row["deployed"], x, y, low, high))
    labels = place_labels(marks, (_LEFT, _TOP, _RIGHT, _BOTTOM))
    bottom = max(_BOTTOM, *(label.y + 8.0 for label in labels))
    steps = (0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6, 0.3)
    y_ticks = [Tick(height(a), f"{100 * a:.3g} %") for a in steps if 1 - a >= min(errors)]
    rounds = [f * 10.0**p for p in range(2, 10) for f in (1, 2, 5)]
    x_ticks = [Tick(across(math.log(b)), format_quantity(b, Unit.BYTES)) for b in rounds]
    return Chart(
        _RIGHT + 8.0,
        bottom + 44.0,
        (_LEFT, _TOP, _RIGHT, bottom),
        tuple(replace(m, label=t) for m, t in zip(marks, labels, strict=True)),
        tuple(tick for tick in x_ticks if _LEFT < tick.at < _RIGHT),
        tuple(tick for tick in y_ticks if _TOP <= tick.at <= _BOTTOM),
        line,
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return the straight line that takes `low` to `start` and `high` to `end`."""
    slope = (end - start) / ((high - low) or 1.0)
    return lambda value: start + slope * (value - low)


def spread_sideways(xs: Sequence[float], line: float) -> list[float]:
    """Move points away from `line` until all are a whisker's pitch apart; none changes side.

    >>> spread_sideways([90.0, 99.0, 100.0, 150.0], 100.0)
    [82.0, 91.0, 100.0, 150.0]
    """
    moved = list(xs)
    limit = math.inf
    for i in sorted((i for i, x in enumerate(xs) if x <= line), key=lambda i: (-xs[i], -i)):
        moved[i] = min(xs[i], limit)
        limit = moved[i] - _PITCH
    limit = line + _PITCH
    for i in sorted((i for i, x in enumerate(xs) if x > line), key=lambda i: (xs[i], i)):
        moved[i] = max(xs[i], limit)
        limit = moved[i] + _PITCH
    return moved


def place_labels(marks: Sequence[Mark], plot: Box) -> list[Label]:
    """Label marks so that no label covers another label or a whisker.

    Marks closer together than their labels are high share a ladder of labels below their
    whiskers: the leftmost mark's label is the lowest, so that no leader crosses another. A mark on
    its own has its label on the first free side.
    """
    order = sorted(range(len(marks)), key=lambda i: marks[i].x)
    groups: list[list[int]] = []
    for i in order:
        if groups and marks[i].x - marks[groups[-1][-1]].x <= _PITCH + 0.1:
            groups[-1].append(i)
        else:
            groups.append([i])
    taken = [(m.x - 7.0, m.high - 2.0, m.x + 7.0, m.low + 2.0) for m in marks]
    labels: dict[int, Label] = {}
    for group in sorted(groups, key=len, reverse=True):
        if len(group) > 1:
            labels |= _ladder(marks, group, taken)
            foot = max(labels[i].y for i in group)
            taken += [(marks[i].x - 2.0, marks[i].low, marks[i].x + 2.0, foot) for i in group]
        else:
            labels[group[0]] = _beside(marks[group[0]], taken, plot)
        taken += [labels[i].box for i in group]
    return [labels[i] for i in range(len(marks))]


def _ladder(marks: Sequence[Mark], group: Sequence[int], taken: Sequence[Box]) -> dict[int, Label]:
    """Stack the labels right of and below a group, clear of what is taken there."""
    x = marks[group[-1]].x + 2.0 * _PITCH
    reach = x + max(_CHARACTER * len(marks[i].name) for i in group)
    y = max(box[3] for box in taken if box[0] < reach and box[2] > marks[group[0]].x) + _LINE
    labels = {}
    for step, i in enumerate(reversed(group)):
        mark, level = marks[i], y + _LINE * step
        leader = (
            f"{mark.x:.1f},{mark.low:.1f} {mark.x:.1f},{level - 4:.1f} {x - 4:.1f},{level - 4:.1f}"
        )
        labels[i] = Label(mark.name, x, level, leader)
    return labels


def _beside(mark: Mark, taken: Sequence[Box], plot: Box) -> Label:
    """Put a label right of its mark, or left, above, below: the first that covers least."""
    width = _CHARACTER * len(mark.name)
    starts = [(mark.x + 11.0, mark.y + 4.0), (mark.x - 11.0 - width, mark.y + 4.0)]
    starts += [(mark.x - width / 2, mark.high - 8.0), (mark.x - width / 2, mark.low + 16.0)]
    starts += [(mark.x - width + 6.0, mark.low + 16.0)]

    def covered(label: Label) -> int:
        left, top, right, bottom = label.box
        inside = plot[0] <= left and plot[1] <= top and right <= plot[2] and bottom <= plot[3]
        return sum(overlap(label.box, box) for box in taken) + 100 * (not inside)

    return min((Label(mark.name, x, y) for x, y in starts), key=covered)


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share more than an edge.

    >>> overlap((0, 0, 2, 2), (1, 1, 3, 3)), overlap((0, 0, 2, 2), (2, 0, 3, 2))
    (True, False)
    """
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def latency_chart(rows: Sequence[Mapping[str, Any]], budget_ratio: float) -> Chart:
    """Draw predicted and measured latency relative to float, a line of the chart for each row."""
    ends = [budget_ratio, *(e for row in rows for e in row["ratio"].values())]
    ends += [row["predicted"] for row in rows if row["predicted"] is not None]
    low, high = 0.05 * math.floor(min(ends) / 0.05 - 0.4), 0.05 * math.ceil(max(ends) / 0.05 + 0.4)
    across = _scale(low, high, _LATENCY_LEFT, _LATENCY_RIGHT)
    marks = [
        Mark(
            row["name"],
            row["kind"],
            row["deployed"],
            across(row["ratio"]["mid"]),
            _TOP + _ROW * (i + 0.5),
            across(row["ratio"]["low"]),
            across(row["ratio"]["high"]),
            None if row["predicted"] is None else across(row["predicted"]),
            Label(f"{row['ratio']['mid']:.3f}x", _LATENCY_RIGHT + 8.0, _TOP + _ROW * (i + 0.5) + 4),
        )
        for i, row in enumerate(rows)
    ]
    bottom = _TOP + _ROW * len(rows)
    step = next(s for s in (0.05, 0.1, 0.2, 0.5, 1.0, math.inf) if high - low <= 6.5 * s)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [Tick(across(n * step), f"{n * step:.2f}") for n in range(first, last + 1)]
    return Chart(
        _LATENCY_RIGHT + 60.0,
        bottom + 44.0,
        (_LATENCY_LEFT, _TOP, _LATENCY_RIGHT, bottom),
        tuple(marks),
        tuple(ticks),
        (),
        across(budget_ratio),
    )
