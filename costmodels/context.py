"""What neighbouring layers change in a cost beyond the cells of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.cells import number
from costmodels.errors import TableError
from quantization.bits import BitWidths, Format

FloatArray = npt.NDArray[np.float64]
GroupArray = npt.NDArray[np.int16]

ORDER = 3
"""How many layers a group has at most."""

_NONE = -1
_MOST = int(np.iinfo(np.int16).max)
_BLOCK = 1024
"""Policies at a time: the products of a block stay in the cache."""


@dataclass(frozen=True, eq=False)
class Context:
    """A correction of a table's cost by groups of layers that are near each other.

        correction(policy) = sum_k value_k * prod over layers i of group k of s_i(policy)

    where s_i is -1 if layer i reads float32 and +1 if it reads the other format of the device,
    integers or half precision; an empty group makes a constant.

    Args:
        groups: (K, 3) positions of layers, -1 where a group has fewer.
        values: (K,) in the unit of the table; may be negative.

    Raises:
        TableError: if shapes differ, a position is no whole number from -1 on, or a value is not
            finite.
    """

    groups: GroupArray
    values: FloatArray

    def __post_init__(self) -> None:
        # Whatever kind is given is looked at before it is converted, which wraps and truncates.
        groups, values = np.asarray(self.groups), np.array(self.values, np.float64)
        if values.ndim != 1 or groups.shape != (len(values), ORDER):
            raise TableError(
                f"a context has one value for each group of {ORDER}; "
                f"the shapes are {values.shape} and {groups.shape}"
            )
        if groups.dtype.kind not in "iu":
            raise TableError("a context holds a position that is no whole number")
        if (groups < _NONE).any() or (groups > _MOST).any():
            raise TableError(f"a context holds a position that is not one from {_NONE} to {_MOST}")
        if not np.isfinite(values).all():
            raise TableError("a context holds a value that is not finite")
        object.__setattr__(self, "groups", groups.astype(np.int16))
        object.__setattr__(self, "values", values)

    def check(self, layers: int) -> None:
        """Raise unless every group is one of so many layers.

        Raises:
            TableError: if not.
        """
        if (self.groups >= layers).any():
            raise TableError(f"the context names a layer beyond the {layers} of the table")

    def scaled(self, factor: float) -> "Context":
        """Return the context with every value multiplied by `factor`."""
        return Context(self.groups, self.values * factor)

    def correction(self, index: npt.NDArray[np.uint8], choices: Sequence[BitWidths]) -> FloatArray:
        """Return what to add to the table's cost of each policy, (P,).

        Args:
            index: (P, L) indices into `choices`.
            choices: bit-widths.
        """
        integer = np.array([bits.reads is not Format.FLOAT32 for bits in choices])
        parts = [
            products(self.groups, integer[index[start : start + _BLOCK]]) @ self.values
            for start in range(0, len(index), _BLOCK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"groups": self.groups.tolist(), "values": self.values.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> "Context | None":
        """Read what `to_json` wrote; None for None.

        Raises:
            TableError: if shapes, positions or values are wrong.
            KeyError: if groups or values are missing.
            TypeError: if the content is nothing like it.
            ValueError: if groups differ in length.
        """
        if content is None:
            return None
        values = [number("context.values", value) for value in content["values"]]
        # nested lists without an entry have lost their second axis and their kind
        groups = np.array(content["groups"] or np.zeros((0, ORDER), np.int16))
        return cls(groups, np.array(values, np.float64))


def products(groups: GroupArray, integer: npt.NDArray[np.bool_]) -> FloatArray:
    """Return the product of signs of each group, (P, K), see `Context`.

    Args:
        groups: (K, 3) positions of layers, -1 for none.
        integer: (P, L) whether a layer reads integers.
    """
    # The last column, which -1 stands for, is that of no layer.
    signs = np.ones((len(integer), integer.shape[1] + 1), np.int8)
    signs[:, :-1] = np.where(integer, 1, -1)
    first, second, third = (signs[:, groups[:, i]] for i in range(ORDER))
    return (first * second * third).astype(np.float64)
