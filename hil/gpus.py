"""The GPUs of this machine, from what nvidia-smi says of them."""

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from costmodels.errors import BackendError

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,memory.total,driver_version",
    "--format=csv,noheader,nounits",
)
_VISIBLE, _ORDER, _BY_BUS = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
_LIMIT_S = 30.0
_FIELDS = 4


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Args:
        name: as the driver gives it.
        capability: compute capability, which decides the kernels.
        memory_bytes: its memory.
        driver: version of the driver.

    >>> print(Gpu("NVIDIA T4", "7.5", 15360 * 2**20, "550.54.15"))
    NVIDIA T4, compute capability 7.5, driver 550.54.15
    """

    name: str
    capability: str
    memory_bytes: int
    driver: str

    def __str__(self) -> str:
        return f"{self.name}, compute capability {self.capability}, driver {self.driver}"


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs in what `QUERY` prints, in its order; lines that are no GPU are left out.

    >>> parse_gpus("NVIDIA T4, 7.5, 15360, 550.54.15")[0].memory_bytes
    16106127360
    """
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.rsplit(",", _FIELDS - 1)]
        if len(fields) == _FIELDS:
            name, capability, mebibytes, driver = fields
            memory = int(mebibytes) * 2**20 if mebibytes.isdecimal() else 0
            found.append(Gpu(name, capability, memory, driver))
    return tuple(found)


def installed_gpus(run: Callable[[tuple[str, ...]], str] | None = None) -> tuple[Gpu, ...]:
    """Return the GPUs of this machine; none without a driver.

    Args:
        run: runs a command and returns its output; for tests.
    """
    return parse_gpus((run or _output)(QUERY))


def device_zero(found: Sequence[Gpu], environment: Mapping[str, str]) -> Gpu:
    """Return the GPU that CUDA calls device 0.

    nvidia-smi lists by the bus, all there are; CUDA puts the fastest first, and shows only what
    ``CUDA_VISIBLE_DEVICES`` names.

    Args:
        found: what `installed_gpus` lists.
        environment: of this process.

    Raises:
        BackendError: if there is none, or it is open which one that is.
    """
    first = environment.get(_VISIBLE, "0").partition(",")[0].strip()
    named = first.removeprefix("GPU-") != first
    if not found or not (named or first.isdecimal() or first.startswith("MIG-")):
        hidden = f", and {_VISIBLE} hides all" if found else ""
        raise BackendError(
            f"no such device: nvidia-smi lists {len(found)} GPUs{hidden}; ort measures the CPU"
        )
    if first.isdecimal() and int(first) >= len(found):
        raise BackendError(f"no such device: nvidia-smi lists no GPU {first}; look at {_VISIBLE}")
    if first.isdecimal() and environment.get(_ORDER) == _BY_BUS:
        return found[int(first)]
    if len(set(found)) > 1 or first.startswith("MIG-"):
        names = " and ".join(dict.fromkeys(gpu.name for gpu in found))
        raise BackendError(
            f"it is open which GPU is measured ({names}): set {_ORDER}={_BY_BUS} and {_VISIBLE} to "
            "its number in nvidia-smi"
        )
    return found[0]


def _output(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout if ran.returncode == 0 else ""
