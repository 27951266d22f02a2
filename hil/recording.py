"""A recorded run of a device: what calibration asked for and got, to be replayed without it.

A recording holds raw samples and raw events of the profiler, nothing that was computed from them,
so that whoever has no such device tests the path from there to a table. It is made by
`benchmarks/gpu.py`; numbers in it were measured, or there is none.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.errors import CostError
from costmodels.measurement import Device, Measurement
from hil.calibration import FailedPolicyError, Inspect, InspectRaw, Measure, Timed
from hil.design import Pattern
from hil.profile import Profile, RawProfile, profile_of
from hil.records import Failure
from hil.timing import low_ratio
from hil.worker import WorkerError
from quantization.bits import Format
from quantization.errors import DataError, ModelError
from quantization.network import Network
from quantization.policy import Policy

VERSION = 1


@dataclass(frozen=True, eq=False)
class RecordedNetwork:
    """What calibrating one network asked for and got.

    Args:
        name: by which it is built again.
        digest: of its structure.
        seconds: that calibration was given.
        seed: of its design.
        timed: JSON values of each policy that was timed, or failed.
        profiles: likewise of each that was profiled.
        facts: what else was seen, such as how far outputs differ; JSON values.
    """

    name: str
    digest: str
    seconds: float
    seed: int
    timed: Sequence[Mapping[str, Any]]
    profiles: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, pattern: Pattern, seed: int) -> Timed:
        """See `hil.calibration.Measure`.

        Raises:
            FailedPolicyError: if it failed then.
            DataError: if it was not timed then.
        """
        entry = _find(self.timed, pattern, seed)
        if "failure" in entry:
            raise FailedPolicyError(Failure.from_dict(entry["failure"]), float(entry["wall_s"]))
        policy, floats = (Measurement.from_dict(entry[key]) for key in ("policy", "float"))
        return Timed(pattern, low_ratio(policy, floats), policy, floats, float(entry["wall_s"]))

    def inspect(self, network: Network) -> Inspect:
        """Return what profiles policies of `network` as they were then; see `measure`."""
        return lambda policy: profile_of(network, self.raw_profile(_narrow(network, policy)))

    def raw_profile(self, pattern: Pattern) -> RawProfile:
        """Return what the profiler said of the policy of `pattern`.

        Raises:
            DataError: if it was not profiled then.
            ModelError: if the runtime refused it then.
            WorkerError: if profiling it failed then.
        """
        return _raw(_find(self.profiles, pattern))


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded run.

    Args:
        device: who ran.
        threads: of the runtime.
        runtime: options of the runtime, as `hil.ort.recorded_options` gave them.
        networks: what was calibrated.
        created_s: when, Unix time in seconds.
    """

    device: Device
    threads: int
    runtime: Mapping[str, Any]
    networks: Sequence[RecordedNetwork]
    created_s: float

    def write(self, path: Path) -> None:
        """Write the recording, compressed; equal ones give equal bytes."""
        content = {
            "version": VERSION,
            "device": self.device.to_dict(),
            "threads": self.threads,
            "runtime": dict(self.runtime),
            "created_s": self.created_s,
            "networks": [
                {
                    "name": each.name,
                    "digest": each.digest,
                    "seconds": each.seconds,
                    "seed": each.seed,
                    "timed": list(each.timed),
                    "profiles": list(each.profiles),
                    "facts": dict(each.facts),
                }
                for each in self.networks
            ],
        }
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """Read what `write` wrote.

        Raises:
            DataError: if the file is missing or no recording.
        """
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            if content["version"] != VERSION:
                raise DataError(f"version {content['version']!r} is not known; use {VERSION}")
            return cls(
                Device.from_dict(content["device"]),
                int(content["threads"]),
                content["runtime"],
                [RecordedNetwork(**values) for values in content["networks"]],
                float(content["created_s"]),
            )
        except (OSError, EOFError, KeyError, TypeError, ValueError, CostError) as error:
            raise DataError(f"{path}: no recording of a device: {error}") from error


class Recorder:
    """Writes down what passes between calibration and the device."""

    def __init__(self) -> None:
        self.timed: list[dict[str, Any]] = []
        self.profiles: list[dict[str, Any]] = []

    def measuring(self, measure: Measure) -> Measure:
        """Return `measure`, written down."""

        def measured(pattern: Pattern, seed: int) -> Timed:
            entry: dict[str, Any] = {"pattern": _listed(pattern), "seed": seed}
            self.timed.append(entry)
            try:
                found = measure(pattern, seed)
            except FailedPolicyError as error:
                entry |= {"failure": error.failure.to_dict(), "wall_s": error.wall_s}
                raise
            samples = {"policy": found.measurement, "float": found.reference}
            entry |= {name: each.to_dict() for name, each in samples.items()}
            entry["wall_s"] = found.wall_s
            return found

        return measured

    def inspecting(self, network: Network, inspect: InspectRaw) -> Inspect:
        """Return `inspect`, written down before it is interpreted; each policy is profiled once."""

        def inspected(policy: Policy) -> Profile:
            pattern = _listed(_narrow(network, policy))
            entry = next((each for each in self.profiles if each["pattern"] == pattern), None)
            if entry is None:
                entry = {"pattern": pattern, **_taken(inspect, policy)}
                self.profiles.append(entry)
            return profile_of(network, _raw(entry))

        return inspected


def _taken(inspect: InspectRaw, policy: Policy) -> dict[str, Any]:
    """Profile `policy`; return what `_raw` reads again, or raises again."""
    try:
        found = inspect(policy)
    except WorkerError as error:
        return {"failure": error.failure.to_dict()}
    except ModelError as error:
        return {"refused": str(error)}
    return {
        "events": [list(event) for event in found.events],
        "graph": base64.b64encode(found.graph).decode(),
    }


def _raw(entry: Mapping[str, Any]) -> RawProfile:
    if "failure" in entry:
        raise WorkerError(Failure.from_dict(entry["failure"]))
    if "refused" in entry:
        raise ModelError(str(entry["refused"]))
    events = tuple((str(n), str(k), str(i), float(us)) for n, k, i, us in entry["events"])
    return RawProfile(events, base64.b64decode(entry["graph"]))


def _narrow(network: Network, policy: Policy) -> Pattern:
    reads = [policy[name].reads for name in network.layer_names]
    return np.array([each is not Format.FLOAT32 for each in reads], np.bool_)


def _listed(pattern: Pattern) -> list[bool]:
    return [bool(each) for each in pattern]


def _find(
    entries: Sequence[Mapping[str, Any]], pattern: Pattern, seed: int | None = None
) -> Mapping[str, Any]:
    wanted = _listed(pattern)
    for entry in entries:
        if entry["pattern"] == wanted and (seed is None or entry["seed"] == seed):
            return entry
    raise DataError("the recorded run did not ask for this policy; record again")
