"""Sensitivities on disk: one JSON file each, found again by everything that decides it."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from costmodels.table import FloatArray
from quantization.bits import BitWidths
from quantization.errors import QuantmeterError
from quantization.simulation import Simulation
from search.oracle import Labels

REVISION = 1
"""Raised whenever a measure of the same name gives other numbers."""

Identity = Mapping[str, object]


def identity(
    name: str,
    simulation: Simulation,
    choices: Sequence[BitWidths],
    images: npt.NDArray[np.float32],
    labels: Labels | None,
    seed: int,
) -> Identity:
    """Return everything that decides a sensitivity, as JSON values."""
    network, exporter = simulation.network, simulation.exporter
    return {
        "revision": REVISION,
        "name": name,
        "network": network.digest,
        "weights": network.weights_digest,
        "layers": list(network.layer_names),
        "choices": [str(bits) for bits in choices],
        "ranges": exporter.ranges.digest,
        "options": asdict(exporter.options),
        "images": _digest(images),
        "labels": None if labels is None else _digest(labels),
        "corrected_on": _digest(simulation.calibration),
        "seed": seed,
    }


def read(folder: Path, wanted: Identity) -> FloatArray | None:
    """Return the sensitivity, (L, K), that was stored for `wanted`.

    None if there is none; a file that is damaged counts as none, and is replaced by `write`.
    """
    try:
        content = json.loads(_path(folder, wanted).read_text(encoding="utf-8"))
        values = np.asarray(content["sensitivity"], np.float64)
        layers, choices = wanted["layers"], wanted["choices"]
        assert isinstance(layers, list)
        assert isinstance(choices, list)
        fits = values.shape == (len(layers), len(choices)) and np.isfinite(values).all()
        return values if content["identity"] == wanted and fits else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(folder: Path, measured: Identity, sensitivity: FloatArray) -> None:
    """Store a sensitivity, (L, K), whole or not at all.

    Raises:
        QuantmeterError: if the folder cannot be written to.
    """
    path = _path(folder, measured)
    text = json.dumps({"identity": measured, "sensitivity": sensitivity.tolist()}, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        begun = path.with_suffix(f".{os.getpid()}.tmp")
        begun.write_text(text + "\n", encoding="utf-8")
        begun.replace(path)
    except OSError as error:
        raise QuantmeterError(f"cannot write to {folder}: {error.strerror}; give another") from None


def _path(folder: Path, wanted: Identity) -> Path:
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return folder / f"{wanted['name']}-{digest[:24]}.json"


def _digest(array: npt.NDArray[np.generic]) -> str:
    hashed = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()
