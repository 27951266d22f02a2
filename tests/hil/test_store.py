"""The store of measurements: what is held, for whom, and by how many at once."""

import sqlite3
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.errors import StoreError
from costmodels.measurement import Device, Measurement
from hil.records import Failure, FailureKind, Record, Subject
from hil.store import Store, default_store_path
from tests.hil.store_writer import DEVICE, Writer, record, subject

FAILED = Record({}, Failure(FailureKind.TIME, "no answer within 2 s"))
NEWER_RUNTIME = replace(DEVICE, runtime_version="1.33.0")
OTHER_CPU = replace(DEVICE, cpu="Another CPU", cores=64)
NEWER_KERNEL = replace(DEVICE, system="Linux 7")


def put(path: Path, number: int, *, by: int = 0, device: Device = DEVICE) -> Record:
    with Store(path, device) as store:
        return store.put(subject(number), record(number, by))


def test_what_is_put_is_read_back_equal_now_and_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "store ?#%.sqlite"
    with Store(path, DEVICE) as store:
        assert store.get(subject(1)) is None
        assert store.put(subject(1), record(1, 0)) == record(1, 0)
        assert store.get(subject(1)) == record(1, 0)
    with Store(path, DEVICE) as store:
        assert store.get(subject(1)) == record(1, 0)
        assert store.get(subject(2)) is None


def test_the_first_measurement_stays(tmp_path: Path) -> None:
    with Store(tmp_path / "store", DEVICE) as store:
        store.put(subject(1), record(1, by := 7))
        for later in (record(1, 8), FAILED):
            assert store.put(subject(1), later) == record(1, by)
        assert store.get(subject(1)) == record(1, by)


def test_whatever_comes_later_replaces_a_failure(tmp_path: Path) -> None:
    again = Record({}, Failure(FailureKind.MEMORY, "again"))
    with Store(tmp_path / "store", DEVICE) as store:
        for given_record, held in ((FAILED, FAILED), (again, again), (record(1, 0),) * 2):
            assert store.put(subject(1), given_record) == held
            assert store.get(subject(1)) == held
        assert len(list(store.entries())) == 1


def test_what_was_stored_before_a_moment_is_not_used_and_anything_replaces_it(
    tmp_path: Path,
) -> None:
    path, times = tmp_path / "store", [100.0]
    with Store(path, DEVICE, clock=lambda: times[-1]) as store:
        for number in (1, 2):
            store.put(subject(number), record(number, 0))
    times.append(200.0)
    with Store(path, DEVICE, clock=lambda: times[-1], since_s=100.5) as store:
        assert store.get(subject(1)) is None
        assert store.put(subject(1), record(1, 7)) == store.get(subject(1)) == record(1, 7)
        assert store.put(subject(1), record(1, 8)) == record(1, 7), "it is no older than that"
        assert store.put(subject(2), FAILED) == store.get(subject(2)) == FAILED
        assert [(e.record, e.created_s) for e in store.entries()] == [
            (record(1, 7), 200.0),
            (FAILED, 200.0),
        ]


def test_a_record_that_a_store_took_tells_when(tmp_path: Path) -> None:
    times = iter((100.5, 200.5))
    with Store(tmp_path / "store", DEVICE, clock=lambda: next(times)) as store:
        assert record(1, 0).created_s is None
        assert store.put(subject(1), record(1, 0)).created_s == 100.5
        assert store.put(subject(1), record(1, 1)).created_s == 100.5
        held = store.get(subject(1))
        assert held is not None
        assert held.created_s == 100.5


def test_what_is_discarded_is_chosen_by_content_and_of_this_device_only(tmp_path: Path) -> None:
    path = tmp_path / "store"
    contents = [{"network": n, "options": [t]} for n, t in (("a", 1), ("b", 1), ("a", 2))]
    for device in (DEVICE, OTHER_CPU):
        with Store(path, device) as store:
            for content in contents:
                store.put(Subject(content), record(1, 0))
    with Store(path, DEVICE) as store:
        assert store.discard({"network": "a", "options": (2,)}) == 1
        assert [e.subject.content for e in store.entries()] == contents[:2]
        assert store.discard({"network": "a"}) == 1
        assert store.discard({"network": "c"}) == 0
        assert len(list(store.entries(all_devices=True))) == 4


@pytest.mark.parametrize("other", [NEWER_RUNTIME, OTHER_CPU, replace(DEVICE, isa=("avx2",))])
def test_entries_of_another_device_or_runtime_are_listed_and_never_used(
    tmp_path: Path, other: Device
) -> None:
    path = tmp_path / "store"
    put(path, 1, device=other)
    with Store(path, DEVICE) as store:
        assert store.get(subject(1)) is None
        assert store.elsewhere({"number": 1}) == store.elsewhere({}) == [other]
        assert store.elsewhere({"number": 2}) == []
        assert list(store.entries()) == []
        assert [e.device for e in store.entries(all_devices=True)] == [other]
        assert store.put(subject(1), record(1, 5)) == record(1, 5)
        assert store.elsewhere({"number": 1}) == [other]
    with Store(path, DEVICE) as store:
        assert store.get(subject(1)) == record(1, 5)


