"""Cost tables as data frames and CSV, one row for each cell: for people and their spreadsheets."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from costmodels.cells import Cells, Once, Provenance
from costmodels.context import Context
from costmodels.errors import TableError
from costmodels.units import Metric, Unit
from quantization.bits import BitWidths, formats_of
from quantization.channel_groups import parse_bits

_BLOCKS = ("unary", "glue", "conversion")
_COLUMNS = ["block", "name", "given", "target", "value", "kernel", "provenance", "uncertainty"]


def to_frame(table: Any) -> pd.DataFrame:
    """Return one row per cell: block, name, choice or formats, value and what is known of it.

    Columns: ``block`` (constant, once, unary, glue, conversion), ``name`` (layer, glue operator or
    tensor), ``given`` (choice, or format that is read or written), ``target`` (format a
    conversion leads to), ``value``, ``kernel``, ``provenance``, ``uncertainty``. Each
    cell that brings about what is paid once is a row with that cost. What is one for the whole
    table is in ``DataFrame.attrs``; measurements are left out.

    Args:
        table: a `costmodels.table.CostTable`, whose module imports this one.
    """
    labels = [f.label for f in table.formats]
    axes = {
        "unary": (table.layers, [str(c) for c in table.choices]),
        "glue": (table.glue_names, labels),
        "conversion": (table.tensors, labels, labels),
    }
    rows: list[tuple[object, ...]] = [
        ("constant", "", "", "", table.constant, "", _provenance(table), np.nan)
    ]
    if table.once is not None:
        for layer, choice in np.argwhere(table.once.cells):
            keys = [table.layers[layer], str(table.choices[choice]), ""]
            rows.append(("once", *keys, table.once.value, "", _provenance(table), np.nan))
    for block, names in axes.items():
        cells: Cells = getattr(table, block)
        for where in np.ndindex(*cells.value.shape):
            keys = [axis[i] for axis, i in zip(names, where, strict=True)]
            spread = np.nan if cells.uncertainty is None else cells.uncertainty[where]
            known = (cells.value[where], cells.kernel[where], cells.provenance[where], spread)
            rows.append((block, *keys, *([""] * (3 - len(keys))), *known))
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame.attrs = {
        "metric": table.metric.value,
        "unit": table.unit.value,
        "statistic": table.statistic,
        "network": table.network,
        "source": dict(table.source),
        "context": None if table.context is None else table.context.to_json(),
    }
    return frame


def _provenance(table: Any) -> str:
    """Return where what is paid by the whole network comes from: as the layers' costs do."""
    known = table.unary.provenance[table.unary.supported]
    return str(known[0]) if known.size else Provenance.ASSUMED.value


