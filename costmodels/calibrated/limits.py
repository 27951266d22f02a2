"""What a device can do at most: its roofline (Williams et al., Communications of the ACM 52, 2009).

    bound = max(macs / peak, bytes / bandwidth(bytes))

with a peak for floats and one for integers, and a bandwidth by working set: what fits a nearer
cache streams faster. Both were measured on the device itself (`hil.limits`); a peak is at least
what any timed operator reached.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from costmodels.calibrated.items import Items
from costmodels.cells import BoolArray, FloatArray
from costmodels.errors import CostError

_FLOAT_BYTES, _INTEGER_BYTES = 4.0, 1.0
_TOLD_S = 2e-5
"""Rows that take less are timed too roughly to raise a peak."""


@dataclass(frozen=True)
class Limits:
    """The roofline of a device.

    Args:
        float_peak: multiply-accumulates a second on float32.
        integer_peak: the same on 8-bit integers.
        bandwidth: (working set in bytes, bytes a second), by ascending working set.

    Raises:
        CostError: if a number is not positive and finite, or the working sets do not ascend.
    """

    float_peak: float
    integer_peak: float
    bandwidth: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        numbers = [
            self.float_peak,
            self.integer_peak,
            *(v for pair in self.bandwidth for v in pair),
        ]
        sets = [size for size, _ in self.bandwidth]
        if not self.bandwidth or not all(0 < number < np.inf for number in numbers):
            raise CostError("a device's limits are positive numbers")
        if sets != sorted(set(sets)):
            raise CostError("the working sets of a bandwidth ascend")

    def raised_by(self, items: Items, integer: BoolArray, seconds: FloatArray) -> "Limits":
        """Return limits with peaks that none of the rows exceeds.

        One product that was timed in a slow moment understates a peak, by a fifth in one
        calibration; then most convolutions seem to be at their bound.

        Args:
            items: (N) rows.
            integer: (N,) whether a row reads integers.
            seconds: (N,) that it took.
        """
        told = seconds > _TOLD_S
        rate = items.column("macs")[told] / seconds[told]
        fastest = {reads: float(rate[integer[told] == reads].max(initial=0.0)) for reads in (0, 1)}
        return replace(
            self,
            float_peak=max(self.float_peak, fastest[0]),
            integer_peak=max(self.integer_peak, fastest[1]),
        )

    def bytes_of(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the bytes that each row reads and writes, (N,): every operand once.

        Args:
            items: (N) rows.
            integer: (N,) whether a row reads integers. A conversion reads one format and writes
                the other.
        """
        width = np.where(integer, _INTEGER_BYTES, _FLOAT_BYTES)
        between = np.isin(items.kind, ("quantize", "dequantize"))
        moved = items.column("inputs") + items.column("outputs") + items.column("weights")
        crossed = items.column("inputs") * (_FLOAT_BYTES + _INTEGER_BYTES)
        return np.where(between, crossed, moved * width)

    def bandwidth_at(self, working_set: FloatArray) -> FloatArray:
        """Return bytes a second, (N,), for working sets in bytes, (N,): a line between logarithms.

        >>> Limits(1e11, 2e11, ((1e3, 1e11), (1e7, 1e9))).bandwidth_at(np.array([1e3, 1e5, 1e9]))
        array([1.e+11, 1.e+10, 1.e+09])
        """
        sets, rates = np.log(np.array(self.bandwidth)).T
        return np.asarray(np.exp(np.interp(np.log(np.maximum(working_set, 1.0)), sets, rates)))

    def compute_s(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the least seconds that the multiply-accumulates take, (N,)."""
        return items.column("macs") / np.where(integer, self.integer_peak, self.float_peak)

    def memory_s(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the least seconds that the bytes take, (N,)."""
        moved = self.bytes_of(items, integer)
        return moved / self.bandwidth_at(moved)

    def bound_s(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the least seconds that each row takes, (N,)."""
        return np.maximum(self.compute_s(items, integer), self.memory_s(items, integer))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "float_peak": self.float_peak,
            "integer_peak": self.integer_peak,
            "bandwidth": [list(pair) for pair in self.bandwidth],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Limits":
        """Read what `to_dict` wrote.

        Raises:
            CostError: if a number is not positive and finite.
        """
        pairs = tuple((float(size), float(rate)) for size, rate in values["bandwidth"])
        return cls(float(values["float_peak"]), float(values["integer_peak"]), pairs)