def test_a_device_of_the_same_identity_shares_entries_and_each_tells_who_measured(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store"
    put(path, 1)
    with Store(path, NEWER_KERNEL) as store:
        assert store.get(subject(1)) == record(1, 0)
        assert store.elsewhere({"number": 1}) == []
        store.put(subject(1), record(1, 9))
        store.put(subject(2), record(2, 9))
        assert [e.device for e in store.entries()] == [DEVICE, NEWER_KERNEL]


def test_every_device_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for device in (DEVICE, OTHER_CPU, DEVICE):
        for number in range(3):
            put(path, number, device=device)
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("SELECT count(*) FROM device").fetchone() == (2,)
        assert plain.execute("SELECT count(*) FROM entry").fetchone() == (6,)


def test_entries_are_in_order_with_their_times_and_can_be_chosen_by_content(
    tmp_path: Path,
) -> None:
    times = iter((100.5, 200.5, 300.5))
    kinds = [("a", 1), ("b", 1), ("a", 2)]
    with Store(tmp_path / "store", DEVICE, clock=lambda: next(times)) as store:
        for network, threads in kinds:
            chosen = Subject({"network": network, "threads": threads})
            store.put(chosen, record(threads, 0))
        found = list(store.entries())
        assert [e.created_s for e in found] == [100.5, 200.5, 300.5]
        assert [tuple(e.subject.content.values()) for e in found] == kinds
        assert [e.record for e in found] == [record(threads, 0) for _, threads in kinds]
        assert [e.created_s for e in store.entries({"network": "a"})] == [100.5, 300.5]
        assert [e.created_s for e in store.entries({"network": "a", "threads": 2})] == [300.5]
        assert list(store.entries({"bits": None})) == []


def test_one_may_put_while_iterating(tmp_path: Path) -> None:
    with Store(tmp_path / "store", DEVICE) as store, Store(store.path, DEVICE) as other:
        for number in range(3):
            store.put(subject(number), record(number, 0))
        for turn, _ in enumerate(store.entries()):
            other.put(subject(10 + turn), record(1, 0))
        assert turn == 2
        assert len(list(store.entries())) == 6


def test_what_is_no_json_is_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    with Store(tmp_path / "store", DEVICE) as store:
        for fact in (object(), float("nan")):
            with pytest.raises(StoreError, match="only JSON values"):
                store.put(subject(1), replace(record(1, 0), facts={"fact": fact}))
        assert list(store.entries(all_devices=True)) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
SECONDS = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
MEASURED = st.builds(
    lambda samples, name, context: Record({name: Measurement(name, samples, context=context)}),
    st.lists(SECONDS, min_size=1, max_size=4).map(tuple),
    st.text(),
    st.dictionaries(st.text(), JSON, max_size=2),
)
KINDS, DEVICES = st.sampled_from(FailureKind), st.sampled_from([DEVICE, NEWER_KERNEL, OTHER_CPU])
FAILURES = st.builds(lambda kind, text: Record({}, Failure(kind, text)), KINDS, st.text())
CONTENTS = st.lists(st.dictionaries(st.text(), JSON), min_size=3, max_size=3)
PUTS = st.lists(st.tuples(st.integers(0, 2), DEVICES, MEASURED | FAILURES), max_size=8)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(contents=CONTENTS, puts=PUTS)
def test_whatever_is_put_the_store_holds_what_its_rule_says(
    contents: list[dict[str, object]], puts: list[tuple[int, Device, Record]]
) -> None:
    held: dict[tuple[str, tuple[str, ...]], Record] = {}
    with TemporaryDirectory() as folder, ExitStack() as opened:
        path = Path(folder) / "store"
        stores = {d: opened.enter_context(Store(path, d)) for d in (DEVICE, OTHER_CPU)}
        stores[NEWER_KERNEL] = stores[DEVICE]
        for which, device, given_record in puts:
            chosen = Subject(contents[which])
            key = chosen.key, device.identity
            before = held.get(key)
            if before is None or before.failure is not None:
                held[key] = given_record
            assert stores[device].put(chosen, given_record) == held[key]
        for device, store in stores.items():
            for chosen in map(Subject, contents):
                assert store.get(chosen) == held.get((chosen.key, device.identity))
            mine = {k: r for (k, identity), r in held.items() if identity == device.identity}
            assert {e.subject.key: e.record for e in store.entries()} == mine


def test_another_process_reads_what_was_put_and_what_it_puts_is_read_here(tmp_path: Path) -> None:
    path = tmp_path / "store"
    put(path, 0, by=3)
    other = Writer("share", path, writer=4, first=0, number=2)
    other.go()
    status, said = other.end()
    assert status == 0
    assert dict(line.split() for line in said) == {"0": "3", "1": "4"}
    with Store(path, DEVICE) as store:
        assert store.get(subject(1)) == record(1, 4)


def test_eight_processes_write_at_once_into_a_file_that_none_of_them_found(tmp_path: Path) -> None:
    path = tmp_path / "store"
    writers = [Writer("share", path, w, first=10 * w, number=40) for w in range(8)]
    for writer in writers:
        writer.go()
    ended = [writer.end() for writer in writers]
    assert [status for status, _ in ended] == [0] * 8
    told: dict[int, set[int]] = {}
    for line in (line for _, said in ended for line in said):
        number, holder = map(int, line.split())
        told.setdefault(number, set()).add(holder)
    assert told.keys() == set(range(110))
    assert {len(holders) for holders in told.values()} == {1}
    assert len({holder for holders in told.values() for holder in holders}) > 1
    with Store(path, DEVICE) as store:
        found = list(store.entries())
    assert len(found) == 110
    for entry in found:
        number = entry.subject.content["number"]
        assert entry.record == record(number, *told[number])


def test_the_file_is_where_the_environment_says() -> None:
    home = Path("home")
    usual = home / ".cache/quantmeter/measurements.sqlite"
    assert default_store_path({}, home) == usual
    assert default_store_path({"XDG_CACHE_HOME": "relative", "QUANTMETER_STORE": ""}, home) == usual
    cache = {"XDG_CACHE_HOME": "/cache"}
    assert default_store_path(cache, home) == Path("/cache/quantmeter/measurements.sqlite")
    assert default_store_path({**cache, "QUANTMETER_STORE": "my.db"}, home) == Path("my.db")