def fields_of_frame(frame: pd.DataFrame, attrs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields of the table that `to_frame` wrote, or of the same columns read from CSV.

    Args:
        frame: columns as in `to_frame`; names and choices take the order in which they first
            occur in their block.
        attrs: what is one for the whole table; defaults to ``frame.attrs``.

    Raises:
        TableError: if columns, cells or attributes are missing or hold what they must not.
    """
    about: Mapping[Any, Any] = attrs if attrs is not None else frame.attrs
    if missing := [c for c in _COLUMNS if c not in frame.columns]:
        raise TableError(f"columns missing: {', '.join(missing)}")
    if missing := [k for k in ("metric", "unit", "statistic", "network") if k not in about]:
        raise TableError(f"attributes missing: {', '.join(missing)}")
    try:
        return _fields(frame, about)
    except TableError:
        raise
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise TableError(
            f"the cost table is damaged: {error}; restore it or make the table anew"
        ) from None


def _fields(frame: pd.DataFrame, about: Mapping[str, Any]) -> dict[str, Any]:
    by_block = {block: frame[frame["block"] == block] for block in ("constant", "once", *_BLOCKS)}
    layers = list(dict.fromkeys(by_block["unary"]["name"]))
    choices = tuple(parse_bits(c) for c in dict.fromkeys(by_block["unary"]["given"]))
    labels = [f.label for f in formats_of(choices)]
    glue_names = list(dict.fromkeys(by_block["glue"]["name"]))
    tensors = list(dict.fromkeys(by_block["conversion"]["name"]))
    if len(by_block["constant"]) != 1:
        raise TableError("exactly one row holds the constant")
    return {
        "metric": Metric(about["metric"]),
        "unit": Unit(about["unit"]),
        "statistic": about["statistic"],
        "network": about["network"],
        "layers": tuple(layers),
        "choices": choices,
        "glue_names": tuple(glue_names),
        "tensors": tuple(tensors),
        "unary": _cells(by_block["unary"], layers, [str(c) for c in choices]),
        "glue": _cells(by_block["glue"], glue_names, labels),
        "conversion": _cells(by_block["conversion"], tensors, labels, labels),
        "constant": float(by_block["constant"]["value"].iloc[0]),
        "once": _once(by_block["once"], layers, choices),
        "source": about.get("source", {}),
        "context": Context.from_json(about.get("context")),
    }


def _once(rows: pd.DataFrame, layers: list[str], choices: tuple[BitWidths, ...]) -> Once | None:
    if rows.empty:
        return None
    values = set(rows["value"].astype(float))
    if len(values) != 1:
        raise TableError("what is paid once has one cost, the same in each of its rows")
    cells = np.zeros((len(layers), len(choices)), np.bool_)
    for layer, choice in zip(rows["name"], rows["given"], strict=True):
        cells[layers.index(layer), choices.index(parse_bits(choice))] = True
    return Once(values.pop(), cells)


def to_csv(table: Any) -> str:
    """Return `to_frame` as CSV behind one comment line that holds the attributes as JSON."""
    frame = to_frame(table)
    about = json.dumps(frame.attrs, allow_nan=False)
    return f"# {about}\n" + frame.to_csv(index=False, lineterminator="\n")


def fields_of_csv(text: str) -> dict[str, Any]:
    """Return the fields of the table that `to_csv` wrote.

    Raises:
        TableError: if the first line or the columns are not as `to_csv` writes them.
    """
    first, _, rest = text.partition("\n")
    try:
        attrs = json.loads(first.removeprefix("#"))
    except json.JSONDecodeError:
        attrs = None
    if not isinstance(attrs, dict):
        raise TableError("the first line of the CSV must be '# {JSON attributes}'")
    try:
        frame = pd.read_csv(io.StringIO(rest), dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise TableError(f"the table is no CSV: {' '.join(str(error).split())}") from None
    if "uncertainty" in frame.columns:
        frame["uncertainty"] = frame["uncertainty"].replace("", "nan")
    return fields_of_frame(frame, attrs)


def _cells(rows: pd.DataFrame, *axes: Sequence[str]) -> Cells:
    """Build a block from the rows of a frame, in any order.

    Args:
        rows: columns ``name``, ``given``, ``target``, ``value``, ``kernel``, ``provenance`` and
            ``uncertainty``.
        axes: the names along each axis of the block.

    Raises:
        TableError: unless each cell stands in exactly one row.
    """
    shape = tuple(len(axis) for axis in axes)
    keys = rows[["name", "given", "target"][: len(axes)]]
    positions = [{name: i for i, name in enumerate(axis)} for axis in axes]
    try:
        where = tuple(
            np.array([position[k] for k in keys.iloc[:, i]], np.intp)
            for i, position in enumerate(positions)
        )
    except KeyError as error:
        raise TableError(f"a row names {error.args[0]!r}, which its block does not have") from None
    seen = np.zeros(shape, np.int64)
    np.add.at(seen, where, 1)
    if (seen != 1).any():
        raise TableError("each cell must stand in exactly one row")
    value = np.empty(shape)
    kernel, provenance = (np.empty(shape, object) for _ in range(2))
    uncertainty = np.empty(shape)
    value[where] = rows["value"].astype(float)
    kernel[where] = rows["kernel"]
    provenance[where] = rows["provenance"]
    uncertainty[where] = rows["uncertainty"].astype(float)
    return Cells(value, kernel.astype(np.str_), provenance.astype(np.str_), uncertainty)
