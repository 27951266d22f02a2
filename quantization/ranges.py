"""Ranges of activations, collected from real inputs by ONNX Runtime's own calibrators."""

import contextlib
import hashlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from quantization.errors import DataError
from quantization.network import Network
from quantization.quantizer import AffineGrid, Float32Array, WeightMethod

RangeMethod = Literal["minmax", "percentile", "mse"]
RANGE_METHODS: tuple[RangeMethod, ...] = ("minmax", "percentile", "mse")
"""The first one is the default."""

Limits = tuple[float, float]
"""The lowest and the highest value."""

_PERCENTILE = 99.99
_BINS = 2048
_MSE_SHARES = np.linspace(0.4, 1.0, 31)


@dataclass(frozen=True)
class Ranges:
    """The range of each activation of one network, and how those of weights are chosen.

    Args:
        network: digest of the network.
        limits: tensor name to (low, high); every tensor that can be written as integers.
        method: how the limits were chosen.
        images: how many inputs they come from; 0 if they were made up.
        at_width: width to tensor to the limits that take the place of `limits` there.
        weights: (layer, width) to the method that takes the place of the exporter's there.
    """

    network: str
    limits: Mapping[str, Limits]
    method: str
    images: int
    at_width: Mapping[int, Mapping[str, Limits]] = field(default_factory=dict)
    weights: Mapping[tuple[str, int], WeightMethod] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of network, limits and methods of weights: what an exported file depends on."""
        parts: list[object] = [self.network, dict(self.limits)]
        if self.at_width or self.weights:
            widths = {str(width): dict(limits) for width, limits in self.at_width.items()}
            weights = sorted([*key, method] for key, method in self.weights.items())
            parts += [widths, weights]
        text = json.dumps(parts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def grid(self, tensor: str, bits: int) -> AffineGrid:
        """Return the affine grid of `tensor` with 2^bits levels.

        Raises:
            KeyError: if `tensor` is never written as integers.
        """
        limits = self.at_width[bits].get(tensor) if bits in self.at_width else None
        return AffineGrid.of_range(*(limits or self.limits[tensor]), bits)


def collect_ranges(
    network: Network, inputs: Float32Array, method: RangeMethod = "minmax", bits: int = 8
) -> Ranges:
    """Run the float network on `inputs` and choose each activation's range.

    Args:
        network: a network with one input.
        inputs: (N, ...) float32.
        method: ``minmax``; ``percentile`` (99.99 % of the values); ``mse`` (the share of the
            min-max range with the least squared error).
        bits: the width at which the squared error is the least.

    Returns:
        The ranges. What only moves values (reshape, max pooling) keeps the range of its input.

    Raises:
        DataError: if the inputs do not fit the network.
    """
    check_inputs(network, inputs)
    names = [t.name for t in network.tensors if t.name not in network.inner_tensors]
    with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
        found = _calibrate(network, inputs, method, bits, Path(folder))
    limits = {}
    for name in names:
        low, high = found.get(name) or _input_limits(network, name, inputs)
        limits[name] = (min(low, 0.0), max(high, 0.0))
    return Ranges(network.digest, _moved(network, limits), method, len(inputs))


def check_ranges(ranges: Ranges, network: Network) -> None:
    """Raise unless `ranges` were collected on `network`.

    Raises:
        DataError: if they belong to another network.
    """
    if ranges.network != network.digest:
        raise DataError("the ranges of activations belong to another network; collect them again")


def made_up_ranges(network: Network) -> Ranges:
    """Return [-4, 4] for all ([0, 6] behind a fused activation): to price by, not to score by."""
    fused = {glue.outputs[0] for glue in network.glue if glue.fused}
    limits = {
        t.name: ((0.0, 6.0) if t.name in fused else (-4.0, 4.0))
        for t in network.tensors
        if t.name not in network.inner_tensors
    }
    return Ranges(network.digest, _moved(network, limits), "made up", 0)


def _moved(network: Network, limits: dict[str, Limits]) -> dict[str, Limits]:
    """Give what only moves values the range of its input; runtimes want equal scales there."""
    for glue in network.glue:
        if glue.moves_only and glue.outputs:
            limits[glue.outputs[0]] = limits[glue.inputs[0]]
    return limits


def check_inputs(network: Network, inputs: Float32Array) -> None:
    """Raise unless `inputs` are finite float32 of the network's input shape.

    Raises:
        DataError: names both shapes.
    """
    if len(network.input_names) != 1:
        raise DataError(
            f"networks with one input are supported; this one has {network.input_names}"
        )
    expected = network.tensor_by_name[network.input_names[0]].shape
    if inputs.ndim != len(expected) or inputs.shape[1:] != expected[1:]:
        raise DataError(
            f"inputs have shape (N, {', '.join(map(str, inputs.shape[1:]))}), "
            f"the network takes (N, {', '.join(map(str, expected[1:]))})"
        )
    if inputs.dtype != np.float32 or not len(inputs) or not np.isfinite(inputs).all():
        raise DataError("inputs must be float32, finite and at least one")


def batches(network: Network, inputs: Float32Array) -> Iterator[Float32Array]:
    """Cut `inputs` into runs of the network's fixed batch; a short rest is filled with its end."""
    batch = network.tensor_by_name[network.input_names[0]].shape[0]
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        if len(part) < batch:
            part = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        yield part


