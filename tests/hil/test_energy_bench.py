"""Energy of files that run: a synthetic counter driven by this process's own processor time."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hil.counters import Availability
from hil.energy import EnergyOptions, MeasuredEnergy, NotMeasured
from hil.energy_bench import EnergyJob, EnergyTaker, take_energy
from hil.meters import Counter, EnergyError, Part, Reading
from hil.ort import one_feed, random_inputs
from hil.providers import CPU, CUDA
from quantization.deployment import ExportOptions
from quantization.errors import ModelError
from quantization.export import Exporter
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from tests.networks import Subject

IDLE_W, BUSY_W = 10.0, 15.0
BRIEF = EnergyOptions(repeats=3, window_s=0.1, settle_s=0.01)


class ProcessorTime:
    """Not a measurement of energy: 10 J a second, and 15 J a second of processor time more.

    Its seconds are those of the processor and those that it was told to sleep, so that it does not
    matter what else runs here.
    """

    counters: Sequence[Counter] = (Counter("synthetic", Part.PROCESSOR),)
    described = "synthetic: processor time"

    def __init__(self) -> None:
        self._shown, self._at, self._slept = 0.0, 0, 0.0

    def clock(self) -> float:
        return time.process_time() + self._slept

    def sleep(self, seconds: float, /) -> None:
        self._slept += seconds

    def read(self) -> Reading:
        now = self.clock()
        if math.floor(now / 1e-3) != self._at:
            self._at = math.floor(now / 1e-3)
            self._shown = IDLE_W * now + BUSY_W * time.process_time()
        return Reading(now, (self._shown,))


def job(subject: Subject, **models: bytes) -> EnergyJob:
    network = subject.network
    exporter = Exporter(network, made_up_ranges(network), ExportOptions(weight_method="minmax"))
    feed = one_feed(network, random_inputs(network, 1))
    return EnergyJob({"float": exporter.build(Policy({})), **models}, feed, 1, BRIEF)


def test_each_file_gets_its_energy_per_run(small: Subject) -> None:
    found = EnergyTaker(None, lambda _parts: ProcessorTime())(job(small))["float"]
    assert isinstance(found, MeasuredEnergy)
    run = found.repeats[0]
    busy_s = run.seconds / run.runs
    assert found.energy_j == pytest.approx(BUSY_W * busy_s, rel=0.5)
    assert found.described == "synthetic: processor time"


def test_files_that_a_gpu_executes_are_measured_on_its_counters(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = replace(job(small), provider=replace(CPU, bound=True, parts=CUDA.parts))
    opened: list[object] = []

    def open_synthetic(parts: object) -> ProcessorTime:
        opened.append(parts)
        return ProcessorTime()

    assert isinstance(EnergyTaker(None, open_synthetic)(on_gpu)["float"], MeasuredEnergy)
    assert opened == [{Part.GPU}]
    asked: list[object] = []

    def refuse(parts: object) -> Availability:
        asked.append(parts)
        return Availability((), "there is no NVIDIA driver")

    monkeypatch.setattr("hil.energy_bench.measurable", refuse)
    assert take_energy(on_gpu) == NotMeasured("there is no NVIDIA driver")
    assert asked == [{Part.GPU}]


def test_a_model_that_the_runtime_refuses_is_one_clear_error(small: Subject) -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        EnergyTaker(None, lambda _parts: ProcessorTime())(job(small, broken=b"no model"))


def test_without_a_counter_no_file_is_run(small: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hil.energy_bench.measurable", lambda _parts: Availability((), "so it is"))
    assert take_energy(job(small, broken=b"no model")) == NotMeasured("so it is")


def test_counters_that_fail_in_the_worker_give_their_reason(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.energy_bench.measurable", lambda _parts: Availability(("p",), None))
    monkeypatch.setattr("hil.energy_bench.Worker", _Failing)
    assert take_energy(job(small)) == NotMeasured("package-0 stands still")


class _Failing:
    """A worker whose counters stand still."""

    def __init__(self, _factory: str, _argument: object, *, limit_s: float) -> None:
        assert limit_s > 0

    def __enter__(self) -> "_Failing":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def call(self, _job: object) -> object:
        raise EnergyError("package-0 stands still")
