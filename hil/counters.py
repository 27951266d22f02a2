"""The energy counters of this machine: RAPL and NVML, through the library zeus.

Zeus (0.16.0, the optional extra ``energy``) finds the counters and says what they are. NVML is read
by it too. A RAPL file is read here, since zeus starts a process per counter that polls it in order
to see wraps; it would run in every window, and `Counter.gained` sees wraps by itself.
"""

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from hil.meters import Counter, EnergyError, Part, Reading

RAPL = ("sys/class/powercap/intel-rapl", "zeus_sys/class/powercap/intel-rapl")
"""Where Linux shows RAPL, on AMD too, and where zeus expects it within a container."""
NVIDIA = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")
"""One of these is there where an NVIDIA driver is loaded."""
CPU_PARTS = frozenset({Part.PROCESSOR, Part.MEMORY})
"""What a run on the CPU uses."""
ZEUS = "zeus==0.16.0"
"""What the extra ``energy`` installs."""
_ENERGY = "energy_uj"


@dataclass(frozen=True)
class Availability:
    """Whether energy can be measured here.

    Args:
        counters: what would be read: packages of RAPL by name, and ``NVML``.
        reason: why nothing can be; None if something can.
    """

    counters: tuple[str, ...]
    reason: str | None

    def __str__(self) -> str:
        if self.reason is None:
            return f"measurable: {', '.join(self.counters)}"
        return f"not measurable here, because {self.reason}"


def measurable(
    parts: Collection[Part] = CPU_PARTS,
    root: Path = Path("/"),
    *,
    readable: Callable[[Path], bool] = lambda path: os.access(path, os.R_OK),
    installed: Callable[[], bool] = lambda: find_spec("zeus") is not None,
) -> Availability:
    """Return which counters of `parts` there are, or in one line why there are none.

    Args:
        parts: whose energy is wanted.
        root: where ``sys``, ``proc`` and ``dev`` lie; for tests.
        readable: whether this process may read a file; for tests.
        installed: whether zeus is; for tests.
    """
    found: list[str] = []
    reasons = []
    if CPU_PARTS & set(parts):
        packages = _packages(root)
        if isinstance(packages, str):
            reasons.append(packages)
        elif not all(readable(path / _ENERGY) for path in packages.values()):
            reasons.append("only root may read the RAPL counters")
        else:
            found += packages
    if Part.GPU in parts:
        if any((root / name).exists() for name in NVIDIA):
            found.append("NVML")
        else:
            reasons.append("there is no NVIDIA driver (no /proc/driver/nvidia)")
    if found and not installed():
        found, reasons = [], [f"zeus is not installed: pip install {ZEUS}"]
    return Availability(tuple(found), None if found else " and ".join(reasons))


def _packages(root: Path) -> dict[str, Path] | str:
    """Return the folders of RAPL's packages by name, or why there are none.

    A zone named ``psys`` holds the whole platform, packages included, and is left out.
    """
    folder = next((root / name for name in RAPL if (root / name).is_dir()), None)
    if folder is None:
        return f"there is no RAPL (no /{RAPL[0]}; virtual machines hide it)"
    found = {}
    for zone in sorted(folder.glob("intel-rapl:[0-9]*")):
        name = _text(zone / "name")
        if name.startswith("package") and (zone / _ENERGY).exists():
            found[name] = zone
    return found or f"RAPL shows no package (none in /{folder.relative_to(root)})"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


class _RaplFile(Protocol):
    """What is used of ``zeus.device.cpu.rapl.RAPLFile``."""

    name: str
    energy_uj_path: str
    max_energy_range_uj: float


class _Cpu(Protocol):
    """What is used of ``zeus.device.cpu.rapl.RAPLCPU``."""

    cpu_index: int

    @property
    def rapl_file(self) -> _RaplFile: ...

    @property
    def dram(self) -> _RaplFile | None: ...


