"""Raw readings of a device's calibration as one compressed file, and back.

The file holds who was measured and times: what was timed is drawn anew from the seeds
(`hil.probes`), so that a model can be fitted again, by this version or a later one.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.calibrated.limits import Limits
from costmodels.calibrated.samples import Sample
from costmodels.errors import TableError
from costmodels.measurement import Device
from hil import attribution, probes
from hil.device_bench import DeviceReadings
from hil.device_calibration import Measured
from hil.probe_timer import ProbeJob, paid_items, policies_of
from hil.records import Failure

VERSION = 2
_DIGITS, _SECOND_DIGITS = 4, 10
"""Of microseconds and of seconds, as `hil.probe_timer` keeps them."""


def write_readings(readings: DeviceReadings, path: Path) -> None:
    """Write readings as gzipped JSON: totals, profiled times and operators by probe and policy."""
    measured = readings.measured
    content = {
        "version": VERSION,
        "revisions": _revisions(),
        "device": readings.device.to_dict(),
        "threads": readings.threads,
        "seed": readings.seed,
        "runtime": dict(readings.runtime),
        "limits": readings.limits.to_dict(),
        "seconds": measured.seconds,
        "oldest_s": measured.oldest_s,
        "apart": [_to_json(sample) for sample in measured.apart],
        "fitted": [_to_json(sample) for sample in measured.fitted],
        "failed": [failure.to_dict() for failure in measured.failed],
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    # Without the time of writing: equal readings make equal files.
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_readings(path: Path) -> DeviceReadings:
    """Read what `write_readings` wrote; draws the probes anew, about 30 ms each.

    Raises:
        TableError: if the file is missing, holds something else, or its probes are drawn
            otherwise now.
    """
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        if content["version"] != VERSION or content["revisions"] != _revisions():
            raise TableError(f"{path}: the probes are drawn otherwise by now; measure anew")
        return DeviceReadings(
            Limits.from_dict(content["limits"]),
            Measured(
                _from_json(content["apart"]),
                _from_json(content["fitted"]),
                tuple(map(Failure.from_dict, content["failed"])),
                float(content["seconds"]),
                content.get("oldest_s"),
            ),
            Device.from_dict(content["device"]),
            int(content["threads"]),
            int(content["seed"]),
            dict(content["runtime"]),
        )
    except TableError:
        raise
    except (OSError, EOFError, zlib.error, KeyError, TypeError, ValueError) as error:
        raise TableError(f"{path} holds no readings of a device: {error!r}") from None


def _revisions() -> list[int]:
    return [probes.REVISION, attribution.REVISION]


def _to_json(sample: Sample) -> dict[str, Any]:
    return {
        "network": sample.network,
        "policy": sample.policy,
        "total_s": sample.total_s,
        "integer": int(sample.integer.sum()),
        "profiled_us": [round(float(s) * 1e6, _DIGITS) for s in sample.profiled_s],
        "nodes": sample.nodes.tolist(),
    }


def _from_json(entries: Sequence[dict[str, Any]]) -> tuple[Sample, ...]:
    found = []
    last, network = "", None
    for entry in entries:
        kind, seed = entry["network"].split()
        job = ProbeJob(int(seed), whole=kind == "whole")
        if network is None or entry["network"] != last:
            last, network = entry["network"], probes.probe(job.seed, whole=job.whole)
        items, integer = paid_items(network, policies_of(network, job)[entry["policy"]])
        # Rounded as they were measured: a last bit that differs can decide a split of a tree.
        seconds = np.array([round(us * 1e-6, _SECOND_DIGITS) for us in entry["profiled_us"]])
        nodes = np.array(entry["nodes"], np.int64)
        if not len(items) == len(seconds) == len(nodes):
            raise ValueError(f"{entry['network']} has {len(items)} rows, not {len(seconds)}")
        if integer.sum() != entry["integer"]:
            raise ValueError(f"{entry['network']}: other rows of {entry['policy']} are integer")
        found.append(
            Sample(
                entry["network"],
                entry["policy"],
                items,
                integer,
                seconds,
                nodes,
                float(entry["total_s"]),
            )
        )
    return tuple(found)
