"""A recorded run is replayed without its device: of the emulated GPU, and of a real one once there.

No number here was made up: what the CPU took in a GPU's place is recorded and replayed by the test
itself, and of a real GPU only what `benchmarks/gpu.py` wrote.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import gpu
from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.sketch import example_network
from hil.audit import require_kernels
from hil.calibration import FailedPolicyError, Measure, Timed, as_policy
from hil.ort import recorded_options
from hil.profile import RawProfile
from hil.providers import CUDA
from hil.recording import RecordedNetwork, Recorder, Recording
from hil.records import Failure, FailureKind
from hil.worker import WorkerError
from quantization.errors import DataError, ModelError, QuantmeterError
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from tests.hil.test_emulated import EMULATED, HALF, InProcess

SECONDS = 40.0


@pytest.fixture(scope="module")
def recording() -> Recording:
    live = InProcess(BackendContext(seconds=SECONDS), EMULATED, "an emulated GPU")
    said: list[str] = []
    found = gpu.record(live, [gpu.REFERENCE], SECONDS, said.append)
    assert said[0].startswith("digits")
    return found


def test_a_replayed_calibration_gives_the_same_table(recording: Recording, tmp_path: Path) -> None:
    path = tmp_path / "run.json.gz"
    recording.write(path)
    again = Recording.read(path)
    [recorded], [kept] = again.networks, recording.networks
    network = gpu.built(gpu.REFERENCE)
    (one, table), (_, first) = (gpu.calibrated(network, r, EMULATED) for r in (recorded, kept))
    assert table.to_json() == first.to_json()
    assert [t.pattern.tolist() for t in one.timed] == [t["pattern"] for t in recorded.timed]
    assert (again.device, again.runtime) == (recording.device, recorded_options(1, EMULATED))
    assert again.device.accelerator == "an emulated GPU"


def test_half_precision_was_computed(recording: Recording) -> None:
    facts = recording.networks[0].facts
    assert 0 < facts["difference"] < 0.02 * facts["largest"]
    assert facts["energy"].keys() in ({"reason"}, {"float", "half"})  # some CPUs have counters


def test_a_policy_that_was_not_asked_for_then_is_not_answered(recording: Recording) -> None:
    [recorded] = recording.networks
    pattern = np.array(recorded.timed[0]["pattern"])
    with pytest.raises(DataError, match="did not ask for this policy; record again"):
        recorded.measure(pattern, 10**6)
    with pytest.raises(DataError, match="did not ask for this policy; record again"):
        recorded.raw_profile(pattern & (np.arange(len(pattern)) == 0))


def test_a_failure_is_recorded_and_replayed() -> None:
    crash, pattern = Failure(FailureKind.KILLED, "killed by SIGSEGV"), np.array([True, False])

    def refuse(_pattern: object, _seed: int) -> object:
        raise FailedPolicyError(crash, 2.5)

    recorder = Recorder()
    with pytest.raises(FailedPolicyError):
        recorder.measuring(refuse)(pattern, 3)  # type: ignore[arg-type]
    recorded = RecordedNetwork("n", "d", 1.0, 0, recorder.timed, [])
    with pytest.raises(FailedPolicyError) as caught:
        recorded.measure(pattern, 3)
    assert (caught.value.failure, caught.value.wall_s) == (crash, 2.5)


def test_a_profile_is_kept_before_it_is_interpreted() -> None:
    network, raw = example_network(), RawProfile((("a", "Conv", "0", 3.0),), b"")
    recorder, asked = Recorder(), list[Policy]()

    def inspect(policy: Policy) -> RawProfile:
        asked.append(policy)
        return raw

    inspected = recorder.inspecting(network, inspect)
    for _ in range(2):
        with pytest.raises(ModelError, match="profiled other operators"):
            inspected(Policy({}))
    recorded = RecordedNetwork("n", network.digest, 1.0, 0, [], recorder.profiles)
    kept = recorded.raw_profile(np.zeros(len(network.layers), np.bool_))
    assert (kept.events, len(asked)) == (raw.events, 1)


@pytest.mark.parametrize(
    "error", [ModelError("no such kernel"), WorkerError(Failure(FailureKind.KILLED, "SIGSEGV"))]
)
def test_a_profile_that_failed_is_recorded_and_fails_again(error: QuantmeterError) -> None:
    def fail(_policy: Policy) -> RawProfile:
        raise error

    network, recorder = example_network(), Recorder()
    with pytest.raises(type(error)):
        recorder.inspecting(network, fail)(Policy({}))
    recorded = RecordedNetwork("n", network.digest, 1.0, 0, [], recorder.profiles)
    with pytest.raises(type(error)) as caught:
        recorded.inspect(network)(Policy({}))
    assert str(caught.value) == str(error)


class Broken(InProcess):
    """Every policy fails, as where an audit refuses all."""

    def measure(self, _network: Network) -> Measure:
        def fail(_pattern: object, _seed: int) -> Timed:
            raise FailedPolicyError(Failure(FailureKind.EXCEPTION, "executed something else"))

        return fail


def test_what_a_device_showed_is_kept_though_nothing_could_be_calibrated(tmp_path: Path) -> None:
    path, said = tmp_path / "new" / "run.json.gz", list[str]()
    live = Broken(BackendContext(), EMULATED, "an emulated GPU")
    gpu.record(live, [gpu.REFERENCE], SECONDS, said.append, lambda so_far: so_far.write(path))
    [recorded] = Recording.read(path).networks
    assert "executed something else" in recorded.facts["failure"]
    assert "recorded, but not as expected" in said[0]
    assert [sum(each["pattern"]) > 0 for each in recorded.profiles] == [False, True]
    assert all("events" in each for each in recorded.profiles)
    assert recorded.facts["difference"] > 0


def test_what_cannot_be_built_is_said_before_anything_is_measured() -> None:
    live = Broken(BackendContext(), EMULATED, "an emulated GPU")
    kept: list[Recording] = []
    with pytest.raises(KeyError):
        gpu.record(live, [gpu.REFERENCE, "no network"], SECONDS, str, kept.append)
    assert not kept


@pytest.mark.parametrize(
    "content", [b"none", gzip.compress(b"{}"), gzip.compress(b'{"version": 9}')]
)
def test_what_is_no_recording_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.json.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"run.json.gz: no recording of a device"):
        Recording.read(path)


@pytest.fixture(scope="module")
def of_a_gpu() -> Recording:
    if not gpu.FILE.exists():
        pytest.skip("no recorded run of a GPU yet: run benchmarks/gpu.py where there is one")
    return Recording.read(gpu.FILE)


def test_the_recorded_run_of_a_gpu_is_replayed(of_a_gpu: Recording) -> None:
    assert of_a_gpu.device.accelerator
    assert of_a_gpu.runtime == json.loads(json.dumps(recorded_options(of_a_gpu.threads, CUDA)))
    for recorded in of_a_gpu.networks:
        assert "failure" not in recorded.facts
        network = gpu.built(recorded.name)
        assert network.digest == recorded.digest
        found, table = gpu.calibrated(network, recorded, CUDA)
        assert (table.unary.value[table.supported] > 0).all()
        policies = [as_policy(network, t.pattern, HALF) for t in found.timed[:2]]
        predicted = total(table, network, PolicyBatch.of(network, policies))
        measured = found.float_s * np.array([t.ratio for t in found.timed[:2]])
        assert np.abs(predicted / measured - 1).max() < 0.2


def test_the_gpu_executed_half_precision_where_it_was_asked_for(of_a_gpu: Recording) -> None:
    for recorded in of_a_gpu.networks:
        network = gpu.built(recorded.name)
        for entry in recorded.profiles:
            pattern = np.array(entry["pattern"], np.bool_)
            graph = onnx.GraphProto.FromString(recorded.raw_profile(pattern).graph)
            require_kernels(network, as_policy(network, pattern, HALF), graph)
        assert 0 < recorded.facts["difference"] < 0.02 * recorded.facts["largest"]
