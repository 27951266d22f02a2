"""How much each layer suffers at each width, alone: several measures, chosen by name."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costmodels.table import FloatArray
from quantization.bits import FLOAT32, BitWidths
from quantization.divergence import divergences, log_softmax
from quantization.errors import QuantmeterError, did_you_mean
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.simulation import Simulation
from search import curvature, sensitivity_store
from search.oracle import Labels, count_right

Progress = Callable[[float, str], None]


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


@dataclass(frozen=True, eq=False)
class Setting:
    """What sensitivities are measured on.

    Args:
        simulation: of the network, L layers.
        choices: K bit-widths.
        images: (N, ...) float32; not those that ranges and corrections come from.
        labels: (N,) right classes; None takes the float network's first choice.
        seed: of what a measure draws.
        progress: called with the share done.
    """

    simulation: Simulation
    choices: Sequence[BitWidths]
    images: Float32Array
    labels: Labels | None = None
    seed: int = 0
    progress: Progress = lambda _share, _what: None

    def right(self) -> Labels:
        """Return the labels, (N,), or what stands for them."""
        if self.labels is not None:
            return self.labels
        logits = self.simulation.logits(Policy({}), self.images)
        return np.asarray(logits.argmax(1), np.int64)


OfLogits = Callable[[Float32Array, Float32Array, Labels], float]
"""A loss from the float network's logits (N, classes), the quantized one's, and the labels (N,)."""

OfSetting = Callable[[Setting], FloatArray]
"""A measure that needs more than logits; (L, K)."""


def kl(reference: Float32Array, found: Float32Array, _right: Labels) -> float:
    """Return the mean divergence of class probabilities from the float network's, in nats."""
    return max(float(divergences(reference, found).mean()), 0.0)


def cross_entropy(reference: Float32Array, found: Float32Array, right: Labels) -> float:
    """Return by how much the mean cross-entropy exceeds the float network's, in nats."""
    rows = np.arange(len(right))
    return float((log_softmax(reference) - log_softmax(found))[rows, right].mean())


def accuracy_drop(reference: Float32Array, found: Float32Array, right: Labels) -> float:
    """Return the accuracy of the float network less that of the quantized one, -1..1."""
    return (count_right(reference, right) - count_right(found, right)) / len(right)


def logit_mse(reference: Float32Array, found: Float32Array, _right: Labels) -> float:
    """Return the mean squared error of the logits, in their unit squared."""
    return float(np.square(found.astype(np.float64) - reference).mean())


def output_mse(setting: Setting) -> FloatArray:
    """Return each layer's squared output error over its squared output, before its activation.

    A ratio, since layers' outputs have no common unit; without it layers cannot be compared.
    """
    network = setting.simulation.network
    result = np.zeros((len(network.layers), len(setting.choices)))
    for (name, bits), error in setting.simulation.output_errors(
        setting.choices, setting.images
    ).items():
        result[network.layer_names.index(name), list(setting.choices).index(bits)] = error
    return result


def fisher(setting: Setting) -> FloatArray:
    """See `search.curvature.fisher`."""
    return curvature.fisher(setting.simulation, setting.choices, setting.images, setting.seed)


def hessian(setting: Setting) -> FloatArray:
    """See `search.curvature.hessian`."""
    return curvature.hessian(
        setting.simulation, setting.choices, setting.images, setting.right(), setting.seed
    )


OF_LOGITS: Mapping[str, OfLogits] = {
    "kl": kl,
    "cross-entropy": cross_entropy,
    "accuracy-drop": accuracy_drop,
    "logit-mse": logit_mse,
}
OTHERS: Mapping[str, OfSetting] = {"output-mse": output_mse, "fisher": fisher, "hessian": hessian}
SENSITIVITIES: tuple[str, ...] = (*OF_LOGITS, *OTHERS)
"""The names; the first one is the default."""


def check_sensitivity(name: str) -> None:
    """Raise unless `name` is one of `SENSITIVITIES`.

    Raises:
        QuantmeterError: names close matches.
    """
    if name not in SENSITIVITIES:
        known = ", ".join(SENSITIVITIES)
        raise QuantmeterError(
            f"no sensitivity {name!r}{did_you_mean(name, SENSITIVITIES)}; choose {known}"
        )


def measure(
    names: Collection[str], setting: Setting, folder: Path | None = None
) -> dict[str, FloatArray]:
    """Return sensitivities by name, (L, K) each; 0 at float32.

    All that are read off logits share one run over layers and widths.

    Args:
        names: of `SENSITIVITIES`.
        setting: what they are measured on.
        folder: where they are kept: what was measured on the same setting is not measured again.

    Raises:
        QuantmeterError: for another name, or if the folder cannot be written to.
        DataError: if the images do not fit the network.
    """
    for name in names:
        check_sensitivity(name)
    identities = {
        name: sensitivity_store.identity(
            name,
            setting.simulation,
            setting.choices,
            setting.images,
            setting.labels,
            setting.seed,
        )
        for name in (names if folder is not None else ())
    }
    found: dict[str, FloatArray] = {}
    for name, identity in identities.items():
        assert folder is not None
        stored = sensitivity_store.read(folder, identity)
        if stored is not None:
            found[name] = stored
    missing = [name for name in dict.fromkeys(names) if name not in found]
    made = _of_logits([name for name in missing if name in OF_LOGITS], setting)
    for name in missing:
        if name in OTHERS:
            setting.progress(0.0, f"sensitivity {name}")
            made[name] = OTHERS[name](setting)
            setting.progress(1.0, f"sensitivity {name}")
    if folder is not None:
        for name, values in made.items():
            sensitivity_store.write(folder, identities[name], values)
    return {name: found[name] if name in found else made[name] for name in names}


def as_loss(sensitivity: FloatArray) -> FloatArray:
    """Return what a `Problem` takes as loss: what is below 0 is noise, and counts as 0."""
    return np.maximum(sensitivity, 0.0)


def measure_sensitivity(
    simulation: Simulation,
    choices: Sequence[BitWidths],
    images: Float32Array,
    labels: Labels | None = None,
    progress: Progress = lambda _share, _what: None,
    folder: Path | None = None,
) -> Sensitivity:
    """Quantize one layer at a time and compare with the float network.

    Args:
        simulation: of the network.
        choices: K bit-widths.
        images: (N, ...) float32.
        labels: (N,) right classes; None takes the float network's first choice.
        progress: called with the share done.
        folder: see `measure`.
    """
    setting = Setting(simulation, choices, images, labels, progress=progress)
    found = measure(("kl", "accuracy-drop"), setting, folder)
    return Sensitivity(found["kl"], found["accuracy-drop"])


def _of_logits(names: Collection[str], setting: Setting) -> dict[str, FloatArray]:
    network, choices = setting.simulation.network, setting.choices
    shape = len(network.layers), len(choices)
    result = {name: np.zeros(shape) for name in names}
    if not names:
        return {}
    reference = setting.simulation.logits(Policy({}), setting.images)
    right = setting.right()
    row = {name: i for i, name in enumerate(network.layer_names)}
    column = {bits: k for k, bits in enumerate(choices)}
    quantized = [bits for bits in choices if bits != FLOAT32]
    total = len(row) * len(quantized)
    sweep = setting.simulation.sweep(quantized, setting.images)
    for done, (layer, bits, logits) in enumerate(sweep, start=1):
        setting.progress(done / total, f"{layer} at {bits}")
        for name, values in result.items():
            values[row[layer], column[bits]] = OF_LOGITS[name](reference, logits, right)
    return result
