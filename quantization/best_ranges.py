"""Choose by measurement how each range is chosen: per layer, per tensor, per width."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from quantization.bits import BitWidths
from quantization.divergence import divergences
from quantization.execution import Executor, Values, fake_quantize
from quantization.export import Exporter
from quantization.network import Glue, Layer
from quantization.policy import Policy
from quantization.quantizer import WEIGHT_METHODS, Float32Array, WeightMethod
from quantization.range_choices import RangeChoices
from quantization.ranges import RANGE_METHODS, RangeMethod, Ranges, collect_ranges
from quantization.simulation import Simulation

IMAGES = 256
"""Images at most that divergences are measured on."""

_SURE = 2.0
"""Standard errors by which another method must be better than the default."""

FloatArray = npt.NDArray[np.float64]
_Method = TypeVar("_Method", bound=str)
Progress = Callable[[float, str], None]


def best_ranges(
    exporter: Exporter,
    inputs: Float32Array,
    choices: Sequence[BitWidths],
    progress: Progress = lambda _share, _what: None,
) -> RangeChoices:
    """Try every method on one layer's weights, or one activation, at a time.

    All else stays float; the mean Kullback-Leibler divergence of the class probabilities from the
    float network's decides. Weights are tried with the statistics of their layer corrected. A
    method other than the default is taken if it is better by two standard errors of the
    differences, image by image.

    Args:
        exporter: holds the network, default ranges and options.
        inputs: (N, ...) the images that ranges come from; never those that a search scores on.
        choices: bit-widths whose ranges are asked for.
        progress: called with the share done.

    Returns:
        Where a method other than the default is better.

    Raises:
        DataError: if the images do not fit the network.
    """
    few = inputs[:IMAGES]
    reads = sorted({c.activations for c in choices if not (c.half or c.activations == 32)})
    writes = sorted({c.weights for c in choices if not c.is_float})
    activations: dict[int, dict[str, RangeMethod]] = {}
    weights: dict[int, dict[str, WeightMethod]] = {}
    found = _activations(exporter, inputs, few, reads, lambda s, w: progress(0.6 * s, w))
    for (width, name), by_method in found.items():
        if (best := _best(RANGE_METHODS, by_method)) != RANGE_METHODS[0]:
            activations.setdefault(width, {})[name] = best
    progress(0.6, "ranges of weights")
    default = exporter.options.weight_method
    methods = (default, *(m for m in WEIGHT_METHODS if m != default))
    for (width, layer), of_layer in _weights(exporter, inputs, few, writes, methods).items():
        if (chosen := _best(methods, of_layer)) != default:
            weights.setdefault(width, {})[layer] = chosen
    progress(1.0, "ranges of weights")
    return RangeChoices(activations, weights)


def _best(methods: Sequence[_Method], divergences: Mapping[_Method, FloatArray]) -> _Method:
    """The method of the least mean; the first one unless another is better by `_SURE` errors."""
    first, best = methods[0], min(methods, key=lambda m: float(divergences[m].mean()))
    gain = divergences[first] - divergences[best]
    error = float(gain.std()) / max(len(gain) - 1, 1) ** 0.5
    return best if float(gain.mean()) > _SURE * error else first


@torch.inference_mode()
def _activations(
    exporter: Exporter,
    inputs: Float32Array,
    few: Float32Array,
    widths: Collection[int],
    progress: Progress,
) -> dict[tuple[int, str], dict[RangeMethod, FloatArray]]:
    """Divergences (N,) of each image with one tensor quantized, by width, tensor and method."""
    network, executor = exporter.network, Executor(exporter)
    order, plan = network.execution_order, executor.plan(Policy({}))
    tried: dict[tuple[int, RangeMethod], Ranges] = {}
    for method in RANGE_METHODS:
        shared = None if method == "mse" else collect_ranges(network, inputs, method)
        for width in widths:
            tried[width, method] = shared or collect_ranges(network, inputs, method, width)
    moved = {glue.outputs[0] for glue in network.glue if glue.moves_only and glue.outputs}
    stored = {t.name for t in network.tensors} - network.inner_tensors - moved
    values: Values = {network.input_names[0]: torch.from_numpy(np.ascontiguousarray(few))}
    made: dict[tuple[int, str], dict[RangeMethod, torch.Tensor]] = {}
    for position in range(len(order) + 1):
        outputs = network.input_names if position == 0 else _outputs(order[position - 1])
        for name, ((width, method), ranges) in product(outputs, tried.items()):
            if name not in stored or name not in values:
                continue
            changed = {**values, name: fake_quantize(values[name], ranges.grid(name, width))}
            for node in order[position:]:
                executor.step(node, plan, changed)
            made.setdefault((width, name), {})[method] = executor.output(plan, changed)
        if position < len(order):
            progress(position / len(order), f"ranges of activations: {order[position].name}")
            executor.step(order[position], plan, values)
    reference = executor.output(plan, values).numpy()
    return {
        key: {method: divergences(reference, logits.numpy()) for method, logits in of.items()}
        for key, of in made.items()
    }


def _outputs(node: Layer | Glue) -> Sequence[str]:
    return (node.output,) if isinstance(node, Layer) else node.outputs


def _weights(
    exporter: Exporter,
    inputs: Float32Array,
    few: Float32Array,
    widths: Collection[int],
    methods: Sequence[WeightMethod],
) -> dict[tuple[int, str], dict[WeightMethod, FloatArray]]:
    """Divergences (N,) of each image with one layer's weights quantized, by width and layer."""
    found: dict[tuple[int, str], dict[WeightMethod, FloatArray]] = {}
    choices = [BitWidths(width, 32) for width in widths]
    for method in methods:
        options = replace(exporter.options, weight_method=method)
        simulation = Simulation(Exporter(exporter.network, exporter.ranges, options), inputs)
        reference = simulation.logits(Policy({}), few)
        for layer, bits, logits in simulation.sweep(choices, few):
            if exporter.network.layer(layer).has_weights:
                key = bits.weights, layer
                found.setdefault(key, {})[method] = divergences(reference, logits)
    return found
