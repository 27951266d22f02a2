"""Fingerprint of the machine, from captured text of /proc."""

import os
import platform
from pathlib import Path

from costmodels.measurement import Device

_DECISIVE = (
    *("sse4_1", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni"),
    *("avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve", "bf16"),
)
"""Extensions that runtimes choose their matrix kernels by."""


def parse_cpuinfo(text: str) -> tuple[str, tuple[str, ...]]:
    """Return model name and decisive extensions from the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), value.strip())
    name = fields.get("model name") or fields.get("cpu part") or "unknown"
    present = set((fields.get("flags") or fields.get("features") or "").split())
    return name, tuple(flag for flag in _DECISIVE if flag in present)


def parse_meminfo(text: str) -> int:
    """Return the main memory in bytes from the text of /proc/meminfo; 0 if it does not say."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "MemTotal" and value.split()[:1] and value.split()[0].isdecimal():
            return int(value.split()[0]) * 1024
    return 0


def detect(
    runtime: str = "onnxruntime", root: Path = Path("/"), *, accelerator: str = ""
) -> Device:
    """Describe this machine.

    Args:
        runtime: name of the installed runtime package whose version counts.
        root: where ``proc`` lies; for tests.
        accelerator: what computes instead of the CPU, as `hil.gpus` describes it.
    """
    cpu, isa = parse_cpuinfo(_read(root / "proc/cpuinfo"))
    return Device(
        cpu=cpu,
        architecture=platform.machine(),
        isa=isa,
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=parse_meminfo(_read(root / "proc/meminfo")),
        system=f"{platform.system()} {platform.release()}",
        runtime=runtime,
        runtime_version=_version(runtime),
        accelerator=accelerator,
    )


def _version(runtime: str) -> str:
    """Version of an installed package, or of its sibling for GPUs that holds the same module."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(runtime)
    except PackageNotFoundError:
        return version(f"{runtime}-gpu")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
