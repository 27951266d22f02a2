"""Policies of one network with the latency that they were measured at, as a file."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.errors import CostError
from costmodels.table import FloatArray
from quantization.errors import PolicyError
from quantization.network import Network
from quantization.policy import Policy

VERSION = 1


@dataclass(frozen=True, eq=False)
class MeasuredPolicies:
    """What policies of one network were measured at, on any device.

    Args:
        network: digest of the network.
        policies: by name.
        seconds: (P,) latency of each.
        source: who measured, and how; JSON values.

    Raises:
        CostError: unless there is one positive and finite time for each policy.
    """

    network: str
    policies: Mapping[str, Policy]
    seconds: FloatArray
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seconds.shape != (len(self.policies),):
            raise CostError(
                f"{len(self.policies)} policies need as many times, not {self.seconds.shape}"
            )
        for name, seconds in zip(self.policies, self.seconds.tolist(), strict=True):
            if not 0 < seconds < math.inf:
                raise CostError(f"{name}: {seconds!r} s is no positive time")

    def check(self, network: Network) -> None:
        """Raise unless these are policies of `network`.

        Raises:
            CostError: if they were measured on another network.
        """
        if self.network != network.digest:
            raise CostError(
                f"the policies were measured on another network (digest {self.network[:12]}, "
                f"this one has {network.digest[:12]}); measure them on this one"
            )

    def to_json(self) -> str:
        """Return the text of a file; `from_json` gives back the same."""
        pairs = zip(self.policies.items(), self.seconds.tolist(), strict=True)
        content = {
            "version": VERSION,
            "network": self.network,
            "source": dict(self.source),
            "measured": [
                {"name": name, "seconds": seconds, "policy": json.loads(policy.to_json())}
                for (name, policy), seconds in pairs
            ],
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "MeasuredPolicies":
        """Read what `to_json` wrote.

        Raises:
            CostError: if the text holds no measured policies, or is of a newer version.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CostError(f"measured policies are JSON; this is not: {error}") from None
        if not isinstance(content, dict) or "measured" not in content:
            raise CostError("this JSON holds no measured policies; quantmeter compare --out writes")
        version = content.get("version")
        if isinstance(version, bool) or version != VERSION:  # true equals 1
            raise CostError(
                f"measured policies of version {version!r} are not known; use {VERSION}"
            )
        try:
            source, entries = content["source"], content["measured"]
            names = [entry["name"] for entry in entries]
            seconds = [entry["seconds"] for entry in entries]
            policies = [Policy.from_json(json.dumps(entry["policy"])) for entry in entries]
        except (KeyError, TypeError) as error:
            raise CostError(f"a measured policy holds name, seconds and policy: {error}") from None
        except PolicyError as error:
            raise CostError(str(error)) from None
        if not isinstance(source, dict) or not isinstance(content.get("network"), str):
            raise CostError("network is a digest and source a JSON object")
        if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
            raise CostError("each measured policy has a name of its own")
        if any(isinstance(s, bool) or not isinstance(s, int | float) for s in seconds):
            raise CostError("the seconds of a measured policy are a number")
        named = dict(zip(names, policies, strict=True))
        return cls(content["network"], named, np.array(seconds, np.float64), source)

    @classmethod
    def read(cls, path: str | Path) -> "MeasuredPolicies":
        """Read a file of measured policies.

        Raises:
            CostError: if the file is missing or holds none; names the file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise CostError(f"{path}: {reason}") from None
        except CostError as error:
            raise CostError(f"{path}: {error}") from None
