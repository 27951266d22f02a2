"""What one measuring job was about, and what it gave: samples, or the failure that it ended in."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from costmodels.errors import CostError
from costmodels.measurement import Measurement


class FailureKind(StrEnum):
    """How a job ended that gave no measurement."""

    EXCEPTION = "exception"
    KILLED = "killed"
    MEMORY = "out of memory"
    TIME = "time limit"


@dataclass(frozen=True)
class Failure:
    """Why a job gave no measurement.

    Args:
        kind: how it ended.
        text: the error's text, or the signal that ended the worker; one line.
    """

    kind: FailureKind
    text: str

    def to_dict(self) -> dict[str, str]:
        """Return the fields as JSON values."""
        return {"kind": self.kind.value, "text": self.text}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Failure":
        """Read what `to_dict` wrote."""
        return cls(FailureKind(values["kind"]), str(values["text"]))


@dataclass(frozen=True)
class Subject:
    """What is measured, by content; equal contents are the same subject.

    Args:
        content: JSON values that decide the result apart from the device: digests of the network
            and its weights, bits, options of the exporter and the runtime, threads, timing.

    Raises:
        CostError: if a value is not JSON.
    """

    content: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            json.dumps(dict(self.content), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CostError(f"a subject of measurement holds JSON values only: {error}") from error

    @property
    def key(self) -> str:
        """SHA-256 of the content, in hexadecimal digits."""
        text = json.dumps(dict(self.content), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What one job gave.

    Args:
        measurements: raw samples by candidate (such as ``policy`` and ``float``), taken together;
            empty if the job failed.
        failure: why it failed; None if it did not.
        facts: what else is worth keeping; JSON values.
        created_s: when a store took it, Unix time in seconds; None before. It is no part of what
            the job gave: records that differ in it alone are equal.

    Raises:
        CostError: unless it holds either measurements or a failure.
    """

    measurements: Mapping[str, Measurement]
    failure: Failure | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    created_s: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if bool(self.measurements) == (self.failure is not None):
            raise CostError("a record holds either measurements or a failure")

    def to_dict(self) -> dict[str, Any]:
        """Return what the job gave as JSON values."""
        return {
            "measurements": {name: m.to_dict() for name, m in self.measurements.items()},
            "failure": None if self.failure is None else self.failure.to_dict(),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        """Read what `to_dict` wrote.

        Raises:
            CostError: if a measurement is none.
        """
        taken = {n: Measurement.from_dict(m) for n, m in values["measurements"].items()}
        failed = values["failure"]
        return cls(taken, None if failed is None else Failure.from_dict(failed), values["facts"])