def _calibrate(
    network: Network, inputs: Float32Array, method: RangeMethod, bits: int, folder: Path
) -> dict[str, Limits]:
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    path = folder / "float.onnx"
    onnx.save_model(network.model, path)
    kinds = {
        "minmax": (CalibrationMethod.MinMax, {}),
        "percentile": (
            CalibrationMethod.Percentile,
            {"percentile": _PERCENTILE, "num_bins": _BINS},
        ),
        "mse": (CalibrationMethod.MinMax, {}),
    }
    kind, options = kinds[method]
    calibrator = create_calibrator(
        path,
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=kind,
        extra_options=options,
    )
    feed = network.input_names[0]
    with contextlib.redirect_stdout(io.StringIO()):  # some calibrators print what they do
        calibrator.collect_data(_Reader([{feed: part} for part in batches(network, inputs)]))
        data = calibrator.compute_data()
    limits = {}
    for name, tensor in data.items():
        low, high = tensor.range_value[0], tensor.range_value[1]
        limits[name] = (float(np.min(low)), float(np.max(high)))
    return limits if method != "mse" else _least_squared_error(network, inputs, limits, bits)


class _Reader:
    """What the calibrators read from: `get_next` until it answers None."""

    def __init__(self, feeds: list[dict[str, Float32Array]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Float32Array] | None:
        return next(self._feeds, None)


def _least_squared_error(
    network: Network, inputs: Float32Array, limits: dict[str, Limits], bits: int
) -> dict[str, Limits]:
    """Shrink each min-max range to the share that leaves the least squared error at `bits`."""
    import onnxruntime as ort

    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    [feed] = network.input_names
    limits = {feed: (float(inputs.min()), float(inputs.max())), **limits}
    wanted = [name for name in limits if name in network.tensor_by_name and name != feed]
    held = {value.name for value in (*model.graph.output, *model.graph.input)}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in wanted
        if name not in held
    )
    names = [value.name for value in model.graph.output if value.name in limits]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    counts: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    for part in batches(network, inputs):
        values = session.run(names, {feed: part})
        for name, value in zip((feed, *names), (part, *values), strict=True):
            counted = np.histogram(value, _BINS, limits[name])[0].astype(np.float64)
            counts[name] = counts.get(name, np.zeros(_BINS)) + counted
    result = dict(limits)
    for name, histogram in counts.items():
        low, high = limits[name]
        if high > low:
            result[name] = _best_share(histogram, low, high, bits)
    return result


def _best_share(
    histogram: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float, bits: int
) -> Limits:
    edges = np.linspace(low, high, len(histogram) + 1)
    centers = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
    losses = []
    for share in _MSE_SHARES:
        grid = AffineGrid.of_range(low * share, high * share, bits)
        error = grid.dequantize(grid.quantize(centers)) - centers
        losses.append(float(histogram @ np.square(error, dtype=np.float64)))
    share = float(_MSE_SHARES[int(np.argmin(losses))])
    return low * share, high * share


def _input_limits(network: Network, name: str, inputs: Float32Array) -> Limits:
    if name in network.input_names:
        return float(inputs.min()), float(inputs.max())
    raise DataError(f"no range was found for tensor {name!r}")
