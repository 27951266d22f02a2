"""What quantizing one layer costs, from the loss's curvature at the float network.

To second order the loss grows by ``1/2 e' H e`` where weights and activations move by e. Nothing is
run quantized: e is the error of the layer's weights (with the gain that corrects its statistics)
and that of what it reads.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from costmodels.table import FloatArray
from quantization.bits import BitWidths, Format
from quantization.deployment import Correction
from quantization.gradients import FloatNetwork, hessian_traces, squared_gradients
from quantization.network import Layer
from quantization.quantizer import Float32Array
from quantization.simulation import Simulation
from search.oracle import Labels

IMAGES = 128
"""Images at most that gradients are taken on."""

_Weighted = Callable[[str, Float32Array], float]
"""What an error costs: of a layer's weights, or of a tensor on all images."""


def fisher(
    simulation: Simulation, choices: Sequence[BitWidths], images: Float32Array, seed: int
) -> FloatArray:
    """Return ``1/2 sum F e^2``, (L, K), F the diagonal of the Fisher information, in nats.

    The second-order estimate of the Kullback-Leibler divergence from the float network, without
    terms between weights; see `quantization.gradients.squared_gradients`.

    Args:
        simulation: of the network.
        choices: K bit-widths.
        images: (N, ...); the first `IMAGES` are used.
        seed: of the classes that gradients are taken of.
    """
    images = images[:IMAGES]
    network = FloatNetwork(simulation.exporter)
    of_weights, of_inputs = squared_gradients(network, images, seed)
    squared = {name: found.numpy() for name, found in of_inputs.items()}
    return _costs(
        simulation,
        choices,
        images,
        network,
        lambda layer, error: 0.5 * float((of_weights[layer] * np.square(error)).sum()),
        lambda name, error: 0.5 * float((squared[name] * np.square(error)).sum()) / len(images),
    )


def hessian(
    simulation: Simulation,
    choices: Sequence[BitWidths],
    images: Float32Array,
    labels: Labels,
    seed: int,
) -> FloatArray:
    """Return ``1/2 (Tr H / n) |e|^2``, (L, K), H the Hessian of the cross-entropy, in nats.

    As HAWQ-V2 (Z. Dong et al., NeurIPS 2020) weighs layers, whose figure is twice this; the trace
    is Hutchinson's estimate, and n the number of weights, or of a tensor's elements in one image. A
    trace that is estimated below 0 counts as 0.

    Args:
        simulation: of the network.
        choices: K bit-widths.
        images: (N, ...); the first `IMAGES` are used.
        labels: (N,) right classes.
        seed: of the estimate.
    """
    images, labels = images[:IMAGES], labels[:IMAGES]
    network = FloatNetwork(simulation.exporter)
    of_weights, of_inputs = hessian_traces(network, images, labels, seed)

    def mean(trace: float, error: Float32Array) -> float:
        return 0.5 * max(trace, 0.0) * float(np.square(error, dtype=np.float64).mean())

    return _costs(
        simulation,
        choices,
        images,
        network,
        lambda layer, error: mean(of_weights[layer], error),
        lambda name, error: mean(of_inputs[name], error),
    )


def _costs(
    simulation: Simulation,
    choices: Sequence[BitWidths],
    images: Float32Array,
    network: FloatNetwork,
    of_weights: _Weighted,
    of_input: _Weighted,
) -> FloatArray:
    corrections = simulation.correct_alone(choices)
    with torch.no_grad():
        values = {name: value.numpy() for name, value in network.run(images)[1].items()}
    layers = simulation.network.layers
    costs = np.zeros((len(layers), len(choices)))
    read: dict[tuple[str, Format], float] = {}
    for row, layer in enumerate(layers):
        for column, bits in enumerate(choices):
            if layer.has_weights and bits.weights < 32:
                correction = corrections.get((layer.name, bits))
                error = weight_error(simulation, network, layer, bits, correction)
                costs[row, column] += of_weights(layer.name, error)
            for name in layer.inputs:
                key = name, bits.reads
                if key not in read:
                    read[key] = of_input(name, _input_error(simulation, *key, values[name]))
                costs[row, column] += read[key]
    return costs


def weight_error(
    simulation: Simulation,
    network: FloatNetwork,
    layer: Layer,
    bits: BitWidths,
    correction: Correction | None,
) -> Float32Array:
    """Return what quantizing a layer's weights, corrected, adds to them, in their shape."""
    exact: Float32Array = network.weights[layer.name].detach().numpy()
    if bits.half:
        return exact.astype(np.float16).astype(np.float32) - exact
    quantized = simulation.exporter.parameters.weight(layer.name, bits.weights)
    real = quantized.dequantize()
    # The channels of a grouped ConvTranspose share weights, so no gain belongs to one of them.
    if correction is not None and len(correction.gain) == len(quantized.scale):
        shape = [1] * exact.ndim
        shape[quantized.axis] = -1
        real = real * correction.gain.reshape(shape)
    return real - exact


def _input_error(
    simulation: Simulation, name: str, reads: Format, value: Float32Array
) -> Float32Array:
    if reads is Format.FLOAT32:
        return np.zeros_like(value)
    if reads is Format.FLOAT16:
        return value.astype(np.float16).astype(np.float32) - value
    grid = simulation.exporter.ranges.grid(name, reads.bits)
    return grid.dequantize(grid.quantize(value)) - value
