"""Times policies of one network beside the float network: what is timed, and who does it.

`PolicyTimer` is made for a worker process (`hil.worker`), which a policy may crash or hang. What a
timing depends on is in a `Setup` and the policy; `subject` turns both into its identity, under
which a store keeps it, without building anything.
"""

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from typing import Any

from hil.audit import AuditError, require_kernels
from hil.cuda import LAUNCH_BLOCKING
from hil.ort import Runner, recorded_options
from hil.profile import RawProfile, profile_raw
from hil.providers import CPU, Provider
from hil.records import Record, Subject
from hil.timing import Clock, TimingOptions, time_interleaved
from quantization.deployment import ExportOptions
from quantization.errors import ModelError
from quantization.export import REVISION, Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.ranges import Ranges


@dataclass(frozen=True, eq=False)
class Setup:
    """What all policies that are timed have in common; can be pickled.

    Args:
        network: the network.
        ranges: its activations' ranges.
        feed: inputs by name that every run uses.
        options: of the exporter; ``pack`` off saves loading time.
        threads: of the runtime.
        timing: how long; its seed is that of policies for which no other is given.
        provider: who executes the policies.
    """

    network: Network
    ranges: Ranges
    feed: Mapping[str, Float32Array]
    options: ExportOptions = field(default_factory=ExportOptions)
    threads: int = 1
    timing: TimingOptions = field(default_factory=TimingOptions)
    provider: Provider = CPU

    @cached_property
    def feed_digest(self) -> str:
        """SHA-256 of the inputs."""
        hashed = hashlib.sha256()
        for name, values in sorted(self.feed.items()):
            hashed.update(repr((name, values.dtype.str, values.shape)).encode())
            hashed.update(values.tobytes())
        return hashed.hexdigest()


@dataclass(frozen=True)
class Job:
    """One policy to time.

    Args:
        policy: the policy.
        seed: of the order of turns; None for that of `Setup.timing`.
    """

    policy: Policy
    seed: int | None = None


@dataclass(frozen=True)
class ProfileJob:
    """One policy to profile."""

    policy: Policy


def shared_content(setup: Setup) -> dict[str, Any]:
    """Return what the subjects of all jobs of `setup` have in common, however they are timed.

    Weights and ranges belong to it, though tables of cost outlive both: the runtime removes
    operators whose effect the ranges already have, and folds constants by their values. So do the
    inputs, which may bring denormal numbers about. Options of the policy do not: none of them
    decides how the exporter builds it from given ranges.
    """
    return {
        "measured": "a policy beside float",
        "network": setup.network.digest,
        "weights": setup.network.weights_digest,
        "ranges": setup.ranges.digest,
        "inputs": setup.feed_digest,
        "export": {**asdict(setup.options), "revision": REVISION},
        "runtime": recorded_options(setup.threads, setup.provider),
    }


def subject(setup: Setup, job: Job) -> Subject:
    """Return the identity of what timing `job` gives, apart from the device."""
    policy = [str(job.policy[name]) for name in setup.network.layer_names]
    timing = asdict(_timing(setup, job))
    return Subject({**shared_content(setup), "policy": policy, "timing": timing})


class RefusedPolicyError(Exception):
    """The runtime refuses one policy, or executes something else.

    That is a failure of this policy, which the worker reports as such; a user can mend an error of
    the float network at most.
    """


class PolicyTimer:
    """Builds, loads, audits and times one policy after the other beside the float network.

    The audit is of the graph that the timed session executes.

    Args:
        setup: what they have in common.
        clock: seconds; for tests.

    Raises:
        AuditError: if the runtime does not execute the float network as asked.
        DataError: if the ranges belong to another network.
        ModelError: if the runtime refuses the float network.
    """

    def __init__(self, setup: Setup, clock: Clock = time.perf_counter) -> None:
        self._setup, self._clock = setup, clock
        target = setup.provider.target
        self._exporter = Exporter(setup.network, setup.ranges, setup.options, target)
        float_policy = Policy({})
        self._float = self._runner(float_policy, self._exporter.build(float_policy))

    def __call__(self, job: Job | ProfileJob) -> Record | RawProfile:
        """Time or profile the policy of `job`.

        Returns:
            Of a `ProfileJob` a `RawProfile`. Of a `Job` measurements of ``policy`` and ``float``.
            Facts: seconds that building (``build_s``), loading with its audit (``load_s``) and
            timing (``timing_s``) took, and how many of the last were inference, warm-ups included
            (``inference_s``); ``model_bytes``.

        Raises:
            ModelError: of a `ProfileJob`, if the runtime refuses the model.
            PolicyError: if the policy does not fit the network or a layer is not deployable.
            RefusedPolicyError: if the runtime refuses the model that is to be timed, or does not
                execute what the policy asks for.
        """
        if isinstance(job, ProfileJob):
            return _profile(self._exporter, self._setup, job)
        started = self._clock()
        model = self._exporter.build(job.policy)
        built = self._clock()
        try:
            runner = self._runner(job.policy, model)
        except (AuditError, ModelError) as error:
            raise RefusedPolicyError(str(error)) from error
        loaded = self._clock()
        runs = {
            "policy": _Counted(runner, self._clock),
            "float": _Counted(self._float, self._clock),
        }
        measured = time_interleaved(runs, _timing(self._setup, job), clock=self._clock)
        facts = {
            "build_s": built - started,
            "load_s": loaded - built,
            "timing_s": self._clock() - loaded,
            "inference_s": sum(run.spent_s for run in runs.values()),
            "model_bytes": len(model),
        }
        return Record(measured, facts=facts)

    def _runner(self, policy: Policy, model: bytes) -> Runner:
        setup = self._setup
        emulated = setup.provider.emulated
        check = partial(require_kernels, setup.network, policy, emulated=emulated)
        return Runner(model, setup.threads, setup.feed, check, setup.provider)


class Profiler:
    """Profiles policies; unlike a `PolicyTimer` it audits nothing, so it shows what is refused.

    Args:
        setup: what they have in common.

    Raises:
        DataError: if the ranges belong to another network.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        target = setup.provider.target
        self._exporter = Exporter(setup.network, setup.ranges, setup.options, target)

    def __call__(self, job: ProfileJob) -> RawProfile:
        """Profile the policy of `job`.

        Raises:
            ModelError: if the runtime refuses the model.
            PolicyError: if the policy does not fit the network or a layer is not deployable.
        """
        return _profile(self._exporter, self._setup, job)


def blocking_profiler(setup: Setup) -> Profiler:
    """Return a `Profiler` for a device, in a process of its own.

    ONNX Runtime's profiler sees how long an operator's launch takes; only where launches block
    until the device is done is that the operator's time. The driver reads the switch once, before
    the process first uses the device, and it would falsify timings.
    """
    os.environ[LAUNCH_BLOCKING] = "1"
    return Profiler(setup)


def _profile(exporter: Exporter, setup: Setup, job: ProfileJob) -> RawProfile:
    return profile_raw(exporter, job.policy, setup.threads, setup.feed, setup.provider)


class _Counted:
    """A run that counts the seconds that it takes; its own 0.1 us hit all candidates alike."""

    def __init__(self, run: Callable[[], Any], clock: Clock) -> None:
        self._run, self._clock = run, clock
        self.spent_s = 0.0

    def __call__(self) -> None:
        started = self._clock()
        self._run()
        self.spent_s += self._clock() - started


def _timing(setup: Setup, job: Job) -> TimingOptions:
    return setup.timing if job.seed is None else replace(setup.timing, seed=job.seed)
