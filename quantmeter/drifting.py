"""Whether a table that was measured earlier still holds: ten of its policies are timed again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.errors import TableError
from costmodels.measurement import Device
from costmodels.model import BackendContext
from costmodels.table import CostTable
from hil.calibration import Measure
from hil.device import detect
from hil.drift import Drift, check_drift, choose_probes
from hil.live import OrtLive
from quantization.network import Network
from quantmeter.data import Data
from quantmeter.workbench import open_workbench

OLD_S = 24 * 3600.0
"""Seconds after which a table counts as old."""

_SECONDS = 10.0
_READINGS_OF_FLOAT = 4


@dataclass(frozen=True)
class DriftCheck:
    """What checking a table gave.

    Args:
        drift: the answer and the figures behind it.
        noise: relative standard deviation of one reading, as it was taken for the answer.
        table: the table to use: multiplied by the change of the float network's time if that is
            the answer, else as it was.
    """

    drift: Drift
    noise: float
    table: CostTable


def drift(
    model: str | Path | Network,
    table: str | Path | CostTable,
    *,
    data: str | Path | Data | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
    measure: Measure | None = None,
) -> DriftCheck:
    """Time ten policies of a measured table again, for ten seconds at most.

    Args:
        model: path of an ONNX file, or a network.
        table: what ``calibrate`` gave for it on this device, or its file.
        data: the images that it was calibrated with; random inputs without.
        threads: of the runtime; those of the calibration.
        seed: of what is drawn.
        progress: called with the share done and what is being done.
        measure: times a policy beside the float network; None for ONNX Runtime; for tests.

    Raises:
        TableError: if the table is of another network, device or runtime version, has other
            threads, or holds no timed policies.
    """
    bench = open_workbench(model, data, seed=seed)
    held = table if isinstance(table, CostTable) else CostTable.read(table)
    held.check(bench.network)
    _require_same_device(held, threads)
    choose_probes(held)  # before anything is timed
    if measure is None:
        inputs = None if bench.data is None else bench.range_inputs
        measure = OrtLive(BackendContext(threads, seed=seed, inputs=inputs)).measure(bench.network)
    began = time.perf_counter()
    progress(0.0, "timing the float network beside itself")
    floats = np.zeros(len(bench.network.layers), np.bool_)
    equals = [measure(floats, seed + 1 + i).ratio for i in range(_READINGS_OF_FLOAT)]
    noise = max(
        float(np.sqrt(np.mean(np.square(np.log(equals))))),
        float(held.source.get("reading_noise") or 0.0),
    )
    validation = held.source.get("validation") or {}
    error = float(validation.get("table", {}).get("mean_absolute", 0.0))
    progress(0.1, "timing ten policies")
    found = check_drift(
        held,
        measure,
        noise,
        table_error=error,
        seconds=_SECONDS - (time.perf_counter() - began),
        seed=seed + 1000,
    )
    progress(1.0, "done")
    rescaled = held.scaled(found.scale) if found.rescales else held
    return DriftCheck(found, noise, rescaled)


def is_old(table: CostTable, now_s: float | None = None, here: Device | None = None) -> bool:
    """Whether `table` was measured on this device, but more than a day ago.

    Args:
        table: any table.
        now_s: seconds since 1970; None for now.
        here: this device; None to look.
    """
    created = table.source.get("created_s")
    device = _device_of(table)
    if not isinstance(created, int | float) or device is None:
        return False
    now = time.time() if now_s is None else now_s
    return now - created > OLD_S and device.identity == (here or detect()).identity


def check_old_tables(
    model: str | Path | Network,
    costs: Sequence[str],
    *,
    data: str | Path | Data | None,
    threads: int,
    seed: int,
    progress: Callable[[float, str], None],
    measure: Measure | None = None,
) -> dict[str, DriftCheck]:
    """Check the tables among the values of ``--cost`` that are old (`is_old`), by file name.

    Those without timed policies (CSV files hold none) are not checked. Arguments and errors are
    those of `drift`.
    """
    found = {}
    for text in costs:
        _, named, path = text.partition("table:")
        table = CostTable.read(path) if named else None
        if table is not None and table.measurements and is_old(table):
            given = data if table.source.get("inputs") == "given" else None
            found[path] = drift(
                model,
                table,
                data=given,
                threads=threads,
                seed=seed,
                progress=progress,
                measure=measure,
            )
    return found


def _require_same_device(table: CostTable, threads: int) -> None:
    device = _device_of(table)
    if device is None:
        raise TableError("the table was not measured; only measured tables drift")
    here = detect()
    if device.identity != here.identity:
        raise TableError(
            f"the table was measured on {device.cpu} with {device.runtime} "
            f"{device.runtime_version}, this is {here.cpu} with {here.runtime} "
            f"{here.runtime_version}; calibrate here"
        )
    runtime: Any = table.source.get("runtime")
    then = runtime.get("threads") if isinstance(runtime, dict) else None
    if then != threads:
        raise TableError(f"the table was measured with {then} threads, not {threads}")


def _device_of(table: CostTable) -> Device | None:
    found = table.source.get("device")
    try:
        return Device.from_dict(found) if isinstance(found, dict) else None
    except (KeyError, TypeError):
        return None
