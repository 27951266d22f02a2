"""Execution providers of ONNX Runtime as values: what a session is given, and what it can run.

A provider decides where data lie while a network is timed, which formats are deployable, and which
energy counters are read. Whatever creates a session takes one; the CPU is the default.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from costmodels.errors import BackendError
from hil.counters import CPU_PARTS
from hil.cuda import cudnn_version, load_libraries, require_own_precision
from hil.gpus import Gpu, device_zero, installed_gpus
from hil.meters import Part
from quantization.deployment import CPU_TARGET, CUDA_TARGET, Target
from quantization.errors import did_you_mean

GPU_PROVIDERS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""What ``ort:NAME`` means; ``ort`` alone is the CPU."""

Options = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Provider:
    """An execution provider, and how networks are run on it.

    Args:
        name: what stands behind ``ort:``; ``cpu`` for ``ort`` alone.
        chain: the runtime's providers in order of preference, each with its options. What the first
            has no kernel for runs on the next.
        target: what can be deployed for it.
        device: kind of the memory where inputs and outputs lie, as the runtime names it.
        device_id: which one of that kind.
        bound: whether inputs and outputs are bound to that memory, so that no run copies them.
        parts: whose energy is counted.
        emulated: whether float32 kernels may stand in for those of half precision, between casts.
            So the CPU executes what is made for a GPU, for tests; no device does.
    """

    name: str
    chain: tuple[tuple[str, Options], ...]
    target: Target
    device: str = "cpu"
    device_id: int = 0
    bound: bool = False
    parts: frozenset[Part] = CPU_PARTS
    emulated: bool = False

    @property
    def executes(self) -> str:
        """The runtime's name of the provider that is measured."""
        return self.chain[0][0]

    @property
    def is_cpu(self) -> bool:
        """Whether it computes on the processor."""
        return self.device == "cpu"

    @property
    def session_providers(self) -> list[str | tuple[str, dict[str, str]]]:
        """What ``onnxruntime.InferenceSession`` gets as its providers."""
        return [(name, dict(options)) if options else name for name, options in self.chain]

    def recorded(self) -> dict[str, object]:
        """Return what of a measurement's identity the provider decides; JSON values."""
        found: dict[str, object] = {"provider": self.executes}
        if len(self.chain) > 1:
            found["fallback"] = [name for name, _ in self.chain[1:]]
        if options := self.chain[0][1]:
            found["provider_options"] = dict(options)
        if self.bound:
            found["buffers"] = f"{self.device}:{self.device_id}"
        if self.emulated:
            found["emulated"] = True
        return found


CPU = Provider("cpu", (("CPUExecutionProvider", ()),), CPU_TARGET)

CUDA = Provider(
    "cuda",
    (
        (
            GPU_PROVIDERS["cuda"],
            (
                ("device_id", "0"),
                ("arena_extend_strategy", "kNextPowerOfTwo"),
                ("cudnn_conv_algo_search", "EXHAUSTIVE"),
                ("cudnn_conv_use_max_workspace", "1"),
                ("do_copy_in_default_stream", "1"),
                ("enable_cuda_graph", "0"),
                ("prefer_nhwc", "0"),
                ("use_tf32", "1"),
            ),
        ),
        ("CPUExecutionProvider", ()),
    ),
    CUDA_TARGET,
    device="cuda",
    bound=True,
    parts=frozenset({Part.GPU}),
)
"""The options are the runtime's defaults, given explicitly: a user's session has them too, and a
new default cannot change a timing unseen. So float32 products may run in TF32."""

PROVIDERS = {each.name: each for each in (CPU, CUDA)}


def find_provider(
    argument: str,
    gpus: Callable[[], Sequence[Gpu]] = installed_gpus,
    *,
    present: Callable[[], Sequence[str]] | None = None,
    cudnn: Callable[[], str] = cudnn_version,
) -> tuple[Provider, str]:
    """Return what ``ort:ARGUMENT`` measures, and the device in words; "" and "cpu" are the CPU.

    Args:
        argument: what stands behind the colon.
        gpus: lists the GPUs of this machine; for tests.
        present: lists the providers of the installed runtime; for tests.
        cudnn: tells the version of cuDNN; for tests.

    Raises:
        BackendError: if there is no such device, measuring it is not built, or something outside of
            sessions leaves open what is measured.
    """
    if argument in ("", CPU.name):
        return CPU, ""
    if argument not in GPU_PROVIDERS:
        names = ", ".join(f"ort:{name}" for name in GPU_PROVIDERS)
        raise BackendError(
            f"no device {argument!r} of ONNX Runtime{did_you_mean(argument, GPU_PROVIDERS)}; "
            f"write ort for the CPU, or {names}"
        )
    _require_present(GPU_PROVIDERS[argument], present)
    if argument not in PROVIDERS:
        _refuse_tensorrt()
    require_own_precision()
    gpu = device_zero(gpus(), os.environ)
    return PROVIDERS[argument], f"{gpu}, cuDNN {cudnn()}"


def _require_present(wanted: str, listed: Callable[[], Sequence[str]] | None) -> None:
    import onnxruntime as ort

    load_libraries()
    present = (listed or ort.get_available_providers)()
    if wanted not in present:
        raise BackendError(
            f"no such device: ONNX Runtime {ort.__version__} here has no {wanted} (it has "
            f"{', '.join(present)}); it comes with onnxruntime-gpu, in an environment of its own"
        )


def _refuse_tensorrt() -> NoReturn:
    raise BackendError(
        "ort:tensorrt is not built yet: TensorRT takes integers only with symmetric activations, "
        "float biases and activations of their own, which exported files do not have; ort:cuda "
        "measures fp16"
    )
