"""The SQLite file behind the store: opening it safely, and errors that say what to do.

Nothing is written into a file before it is known to be a store of this version: a look that takes
no lock and leaves no file comes first. The header that this look reads is right at any moment,
because application, version and tables are committed together before write-ahead logging begins.
Where a log waits beside the file, its pages are checked before it is opened for writing: closing it
writes the log back, which a damaged file must not suffer.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from costmodels.errors import StoreError

APPLICATION_ID = int.from_bytes(b"QMtr", "big")
VERSION = 1

_SCHEMA = (
    """
    CREATE TABLE device (
        id INTEGER PRIMARY KEY,
        identity TEXT NOT NULL,        -- JSON; what must be equal before its entries are used
        fields TEXT NOT NULL UNIQUE    -- JSON; all that is known of it
    )
    """,
    """
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        subject TEXT NOT NULL,         -- SHA-256 of the content
        identity TEXT NOT NULL,        -- of the device
        device INTEGER NOT NULL REFERENCES device (id),
        created_s REAL NOT NULL,       -- Unix time
        content TEXT NOT NULL,         -- JSON
        failed INTEGER NOT NULL,       -- 1 if the record is of a failure, else 0
        record TEXT NOT NULL,          -- JSON, with the raw samples
        UNIQUE (subject, identity)
    )
    """,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)

_AWAY = "move it away, or name another file by --store or QUANTMETER_STORE"
_REFUSED = (
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
)
_RETRY_S = 0.005
_HEADER_BYTES = 100


class Database:
    """An open file of measurements; for one thread of one process.

    Args:
        path: the file, on a local disk; made if it is missing or empty, with its folder.
        wait_s: how long to wait for other processes that write, in seconds.

    Raises:
        StoreError: if the file is foreign, damaged, of another version, locked for longer than
            `wait_s`, or cannot be written. It is left as it was.
    """

    def __init__(self, path: Path, wait_s: float) -> None:
        self._path, self._wait_s = path, wait_s
        with self._explained():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise StoreError(
                    f"{path} is no file; name another one by --store or QUANTMETER_STORE"
                )
            if path.exists() and path.stat().st_size:
                _look(path)
                if _log_of(path).exists():
                    _check_with_log(path, wait_s)
            self._connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; the last process to do so writes its log back into it."""
        self._connection.close()

    def query(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows that a statement gives.

        Raises:
            StoreError: if the file cannot be read.
        """
        with self._explained():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run statements as one transaction, committed at the end; none of them if one fails.

        Raises:
            StoreError: if the file is locked for too long or cannot be written, as on a full disk.
        """
        with self._explained():
            # The lock is asked for at once: a reader that wants to write later may not get it.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        # A commit reaches the disk before `put` returns. It took 0.3 ms instead of 0.03 ms (median
        # of 200 commits of 4 kB; Zen 5 server, virtual disk) beside timings of 100 ms and more; at
        # NORMAL, a loss of power could take up to 1000 pages of measurements with it.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        with self.writing() as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in _SCHEMA:
                    connection.execute(statement)
            _require_ours(self._path, *_marks(connection))
        self._log_ahead()
        _check(self._path, self._connection)

    def _log_ahead(self) -> None:
        """Turn write-ahead logging on; it is a property of the file, and stays.

        The change needs the file for itself, and SQLite does not wait for that in all cases.
        """
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                mode = self._connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_S)
        if mode != "wal":
            raise StoreError(
                f"{self._path}: this file system cannot share a log between processes; "
                "name a file on a local disk by --store or QUANTMETER_STORE"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _explain(self._path, error, self._wait_s) from error
        except OSError as error:
            raise StoreError(
                f"{self._path} cannot be opened: {error.strerror}; "
                "name another file by --store or QUANTMETER_STORE"
            ) from error


def _look(path: Path) -> None:
    """Raise unless a file that is not empty looks like a store of this version.

    SQLite reads it as an immutable file: without locks, log or any file beside it. Plain reading
    would do too, but closing a file drops all locks that this process holds on it.

    Raises:
        sqlite3.Error: if it is no SQLite database.
        StoreError: if it is a foreign one, or of another version, or truncated.
    """
    if path.stat().st_size < _HEADER_BYTES:
        raise _foreign(path)
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(address, uri=True)) as connection:
        # Where a log waits beside it, the file alone may lack pages that its header counts; with
        # this, SQLite reads the header all the same.
        connection.execute("PRAGMA writable_schema = ON")
        marks = _marks(connection)
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
    _require_ours(path, *marks)
    waiting = [_log_of(path), path.with_name(path.name + "-journal")]
    if path.stat().st_size % page_bytes and not any(p.exists() for p in waiting):
        raise _damaged(path, "its last page is cut off")


def _check_with_log(path: Path, wait_s: float) -> None:
    """Raise if a page of a file or of the log beside it is damaged; neither is written.

    An index of the log (``-shm``), which SQLite makes from it at any time, may be left.

    Raises:
        sqlite3.Error: if it cannot be read.
        StoreError: if it is damaged.
    """
    address = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True, timeout=wait_s)) as connection:
        _check(path, connection)


def _check(path: Path, connection: sqlite3.Connection) -> None:
    # 19 ms for 10,000 measurements of 5 kB: cheap beside writing into a damaged file.
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise _damaged(path, " ".join(found.split()))


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    """Application and version that a file says it is of."""
    names = ("application_id", "user_version")
    application, version = (connection.execute(f"PRAGMA {n}").fetchone()[0] for n in names)
    return application, version


def _require_ours(path: Path, application: int, version: int) -> None:
    if application != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program; {_AWAY}")
    if version != VERSION:
        cure = "update Quantmeter" if version > VERSION else _AWAY
        raise StoreError(
            f"{path} is a store of version {version}, and this Quantmeter reads {VERSION}; {cure}"
        )


def _foreign(path: Path) -> StoreError:
    return StoreError(f"{path} is no SQLite database; {_AWAY}")


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"{path} is damaged ({what}); restore it from a copy, or {_AWAY}")


def _code(error: sqlite3.Error) -> int:
    """The primary result code; SQLite's extended ones hold it in their lowest byte."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _explain(path: Path, error: sqlite3.Error, wait_s: float) -> StoreError:
    code = _code(error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"{path} was locked by another process for more than {wait_s:g} s; "
            "wait until that process is done, or end it"
        )
    if code == sqlite3.SQLITE_FULL:
        return StoreError(f"{path}: the disk is full; make room and go on, what was stored is kept")
    if code == sqlite3.SQLITE_IOERR:
        return StoreError(
            f"{path}: the disk refused ({error}): it is full, over a quota or failing; "
            "make room and go on, what was stored is kept"
        )
    if code == sqlite3.SQLITE_NOTADB:
        return _foreign(path)
    if code == sqlite3.SQLITE_CORRUPT:
        return _damaged(path, str(error))
    if code in _REFUSED:
        return StoreError(
            f"{path} cannot be written ({error}); "
            "see to its permissions, or name another file by --store or QUANTMETER_STORE"
        )
    return StoreError(f"{path}: SQLite failed: {error}")
