"""The backend that measures, with a store: nothing is taken twice, and nothing is left running."""

import gc
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.errors import StoreError
from costmodels.model import BackendContext
from costmodels.sketch import example_network
from costmodels.table import CostTable
from costmodels.units import Metric
from hil.device import detect
from hil.live import OrtLive
from hil.records import Subject
from hil.store import OLD_S, Entry, Store
from quantization.bits import DEFAULT_CHOICES, FLOAT32, BitWidths
from quantization.policy import Policy, PolicyBatch

NETWORK = example_network()
SECONDS = 5.0


def keys(path: Path) -> list[str]:
    """What the store holds, in the order in which it was first stored."""
    with Store(path, detect()) as store:
        return [entry.subject.key for entry in store.entries()]


def table(path: Path, seed: int = 0, threads: int = 1) -> CostTable:
    context = BackendContext(threads, SECONDS, seed, store=path)
    return OrtLive(context).table(NETWORK, DEFAULT_CHOICES, Metric.LATENCY)


def age(path: Path, seconds: float) -> None:
    """Let everything in a store have been stored earlier."""
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        plain.execute("UPDATE entry SET created_s = created_s - ?", (seconds,))


def entries(path: Path) -> list[Entry]:
    with Store(path, detect()) as store:
        return list(store.entries(all_devices=True))


def totals(context: BackendContext, *choices: BitWidths) -> list[float]:
    batch = PolicyBatch.of(NETWORK, [Policy.uniform(NETWORK, bits) for bits in choices])
    found: list[float] = OrtLive(context).total(NETWORK, batch, Metric.LATENCY).tolist()
    return found


