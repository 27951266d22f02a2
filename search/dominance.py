"""Which points no other dominates, and the volume that a set of points dominates."""

import numpy as np

from costmodels.table import BoolArray, FloatArray
from quantization.errors import QuantmeterError

_BLOCK = 256
"""Points that are compared with all others at a time."""


def non_dominated(values: FloatArray) -> BoolArray:
    """Return which points no other point dominates.

    A point dominates another if it is nowhere worse and somewhere better (Pareto, 1906). Of equal
    points the first is kept.

    Args:
        values: (N, M), each of M objectives to be small.

    Returns:
        (N,) true for the Pareto front.

    >>> non_dominated(np.array([[1.0, 4.0], [2.0, 2.0], [2.0, 3.0], [1.0, 4.0]])).tolist()
    [True, True, False, False]
    """
    kept = np.ones(len(values), bool)
    order = np.arange(len(values))
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK, None]
        nowhere_worse = (values[None] <= block).all(2)
        better = (values[None] < block).any(2)
        earlier = order[None] < order[start : start + _BLOCK, None]
        # nowhere worse and nowhere better: equal
        kept[start : start + _BLOCK] = ~(nowhere_worse & (better | earlier)).any(1)
    return kept


def hypervolume(values: FloatArray, reference: FloatArray) -> float:
    """Return the volume of what the points dominate up to a reference point, exactly.

    The union of the boxes between each point and the reference (Zitzler and Thiele, PPSN V, 1998),
    cut into slices along the last objective, each a volume of one objective less (While, Hingston,
    Barone and Huband, IEEE Transactions on Evolutionary Computation 10, 2006). N points of M
    objectives take O(N^(M-1)) steps.

    Args:
        values: (N, M), each of M objectives to be small; points that do not dominate the reference
            count nothing.
        reference: (M,) the worst of each objective.

    Returns:
        The volume, in the product of the objectives' units; 0 for no point.

    Raises:
        QuantmeterError: if the shapes do not fit, or the reference is not finite.

    >>> hypervolume(np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([4.0, 4.0]))
    7.0
    """
    if values.ndim != 2 or reference.shape != (values.shape[1],) or not reference.size:
        raise QuantmeterError(
            f"points of shape {values.shape} and a reference of shape {reference.shape} do not fit"
        )
    if not np.isfinite(reference).all():
        raise QuantmeterError("the reference point of a hypervolume is finite")
    return _volume(values[(values < reference).all(1)], reference)


def _volume(values: FloatArray, reference: FloatArray) -> float:
    if not len(values):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - values.min())
    ordered = values[non_dominated(values)]
    ordered = ordered[np.argsort(ordered[:, -1], kind="stable")]
    if len(reference) == 2:  # a staircase: the first objective falls as the second rises
        depth = np.diff(ordered[:, 1], append=reference[1])
        return float(((reference[0] - ordered[:, 0]) * depth).sum())
    depths = np.diff(ordered[:, -1], append=reference[-1])
    return sum(
        float(depth) * _volume(ordered[:count, :-1], reference[:-1])
        for count, depth in enumerate(depths, start=1)
        if depth > 0
    )
