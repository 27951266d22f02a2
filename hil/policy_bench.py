"""Measures each policy of a network once: what a store holds is never taken again."""

import time
from typing import Protocol

from hil.policy_timer import Job, ProfileJob, Setup, subject
from hil.profile import Profile
from hil.records import Record, Subject
from hil.timing import Clock
from hil.worker import Worker, WorkerError
from quantization.policy import Policy


class RecordStore(Protocol):
    """Where records are kept under their subjects."""

    def get(self, subject: Subject, /) -> Record | None:
        """Return the record of `subject`; None if there is none."""
        ...

    def put(self, subject: Subject, record: Record, /) -> Record:
        """Keep `record`; return the one that is kept, which another process may have put first."""
        ...


class MemoryStore:
    """Keeps records as long as it lives."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def get(self, subject: Subject, /) -> Record | None:
        """See `RecordStore.get`."""
        return self._records.get(subject.key)

    def put(self, subject: Subject, record: Record, /) -> Record:
        """See `RecordStore.put`."""
        return self._records.setdefault(subject.key, record)


class Calls(Protocol):
    """What does the jobs: a `hil.worker.Worker`."""

    def call(self, job: object, /) -> object:
        """Return the answer to `job`.

        Raises:
            WorkerError: if there is none.
        """
        ...


def policy_worker(setup: Setup, *, limit_s: float, memory_bytes: int | None = None) -> Worker:
    """Return a worker that times the policies of `setup`.

    Args:
        setup: what they have in common.
        limit_s: longest time for building, loading and timing one policy, in seconds.
        memory_bytes: address space of the process, libraries included; None for any.
    """
    return Worker("hil.policy_timer:PolicyTimer", setup, limit_s=limit_s, memory_bytes=memory_bytes)


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
        self._setup, self._worker, self._store, self._clock = setup, worker, store, clock

    def measure(self, policy: Policy, seed: int | None = None) -> Record:
        """Return the record of `policy`, timed now if the store has none.

        A job that crashed, hung or raised gives a record with its failure, which is kept as well:
        the same job is not tried again. Its fact ``wall_s`` tells how long that took.

        Args:
            policy: the policy.
            seed: of the order of turns; None for that of `Setup.timing`.

        Raises:
            AuditError: if the runtime does not execute what the policy asks for.
            ModelError: if the runtime refuses the model.
            PolicyError: if the policy does not fit the network or a layer is not deployable.
            WorkerError: if the worker cannot be started; that says nothing about the policy.
        """
        job = Job(policy, seed)
        key = subject(self._setup, job)
        return self._store.get(key) or self._store.put(key, self._taken(job))

    def profile(self, policy: Policy) -> Profile:
        """Profile `policy`; it is not kept, since it serves as a prior only.

        Raises:
            ModelError: if the runtime refuses the model.
            PolicyError: if the policy does not fit the network or a layer is not deployable.
            WorkerError: if the worker did not answer.
        """
        answer = self._worker.call(ProfileJob(policy))
        assert isinstance(answer, Profile)
        return answer

    def _taken(self, job: Job) -> Record:
        began = self._clock()
        try:
            answer = self._worker.call(job)
        except WorkerError as error:
            if error.starting:
                raise
            return Record({}, error.failure, {"wall_s": self._clock() - began})
        assert isinstance(answer, Record)
        return answer
