"""A device that exists as a law only: what every operator takes is known, so fits can be judged.

    seconds = (bound + 4e-7) * missed(kind, channels, format) * odd

*odd* is drawn for each probe and kind, for what no feature tells: 8 % either way, mostly.

An activation behind a convolution is taken over, and so is a sum behind one if the channels are a
multiple of 8 and float. The profiler adds `NODE_S` to each operator and slows all by `SLOPE`.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from costmodels.calibrated.device_model import DeviceModel, groups_of
from costmodels.calibrated.items import Items, is_layer
from costmodels.calibrated.limits import Limits
from costmodels.calibrated.samples import Sample
from costmodels.cells import BoolArray, FloatArray
from costmodels.measurement import Device
from hil.device_calibration import Measured, fit_device
from hil.probe_timer import ProbeJob, paid_items, policies_of
from tests.hil.device_world import drawn

NODE_S, SLOPE, CONSTANT_S = 1.5e-6, 1.07, 6e-6
LIMITS = Limits(4e10, 1.2e11, ((16e3, 1e11), (1e6, 4e10), (3e7, 1e10)))
DEVICE = Device("a law", "none", (), 1, 1, "nowhere", "none", "0")
THREADS, SEED = 1, 0

_START_S = 4e-7
_MISSED = {
    "Conv": 1.6,
    "Conv depthwise": 4.0,
    "Conv grouped": 2.4,
    "Gemm": 1.3,
    "MatMul": 1.5,
    "MatMul of activations": 2.0,
    "quantize": 1.8,
    "dequantize": 1.4,
}
_MISSED_GLUE = 2.2
_ODD = 0.08
_KINDS = tuple(_MISSED)
_ACTIVATIONS = ("Relu", "Clip")


def law_s(items: Items, integer: BoolArray) -> FloatArray:
    """Seconds of each row that is executed, (N,); never below the compute bound."""
    known = np.array([_MISSED.get(kind, _MISSED_GLUE) for kind in items.kind])
    narrow = 1 + 6 / (4 + items.column("out_channels"))
    crossed = np.where(integer & ~is_layer(items.kind), 1.3, 1.0)
    return np.asarray((LIMITS.bound_s(items, integer) + _START_S) * known * narrow * crossed)


def law_nodes(items: Items, integer: BoolArray) -> npt.NDArray[np.int64]:
    """Operators that each row is, (N,): 0 if the convolution before it takes it over."""
    behind = np.array([near.split(" behind ")[-1].startswith("Conv") for near in items.near])
    shared = np.array([near.split(",")[0].endswith("+") for near in items.near])
    activation = np.isin(items.kind, _ACTIVATIONS) & behind & ~shared
    added = (items.kind == "Add") & behind & ~shared & ~integer & (items.column("even_in") >= 8)
    return np.where(activation | added, 0, 1)


def law_sample(job: ProbeJob, policy: str, items: Items, integer: BoolArray) -> Sample:
    """What measuring a probe under a policy would give."""
    nodes = law_nodes(items, integer)
    seconds = np.where(nodes > 0, law_s(items, integer) * _odd(job, items), 0.0)
    profiled = SLOPE * seconds + NODE_S * nodes
    name = f"{'whole' if job.whole else 'piece'} {job.seed}"
    total = CONSTANT_S + float(seconds.sum())
    return Sample(name, policy, items, integer, profiled, nodes, total)


def _odd(job: ProbeJob, items: Items) -> FloatArray:
    """What no feature tells: the same for all rows of a kind in a probe, (N,)."""
    drawn = np.random.default_rng([job.seed, int(job.whole)]).normal(0, _ODD, len(_KINDS) + 1)
    position = {kind: i for i, kind in enumerate(_KINDS)}
    return np.exp(drawn[[position.get(kind, len(_KINDS)) for kind in items.kind.tolist()]])


def law_samples(job: ProbeJob) -> list[Sample]:
    """Samples of a probe under all of its policies."""
    network = drawn(job.seed, whole=job.whole)
    policies = policies_of(network, job)
    return [law_sample(job, name, *paid_items(network, p)) for name, p in policies.items()]


def slower(samples: tuple[Sample, ...], group: str, factor: float) -> tuple[Sample, ...]:
    """The same samples on a device that takes `factor` times as long for a group of rows.

    Args:
        samples: of the law.
        group: one of `GROUPS`, or ``all``.
        factor: by which the seconds are multiplied.
    """
    changed = []
    for sample in samples:
        slow = (groups_of(sample.items, sample.integer) == group) | (group == "all")
        before = (sample.profiled_s - NODE_S * sample.nodes) / SLOPE
        seconds = before * np.where(slow, factor, 1.0)
        profiled = SLOPE * seconds + NODE_S * sample.nodes
        total = CONSTANT_S + float(seconds.sum())
        changed.append(replace(sample, profiled_s=profiled, total_s=total))
    return tuple(changed)


@dataclass(frozen=True, eq=False)
class World:
    """What was measured of the law, and the model that was fitted to it.

    Args:
        fitted: samples that the model was fitted to.
        apart: samples that judged it.
        unseen: samples of whole networks that nobody has seen.
        model: the device.
    """

    fitted: tuple[Sample, ...]
    apart: tuple[Sample, ...]
    unseen: tuple[Sample, ...]
    model: DeviceModel


def make_world() -> World:
    """Measure the law by random probes and fit a device to it."""
    jobs = {
        "fitted": [ProbeJob(1000 + i, whole=i % 10 == 0) for i in range(52)],
        "apart": [ProbeJob(i, whole=True) for i in range(12)],
        "unseen": [ProbeJob(500 + i, whole=True) for i in range(10)],
    }
    fitted, apart, unseen = (
        tuple(sample for job in each for sample in law_samples(job)) for each in jobs.values()
    )
    model = fit_device(Measured(apart, fitted, (), 300.0), DEVICE, THREADS, LIMITS, SEED)
    return World(fitted, apart, unseen, model)
