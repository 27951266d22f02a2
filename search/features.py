"""What the agent knows about each decision before any choice is made."""

import math

import numpy as np
import numpy.typing as npt

from costmodels.table import BoolArray, FloatArray
from quantization.network import Layer
from search.problem import Problem

Float32Array = npt.NDArray[np.float32]

_NAMES = (
    "relative depth",
    "log input channels",
    "log output channels",
    "log kernel area",
    "stride",
    "depthwise",
    "log macs",
    "log weights",
)


def feature_names(problem: Problem) -> tuple[str, ...]:
    """Return the names of the columns of `static_features`."""
    return _NAMES + tuple(f"log1p loss at {choice}" for choice in problem.choices)


def static_features(problem: Problem) -> Float32Array:
    """Return the features (G, 8 + K) of each decision, standardised over the decisions.

    A tie is described by its first layer, with the macs and weights of all. Columns that do not
    vary, and losses of choices that are not allowed, are 0.
    """
    layers = problem.network.layers
    shape = np.array(
        [
            _describe(layers[group[0]], [layers[i] for i in group], group[0] / len(layers))
            for group in problem.groups
        ]
    )
    allowed = problem.allowed_decisions
    loss = np.log1p(np.where(allowed, problem.decision_loss, 0.0))
    columns = [_standardised(shape, np.ones(shape.shape, bool)), _standardised(loss, allowed)]
    return np.concatenate(columns, axis=1).astype(np.float32)


def _describe(first: Layer, layers: list[Layer], depth: float) -> list[float]:
    return [
        depth,
        math.log(first.in_channels),
        math.log(first.out_channels),
        math.log(math.prod(first.kernel)),
        float(first.stride[0]) if first.stride else 1.0,
        float(first.is_depthwise),
        math.log(sum(layer.macs for layer in layers)),
        math.log1p(sum(layer.weight_count for layer in layers)),
    ]


def _standardised(values: FloatArray, seen: BoolArray) -> FloatArray:
    """Shift and scale each column by mean and deviation of its seen cells; the others become 0."""
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, values, 0.0).sum(0) / count
    centred = np.where(seen, values - mean, 0.0)
    deviation = np.sqrt((centred**2).sum(0) / count)
    standard: FloatArray = centred / np.where(deviation > 1e-12, deviation, 1.0)
    return standard
