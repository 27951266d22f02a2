"""The one store of measurements: what was timed once is not timed again.

A row is a subject, by content, on a device: the first measurement of a subject stays. Replaced are
failures, and what is older than whoever opens the store accepts, since a machine changes. Rows of
another device or another version of the runtime are kept in the same file, and are never used for
this one.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from costmodels.errors import CostError, StoreError
from costmodels.measurement import Device
from hil.database import Database
from hil.records import Record, Subject

_Built = TypeVar("_Built")
OLD_S = 24 * 3600.0
"""Seconds after which a measurement counts as old: the machine may have changed meanwhile."""


@dataclass(frozen=True)
class Entry:
    """A row of the store.

    Args:
        subject: what was measured.
        record: what it gave.
        device: who measured.
        created_s: when it was stored, Unix time in seconds.
    """

    subject: Subject
    record: Record
    device: Device
    created_s: float


class Store:
    """Measurements of one device in a file that many devices and processes may share.

    To be used by the thread that opened it; another thread or process opens its own. What `put`
    has returned from is on the disk, whatever happens to the process or the machine.

    Args:
        path: the file, on a local disk; made if it is missing or empty, with its folder.
        device: who measures here; only entries with the same `Device.identity` are used.
        clock: Unix time in seconds; for tests.
        wait_s: how long to wait for other processes that write, in seconds.
        since_s: Unix time in seconds; what was stored before is not used, and is replaced.

    Raises:
        StoreError: if the file is foreign, damaged, of another version, locked for longer than
            `wait_s`, or cannot be written. It is left as it was.
    """

    def __init__(
        self,
        path: Path,
        device: Device,
        *,
        clock: Callable[[], float] = time.time,
        wait_s: float = 30.0,
        since_s: float = -math.inf,
    ) -> None:
        self.path, self.device = path, device
        self._clock, self._since_s = clock, since_s
        self._identity = _json(device.identity)
        self._database = Database(path, wait_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def get(self, subject: Subject) -> Record | None:
        """Return what this device holds of `subject`; None if it was not measured here lately.

        Raises:
            StoreError: if the file cannot be read.
        """
        found = self._database.query(
            """
            SELECT record, created_s FROM entry
            WHERE subject = ? AND identity = ? AND created_s >= ?
            """,
            (subject.key, self._identity, self._since_s),
        )
        return self._record(*found[0]) if found else None

    def put(self, subject: Subject, record: Record) -> Record:
        """Store a record, and commit it.

        Returns:
            What the store now holds of the subject: this record, or an earlier measurement that
            stays. Failures are replaced, and so is what was stored before `since_s`.

        Raises:
            StoreError: if the record is not made of JSON values, or the file is locked for too
                long or cannot be written.
        """
        row = {
            "subject": subject.key,
            "identity": self._identity,
            "fields": _json(self.device.to_dict()),
            "created_s": self._clock(),
            "content": _json(dict(subject.content)),
            "failed": record.failure is not None,
            "record": _json(record.to_dict()),
            "since_s": self._since_s,
        }
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO device (identity, fields) VALUES (:identity, :fields)", row
            )
            connection.execute(
                """
                INSERT INTO entry (subject, identity, device, created_s, content, failed, record)
                SELECT :subject, :identity, id, :created_s, :content, :failed, :record
                FROM device WHERE fields = :fields
                ON CONFLICT (subject, identity) DO UPDATE
                SET device = excluded.device, created_s = excluded.created_s,
                    failed = excluded.failed, record = excluded.record
                WHERE entry.failed OR entry.created_s < :since_s
                """,
                row,
            )
            held = connection.execute(
                """
                SELECT record, created_s FROM entry
                WHERE subject = :subject AND identity = :identity
                """,
                row,
            ).fetchone()
        return self._record(*held)

    def discard(self, where: Mapping[str, Any]) -> int:
        """Remove what this device holds of some subjects; return how many entries that were.

        Args:
            where: fields that a subject's content must hold, as for `entries`.

        Raises:
            StoreError: if the file is locked for too long or cannot be written.
        """
        chosen = self._chosen(where, all_devices=False)
        with self._database.writing() as connection:
            connection.executemany("DELETE FROM entry WHERE id = ?", [(each,) for each in chosen])
        return len(chosen)

    def elsewhere(self, where: Mapping[str, Any]) -> list[Device]:
        """Return the other devices and runtime versions that hold some subjects, a device each.

        Their entries are not used here.

        Args:
            where: fields that a subject's content must hold, as for `entries`.

        Raises:
            StoreError: if the file cannot be read.
        """
        rows = self._database.query(
            "SELECT identity, content, device FROM entry WHERE identity != ? ORDER BY id",
            (self._identity,),
        )
        wanted, found = _as_read(where), dict[str, int]()
        for identity, text, device in rows:
            if identity not in found and self._holds(text, wanted):
                found[identity] = device
        query = "SELECT fields FROM device WHERE id = ?"
        return [self._device(self._database.query(query, (d,))[0][0]) for d in found.values()]

    def entries(
        self, where: Mapping[str, Any] | None = None, *, all_devices: bool = False
    ) -> Iterator[Entry]:
        """Yield entries, old ones too, in the order in which their subjects were first stored.

        The caller may put while iterating; what is put meanwhile is not yielded.

        Args:
            where: fields that the subject's content must hold, such as ``{"network": digest}``.
            all_devices: also those of other devices and runtime versions; each tells its own.

        Raises:
            StoreError: if the file cannot be read.
        """
        for number in self._chosen(
            where or {}, all_devices
        ):  # one short query each: no lock is held while the caller works
            row = self._database.query(
                """
                SELECT content, record, fields, created_s
                FROM entry JOIN device ON device.id = entry.device WHERE entry.id = ?
                """,
                (number,),
            )
            yield self._entry(*row[0])

    def _chosen(self, wanted: Mapping[str, Any], all_devices: bool) -> list[int]:
        """Numbers of the entries whose subjects hold what is wanted, in their order."""
        rows = self._database.query(
            "SELECT id, content FROM entry WHERE identity = ? OR ? ORDER BY id",
            (self._identity, all_devices),
        )
        read = _as_read(wanted)
        return [number for number, text in rows if self._holds(text, read)]

    def _holds(self, text: str, wanted: Mapping[str, Any]) -> bool:
        content = self._read(text, dict)
        return all(name in content and content[name] == wanted[name] for name in wanted)

    def _entry(self, content: str, record: str, fields: str, created_s: float) -> Entry:
        subject = self._read(content, Subject)
        return Entry(subject, self._record(record, created_s), self._device(fields), created_s)

    def _record(self, text: str, created_s: float) -> Record:
        return replace(self._read(text, Record.from_dict), created_s=created_s)

    def _device(self, text: str) -> Device:
        return self._read(text, Device.from_dict)

    def _read(self, text: str, build: Callable[[Any], _Built]) -> _Built:
        try:
            return build(json.loads(text))
        except (AttributeError, KeyError, TypeError, ValueError, CostError) as error:
            raise StoreError(
                f"{self.path} is damaged (a row cannot be read: {error!r}); restore it from a "
                "copy, or move it away"
            ) from error


def default_store_path(environ: Mapping[str, str], home: Path) -> Path:
    """Return where measurements are kept unless a path is given.

    ``$QUANTMETER_STORE``, else ``quantmeter/measurements.sqlite`` in the user's cache folder:
    ``$XDG_CACHE_HOME`` if that is an absolute path, as its specification demands, else ``.cache``
    in the home folder.

    Args:
        environ: environment variables.
        home: the user's home folder.
    """
    if given := environ.get("QUANTMETER_STORE"):
        return Path(given)
    cache = Path(environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else home / ".cache") / "quantmeter/measurements.sqlite"


def _as_read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields as they are read back: lists where there were tuples."""
    read: dict[str, Any] = json.loads(_json(dict(content)))
    return read


def _json(value: object) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise StoreError(f"only JSON values can be stored: {error}") from error
