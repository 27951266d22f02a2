"""The layout of HAQ's look-up tables: ``.npy``, layers x weight bits x activation bits."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.errors import TableError
from costmodels.published.content import Published, Stated
from costmodels.table import Provenance
from costmodels.units import parse_unit
from quantization.bits import INTEGER_WIDTHS, BitWidths

UNIT = "cycles"
_WIDEST = 32


def read(content: bytes, stated: Stated) -> Published:
    """Read a table whose ``[i, w-1, a-1]`` is layer i at w bits of weights and a of activations.

    Columns are looked up by width. Widths that no `BitWidths` has, such as 1, are left out, and the
    source names them. Unless stated, the unit is cycles, and the values come from a simulator:
    Wang et al., CVPR 2019, used one of an accelerator.

    Raises:
        TableError: if this is no such array of positive numbers.
        CostError: if the stated unit is none.
    """
    array = _array(content)
    unit, factor = parse_unit(stated.unit or UNIT)
    widths = [[w for w in range(1, n + 1) if w in INTEGER_WIDTHS] for n in array.shape[1:]]
    left_out = [
        [f"{letter}{w}" for w in range(1, n + 1) if w not in INTEGER_WIDTHS]
        for letter, n in zip("wa", array.shape[1:], strict=True)
    ]
    choices = tuple(BitWidths(w, a) for w in widths[0] for a in widths[1])
    kept = array[:, [w - 1 for w in widths[0]]][:, :, [a - 1 for a in widths[1]]]
    return Published(
        choices,
        kept.reshape(len(array), len(choices)).astype(np.float64) * factor,
        unit,
        stated.statistic or "model",
        stated.provenance or Provenance.ANALYTICAL,
        source={"unit_in_file": stated.unit or UNIT, "left_out": [*left_out[0], *left_out[1]]},
    )


def _array(content: bytes) -> npt.NDArray[Any]:
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception:  # numpy's parser raises almost anything on damaged files
        raise TableError(
            "no .npy array of plain numbers (pickled objects are not loaded)"
        ) from None
    if not isinstance(array, np.ndarray):
        raise TableError("an archive of arrays; save the one array as .npy")
    if array.ndim != 3 or not array.size or max(array.shape[1:]) > _WIDEST:
        raise TableError(
            f"the array has shape {array.shape}; expected layers x weight bits x activation bits"
        )
    if array.dtype.kind not in "iuf":
        raise TableError(f"the array holds {array.dtype}, not plain numbers")
    return array
