"""What a cost table is made of: blocks of cells with what is known of each; a cost paid once."""

import enum
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.errors import TableError
from quantization.bits import BitWidths
from quantization.channel_groups import parse_bits

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.str_]


class Provenance(enum.StrEnum):
    """Where the value of a cell comes from."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    ANALYTICAL = "analytical"
    EXACT = "exact"
    ASSUMED = "assumed"
    ABSENT = "absent"


@dataclass(frozen=True)
class Cells:
    """One block of a table: values, and for each what is known about it.

    Args:
        value: the costs; infinite exactly where not supported.
        kernel: the executed kernel, such as ``QLinearConv``; empty where not known.
        provenance: names of `Provenance`; ``absent`` exactly where not supported.
        uncertainty: one standard deviation in the unit of the values, NaN in the cells where it
            is not known; None if it is known nowhere.

    All arrays have the same shape; the block keeps copies that cannot be written to.

    Raises:
        TableError: if shapes differ, a value is NaN, provenance contradicts support, or an
            uncertainty is negative or infinite.
    """

    value: FloatArray
    kernel: TextArray
    provenance: TextArray
    uncertainty: FloatArray | None = None

    def __post_init__(self) -> None:
        for name, kind in (("value", np.float64), ("kernel", np.str_), ("provenance", np.str_)):
            object.__setattr__(self, name, _frozen(getattr(self, name), kind))
        shape, spread = self.value.shape, self.uncertainty
        if not self.kernel.shape == self.provenance.shape == shape:
            raise TableError(f"the arrays of a block differ in shape, expected {shape}")
        if spread is not None:
            if np.shape(spread) != shape:
                raise TableError(f"the uncertainty has another shape than the values, {shape}")
            if np.isinf(spread).any() or (np.asarray(spread) < 0).any():
                raise TableError("an uncertainty is negative or infinite")
            known = None if np.isnan(spread).all() else _frozen(spread, np.float64)
            object.__setattr__(self, "uncertainty", known)
        if np.isnan(self.value).any() or np.isneginf(self.value).any():
            raise TableError("a cost is NaN or minus infinity")
        if not set(np.unique(self.provenance)) <= {p.value for p in Provenance}:
            raise TableError("unknown provenance in a table")
        if not np.array_equal(self.provenance == Provenance.ABSENT.value, ~self.supported):
            raise TableError("a cell is absent exactly where its value is infinite")

    @property
    def supported(self) -> BoolArray:
        """Where the backend can run, or price, the cell."""
        return np.isfinite(self.value)

    @classmethod
    def of(
        cls,
        value: FloatArray,
        provenance: Provenance | TextArray,
        *,
        kernel: str | TextArray = "",
        uncertainty: FloatArray | None = None,
    ) -> "Cells":
        """Build a block; a single provenance or kernel holds for all supported cells.

        What is given for cells that are not supported is ignored.
        """
        value = np.asarray(value, np.float64)
        supported = np.isfinite(value)

        def spread(given: str | TextArray, absent: str) -> TextArray:
            return np.where(supported, np.broadcast_to(np.asarray(given), value.shape), absent)

        text = provenance.value if isinstance(provenance, Provenance) else provenance
        known = None if uncertainty is None else np.where(supported, uncertainty, np.nan)
        return cls(value, spread(kernel, ""), spread(text, Provenance.ABSENT.value), known)


@dataclass(frozen=True, eq=False)
class Once:
    """A cost that a policy pays once if any of its layers is at one of some cells.

    ``value * max(cells[l, policy[l]] for every layer l)``, what operations research calls a fixed
    charge: a function that a file holds if anything calls it, a kernel library that is loaded.

    Args:
        value: the cost in the unit of the table, not negative.
        cells: (L, K) whether a layer at a choice brings it about; at least one does.

    Raises:
        TableError: if the value is negative or not finite, or no cell is marked.
    """

    value: float
    cells: BoolArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", _frozen(self.cells, np.bool_))
        object.__setattr__(self, "value", number("what is paid once", self.value))
        if not (np.isfinite(self.value) and self.value >= 0):
            raise TableError("what is paid once is negative or not finite")
        if not self.cells.any():
            raise TableError("what is paid once belongs to no cell; leave it out")

    def due(self, index: npt.NDArray[np.uint8]) -> BoolArray:
        """Return which policies pay it, (P,), for the choice of each layer, (P, L)."""
        due: BoolArray = np.any(self.cells[np.arange(len(self.cells)), index], axis=1)
        return due


def _frozen(
    given: npt.ArrayLike, kind: type[np.float64] | type[np.str_] | type[np.bool_]
) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = np.array(given, kind)
    array.flags.writeable = False
    return array


def scaled_cells(cells: Cells, factor: float) -> Cells:
    """Return a block with values and uncertainties multiplied by `factor`, which is positive."""
    spread = cells.uncertainty
    return Cells(
        cells.value * factor,
        cells.kernel,
        cells.provenance,
        None if spread is None else spread * factor,
    )


def select(cells: Cells, where: tuple[npt.NDArray[np.intp], ...]) -> Cells:
    """Return the cells at an index such as `numpy.ix_` makes."""
    spread = None if cells.uncertainty is None else cells.uncertainty[where]
    return Cells(cells.value[where], cells.kernel[where], cells.provenance[where], spread)


def cells_to_json(cells: Cells) -> dict[str, Any]:
    """Return a block as JSON values; null stands for unsupported and for not known."""
    spread = cells.uncertainty
    return {
        "value": _finite_or_none(cells.value),
        "kernel": cells.kernel.tolist(),
        "provenance": cells.provenance.tolist(),
        "uncertainty": None if spread is None else _finite_or_none(spread),
    }


def _finite_or_none(values: FloatArray) -> list[Any]:
    content = values.astype(object)
    content[~np.isfinite(values)] = None
    listed: list[Any] = content.tolist()
    return listed


def cells_from_json(name: str, content: Mapping[str, Any], shape: tuple[int, ...]) -> Cells:
    """Read what `cells_to_json` wrote for the block `name`, of this shape.

    Raises:
        TableError: if an entry is no number, or there are more or fewer than the block has cells.
        KeyError: if an array is missing.
    """
    spread = content["uncertainty"]
    return Cells(
        _numbers(f"{name}.value", content["value"], shape, np.inf),
        _texts(f"{name}.kernel", content["kernel"], shape),
        _texts(f"{name}.provenance", content["provenance"], shape),
        None if spread is None else _numbers(f"{name}.uncertainty", spread, shape, np.nan),
    )


def once_to_json(
    once: Once | None, layers: Sequence[str], choices: Sequence[BitWidths]
) -> dict[str, Any] | None:
    """Return what is paid once as JSON values, its cells by name."""
    if once is None:
        return None
    marked = [[layers[layer], str(choices[k])] for layer, k in np.argwhere(once.cells)]
    return {"value": once.value, "cells": marked}


def once_from_json(
    content: Mapping[str, Any] | None, layers: Sequence[str], choices: Sequence[BitWidths]
) -> Once | None:
    """Read what `once_to_json` wrote; None if nothing is paid once.

    Raises:
        TableError: if the value or the cells are none.
        KeyError: if one of both is missing.
        TypeError: if the content is nothing like it.
        ValueError: if a layer or choice is not in the table.
    """
    if content is None:
        return None
    cells = np.zeros((len(layers), len(choices)), np.bool_)
    for layer, choice in content["cells"]:
        cells[layers.index(layer), choices.index(parse_bits(choice))] = True
    return Once(content["value"], cells)


def _numbers(name: str, nested: Any, shape: tuple[int, ...], absent: float) -> FloatArray:
    """Return nested lists of numbers as an array; null is `absent`."""
    values = [number(name, absent if v is None else v) for v in _entries(name, nested, shape)]
    return np.array(values, np.float64).reshape(shape)


def _texts(name: str, nested: Any, shape: tuple[int, ...]) -> TextArray:
    entries = _entries(name, nested, shape)
    if not all(isinstance(entry, str) for entry in entries):
        raise TableError(f"{name} holds what is no text")
    return np.array(entries, np.str_).reshape(shape)


def _entries(name: str, nested: Any, shape: tuple[int, ...]) -> list[Any]:
    # An axis of length 0 disappears in nested lists, hence only the count is compared.
    entries: list[Any] = np.array(nested, object).ravel().tolist()
    if len(entries) != math.prod(shape):
        raise TableError(f"{name} holds {len(entries)} entries, its shape is {shape}")
    return entries


def number(name: str, value: Any) -> float:
    """Return a number as a float.

    Raises:
        TableError: if it is none, or too large to be one; names `name`.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TableError(f"{name}: {reprlib.repr(value)} is no number")
    try:
        return float(value)
    except OverflowError:
        raise TableError(f"{name}: a number is too large") from None
