"""Measures each subject once: a measurement that a store holds is not taken again."""

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

        That is a measurement which another process put first, if there is one.
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
        held = self._records.get(subject.key)
        if held is None or held.failure is not None:
            held = self._records[subject.key] = replace(record, created_s=self._clock())
        return held


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
        self._failed: dict[str, Record] = {}

    def take(self, subject: Subject, job: object) -> Record:
        """Return the record of `subject`; what `job` gives now if the store has no measurement.

        A job that crashed, hung or raised gives a record with its failure, which is kept as well;
        its fact ``wall_s`` tells how long that took. This object does not try the same job again.
        Another one does, in a later run say: what was short of memory then may have it now.

        Raises:
            QuantmeterError: of the type that the job raised, see `hil.worker.Worker.call`.
            WorkerError: if the worker cannot be started; that says nothing about the job.
        """
        held = self._store.get(subject)
        if held is not None and held.failure is None:
            return held
        if subject.key not in self._failed:
            held = self._store.put(subject, self._taken(job))
            if held.failure is None:
                return held
            self._failed[subject.key] = held
        return self._failed[subject.key]

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
