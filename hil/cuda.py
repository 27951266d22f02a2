"""What of CUDA is decided outside of a session: its libraries, and variables of the environment."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from costmodels.errors import BackendError

LAUNCH_BLOCKING = "CUDA_LAUNCH_BLOCKING"
_TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
_CUDNN = "libcudnn.so.9"


@lru_cache(maxsize=1)
def load_libraries() -> None:
    """Load the libraries of CUDA that were installed as packages, once per process."""
    import onnxruntime as ort

    with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses
        ort.preload_dlls()


def timing_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without the switch that makes launches wait: it would falsify timings.

    >>> timing_environment({"CUDA_LAUNCH_BLOCKING": "1", "LANG": "C"})
    {'LANG': 'C'}
    """
    return {name: value for name, value in environment.items() if name != LAUNCH_BLOCKING}


def require_own_precision(environment: Mapping[str, str] = os.environ) -> None:
    """Raise if the environment decides over the session whether products run in TF32.

    Raises:
        BackendError: names the variable.
    """
    if environment.get(_TF32_OVERRIDE):
        raise BackendError(
            f"{_TF32_OVERRIDE} is set and decides the precision of float32, which no record would "
            "say; unset it"
        )


def cudnn_version(load: Callable[[str], Any] = ctypes.CDLL) -> str:
    """Return the version of the cuDNN that sessions use; its kernels are what is measured.

    Args:
        load: loads a library; for tests.

    Raises:
        BackendError: if there is none.
    """
    load_libraries()
    try:
        version = load(_CUDNN).cudnnGetVersion
        version.restype = ctypes.c_size_t
        number = int(version())
    except (OSError, AttributeError) as error:
        raise BackendError(
            f"no such device: {_CUDNN} cannot be loaded here ({error}); it comes with "
            'pip install "onnxruntime-gpu[cuda,cudnn]"'
        ) from error
    return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
