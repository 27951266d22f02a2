"""A made-up machine that random networks are measured on, for tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from costmodels.calibrated.limits import Limits
from costmodels.measurement import Measurement
from hil.probe_timer import ProbeJob, items_and_formats, policies_of
from hil.probes import probe
from hil.records import Failure, FailureKind, Record

LIMITS = Limits(1e11, 3e11, ((1e4, 2e11), (1e6, 1e11), (1e8, 2e10)))
CONSTANT_S, NODE_S = 1e-5, 2e-6

drawn = lru_cache(maxsize=None)(probe)
"""`hil.probes.probe`, each probe drawn once for all tests."""


@dataclass
class World:
    """Answers as a machine would whose operators reach two thirds of the roofline.

    Args:
        wall_s: what every probe takes.
        slower: by what all times are multiplied.
        fails: jobs that crash.
    """

    wall_s: float = 1.0
    slower: float = 1.0
    fails: Callable[[ProbeJob], bool] = lambda _job: False
    asked: list[ProbeJob] = field(default_factory=list)

    def measure(self, job: ProbeJob) -> Record:
        """Time the probe of `job`."""
        self.asked.append(job)
        facts = {"wall_s": self.wall_s}
        if self.fails(job):
            return Record({}, Failure(FailureKind.KILLED, "SIGSEGV"), facts)
        network = drawn(job.seed, whole=job.whole)
        measurements, parts = {}, {}
        for name, (items, integer) in zip(
            policies_of(network, job), items_and_formats(network, job), strict=True
        ):
            seconds = self.slower * (1.5 * LIMITS.bound_s(items, integer) + 1e-6)
            measurements[name] = Measurement(name, (float(seconds.sum()) + CONSTANT_S,))
            parts[name] = {
                **items.to_dict(),
                "integer": integer.tolist(),
                "seconds": (seconds + NODE_S).tolist(),
                "nodes": [1] * len(items),
            }
        return Record(measurements, facts={**facts, "parts": parts})
