"""What was measured of one probe under one policy: the rows that a device model is fitted to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.calibrated.items import Items
from costmodels.cells import BoolArray, FloatArray

_LEAST_S = 1e-7


@dataclass(frozen=True, eq=False)
class Sample:
    """A probe under one policy.

    Args:
        network: which probe; samples of one are not independent.
        policy: name of the policy.
        items: (N) rows.
        integer: (N,) whether each reads integers.
        profiled_s: (N,) seconds of each row by the runtime's profiler, which adds its own time.
        nodes: (N,) operators that each row is in the optimized graph; 0 if it was taken over.
        total_s: seconds of a run that was not profiled.
    """

    network: str
    policy: str
    items: Items
    integer: BoolArray
    profiled_s: FloatArray
    nodes: npt.NDArray[np.int64]
    total_s: float

    @classmethod
    def of(cls, network: str, policy: str, rows: Mapping[str, Any], total_s: float) -> "Sample":
        """Read rows as JSON values: those of `Items`, with integer, seconds and nodes."""
        return cls(
            network,
            policy,
            Items.from_dict(rows),
            np.array(rows["integer"], np.bool_),
            np.array(rows["seconds"], np.float64),
            np.array(rows["nodes"], np.int64),
            total_s,
        )


@dataclass(frozen=True)
class Overhead:
    """How profiled times relate to undisturbed ones.

        sum of profiled_s = slope * (total_s - constant_s) + node_s * operators

    Args:
        node_s: what the profiler adds to each operator.
        slope: by how much operators are slower while profiled.
        constant_s: what a run takes besides its operators.
    """

    node_s: float
    slope: float
    constant_s: float

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Overhead":
        """Fit it by least relative squares, twice: the second time without the furthest tenth."""
        sums = np.array([sample.profiled_s.sum() for sample in samples])
        totals = np.array([sample.total_s for sample in samples])
        counts = np.array([sample.nodes.sum() for sample in samples], np.float64)
        columns = np.stack([counts, np.ones(len(sums)), totals], axis=1) / totals[:, None]
        target, kept = sums / totals, np.ones(len(sums), np.bool_)
        for _ in range(2):
            node, constant, slope = np.linalg.lstsq(columns[kept], target[kept], rcond=None)[0]
            off = np.abs(columns @ np.array([node, constant, slope]) - target)
            kept = off <= np.quantile(off, 0.9)
        slope = float(max(slope, 0.5))
        return cls(max(float(node), 0.0), slope, max(float(-constant) / slope, 0.0))

    def undisturbed_s(self, sample: Sample) -> FloatArray:
        """Return the seconds of each row without the profiler, (N,); 0 for what was taken over."""
        mended = (sample.profiled_s - self.node_s * sample.nodes) / self.slope
        return np.where(sample.nodes > 0, np.maximum(mended, _LEAST_S * sample.nodes), 0.0)
