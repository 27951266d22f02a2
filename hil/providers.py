"""Which devices ONNX Runtime could measure here, and why another one is refused."""

from typing import NoReturn

from costmodels.errors import BackendError
from quantization.errors import did_you_mean

GPU_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""What ``ort:NAME`` means; ``ort`` alone is the CPU."""


def refuse(argument: str) -> NoReturn:
    """Say why ``ort:ARGUMENT`` cannot be measured.

    Raises:
        BackendError: always: there is no such device, or measuring it is not built.
    """
    import onnxruntime as ort

    if argument not in GPU_PROVIDERS:
        names = ", ".join(f"ort:{name}" for name in GPU_PROVIDERS)
        raise BackendError(
            f"no device {argument!r} of ONNX Runtime{did_you_mean(argument, GPU_PROVIDERS)}; "
            f"write ort for the CPU, or {names}"
        )
    wanted, present = GPU_PROVIDERS[argument], ort.get_available_providers()
    if wanted not in present:
        raise BackendError(
            f"no such device: ONNX Runtime {ort.__version__} here has no {wanted} (it has "
            f"{', '.join(present)}); it comes with onnxruntime-gpu, in an environment of its own"
        )
    raise BackendError(f"ort:{argument}: measuring a GPU is not built yet; ort measures the CPU")
