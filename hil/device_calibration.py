"""Calibrates a device: random probes are timed, a model of any network is fitted to them.

First come whole networks that judge: their seeds are set apart before anything is measured, and
they choose nothing. Then probes of other seeds are fitted: pieces and whole networks in turn, and
in the last part of the time those that tell most per second (`hil.probe_choice`).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.domain import Domain
from costmodels.calibrated.fitting import Rows, fit_executed, fit_parts
from costmodels.calibrated.limits import Limits
from costmodels.calibrated.samples import Overhead, Sample
from costmodels.calibrated.textbook import Textbook
from costmodels.calibrated.validating import judged
from costmodels.errors import BackendError
from costmodels.measurement import Device
from hil.probe_choice import ProbeChoice
from hil.probe_timer import ProbeJob
from hil.records import Failure, Record

_JUDGING_SHARE, _RANDOM_SHARE = 0.2, 0.65
"""Of the time: for networks that judge; until when probes are random."""
_FIRST_FITTED = 1000
"""Seeds below it are of networks that judge."""
_FEWEST_JUDGING, _FEWEST_FITTED = 3, 12
_ROUND, _CANDIDATES = 8, 2
"""Probes that are chosen at a time, and from how many times as many: listing them takes time."""

Measure = Callable[[ProbeJob], Record]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of a device.

    Args:
        apart: samples of networks that judge.
        fitted: samples of the others.
        failed: what failed.
        seconds: that measuring took, in this and in earlier runs.
        oldest_s: when the oldest was measured, Unix time in seconds; None if that is not known.
    """

    apart: tuple[Sample, ...]
    fitted: tuple[Sample, ...]
    failed: tuple[Failure, ...]
    seconds: float
    oldest_s: float | None = None


def samples_of(job: ProbeJob, record: Record) -> list[Sample]:
    """Return the samples that a record of `hil.probe_timer` holds."""
    name = f"{'whole' if job.whole else 'piece'} {job.seed}"
    return [
        Sample.of(name, policy, rows, record.measurements[policy].p10_s)
        for policy, rows in record.facts["parts"].items()
    ]


def measure_probes(
    measure: Measure,
    limits: Limits,
    *,
    seconds: float,
    seed: int,
    progress: Callable[[float, str], None],
) -> Measured:
    """Time probes for about `seconds`.

    Args:
        measure: times one probe, or looks it up.
        limits: the device's roofline.
        seconds: for building, loading and timing; what an earlier run took counts, so that a run
            that was ended goes on to the same end.
        seed: of the design.
        progress: called with the share done and what is being done.

    Raises:
        BackendError: if the time was too short.
    """
    apart: list[Sample] = []
    fitted: list[Sample] = []
    failed: list[Failure] = []
    times: list[float] = []
    spent, jobs = 0.0, 0

    def take(job: ProbeJob, into: list[Sample]) -> None:
        nonlocal spent, jobs
        progress(min(spent / seconds, 1.0), f"{jobs} random networks timed")
        record = measure(job)
        if record.created_s is not None:
            times.append(record.created_s)
        spent, jobs = spent + float(record.facts["wall_s"]), jobs + 1
        if record.failure is not None:
            failed.append(record.failure)
            return
        into += samples_of(job, record)

    for position in itertools.count():
        if spent > _JUDGING_SHARE * seconds and position >= _FEWEST_JUDGING:
            break
        take(ProbeJob(_of(seed, position), whole=True), apart)
    random = _random_jobs(seed)
    while spent < _RANDOM_SHARE * seconds:
        take(next(random), fitted)
    choice, known = ProbeChoice(limits, fitted), len(fitted)
    while fitted and spent < seconds:  # if all failed, there is nothing to choose by
        for job in choice.best(itertools.islice(random, _CANDIDATES * _ROUND), _ROUND):
            if spent < seconds:
                take(job, fitted)
        choice.learn(fitted[known:])
        known = len(fitted)
    count = len({sample.network for sample in fitted})
    if count < _FEWEST_FITTED:
        raise BackendError(
            f"{seconds:g} s were enough for {jobs} random networks only, {count} of them to fit, "
            f"which needs {_FEWEST_FITTED}: give more time"
        )
    progress(1.0, f"{jobs} random networks timed; fitting")
    oldest = min(times, default=None)
    return Measured(tuple(apart), tuple(fitted), tuple(failed), spent, oldest)


def transfer_jobs(seed: int, count: int) -> list[ProbeJob]:
    """Return the whole networks that another device is rescaled by: those that judge come first."""
    return [ProbeJob(_of(seed, position), whole=True) for position in range(count)]


def fit_device(
    measured: Measured, device: Device, threads: int, limits: Limits, seed: int
) -> DeviceModel:
    """Fit a model to what was measured, and judge it by the networks that were set apart.

    Raises:
        BackendError: if too little was measured, or scikit-learn is not installed.
    """
    overhead = Overhead.of(measured.fitted)
    rows = Rows.of(measured.fitted, overhead)
    limits = limits.raised_by(rows.items, rows.integer, rows.seconds)
    parts = fit_parts(rows, limits, seed)
    model = DeviceModel(
        device,
        threads,
        limits,
        parts,
        fit_executed(rows, parts, limits, seed),
        overhead.constant_s,
        {},
        Domain.of(rows.items),
        Textbook.of(measured.fitted),
        source={
            "measured_s": measured.seconds,
            "seed": seed,
            "fitted_networks": len({sample.network for sample in measured.fitted}),
            "fitted_rows": int(rows.executed.sum()),
            "failed": [failure.to_dict() for failure in measured.failed],
            "profiler": {"node_s": overhead.node_s, "slope": overhead.slope},
        },
    )
    return judged(model, measured.apart, overhead)


def _of(seed: int, position: int) -> int:
    """Seed of a probe; those of networks that judge come before `_FIRST_FITTED`."""
    return 1_000_000 * seed + position


def _random_jobs(seed: int) -> Iterator[ProbeJob]:
    """Two pieces, then a whole network, and so on."""
    for position in itertools.count(_FIRST_FITTED):
        yield ProbeJob(_of(seed, position), whole=position % 3 == 2)
