"""Costs as CSV, a row for each layer and bit-width: for any table that is found anywhere."""

import csv
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from costmodels.errors import TableError
from costmodels.published.content import Published, Stated, agreed
from costmodels.table import Provenance
from costmodels.units import METRIC_OF, parse_unit
from quantization.bits import BitWidths
from quantization.errors import BitWidthError

_COLUMNS = ["layer", "choice", "value"]
_HEAD = re.compile(r"#\s*(metric|unit|statistic|provenance|batch|device)\s*[:=]\s*(.*)")


def read(content: bytes, stated: Stated) -> Published:
    """Read costs by the name of the layer.

    Lines ``# NAME: VALUE`` may say unit, statistic, provenance, metric, batch and device; other
    lines that begin with # are remarks. Then come the header ``layer,choice,value`` and the rows;
    what has no row is not supported. ``quantmeter import csv --help`` shows an example.

    Raises:
        TableError: names the line that is not as described, or what neither file nor caller says.
        CostError: if the unit is none.
    """
    try:
        text = content.decode("utf-8-sig")  # spreadsheets begin a file with a byte-order mark
    except UnicodeDecodeError:
        raise TableError("no text in UTF-8") from None
    lines = text.splitlines()
    comments = 0
    while comments < len(lines) and (not lines[comments].strip() or lines[comments][0] == "#"):
        comments += 1
    if lines and lines[0].startswith("# {"):
        raise TableError("what `CostTable.to_csv` wrote is a table already: --cost table:FILE.csv")
    head, remarks = _head(lines[:comments])
    cells = _cells(lines[comments:], comments + 1)
    layers = tuple(dict.fromkeys(layer for layer, _ in cells))
    choices = tuple(sorted({bits for _, bits in cells}))
    value = np.full((len(layers), len(choices)), np.inf)
    for (layer, bits), cost in cells.items():
        value[layers.index(layer), choices.index(bits)] = cost
    given_unit = _needed("unit", head.get("unit"), stated.unit)
    unit, factor = parse_unit(given_unit)
    if "metric" in head and head["metric"] != METRIC_OF[unit].value:
        raise TableError(f"the metric is {head['metric']}, which has no unit {given_unit}")
    known = agreed("provenance", _provenance(head.get("provenance")), stated.provenance)
    return Published(
        choices,
        value * factor,
        unit,
        _needed("statistic", head.get("statistic"), stated.statistic),
        known or Provenance.ASSUMED,
        names=layers,
        source={
            "unit_in_file": given_unit,
            "device": agreed("device", head.get("device"), stated.device),
            "batch": agreed("batch", _batch(head.get("batch")), stated.batch),
            "remarks": remarks,
        },
        notes=() if known else ("nobody says how the costs came to be: they count as assumed",),
    )


def _head(lines: Sequence[str]) -> tuple[Mapping[str, str], list[str]]:
    """Return what the lines before the header say by name, and what else stands there."""
    head: dict[str, str] = {}
    remarks = []
    for number, line in enumerate(lines, 1):
        match = _HEAD.fullmatch(line.rstrip(" \t,"))  # spreadsheets fill up short lines
        if match is None:
            remarks.append(line.strip("# \t,"))
        elif match[1] in head:
            raise TableError(f"line {number} gives the {match[1]} once more; a file has one")
        else:
            head[match[1]] = match[2]
    return head, [remark for remark in remarks if remark]


def _cells(lines: Sequence[str], first: int) -> Mapping[tuple[str, BitWidths], float]:
    """Return the cost of each layer at each choice; `first` is the number of the header's line."""
    cells: dict[tuple[str, BitWidths], float] = {}
    try:
        rows = list(csv.reader(lines))
    except csv.Error as error:
        raise TableError(f"no CSV: {error}") from None
    if not rows or list(map(str.strip, rows[0])) != _COLUMNS:
        found = ",".join(rows[0]) if rows else "nothing"
        raise TableError(f"line {first}: {','.join(_COLUMNS)} expected, not {found}")
    for number, row in enumerate(rows[1:], first + 1):
        where = f"line {number}"
        if not any(map(str.strip, row)):
            continue
        if len(row) != len(_COLUMNS):
            raise TableError(f"{where}: {len(row)} columns, expected {len(_COLUMNS)}")
        layer, choice, value = map(str.strip, row)
        try:
            key = layer, BitWidths.parse(choice)
            cost = float(value)
        except BitWidthError as error:
            raise TableError(f"{where}: {error}") from None
        except ValueError:
            raise TableError(f"{where}: {value!r} is no number") from None
        if not math.isfinite(cost):
            raise TableError(f"{where}: {value} is no cost; leave out what is not supported")
        if key in cells:
            raise TableError(f"{where}: another cost of {layer!r} at {choice}")
        cells[key] = cost
    return cells


def _needed(what: str, in_file: str | None, stated: str | None) -> str:
    found = agreed(what, in_file, stated)
    if not found:
        raise TableError(
            f"the file does not say its {what}: add a line '# {what}: ...' or --{what}"
        )
    return found


def _provenance(text: str | None) -> Provenance | None:
    known = [p.value for p in Provenance if p is not Provenance.ABSENT]
    if text is not None and text not in known:
        raise TableError(f"no provenance {text!r}; write one of {', '.join(known)}")
    return None if text is None else Provenance(text)


def _batch(text: str | None) -> int | None:
    if text is not None and (not text.isdecimal() or int(text) < 1):
        raise TableError(f"the batch {text!r} is no positive number")
    return None if text is None else int(text)