class _Gpu(Protocol):
    """What is used of ``zeus.device.gpu.nvidia.NVIDIAGPU``."""

    gpu_index: int

    def get_total_energy_consumption(self) -> int:
        """Millijoules since the driver was loaded."""
        ...


class ZeusMeter:
    """Reads the counters that zeus found.

    Args:
        cpus: zeus's processors.
        gpus: zeus's GPUs.
        parts: what to read of them.
        version: of zeus.

    Raises:
        EnergyError: if they have no counter of `parts`.
    """

    def __init__(
        self, cpus: Sequence[_Cpu], gpus: Sequence[_Gpu], parts: Collection[Part], version: str
    ) -> None:
        self._reads: list[tuple[Counter, Callable[[], float]]] = []
        for cpu in cpus:
            if Part.PROCESSOR in parts:
                self._add_rapl(cpu.rapl_file, cpu.rapl_file.name, Part.PROCESSOR)
            if Part.MEMORY in parts and cpu.dram is not None:
                self._add_rapl(cpu.dram, f"dram-{cpu.cpu_index}", Part.MEMORY)
        for gpu in gpus if Part.GPU in parts else ():
            self._reads.append((Counter(f"gpu-{gpu.gpu_index}", Part.GPU), _reader(gpu)))
        if not self._reads:
            raise EnergyError("zeus found no energy counter of what runs")
        self._counters = tuple(counter for counter, _ in self._reads)
        which = sorted({"NVML" if c.part is Part.GPU else "RAPL" for c in self._counters})
        self._described = f"{' and '.join(which)} through zeus {version}"

    @property
    def counters(self) -> Sequence[Counter]:
        """See `hil.meters.Meter`."""
        return self._counters

    @property
    def described(self) -> str:
        """See `hil.meters.Meter`."""
        return self._described

    def clock(self) -> float:
        """See `hil.meters.Meter`."""
        return time.perf_counter()

    def sleep(self, seconds: float, /) -> None:
        """See `hil.meters.Meter`."""
        time.sleep(seconds)

    def read(self) -> Reading:
        """See `hil.meters.Meter`."""
        try:
            joules = tuple(read() for _, read in self._reads)
        except Exception as error:  # NVML's and the kernel's share no base
            raise EnergyError(f"an energy counter cannot be read: {error}") from error
        return Reading(time.perf_counter(), joules)

    def _add_rapl(self, file: _RaplFile, name: str, part: Part) -> None:
        path = Path(file.energy_uj_path)
        counter = Counter(name, part, file.max_energy_range_uj / 1e6)
        self._reads.append((counter, lambda: float(path.read_text()) / 1e6))


def _reader(gpu: _Gpu) -> Callable[[], float]:
    return lambda: gpu.get_total_energy_consumption() / 1e3


def open_meter(parts: Collection[Part] = CPU_PARTS, root: Path = Path("/")) -> ZeusMeter:
    """Return the meter of this machine.

    Args:
        parts: whose energy is wanted.
        root: where ``sys``, ``proc`` and ``dev`` lie; for tests.

    Raises:
        EnergyError: if there is no counter, or zeus cannot use it; says why.
    """
    available = measurable(parts, root)
    if available.reason is not None:
        raise EnergyError(str(available))
    import zeus
    from zeus.device.cpu.rapl import RAPLCPU
    from zeus.device.gpu.nvidia import NVIDIAGPUs

    packages = _packages(root) if CPU_PARTS & set(parts) else {}
    zones = list(packages.values()) if isinstance(packages, dict) else []
    try:
        cpus = [RAPLCPU(int(zone.name.partition(":")[2]), str(zone.parent)) for zone in zones]
        gpus = list(NVIDIAGPUs().gpus) if "NVML" in available.counters else []
    except Exception as error:  # zeus's errors do not all share a base
        raise EnergyError(f"zeus cannot use the energy counters: {error}") from error
    return ZeusMeter(cpus, gpus, parts, zeus.__version__)
