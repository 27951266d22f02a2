"""Who measured, and what: the records that travel with every measured number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from costmodels.errors import CostError
from costmodels.quantiles import least_runs


@dataclass(frozen=True)
class Device:
    """The machine and the runtime behind a measurement.

    Args:
        cpu: model name as the system gives it.
        architecture: such as ``x86_64``.
        isa: instruction-set extensions that decide which kernels run, such as ``avx512_vnni``.
        cores: logical cores that this process may use.
        memory_bytes: main memory.
        system: operating system and kernel release.
        runtime: name of the runtime, such as ``onnxruntime``.
        runtime_version: its version.
        accelerator: what computes instead of the CPU, such as a GPU with its driver; empty for the
            CPU itself.
    """

    cpu: str
    architecture: str
    isa: tuple[str, ...]
    cores: int
    memory_bytes: int
    system: str
    runtime: str
    runtime_version: str
    accelerator: str = ""

    @property
    def saturates(self) -> bool:
        """Whether sums of two 8-bit products saturate in 16 bits: x86 with AVX2 but no VNNI."""
        has = set(self.isa)
        return "avx2" in has and not has & {"avx_vnni", "avx512_vnni"}

    @property
    def identity(self) -> tuple[str, ...]:
        """What must be equal before two measurements may be compared."""
        shared = (self.cpu, self.architecture, *self.isa, self.runtime, self.runtime_version)
        return (*shared, self.accelerator) if self.accelerator else shared

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values; no accelerator is left out."""
        fields = {**asdict(self), "isa": list(self.isa)}
        return fields if self.accelerator else {k: fields[k] for k in fields if k != "accelerator"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Device":
        """Read what `to_dict` wrote."""
        return cls(**{**values, "isa": tuple(values["isa"])})


@dataclass(frozen=True)
class Measurement:
    """Raw samples of one thing that was timed.

    Args:
        name: what was timed.
        samples_s: seconds per run, each the mean of an inner loop; in order.
        warmups_s: what was timed before and does not count.
        inner_loops: runs per sample.
        block: for each sample the number of the interleaved block it belongs to.
        context: how it was measured: threads, load before and after; JSON values.

    Raises:
        CostError: if there is no sample, or one is not positive and finite.
    """

    name: str
    samples_s: tuple[float, ...]
    warmups_s: tuple[float, ...] = ()
    inner_loops: int = 1
    block: tuple[int, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.samples_s or not all(0 < s < math.inf for s in self.samples_s):
            raise CostError(f"{self.name}: every sample must be a positive time")
        if self.block and len(self.block) != len(self.samples_s):
            raise CostError(f"{self.name}: a block number for each sample expected")

    @property
    def p10_s(self) -> float:
        """The 10th percentile: least disturbed; the statistic of tables and of their checks."""
        return float(np.percentile(self.samples_s, 10))

    @property
    def median_s(self) -> float:
        """The median, for people."""
        return float(np.median(self.samples_s))

    def quantile_s(self, quantile: float) -> float | None:
        """Return a quantile for people, in seconds; None where the runs cannot tell it.

        The median is always told. Others need `costmodels.quantiles.least_runs` runs, each timed by
        itself: the tail of means is not the tail of runs.

        Args:
            quantile: between 0 and 1, exclusive.
        """
        if quantile == 0.5:
            return self.median_s
        if self.inner_loops > 1 or len(self.samples_s) < least_runs(quantile):
            return None
        return float(np.quantile(self.samples_s, quantile))

    def block_values(self, quantile: float = 0.5) -> dict[int, float]:
        """Return the median, or another quantile, of each block's samples in s, by its number."""
        numbers = np.array(self.block or [0] * len(self.samples_s))
        samples = np.array(self.samples_s)
        return {
            int(b): float(np.quantile(samples[numbers == b], quantile)) for b in np.unique(numbers)
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        plain: Sequence[str] = ("samples_s", "warmups_s", "block")
        return {**asdict(self), **{key: list(getattr(self, key)) for key in plain}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Measurement":
        """Read what `to_dict` wrote.

        Raises:
            CostError: if a sample is not positive and finite.
        """
        return cls(
            str(values["name"]),
            tuple(map(float, values["samples_s"])),
            tuple(map(float, values["warmups_s"])),
            int(values["inner_loops"]),
            tuple(map(int, values["block"])),
            dict(values["context"]),
        )
