"""Devices that cannot be measured are refused in one clear line."""

import onnxruntime
import pytest

from costmodels.errors import BackendError
from costmodels.registry import backend
from hil.providers import GPU_PROVIDERS


@pytest.mark.parametrize("name", GPU_PROVIDERS)
def test_a_gpu_that_is_not_there_is_no_such_device(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=f"no such device: .* has no {GPU_PROVIDERS[name]} "):
        backend(f"ort:{name}")


@pytest.mark.parametrize("name", GPU_PROVIDERS)
def test_a_gpu_that_is_there_is_not_measured_as_a_cpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [GPU_PROVIDERS[name]])
    with pytest.raises(BackendError, match="not built yet"):
        backend(f"ort:{name}")


def test_an_unknown_device_names_those_that_are_known() -> None:
    with pytest.raises(BackendError, match=r"did you mean 'cuda'.*ort:tensorrt"):
        backend("ort:cudo")
