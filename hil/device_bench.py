"""Measures a device for `hil.device_calibration`: worker, store and the device's own limits."""

import time
from dataclasses import dataclass, replace

from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.limits import Limits
from costmodels.errors import BackendError
from costmodels.model import BackendContext
from hil.bench import Bench, MemoryStore, RecordStore
from hil.device import detect
from hil.device_calibration import Measured, fit_device, measure_probes
from hil.limits import limits_of
from hil.ort import recorded_options
from hil.probe_timer import LimitsJob, ProbeJob, ProbeSetup, limits_subject, subject
from hil.records import Record
from hil.store import Store
from hil.worker import Worker
from quantization.deployment import ExportOptions

_LIMIT_S = 120.0


@dataclass(frozen=True, eq=False)
class DeviceReadings:
    """What a device was measured to do.

    Args:
        limits: its roofline.
        measured: its probes.
    """

    limits: Limits
    measured: Measured


def measure_device(context: BackendContext) -> DeviceReadings:
    """Measure this machine for about ``context.seconds``; what the store holds is not taken again.

    Raises:
        BackendError: if the time was too short.
        StoreError: if the store cannot be used.
    """
    device = detect()
    options = ExportOptions(weight_method="minmax", pack=False, reduce_range=device.saturates)
    setup = ProbeSetup(options, context.threads)
    store: RecordStore = MemoryStore()
    kept = None if context.store is None else Store(context.store, device)
    try:
        with Worker("hil.probe_timer:ProbeTimer", setup, limit_s=_LIMIT_S) as worker:
            bench = Bench(worker, kept or store)
            found = bench.take(limits_subject(setup), LimitsJob())
            if found.failure is not None:
                raise BackendError(f"the device could not be measured: {found.failure.text}")
            limits = limits_of(found)

            def measure(job: ProbeJob) -> Record:
                return bench.take(subject(setup, job), job)

            measured = measure_probes(
                measure,
                limits,
                seconds=context.seconds,
                seed=context.seed,
                progress=context.progress,
            )
    finally:
        if kept is not None:
            kept.close()
    return DeviceReadings(limits, measured)


def calibrate_device(context: BackendContext) -> DeviceModel:
    """Measure this machine and fit a model of any network to it.

    Raises:
        BackendError: if the time was too short, or scikit-learn is not installed.
        StoreError: if the store cannot be used.
    """
    readings = measure_device(context)
    model = fit_device(readings.measured, detect(), context.threads, readings.limits, context.seed)
    runtime = recorded_options(context.threads)
    return replace(model, source={**model.source, "created_s": time.time(), "runtime": runtime})
