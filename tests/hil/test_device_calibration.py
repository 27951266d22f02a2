"""A device is calibrated by random networks; those that judge are set apart before."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.samples import Overhead
from costmodels.calibrated.textbook import Textbook
from costmodels.errors import BackendError, TableError
from costmodels.measurement import Device
from hil.device_bench import DeviceReadings
from hil.device_calibration import (
    Measured,
    fit_device,
    measure_probes,
    samples_of,
    transfer_jobs,
)
from hil.device_readings import read_readings, write_readings
from hil.probe_choice import ProbeChoice
from hil.probe_timer import ProbeJob
from tests.hil.device_world import CONSTANT_S, LIMITS, NODE_S, World, drawn

DEVICE = Device("CPU", "x86_64", ("avx2",), 1, 2**30, "Linux", "onnxruntime", "1.0")


@pytest.fixture(autouse=True, scope="module")
def _probes_are_drawn_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for place in ("hil.probes.probe", "hil.probe_choice.probe"):
            patch.setattr(place, drawn)
        yield


def _measured(world: World, seconds: float, seed: int = 0) -> Measured:
    return measure_probes(
        world.measure, LIMITS, seconds=seconds, seed=seed, progress=lambda _share, _what: None
    )


@pytest.fixture(scope="module")
def measured() -> Measured:
    return _measured(World(), 48)


@pytest.fixture(scope="module")
def model(measured: Measured) -> DeviceModel:
    return fit_device(measured, DEVICE, 1, LIMITS, 0)


def test_networks_that_judge_come_first_and_are_never_fitted(measured: Measured) -> None:
    world = World()
    _measured(world, 30)
    whole = [job.whole for job in world.asked]
    assert all(whole[:7])
    apart = {sample.network for sample in measured.apart}
    fitted = {sample.network for sample in measured.fitted}
    assert len(apart) >= 10
    assert len(fitted) >= 30
    assert not apart & fitted
    assert len(set(world.asked)) == len(world.asked)


def test_what_was_chosen_does_not_depend_on_those_that_judge() -> None:
    worlds = World(), World(fails=lambda job: job.whole and job.seed < 5)
    for world in worlds:
        _measured(world, 32)
    first, second = ([job for job in world.asked if job.seed >= 1000] for world in worlds)
    assert first == second


def test_a_run_with_more_time_begins_with_the_same_probes() -> None:
    """So that what the store holds of a shorter run is used."""
    short, long = World(), World()
    _measured(short, 30)
    _measured(long, 48)
    random = [job for job in short.asked if job.seed < 1000 + 12]
    assert set(random) <= set(long.asked)


def test_the_time_that_was_spent_ends_it_and_failures_count() -> None:
    world = World(fails=lambda job: job.seed % 7 == 3)
    found = _measured(world, 32)
    assert len(world.asked) == pytest.approx(32, abs=2)
    assert found.seconds == len(world.asked)
    assert len(found.failed) == sum(job.seed % 7 == 3 for job in world.asked) > 0


def test_too_little_time_is_one_clear_error() -> None:
    with pytest.raises(BackendError, match=r"5 s were enough .* give more time"):
        _measured(World(), 5)


def test_if_every_probe_fails_that_is_one_clear_error_too() -> None:
    with pytest.raises(BackendError, match="0 of them to fit"):
        _measured(World(fails=lambda _job: True), 20)


def test_other_seeds_draw_other_probes() -> None:
    assert not set(transfer_jobs(0, 500)) & set(transfer_jobs(1, 500))


def test_a_simple_machine_is_learnt(model: DeviceModel) -> None:
    validation = model.validation
    assert validation["networks"] >= 10
    assert validation["total"]["mean_absolute"] < 0.08
    assert validation["total"]["rank_correlation"] > 0.98
    assert model.interval is not None
    assert 0 < model.interval.at_1ms < 0.3
    assert model.constant_s == pytest.approx(CONSTANT_S, rel=0.5)
    assert model.source["profiler"]["node_s"] == pytest.approx(NODE_S, rel=0.2)


def test_readings_are_written_and_read_back_and_fit_the_same_model(
    measured: Measured, model: DeviceModel, tmp_path: Path
) -> None:
    path = tmp_path / "raw.json.gz"
    write_readings(DeviceReadings(LIMITS, measured, DEVICE, 3, 7, {"threads": 3}), path)
    again = read_readings(path)
    assert again.limits == LIMITS
    assert (again.device, again.threads, again.seed) == (DEVICE, 3, 7)
    assert again.runtime == {"threads": 3}
    sample, same = measured.fitted[7], again.measured.fitted[7]
    assert (sample.network, sample.policy, sample.total_s) == (
        same.network,
        same.policy,
        same.total_s,
    )
    np.testing.assert_allclose(same.profiled_s, sample.profiled_s, atol=1e-10)
    np.testing.assert_array_equal(same.items.features, sample.items.features)
    assert Textbook.of(again.measured.fitted) == Textbook.of(measured.fitted)
    assert Overhead.of(again.measured.apart).node_s == pytest.approx(
        Overhead.of(measured.apart).node_s, rel=1e-3
    )
    assert model.textbook == Textbook.of(measured.fitted)


@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b\x08\x00"])
def test_a_file_that_holds_no_readings_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "raw.json.gz"
    path.write_bytes(content)
    with pytest.raises(TableError, match="holds no readings of a device"):
        read_readings(path)


def _damaged(content: bytes) -> bytes:
    return content[: len(content) // 2] + b"damaged" + content[len(content) // 2 :]


def _with(content: bytes, **changed: Any) -> bytes:
    return gzip.compress(json.dumps({**json.loads(gzip.decompress(content)), **changed}).encode())


def test_readings_that_are_damaged_or_of_other_probes_say_so(
    measured: Measured, tmp_path: Path
) -> None:
    path = tmp_path / "raw.json.gz"
    write_readings(DeviceReadings(LIMITS, measured, DEVICE, 1, 0, {}), path)
    written = path.read_bytes()
    for content, says in (
        (_damaged(written), "holds no readings of a device"),
        (_with(written, revisions=[0, 0]), "gz: the probes are drawn otherwise by now"),
        (_with(written, version=1), "measure anew"),
    ):
        path.write_bytes(content)
        with pytest.raises(TableError, match=says):
            read_readings(path)


def test_rows_that_became_integers_since_are_noticed(measured: Measured, tmp_path: Path) -> None:
    path = tmp_path / "raw.json.gz"
    few = replace(measured, apart=measured.apart[:1], fitted=measured.fitted[:1])
    write_readings(DeviceReadings(LIMITS, few, DEVICE, 1, 0, {}), path)
    content = json.loads(gzip.decompress(path.read_bytes()))
    content["apart"][0]["integer"] += 1
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    with pytest.raises(TableError, match="other rows of float are integer"):
        read_readings(path)


def test_the_probes_of_a_transfer_are_whole_networks_each_once() -> None:
    jobs = transfer_jobs(0, 15)
    assert len(set(jobs)) == 15
    assert all(job.whole for job in jobs)


def test_what_was_learnt_tells_less_the_next_time(measured: Measured) -> None:
    jobs = [ProbeJob(seed) for seed in range(3000, 3006)]
    choice = ProbeChoice(LIMITS, measured.fitted[:20])
    first = choice.best(jobs, 1)[0]
    world = World()
    record = world.measure(first)
    for _ in range(30):
        choice.learn(samples_of(first, record))
    assert choice.best(jobs, 1)[0] != first
