"""What a regression sees of a row: logarithms of physically meaningful numbers."""

from collections.abc import Sequence

import numpy as np

from costmodels.calibrated.items import FEATURES, Items
from costmodels.calibrated.limits import Limits
from costmodels.cells import BoolArray, FloatArray

NAMES = (*FEATURES, "bytes", "intensity", "compute_s", "memory_s", "integer")
"""Columns of `columns_of`, before those of the kinds."""


def columns_of(
    items: Items,
    integer: BoolArray,
    limits: Limits,
    kinds: Sequence[str],
    neighbours: Sequence[str],
) -> FloatArray:
    """Return the columns of a regression, (N, len(NAMES) + len(kinds) + 2 len(neighbours)).

    Counts as ``log2(1 + x)``, times as ``log2``; then a column for each kind, maker and reader, 1
    where the row has it.

    Args:
        items: (N) rows.
        integer: (N,) whether a row reads integers.
        limits: of the device.
        kinds: in the order of their columns.
        neighbours: makers and readers, likewise.
    """
    moved = limits.bytes_of(items, integer)
    compute, memory = limits.compute_s(items, integer), limits.memory_s(items, integer)
    numbers = np.column_stack(
        [
            np.log2(1 + items.features),
            np.log2(1 + moved),
            np.log2(1 + items.column("macs") / np.maximum(moved, 1.0)),
            np.log2(np.maximum(compute, 1e-10)),
            np.log2(np.maximum(memory, 1e-10)),
            integer.astype(np.float64),
        ]
    )
    listed = ((items.kind, kinds), (items.maker, neighbours), (items.reader, neighbours))
    marks = [text[:, None] == np.array(names, np.str_)[None, :] for text, names in listed]
    return np.column_stack([numbers, *marks])
