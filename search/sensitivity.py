"""How much each layer suffers at each width, alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray
from quantization.bits import FLOAT32, BitWidths
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.simulation import Simulation
from search.oracle import Labels, count_right


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Losses with a single layer quantized, statistics corrected, all others float.

    Args:
        kl: (L, K) mean Kullback-Leibler divergence of the class probabilities from the float
            network's, in nats; 0 at float32.
        drop: (L, K) accuracy of the float network less that of the quantized one, -1..1.
    """

    kl: FloatArray
    drop: FloatArray


def measure_sensitivity(
    simulation: Simulation,
    choices: Sequence[BitWidths],
    images: Float32Array,
    labels: Labels | None = None,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> Sensitivity:
    """Quantize one layer at a time and compare with the float network.

    Args:
        simulation: of the network.
        choices: K bit-widths.
        images: (N, ...) float32.
        labels: (N,) right classes; None takes the float network's first choice.
        progress: called with the share done.
    """
    network = simulation.network
    reference = _log_softmax(simulation.logits(Policy({}), images))
    right = reference.argmax(1) if labels is None else labels
    base = count_right(reference, right)
    kl, drop = np.zeros((2, len(network.layers), len(choices)))
    row = {name: i for i, name in enumerate(network.layer_names)}
    column = {bits: k for k, bits in enumerate(choices)}
    quantized = [bits for bits in choices if bits != FLOAT32]
    total = len(row) * len(quantized)
    for done, (name, bits, logits) in enumerate(simulation.sweep(quantized, images), start=1):
        progress(done / total, f"{name} at {bits}")
        found = _log_softmax(logits)
        divergence = (np.exp(reference) * (reference - found)).sum(1).mean()
        kl[row[name], column[bits]] = max(float(divergence), 0.0)
        lost = base - count_right(found, right)
        drop[row[name], column[bits]] = lost / len(images)
    return Sensitivity(kl, drop)


def _log_softmax(logits: Float32Array) -> FloatArray:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
