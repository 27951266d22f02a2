"""``kill -9`` of a calibration at any moment, again and again."""

import multiprocessing
import random
import sqlite3
import time
from itertools import islice
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np

from costmodels.sketch import example_network
from hil.calibration import schedule
from hil.device import detect
from hil.store import Store
from tests.hil.calibrating import CHOICES, calibrate

KILLS = 20
SECONDS = 4.0
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.hil.calibrating"])  # imported once for all runs


def _wait_for(log: Path, lines: int, process: ForkServerProcess) -> None:
    end = time.monotonic() + 60
    while len(_keys(log)) < lines:
        assert process.is_alive(), "the calibration ended before it was killed"
        assert time.monotonic() < end, "the calibration measured nothing for a minute"
        time.sleep(0.01)


def _keys(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_a_calibration_killed_twenty_times_ends_with_every_measurement_once(
    tmp_path: Path,
) -> None:
    """Each run goes on where the one before was killed: none is taken twice, none is missing."""
    store, log, draw = tmp_path / "kept.sqlite", tmp_path / "log", random.Random(0)
    told, tells = PROCESSES.Pipe(duplex=False)

    def start() -> ForkServerProcess:
        process = PROCESSES.Process(target=calibrate, args=(store, log, SECONDS, tells))
        process.start()
        return process

    for _ in range(KILLS):
        process = start()
        _wait_for(log, len(_keys(log)) + 1, process)
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.join()
    last = start()
    last.join(timeout=120)
    assert last.exitcode == 0
    taken, keys = told.recv(), _keys(log)
    assert taken > KILLS
    assert len(keys) == len(set(keys)), "a measurement was taken twice"
    with sqlite3.connect(store) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Store(store, detect()) as kept:
        entries = list(kept.entries())
    assert len(entries) == taken
    assert set(keys) <= {entry.subject.key for entry in entries}
    assert all(entry.record.measurements.keys() == {"policy", "float"} for entry in entries)
    network = example_network()
    free = np.ones(len(network.layers), np.bool_)
    wanted = [
        [str(CHOICES[0] if integer else CHOICES[1]) for integer in pattern]
        for pattern, _ in islice(schedule(free, 0), taken)
    ]
    stored = sorted(entry.subject.content["timing"]["seed"] for entry in entries)
    assert stored == list(range(taken)), "the union of the runs is no whole run"
    by_seed = {e.subject.content["timing"]["seed"]: e.subject.content["policy"] for e in entries}
    assert [by_seed[seed] for seed in range(taken)] == wanted