def children() -> set[int]:
    """Processes that this one started and that still run."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(number) for number in (task / "children").read_text().split()}
    return {n for n in found if _state(n) not in {"Z", ""}}


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CostTable]:
    """A store that a calibration was kept in, and its table."""
    path = tmp_path_factory.mktemp("kept") / "measurements.sqlite"
    return path, table(path)


def test_the_same_calibration_takes_no_new_measurement(kept: tuple[Path, CostTable]) -> None:
    path, first = kept
    before = keys(path)
    again = table(path)
    assert keys(path) == before
    assert len(again.measurements) == len(first.measurements) == len(before)
    assert list(again.measurements) == list(first.measurements)


def test_equal_records_give_the_same_table_but_for_what_is_profiled_anew(
    kept: tuple[Path, CostTable],
) -> None:
    """Profiles are the prior and share out the float time: they are not kept, and move cells."""
    path, first = kept
    again = table(path)
    names = ("metric", "unit", "statistic", "network", "layers", "choices", "glue_names", "tensors")
    for name in names:
        assert getattr(again, name) == getattr(first, name)
    np.testing.assert_array_equal(again.supported, first.supported)
    np.testing.assert_array_equal(again.unary.kernel, first.unary.kernel)
    for name in ("device", "runtime", "seed", "seconds", "inputs", "policies", "failed_policies"):
        assert again.source[name] == first.source[name]
    floats = DEFAULT_CHOICES.index(FLOAT32)
    whole = [
        t.unary.value[:, floats].sum() + t.glue.value[:, t.formats.index(FLOAT32.reads)].sum()
        for t in (again, first)
    ]
    assert whole[0] == pytest.approx(whole[1], rel=1e-9), "all of the float time is shared out"


@pytest.mark.parametrize(("seed", "threads"), [(1, 1), (0, 2)])
def test_another_seed_or_other_threads_are_measured_anew(
    tmp_path: Path, seed: int, threads: int
) -> None:
    path = tmp_path / "kept.sqlite"
    floats = np.zeros(len(NETWORK.layers), np.bool_)
    OrtLive(BackendContext(store=path)).measure(NETWORK)(floats, 0)
    assert len(keys(path)) == 1
    OrtLive(BackendContext(store=path)).measure(NETWORK)(floats, 0)
    assert len(keys(path)) == 1
    OrtLive(BackendContext(threads, seed=seed, store=path)).measure(NETWORK)(floats, 0)
    assert len(keys(path)) == 2


def test_a_table_is_as_old_as_the_oldest_measurement_that_it_rests_on(
    tmp_path: Path, kept: tuple[Path, CostTable]
) -> None:
    path = tmp_path / "kept.sqlite"
    shutil.copy(kept[0], path)
    age(path, OLD_S / 2)
    before = entries(path)
    again = table(path)
    assert again.source["created_s"] == min(e.created_s for e in before)
    assert again.source["created_s"] < time.time() - OLD_S / 2
    assert entries(path) == before, "half a day is not old"


def test_what_is_older_than_a_day_is_measured_anew_and_replaced(
    tmp_path: Path, kept: tuple[Path, CostTable]
) -> None:
    path, began = tmp_path / "kept.sqlite", time.time()
    shutil.copy(kept[0], path)
    age(path, OLD_S + 60)
    old = {e.subject.key: e for e in entries(path)}
    again = table(path)
    new = {e.subject.key: e for e in entries(path) if e.created_s >= began}
    assert len(new) == len(again.measurements) >= 24
    both = new.keys() & old.keys()
    assert len(both) >= 24
    assert all(new[key].record != old[key].record for key in both)
    assert again.source["created_s"] == min(e.created_s for e in new.values())


def test_anew_measures_all_of_a_network_again_and_leaves_other_networks_and_devices_alone(
    tmp_path: Path, kept: tuple[Path, CostTable]
) -> None:
    path, began = tmp_path / "kept.sqlite", time.time()
    shutil.copy(kept[0], path)
    first = entries(path)[0]
    other = Subject({**first.subject.content, "network": "another"})
    with Store(path, replace(detect(), cpu="another")) as there, Store(path, detect()) as here:
        there.put(first.subject, first.record)
        here.put(other, first.record)
    context = BackendContext(seconds=SECONDS, store=path, anew=True)
    again = OrtLive(context).table(NETWORK, DEFAULT_CHOICES, Metric.LATENCY)
    mine = [e for e in entries(path) if e.device == detect() and e.subject != other]
    assert len(mine) == len(again.measurements)
    assert again.source["created_s"] == min(e.created_s for e in mine) >= began
    assert len(entries(path)) == len(mine) + 2
    resumed = table(path)
    assert list(resumed.measurements) == list(again.measurements), "without it, nothing is again"


def test_measurements_by_another_runtime_version_are_named_once_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, context = tmp_path / "kept.sqlite", BackendContext(store=tmp_path / "kept.sqlite")
    totals(context, FLOAT32)
    assert not caplog.messages
    [mine] = entries(path)
    path.unlink()
    with Store(path, replace(detect(), runtime_version="0.1")) as there:
        for threads in (1, 2):
            there.put(Subject({**mine.subject.content, "policy": [str(threads)]}), mine.record)
    totals(context, FLOAT32, BitWidths(8, 8))
    [said] = caplog.messages
    assert "onnxruntime 0.1); they are not used" in said
    assert "\n" not in said
    totals(context, FLOAT32)
    assert len(caplog.messages) == 1, "nothing is missing any more"


def test_totals_come_from_the_store_as_well(tmp_path: Path) -> None:
    context = BackendContext(store=tmp_path / "kept.sqlite")
    first = totals(context, FLOAT32, BitWidths(8, 8))
    assert context.store is not None
    before = keys(context.store)
    assert len(before) == 2
    assert totals(context, FLOAT32, BitWidths(8, 8)) == first
    assert totals(context, BitWidths(4, 8)) == first[1:], "the same kernels"
    assert keys(context.store) == before


def test_without_a_store_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = len(list(Path(os.environ["QUANTMETER_STORE"]).parent.iterdir()))
    totals(BackendContext(), FLOAT32)
    assert not list(tmp_path.iterdir())
    assert len(list(Path(os.environ["QUANTMETER_STORE"]).parent.iterdir())) == before


@pytest.mark.parametrize("place", ["/proc/none/kept.sqlite", "file/kept.sqlite", "folder"])
def test_a_store_that_cannot_be_written_is_one_clear_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=place.split("/")[-1]) as found:
        OrtLive(BackendContext(store=tmp_path / place))
    assert "\n" not in str(found.value)
    assert (tmp_path / "file").read_text() == "no folder"


def wait_until(holds: Callable[[], bool]) -> bool:
    """Whether it holds within a few seconds: processes take a moment to be gone."""
    end = time.monotonic() + 5
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def test_workers_and_files_end_with_the_backend_and_what_it_gave(tmp_path: Path) -> None:
    """What `measure` returned keeps worker and store until it goes itself."""
    gc.collect()
    processes, files = children(), descriptors()
    floats = np.zeros(len(NETWORK.layers), np.bool_)
    live = OrtLive(BackendContext(store=tmp_path / "kept.sqlite"))
    measure, profile = live.measure(NETWORK), live.profile(NETWORK)
    measure(floats, 0)
    [worker] = children() - processes
    del live
    gc.collect()
    assert measure(floats, 1).ratio > 0
    assert profile(Policy({})).shares
    assert children() - processes == {worker}
    assert len(keys(tmp_path / "kept.sqlite")) == 2
    del measure, profile
    gc.collect()
    assert wait_until(lambda: worker not in children())
    assert descriptors() == files
