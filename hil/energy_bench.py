"""Measures the energy of exported files in a worker process, which a model may crash or hang."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from hil.counters import measurable, open_meter
from hil.energy import EnergyOptions, MeasuredEnergy, NotMeasured, measure_energy
from hil.meters import EnergyError, Meter, Part
from hil.ort import Runner
from hil.providers import CPU, Provider
from hil.worker import Worker
from quantization.quantizer import Float32Array

_LIMIT_S = 1800.0
"""Longest time of all files together; what takes longer counts as hung."""

Energies = Mapping[str, MeasuredEnergy | NotMeasured]


@dataclass(frozen=True, eq=False)
class EnergyJob:
    """Files whose energy is to be measured.

    Args:
        models: serialized ONNX models by name.
        feed: inputs by name that every run uses.
        threads: of the runtime.
        options: how.
        provider: who executes the files; its parts are what is counted: RAPL's for the CPU, NVML's
            for a GPU.
    """

    models: Mapping[str, bytes]
    feed: Mapping[str, Float32Array]
    threads: int
    options: EnergyOptions = field(default_factory=EnergyOptions)
    provider: Provider = CPU


class EnergyTaker:
    """Loads the files of a job and measures them; made for a worker process.

    Args:
        nothing: workers give an argument.
        opened: opens the meter of some parts; for tests.
    """

    def __init__(
        self, nothing: None, opened: Callable[[Collection[Part]], Meter] = open_meter
    ) -> None:
        del nothing
        self._opened = opened

    def __call__(self, job: EnergyJob) -> Energies:
        """Return for each file its energy per run, or why there is none.

        Raises:
            EnergyError: if the counters cannot be read.
            ModelError: if the runtime refuses a model.
        """
        meter = self._opened(job.provider.parts)
        runs = {
            name: Runner(model, job.threads, job.feed, provider=job.provider)
            for name, model in job.models.items()
        }
        return measure_energy(meter, runs, job.options)


def take_energy(job: EnergyJob, limit_s: float = _LIMIT_S) -> Energies | NotMeasured:
    """Measure the files of `job` on their provider's counters, or return why that is not possible.

    Args:
        job: the files.
        limit_s: longest time that it may take.

    Raises:
        ModelError: if the runtime refuses a model.
        WorkerError: if a model crashed or hung; the error says which of these.
    """
    available = measurable(job.provider.parts)
    if available.reason is not None:
        return NotMeasured(available.reason)
    with Worker("hil.energy_bench:EnergyTaker", None, limit_s=limit_s) as worker:
        try:
            found = worker.call(job)
        except EnergyError as error:
            return NotMeasured(str(error))
    assert isinstance(found, dict)
    return found
