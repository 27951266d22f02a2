"""What a file of published costs says, before a network is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from costmodels.errors import TableError
from costmodels.table import FloatArray, Provenance
from costmodels.units import METRIC_OF, Metric, Unit
from quantization.bits import BitWidths

T = TypeVar("T")


@dataclass(frozen=True)
class Stated:
    """What the caller says about a file; None leaves it to the file, or to its format.

    Args:
        unit: of the values in the file, with any prefix, such as ``cycles`` or ``us``.
        statistic: what the values are, such as ``median``.
        provenance: how the values came to be.
        batch: inputs that one value is for.
        device: what the costs are of, in words.

    Raises:
        TableError: if the provenance is that of cells without a value.
    """

    unit: str | None = None
    statistic: str | None = None
    provenance: Provenance | None = None
    batch: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.provenance is Provenance.ABSENT:
            raise TableError("costs that are there cannot have come from nowhere")


def agreed(what: str, in_file: T | None, stated: T | None) -> T | None:
    """Return what the file or the caller says, None if neither does.

    Raises:
        TableError: if they contradict each other.
    """
    if in_file is not None and stated is not None and in_file != stated:
        raise TableError(f"the {what} is {in_file} in the file and {stated} as given; which one?")
    return stated if in_file is None else in_file


@dataclass(frozen=True, eq=False)
class Count:
    """What a file says of each layer's size, to check that it is of the same network.

    Args:
        what: ``weights`` or ``multiply-accumulates`` (of one input).
        values: (R,) one a row, as they stand in the file.
        scales: what 1 in the file may stand for.
    """

    what: str
    values: FloatArray
    scales: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Published:
    """Costs of the layers of one network.

    Args:
        choices: bit-widths, K.
        value: (R, K) a row for each layer, in `unit`; infinite where the file has none.
        unit: without prefix.
        statistic: what the values are.
        provenance: how they came to be.
        names: of the layers, R; None where the file has them in order of execution.
        counts: sizes of the layers, where the file gives them.
        ties: rows of layers that must get equal bits.
        source: what else is known, JSON values.
        notes: what a reader must know.

    Raises:
        TableError: if the parts differ in length, a cost is not positive, or the unit is that of
            sizes, which only an exporter knows.
    """

    choices: tuple[BitWidths, ...]
    value: FloatArray
    unit: Unit
    statistic: str
    provenance: Provenance
    names: tuple[str, ...] | None = None
    counts: tuple[Count, ...] = ()
    ties: tuple[tuple[int, ...], ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if METRIC_OF[self.unit] is Metric.SIZE:
            raise TableError("sizes are not imported: size is the exported file's own")
        if not self.value.size:
            raise TableError("the file holds no costs at bit-widths of 2 to 8 or 16")
        rows = len(self.value)
        if self.value.shape != (rows, len(self.choices)):
            raise TableError(f"costs of shape {self.value.shape} at {len(self.choices)} widths")
        if self.names is not None and len(self.names) != rows:
            raise TableError(f"the file has {rows} rows and {len(self.names)} names")
        for count in self.counts:
            if len(count.values) != rows:
                raise TableError(
                    f"the file has {rows} layers with costs, and {count.what} of "
                    f"{len(count.values)}"
                )
        if not all(0 <= row < rows for tie in self.ties for row in tie):
            raise TableError(f"the file ties a layer that is none of its {rows}")
        # Only a file that names its layers can leave out a width of one of them.
        missing = np.isposinf(self.value) & (self.names is not None)
        for row, column in np.argwhere(~(np.isfinite(self.value) & (self.value > 0)) & ~missing):
            raise TableError(
                f"{self.row(row)} costs {self.value[row, column]:g} at {self.choices[column]}; "
                "a cost is a positive number"
            )

    def row(self, position: int) -> str:
        """Return how people call a row."""
        return f"row {position}" if self.names is None else f"layer {self.names[position]!r}"
