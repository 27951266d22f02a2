"""Measures each subject once: what a store holds is never taken again."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from hil.records import Record, Subject
from hil.timing import Clock
from hil.worker import WorkerError


class RecordStore(Protocol):
    """Where records are kept under their subjects."""

    def get(self, subject: Subject, /) -> Record | None:
        """Return the record of `subject`, with its time; None if there is none."""
        ...

    def put(self, subject: Subject, record: Record, /) -> Record:
        """Keep `record`; return the one that is kept, with its time.

        Another process may have put it first.
        """
        ...


class MemoryStore:
    """Keeps records as long as it lives.

    Args:
        clock: Unix time in seconds; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._records: dict[str, Record] = {}

    def get(self, subject: Subject, /) -> Record | None:
        """See `RecordStore.get`."""
        return self._records.get(subject.key)

    def put(self, subject: Subject, record: Record, /) -> Record:
        """See `RecordStore.put`."""
        stamped = replace(record, created_s=self._clock())
        return self._records.setdefault(subject.key, stamped)


class Calls(Protocol):
    """What does the jobs: a `hil.worker.Worker`."""

    def call(self, job: object, /) -> object:
        """Return the answer to `job`.

        Raises:
            WorkerError: if there is none.
        """
        ...


class Bench:
    """Looks subjects up, and has those measured that are not there.

    Args:
        worker: does the jobs.
        store: where their records are kept.
        clock: seconds, of what failed; for tests.
    """

    def __init__(self, worker: Calls, store: RecordStore, clock: Clock = time.perf_counter) -> None:
        self._worker, self._store, self._clock = worker, store, clock

    def take(self, subject: Subject, job: object) -> Record:
        """Return the record of `subject`; what `job` gives now if the store has none.

        A job that crashed, hung or raised gives a record with its failure, which is kept as well:
        the same job is not tried again. Its fact ``wall_s`` tells how long that took.

        Raises:
            QuantmeterError: of the type that the job raised, see `hil.worker.Worker.call`.
            WorkerError: if the worker cannot be started; that says nothing about the job.
        """
        return self._store.get(subject) or self._store.put(subject, self._taken(job))

    def _taken(self, job: object) -> Record:
        began = self._clock()
        try:
            answer = self._worker.call(job)
        except WorkerError as error:
            if error.starting:
                raise
            return Record({}, error.failure, {"wall_s": self._clock() - began})
        assert isinstance(answer, Record)
        return answer
