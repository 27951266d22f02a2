"""Measures a device for `hil.device_calibration`: worker, store and the device's own limits."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.limits import Limits
from costmodels.calibrated.samples import Sample
from costmodels.calibrated.transfer import transferred
from costmodels.errors import BackendError
from costmodels.measurement import Device
from costmodels.model import BackendContext
from hil.bench import Bench, MemoryStore
from hil.device import detect
from hil.device_calibration import (
    Measure,
    Measured,
    fit_device,
    measure_probes,
    samples_of,
    transfer_jobs,
)
from hil.limits import limits_of
from hil.ort import recorded_options
from hil.probe_timer import LimitsJob, ProbeSetup, limits_subject, subject
from hil.store import OLD_S, Store
from hil.worker import Worker
from quantization.deployment import ExportOptions

_LIMIT_S = 120.0


@dataclass(frozen=True, eq=False)
class DeviceReadings:
    """What a device was measured to do.

    Args:
        limits: its roofline.
        measured: its probes.
        device: who was measured.
        threads: of the runtime.
        seed: of the design.
        runtime: what the sessions were given, see `hil.ort.recorded_options`.
    """

    limits: Limits
    measured: Measured
    device: Device
    threads: int
    seed: int
    runtime: Mapping[str, Any]


def measure_device(context: BackendContext) -> DeviceReadings:
    """Measure this machine for about ``context.seconds``; what the store holds is not taken again.

    Raises:
        BackendError: if the time was too short.
        StoreError: if the store cannot be used.
    """
    with _measuring(context) as (limits, measure):
        measured = measure_probes(
            measure,
            limits,
            seconds=context.seconds,
            seed=context.seed,
            progress=context.progress,
        )
    threads = context.threads
    runtime = recorded_options(threads)
    return DeviceReadings(limits, measured, detect(), threads, context.seed, runtime)


def fit_readings(readings: DeviceReadings) -> DeviceModel:
    """Fit a model of any network to what a device was measured to do.

    Raises:
        BackendError: if too little was measured, or scikit-learn is not installed.
    """
    measured = readings.measured
    model = fit_device(measured, readings.device, readings.threads, readings.limits, readings.seed)
    return _stamped(model, readings.runtime, measured.oldest_s)


def transfer_device(model: DeviceModel, probes: int, context: BackendContext) -> DeviceModel:
    """Measure a few probes on this machine and rescale another device's model to it.

    Args:
        model: of another device, or of other threads.
        probes: how many.
        context: threads, seed, store.

    Raises:
        BackendError: if too few probes could be measured.
        StoreError: if the store cannot be used.
    """
    samples: list[Sample] = []
    times: list[float] = []
    with _measuring(context) as (_, measure):
        for position, job in enumerate(transfer_jobs(context.seed, probes)):
            context.progress(position / probes, f"{position} probes timed")
            record = measure(job)
            if record.created_s is not None:
                times.append(record.created_s)
            if record.failure is None:
                samples += samples_of(job, record)
    found = transferred(model, samples, detect(), context.threads)
    return _stamped(found, recorded_options(context.threads), min(times, default=None))


@contextmanager
def _measuring(context: BackendContext) -> Iterator[tuple[Limits, Measure]]:
    """What times probes on this machine, and its limits."""
    device = detect()
    options = ExportOptions(weight_method="minmax", pack=False, reduce_range=device.saturates)
    setup = ProbeSetup(options, context.threads)
    kept = None
    if context.store is not None:
        # The limit is that of the beginning: nothing becomes old while this run uses it.
        kept = Store(context.store, device, since_s=time.time() - OLD_S)
    try:
        if kept is not None and context.anew:
            runtime = recorded_options(context.threads)
            for what in ("a probe", "limits"):
                kept.discard({"measured": what, "runtime": runtime})
        with Worker("hil.probe_timer:ProbeTimer", setup, limit_s=_LIMIT_S) as worker:
            bench = Bench(worker, kept or MemoryStore())
            found = bench.take(limits_subject(setup), LimitsJob())
            if found.failure is not None:
                raise BackendError(f"the device could not be measured: {found.failure.text}")
            yield limits_of(found), lambda job: bench.take(subject(setup, job), job)
    finally:
        if kept is not None:
            kept.close()


def _stamped(model: DeviceModel, runtime: Mapping[str, Any], oldest_s: float | None) -> DeviceModel:
    """Say when what the model rests on was measured, and by which runtime."""
    created_s = time.time() if oldest_s is None else oldest_s
    made = {"created_s": created_s, "runtime": dict(runtime)}
    return replace(model, source={**model.source, **made})
