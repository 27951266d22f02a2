"""What a device model has seen, and what lies outside of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.calibrated.items import FEATURES, Items
from costmodels.cells import BoolArray

_CHECKED = (
    "macs",
    "inputs",
    "outputs",
    "weights",
    "depth",
    "in_channels",
    "out_channels",
    "window",
)
_WHOLE, _WHOLE_CHECKED = "(network)", ("network", "passed", "work")
"""What all rows of a network have in common: see `costmodels.calibrated.items`."""
_SLACK = 1.5
"""Trees stay constant beyond what they saw, the roofline does not: a half beyond is harmless."""


@dataclass(frozen=True, eq=False)
class Domain:
    """Smallest and largest extents that were measured, by kind.

    Args:
        extents: kind to feature to (smallest, largest); under ``(network)`` that of whole networks.
    """

    extents: Mapping[str, Mapping[str, tuple[float, float]]]

    @classmethod
    def of(cls, items: Items) -> "Domain":
        """Return the domain of measured rows."""
        found: dict[str, dict[str, tuple[float, float]]] = {}
        for kind in sorted(set(items.kind.tolist())):
            rows = items.features[items.kind == kind]
            found[kind] = {
                name: (float(column.min()), float(column.max()))
                for name in _CHECKED
                for column in [rows[:, FEATURES.index(name)]]
            }
        columns = {name: items.column(name) for name in _WHOLE_CHECKED if len(items)}
        found[_WHOLE] = {n: (float(c.min()), float(c.max())) for n, c in columns.items()}
        return cls(found)

    def larger(self, items: Items) -> bool:
        """Return whether the rows' network is far larger than any that was measured."""
        return any(
            bool((items.column(name) > high * _SLACK).any())
            for name, (_, high) in self.extents.get(_WHOLE, {}).items()
        )

    def knows(self, items: Items) -> BoolArray:
        """Return which rows are of a kind that was measured, (N,)."""
        return np.isin(items.kind, list(self.extents))

    def outside(self, items: Items) -> BoolArray:
        """Return which rows are of no such kind, or far larger or smaller than any, (N,).

        All are if their network is far larger than any.
        """
        values = np.stack([items.column(name) for name in _CHECKED], axis=1)
        beyond = np.ones(len(items), np.bool_)
        for kind in set(items.kind.tolist()) & set(self.extents):
            here = items.kind == kind
            low, high = np.array([self.extents[kind][name] for name in _CHECKED]).T
            far = (values[here] * _SLACK < low) | (values[here] > high * _SLACK)
            beyond[here] = far.any(axis=1)
        return beyond | self.larger(items)

    def to_dict(self) -> dict[str, Any]:
        """Return the extents as JSON values."""
        return {
            kind: {name: list(pair) for name, pair in extents.items()}
            for kind, extents in self.extents.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Domain":
        """Read what `to_dict` wrote."""
        return cls(
            {
                kind: {name: (float(low), float(high)) for name, (low, high) in extents.items()}
                for kind, extents in values.items()
            }
        )
