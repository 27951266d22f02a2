"""Files that are no store, disks that are full, and processes that are killed."""

import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from shutil import disk_usage

import pytest

from costmodels.errors import StoreError
from hil.database import APPLICATION_ID, VERSION
from hil.store import Store
from tests.hil.store_writer import DEVICE, Writer, record, subject


def put(path: Path, numbers: range) -> None:
    with Store(path, DEVICE) as store:
        for number in numbers:
            store.put(subject(number), record(number, 0))


def fill(store: Store, first: int) -> tuple[int, str]:
    """Put subjects until one is refused; return its number and the error's text."""
    for number in range(first, first + 1000):
        try:
            store.put(subject(number), record(number, 0))
        except StoreError as error:
            return number, str(error)
    raise AssertionError("1000 records of 4 kB fit")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refused(path: Path, match: str) -> None:
    """Both the error's text and that it touched nothing."""
    before = contents(path.parent)
    with pytest.raises(StoreError, match=match) as caught:
        Store(path, DEVICE)
    assert contents(path.parent) == before
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"x", b"a text, not a database\n" * 500, b"SQLite format 4\0"])
def test_a_file_that_is_no_database_is_refused_and_not_touched(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "store"
    path.write_bytes(content)
    refused(
        path,
        "no SQLite database; move it away, or name another file by --store or QUANTMETER_STORE",
    )


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("in_use", [False, True])
def test_a_database_of_another_program_is_refused_and_not_touched(
    tmp_path: Path, mode: str, in_use: bool
) -> None:
    path = tmp_path / "store"
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute(f"PRAGMA journal_mode = {mode}")
        foreign.execute("CREATE TABLE entry (subject)")
        foreign.commit()
        if in_use:
            foreign.execute("INSERT INTO entry VALUES (1)")
            refused(path, "a database of another program; move it away")
            foreign.commit()
            assert foreign.execute("SELECT subject FROM entry").fetchall() == [(1,)]
    refused(path, "a database of another program; move it away")


def test_a_database_without_tables_of_another_program_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with closing(sqlite3.connect(path)) as foreign:
        foreign.execute("VACUUM")
    assert path.stat().st_size > 0
    refused(path, "a database of another program")


@pytest.mark.parametrize(
    ("version", "cure"), [(VERSION + 1, "update Quantmeter"), (0, "move it away")]
)
def test_a_store_of_another_version_is_refused_and_not_touched(
    tmp_path: Path, version: int, cure: str
) -> None:
    path = tmp_path / "store"
    put(path, range(3))
    with closing(sqlite3.connect(path)) as plain:
        plain.execute(f"PRAGMA user_version = {version}")
    refused(path, f"a store of version {version}, and this Quantmeter reads {VERSION}; {cure}")


@pytest.mark.parametrize("cut", [1, 1000, 4096, 5000, "half", "all but 4096", "all but 200"])
def test_a_truncated_store_is_refused_and_not_touched(tmp_path: Path, cut: int | str) -> None:
    path = tmp_path / "store"
    put(path, range(30))
    whole = path.read_bytes()
    kept = {"half": len(whole) // 2, "all but 4096": 4096, "all but 200": 200}
    path.write_bytes(whole[: kept[cut] if isinstance(cut, str) else -cut])
    refused(path, r"is damaged \(.*\); restore it from a copy, or move it away")


def test_a_store_with_a_page_of_noise_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store"
    put(path, range(30))
    with closing(sqlite3.connect(path)) as plain:
        (root,) = plain.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'entry'"
        ).fetchone()
    whole = bytearray(path.read_bytes())
    whole[(root - 1) * 4096 : root * 4096] = random.Random(0).randbytes(4096)
    path.write_bytes(whole)
    refused(path, r"is damaged \(.*\); restore it from a copy, or move it away")


def damage(path: Path, page: int) -> None:
    """Overwrite a page with noise."""
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(random.Random(0).randbytes(4096))


def left_by_a_kill(path: Path, folder: Path) -> Path:
    """A copy of a store and its waiting log, as a process that was killed leaves them."""
    folder.mkdir()
    for end in ("", "-wal"):
        shutil.copy(path.with_name(path.name + end), folder / (path.name + end))
    return folder / path.name


@pytest.mark.parametrize("index", [False, True])
def test_a_damaged_store_beside_which_a_log_waits_is_refused_and_neither_is_touched(
    tmp_path: Path, index: bool
) -> None:
    path = tmp_path / "store"
    put(path, range(30))
    with Store(path, DEVICE) as store:
        for number in range(30, 33):
            store.put(subject(number), record(number, 0))
        whole = left_by_a_kill(path, tmp_path / "whole")
        torn = left_by_a_kill(path, tmp_path / "torn")
        if index:
            shutil.copy(path.with_name("store-shm"), tmp_path / "torn" / "store-shm")
    put(whole, range(33, 34))
    damage(torn, torn.stat().st_size // 4096 // 2)
    before = contents(torn.parent)
    assert before["store-wal"]
    with pytest.raises(StoreError, match=r"is damaged \(.*\); restore it from a copy"):
        Store(torn, DEVICE)
    after = contents(torn.parent)
    assert (after["store"], after["store-wal"]) == (before["store"], before["store-wal"])
    with Store(whole, DEVICE) as store:
        assert len(list(store.entries())) == 34


def test_a_row_that_cannot_be_read_is_an_error_and_not_an_absent_measurement(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    put(path, range(2))
    for text in ("{", "[]", '{"measurements": {}, "failure": null, "facts": {}}'):
        with closing(sqlite3.connect(path)) as plain:
            plain.execute("UPDATE entry SET record = ? WHERE id = 1", (text,))
            plain.commit()
        with Store(path, DEVICE) as store:
            with pytest.raises(StoreError, match="a row cannot be read"):
                store.get(subject(0))
            assert store.get(subject(1)) == record(1, 0)


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    path.touch()
    put(path, range(1))
    assert int.from_bytes(path.read_bytes()[68:72], "big") == APPLICATION_ID
    assert list(contents(tmp_path)) == ["store"]


def test_where_no_file_can_be_made_the_error_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(tmp_path, "is no file")
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r"cannot be opened: .*; name another file"):
        Store(tmp_path / "file" / "store", DEVICE)
    assert contents(tmp_path) == before


def test_a_store_that_another_process_keeps_locked_is_an_error_that_says_so(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    put(path, range(2))
    with Store(path, DEVICE, wait_s=0.05) as store:
        locker = sqlite3.connect(path, isolation_level=None)
        with closing(locker):
            locker.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match=r"locked by another process for more than 0.05 s"):
                store.put(subject(2), record(2, 0))
            assert store.get(subject(1)) == record(1, 0)
            with pytest.raises(StoreError, match=r"locked by another process for more than 0.01 s"):
                Store(path, DEVICE, wait_s=0.01)
        assert store.get(subject(2)) is None
        store.put(subject(2), record(2, 0))
        assert store.get(subject(2)) == record(2, 0)


def test_a_disk_that_refuses_keeps_what_was_stored_and_the_store_goes_on_with_room(
    tmp_path: Path,
) -> None:
    """No file of the process may grow beyond 400 kB; it needs no privileges."""
    path = tmp_path / "store"
    writer = Writer("limited", path, writer=0, first=0, number=400_000)
    writer.go()
    status, (error, counts) = writer.end()
    assert status == 0
    assert "the disk refused" in error
    assert "make room and go on, what was stored is kept" in error
    stored, held, unstored = counts.split()
    assert int(stored) > 10
    assert (held, unstored) == (stored, "None")
    with Store(path, DEVICE) as store:
        found = [(e.subject, e.record) for e in store.entries()]
    assert found == [(subject(n), record(n, 0)) for n in range(int(stored) + 1)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 kB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_was_stored_and_the_store_goes_on_with_room(
    small_disk: Path,
) -> None:
    path, ballast = small_disk / "store", small_disk / "ballast"
    ballast.write_bytes(bytes(200_000))
    with Store(path, DEVICE) as store:
        stored, error = fill(store, 0)
        assert "the disk is full; make room and go on, what was stored is kept" in error
        assert stored > 10
        held = [store.get(subject(number)) for number in range(stored + 1)]
        assert held == [*(record(number, 0) for number in range(stored)), None]
        ballast.unlink()
        store.put(subject(stored), record(stored, 0))
    with Store(path, DEVICE) as store:
        assert [e.record for e in store.entries()] == [record(n, 0) for n in range(stored + 1)]


def test_a_process_that_found_the_disk_full_leaves_a_store_that_opens_again(
    small_disk: Path,
) -> None:
    path, ballast = small_disk / "store", small_disk / "ballast"
    put(path, range(5))
    ballast.write_bytes(bytes(disk_usage(small_disk).free - 150_000))
    with Store(path, DEVICE) as store:
        stored, error = fill(store, 5)
    assert "the disk is full" in error
    assert stored > 10
    ballast.unlink()
    put(path, range(stored, stored + 2))
    with Store(path, DEVICE) as store:
        assert [e.record for e in store.entries()] == [record(n, 0) for n in range(stored + 2)]


def test_no_store_is_made_where_there_is_no_room_and_one_is_made_later(small_disk: Path) -> None:
    path, ballast = small_disk / "store", small_disk / "ballast"
    ballast.write_bytes(bytes(disk_usage(small_disk).free))
    with pytest.raises(StoreError, match="disk"):
        Store(path, DEVICE)
    ballast.unlink()
    put(path, range(1))


def test_a_store_on_a_disk_that_is_read_only_is_an_error(small_disk: Path) -> None:
    path = small_disk / "store"
    put(path, range(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(path, "cannot be written .*permissions")


def test_opening_a_store_again_does_not_drop_the_locks_that_its_process_holds(
    tmp_path: Path,
) -> None:
    """Closing any plain file handle would; the next process would then delete the log in use."""
    path = tmp_path / "store"
    with Store(path, DEVICE) as store:
        store.put(subject(0), record(0, 0))
        Store(path, DEVICE).close()
        for number in (1, 2):
            other = Writer("share", path, writer=9, first=0, number=number)
            other.go()
            assert other.end() == (0, [f"{each} 0" for each in range(number)])
            store.put(subject(number), record(number, 0))
    with Store(path, DEVICE) as store:
        assert [e.record for e in store.entries()] == [record(n, 0) for n in range(3)]


def test_killed_writers_lose_nothing_that_they_were_told_is_committed(tmp_path: Path) -> None:
    """20 kills at random moments, in rounds of five who write at once; the first make the file."""
    path = tmp_path / "store"
    draw = random.Random(5)
    told: dict[int, int] = {}
    for turn in range(4):
        numbers = range(5 * turn, 5 * turn + 5)
        writers = {n: Writer("forever", path, n, first=10**6 * n) for n in numbers}
        for writer in writers.values():
            writer.go()
        for number, writer in writers.items():
            if number % 2:  # this one writes at least once; others may die before they open
                told[int(writer.line())] = number
            time.sleep(draw.uniform(0, 0.05))
            writer.kill()
        for number, writer in writers.items():
            status, said = writer.end()
            assert status == -9
            told.update((int(line), number) for line in said)
        with closing(sqlite3.connect(path)) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with Store(path, DEVICE) as store:
        found = [(e.subject.content["number"], e.record) for e in store.entries()]
    held = dict(found)
    assert len(held) == len(found)
    assert all(held.get(number) == record(number, told[number]) for number in told)
    assert len(told) > 20
    assert len(held) <= len(told) + 20  # at most the one that was under way in each
