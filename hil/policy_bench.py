"""Measures each policy of a network once: what a store holds is not taken again."""

import time

from hil.bench import Bench, Calls, RecordStore
from hil.policy_timer import Job, ProfileJob, Setup, subject
from hil.profile import RawProfile
from hil.records import Record
from hil.timing import Clock
from hil.worker import Worker
from quantization.policy import Policy


def policy_worker(
    setup: Setup, *, limit_s: float, memory_bytes: int | None = None, profiles: bool = False
) -> Worker:
    """Return a worker that times the policies of `setup`.

    Args:
        setup: what they have in common.
        limit_s: longest time for building, loading and timing one policy, in seconds.
        memory_bytes: address space of the process, libraries included; None for any.
        profiles: whether it only profiles policies on a device (`blocking_profiler`).
    """
    factory = "hil.policy_timer:blocking_profiler" if profiles else "hil.policy_timer:PolicyTimer"
    return Worker(factory, setup, limit_s=limit_s, memory_bytes=memory_bytes)


class PolicyBench:
    """Looks policies up, and times those that are not there.

    Args:
        setup: what all policies have in common.
        worker: times them; see `policy_worker`.
        store: where their records are kept.
        clock: seconds, of what failed; for tests.
    """

    def __init__(
        self,
        setup: Setup,
        worker: Calls,
        store: RecordStore,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._setup, self._worker = setup, worker
        self._bench = Bench(worker, store, clock)

    def measure(self, policy: Policy, seed: int | None = None) -> Record:
        """Return the record of `policy`, timed now if the store has no measurement of it.

        A policy that crashed, hung, raised or was refused gives a record with its failure, see
        `Bench.take`.

        Args:
            policy: the policy.
            seed: of the order of turns; None for that of `Setup.timing`.

        Raises:
            AuditError: if the runtime does not execute the float network as asked.
            ModelError: if the runtime refuses the float network.
            PolicyError: if the policy does not fit the network or a layer is not deployable.
            WorkerError: if the worker cannot be started; that says nothing about the policy.
        """
        job = Job(policy, seed)
        return self._bench.take(subject(self._setup, job), job)

    def profile(self, policy: Policy) -> RawProfile:
        """Profile `policy`; it is not kept, since it serves as a prior only.

        It comes as the profiler wrote it: what cannot be interpreted here can be looked at.

        Raises:
            ModelError: if the runtime refuses the model.
            PolicyError: if the policy does not fit the network or a layer is not deployable.
            WorkerError: if the worker did not answer.
        """
        answer = self._worker.call(ProfileJob(policy))
        assert isinstance(answer, RawProfile)
        return answer
