"""Providers as values; devices that cannot be measured are refused in one clear line."""

import json
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from costmodels.errors import BackendError
from costmodels.measurement import Device
from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.sketch import example_network
from hil.calibration import TURNS
from hil.cuda import cudnn_version, load_libraries
from hil.gpus import Gpu
from hil.live import OrtLive
from hil.ort import load_session, one_feed, recorded_options, session_options
from hil.policy_timer import Job, Setup, subject
from hil.probe_timer import ProbeJob, ProbeSetup, limits_subject
from hil.probe_timer import subject as probe_subject
from hil.providers import CPU, CUDA, GPU_PROVIDERS, Provider, find_provider
from quantization.bits import Format
from quantization.errors import ModelError
from quantization.policy import Policy
from quantization.ranges import made_up_ranges

T4 = Gpu("NVIDIA T4", "7.5", 15360 * 2**20, "550.54.15")


@pytest.mark.parametrize("name", GPU_PROVIDERS)
def test_a_gpu_that_is_not_there_is_no_such_device(name: str) -> None:
    with pytest.raises(BackendError, match=f"no such device: .* has no {GPU_PROVIDERS[name]} "):
        find_provider(name, present=lambda: ["CPUExecutionProvider"])


def test_a_runtime_for_gpus_without_a_gpu_has_no_such_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE"):
        monkeypatch.delenv(name, raising=False)

    def found(argument: str, *gpus: Gpu) -> tuple[Provider, str]:
        present, cudnn = [*GPU_PROVIDERS.values()].copy, lambda: "9.10.2"
        return find_provider(argument, lambda: gpus, present=present, cudnn=cudnn)

    with pytest.raises(BackendError, match="no such device: nvidia-smi lists 0 GPUs"):
        found("cuda")
    assert found("cuda", T4) == (CUDA, f"{T4}, cuDNN 9.10.2")
    with pytest.raises(BackendError, match=r"ort:tensorrt is not built yet: .* symmetric"):
        found("tensorrt", T4)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    with pytest.raises(BackendError, match=r"NVIDIA_TF32_OVERRIDE is set .*; unset it"):
        found("cuda", T4)


def test_cudnn_tells_its_version_or_is_missed_in_one_line() -> None:
    class Cudnn:
        cudnnGetVersion = staticmethod(lambda: 91002)  # noqa: N815 - as the library has it

    def absent(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    assert cudnn_version(lambda _name: Cudnn) == "9.10.2"
    with pytest.raises(BackendError, match=r"no such device: libcudnn.so.9 cannot be loaded"):
        cudnn_version(absent)


def test_an_unknown_device_names_those_that_are_known() -> None:
    with pytest.raises(BackendError, match=r"did you mean 'cuda'.*ort:tensorrt"):
        backend("ort:cudo")


def test_the_cpu_is_the_default() -> None:
    assert find_provider("") == find_provider("cpu") == (CPU, "")
    assert CPU.is_cpu
    assert not CPU.bound
    assert CPU.session_providers == ["CPUExecutionProvider"]


def test_a_session_that_fell_back_to_the_cpu_is_refused() -> None:
    """The runtime falls back with a line in its log, and every number would be the CPU's."""
    chain = (("CoreMLExecutionProvider", CUDA.chain[0][1]), CUDA.chain[1])  # not on Linux
    model = example_network().model.SerializeToString()
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(BackendError, match="no such device: CoreMLExecutionProvider cannot be used"),
    ):
        load_session(model, session_options(1), replace(CUDA, chain=chain))


def test_a_device_that_refuses_a_model_is_not_replaced_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    create = onnxruntime.InferenceSession._create_inference_session

    def full(session: object, providers: list[object], *given: object) -> None:
        if providers != ["CPUExecutionProvider"]:
            raise RuntimeError("CUDA failure 2: out of memory")
        create(session, providers, *given)

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", full)
    model = example_network().model.SerializeToString()
    with pytest.raises(ModelError, match="cannot load the model: CUDA failure 2: out of memory"):
        load_session(model, session_options(1), CUDA)
    assert capfd.readouterr().out == ""


def test_what_libraries_of_cuda_are_missing_is_not_said_on_the_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def preload() -> None:
        asked.append(1)
        sys.stdout.write("cannot load libcudnn\n")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    load_libraries.cache_clear()
    load_libraries()
    load_libraries()
    load_libraries.cache_clear()
    said = capsys.readouterr()
    assert (asked, said.out, said.err) == ([1], "", "cannot load libcudnn\n")


def test_a_device_warms_up_before_each_policy_and_the_cpu_does_not() -> None:
    turns = OrtLive(BackendContext(), CUDA, str(T4)).turns
    assert turns.warm_up is not None
    assert (turns.warm_up.cap_s, turns.turn_s) == (1.0, 20e-3)
    assert OrtLive(BackendContext()).turns == TURNS


def test_identities_on_the_cpu_are_those_of_stored_measurements() -> None:
    """Literals: were they others, stores and shipped raw files would be worth nothing."""
    network = example_network()
    name = network.input_names[0]
    feed = {name: np.zeros(network.tensor_by_name[name].shape, np.float32)}
    setup = Setup(network, made_up_ranges(network), feed)
    assert (
        json.dumps(recorded_options(2))
        == '{"provider": "CPUExecutionProvider", "threads": 2, "execution": "sequential", '
        '"denormals": "zero", "optimization": "default", "memory_arena": true, '
        '"memory_pattern": true, "memory_reuse": true, "session.set_denormal_as_zero": "1", '
        '"session.intra_op.allow_spinning": "1", "session.inter_op.allow_spinning": "0", '
        '"session.force_spinning_stop": "0", "session.use_env_allocators": "0", '
        '"session.disable_prepacking": "0"}'
    )
    assert limits_subject(ProbeSetup()).key.startswith("cedeba812f5e94c4")
    assert probe_subject(ProbeSetup(), ProbeJob(3)).key.startswith("f85817ffbf713973")
    assert subject(setup, Job(Policy({}), 5)).key.startswith("a8c0ab53c583ea54")


def test_measurements_of_other_providers_and_devices_never_mix() -> None:
    network = example_network()
    feed = one_feed(network, np.zeros((1, 3, 32, 32), np.float32))
    setups = [
        Setup(network, made_up_ranges(network), feed, provider=provider)
        for provider in (
            CPU,
            replace(CPU, bound=True),
            replace(CPU, bound=True, emulated=True),
            CUDA,
            replace(CUDA, device_id=1),
            replace(CUDA, chain=((CUDA.executes, (("use_tf32", "0"),)), CUDA.chain[1])),
        )
    ]
    assert len({subject(setup, Job(Policy({}))).key for setup in setups}) == len(setups)
    cpu = Device("a CPU", "x86_64", ("avx2",), 2, 0, "Linux", "onnxruntime", "1")
    with_gpu = replace(cpu, accelerator=str(T4))
    assert with_gpu.identity != cpu.identity
    assert "accelerator" not in cpu.to_dict()
    for device in (cpu, with_gpu):
        assert Device.from_dict(json.loads(json.dumps(device.to_dict()))) == device


def test_cuda_runs_halves_and_floats_with_its_options_given_explicitly() -> None:
    assert CUDA.target.formats == (Format.FLOAT16, Format.FLOAT32)
    [(name, options), fallback] = CUDA.session_providers
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    recorded = recorded_options(1, CUDA)
    assert recorded["provider_options"] == options
    assert recorded["buffers"] == "cuda:0"
    assert recorded["fallback"] == ["CPUExecutionProvider"]
