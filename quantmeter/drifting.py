"""Whether a table that was measured earlier still holds: ten of its policies are timed again.

And what must be said of the tables that ``--cost`` names before they are used.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.calibrated.device_model import DeviceModel
from costmodels.errors import BackendError, TableError
from costmodels.measurement import Device
from costmodels.model import BackendContext
from costmodels.table import CostTable
from hil.calibration import Measure
from hil.device import detect
from hil.drift import check_drift, choose_probes
from hil.judgement import Drift, noise_of
from hil.live import OrtLive
from hil.providers import Provider, find_provider
from hil.store import OLD_S
from hil.timing import Clock
from quantization.errors import QuantmeterError
from quantization.network import Network
from quantmeter.costs import stored_tables
from quantmeter.data import Data
from quantmeter.workbench import Workbench, open_workbench

_SECONDS = 10.0
_FLOAT_SHARE = 0.2
"""Of these seconds, for the float network beside itself; at least two readings are made."""
_READINGS_OF_FLOAT = 4
_AS_IT_IS = "used as it is"


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
    clock: Clock = time.perf_counter,
) -> DriftCheck:
    """Time ten policies of a measured table again, for ten seconds at most.

    Not counted is the first reading of the float network, for which the worker process starts. Of a
    slow network, fewer policies are timed.

    Args:
        model: path of an ONNX file, or a network.
        table: what ``calibrate`` gave for it on this device, or its file.
        data: the images that it was calibrated with; random inputs without.
        threads: of the runtime; those of the calibration.
        seed: of what is drawn.
        progress: called with the share done and what is being done.
        measure: times a policy beside the float network; None for ONNX Runtime; for tests.
        clock: seconds; for tests.

    Raises:
        BackendError: if the network is so slow that not even three policies can be timed.
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
        context = BackendContext(threads, seed=seed, inputs=inputs)
        measure = OrtLive(context, *_measured_with(held)).measure(bench.network)
    progress(0.0, "timing the float network beside itself")
    floats = np.zeros(len(bench.network.layers), np.bool_)
    equals = [measure(floats, seed + 1).ratio]
    began, longest = clock(), 0.0
    while len(equals) < _READINGS_OF_FLOAT:
        start = clock()
        if len(equals) >= 2 and start - began + longest > _FLOAT_SHARE * _SECONDS:
            break
        equals.append(measure(floats, seed + 1 + len(equals)).ratio)
        longest = max(longest, clock() - start)
    noise = max(noise_of(equals), float(held.source.get("reading_noise") or 0.0))
    validation = held.source.get("validation") or {}
    error = float(validation.get("table", {}).get("mean_absolute", 0.0))
    progress(_FLOAT_SHARE, "timing ten policies")
    found = check_drift(
        held,
        measure,
        noise,
        table_error=error,
        seconds=_SECONDS - (clock() - began),
        seed=seed + 1000,
        clock=clock,
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
    return now - created > OLD_S and device.identity == (here or _here(table)).identity


@dataclass(frozen=True)
class Checked:
    """A table that ``--cost`` names.

    Args:
        table: the one to use.
        remark: what its user must know; empty if nothing.
    """

    table: CostTable
    remark: str = ""


def check_tables(
    model: str | Path | Network,
    costs: Sequence[str],
    *,
    data: str | Path | Data | None = None,
    threads: int = 1,
    seed: int = 0,
    old: bool = True,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
    measure: Measure | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Checked]:
    """Look at the tables among the values of ``--cost``; check those that are old (`is_old`).

    What was measured elsewhere or with other threads cannot be checked, nor can what holds no timed
    policies (CSV files do not): that is said, and the table is used as it is. So is one whose check
    fails. Arguments are those of `drift`; without `old`, no old table is checked.

    Returns:
        By the file as typed.

    Raises:
        QuantmeterError: if the model, the data or a table cannot be read, or do not fit.
    """
    found = {}
    bench: Workbench | None = None
    for path, table in stored_tables(costs).items():
        difference = unlike(table, threads)
        found[path] = Checked(table, f"{difference}; {_AS_IT_IS}" if difference else "")
        if difference or not old or not is_old(table):
            continue
        bench = bench or open_workbench(model, data, seed=seed)
        table.check(bench.network)
        try:
            checked = drift(
                bench.network,
                table,
                data=bench.data if table.source.get("inputs") == "given" else None,
                threads=threads,
                seed=seed,
                progress=progress,
                measure=measure,
                clock=clock,
            )
        except QuantmeterError as error:
            found[path] = Checked(table, f"not checked, {_AS_IT_IS}: {error}")
            continue
        how = _AS_IT_IS
        if checked.drift.rescales:
            how = "rescaled for this command; quantmeter drift --out writes it so"
        found[path] = Checked(checked.table, f"{checked.drift} ({checked.drift.grounds}): {how}")
    return found


def remark_on(table: CostTable, threads: int, now_s: float | None = None) -> str:
    """Return what the user of a table must know that was measured elsewhere or long ago.

    Args:
        table: any table.
        threads: of the runtime.
        now_s: seconds since 1970; None for now.
    """
    if difference := unlike(table, threads):
        return f"{difference}; {_AS_IT_IS}"
    if not is_old(table, now_s):
        return ""
    days = ((time.time() if now_s is None else now_s) - table.source["created_s"]) / OLD_S
    drifts = table.measurements and not _is_compiled(table)
    advice = "; quantmeter drift tells whether it holds" if drifts else ""
    return f"measured {days:,.0f} day{'s' if round(days) > 1 else ''} ago{advice}"


def unlike(table: CostTable, threads: int) -> str:
    """Return how this device, runtime or threads differ from those of a table; empty if not.

    Empty too of a table that does not say where it was measured.
    """
    device = _device_of(table)
    if device is None:
        return ""
    runtime: Any = table.source.get("runtime")
    counted = runtime.get("threads") if isinstance(runtime, dict) else None
    return _difference(device, counted, threads, _here(table))


def remarks_on_devices(costs: Sequence[str], threads: int) -> dict[str, str]:
    """Return what the user of ``calibrated:FILE`` must know, by the file as typed; none if nothing.

    Args:
        costs: values of ``--cost``.
        threads: of the runtime.

    Raises:
        TableError: if a file holds no calibrated device.
    """
    named = (text.partition("calibrated:")[2] for text in costs)
    found = {}
    for path in dict.fromkeys(filter(None, named)):
        model = DeviceModel.read(path)
        if difference := _difference(model.device, model.threads, threads, detect()):
            found[path] = f"{difference}; {_AS_IT_IS}"
    return found


def _difference(device: Device, counted: int | None, threads: int, here: Device) -> str:
    """Return how `device`, or its number of threads, differs from `here`; empty if not."""
    if device.identity != here.identity:
        then, now = _words(device), _words(here)
        if then == now:
            then, now = (f"{each} ({' '.join(d.isa)})" for each, d in ((then, device), (now, here)))
        return f"measured on {then}, this is {now}"
    if counted == threads:
        return ""
    return f"measured with {counted} thread{'' if counted == 1 else 's'}, not {threads}"


def _require_same_device(table: CostTable, threads: int) -> None:
    if _device_of(table) is None:
        raise TableError("the table was not measured; only measured tables drift")
    if _is_compiled(table):
        raise TableError(
            "drift times policies in ONNX Runtime; measure kernels of tvm anew: "
            "quantmeter calibrate --cost tvm --anew"
        )
    if difference := unlike(table, threads):
        raise TableError(f"the table was {difference}; calibrate here")


def _words(device: Device) -> str:
    executes = " and ".join(filter(None, (device.cpu, device.accelerator)))
    return f"{executes} with {device.runtime} {device.runtime_version}"


def _measured_with(table: CostTable) -> tuple[Provider, str]:
    """Return the provider that a table was measured with, and its device here."""
    name, _, argument = str(table.source.get("backend", "")).partition(":")
    return find_provider(argument if name == "ort" else "")


def _is_compiled(table: CostTable) -> bool:
    """Whether kernels of TVM were measured."""
    return str(table.source.get("backend", "")).partition(":")[0] == "tvm"


def _here(table: CostTable) -> Device:
    """Return this machine as the table's backend would measure it."""
    if _is_compiled(table) and find_spec("tvm") is not None:
        return detect("apache-tvm")
    try:
        return detect(accelerator=_measured_with(table)[1])
    except BackendError:  # without the device of the table, this is the CPU alone
        return detect()


def _device_of(table: CostTable) -> Device | None:
    found = table.source.get("device")
    try:
        return Device.from_dict(found) if isinstance(found, dict) else None
    except (KeyError, TypeError):
        return None
