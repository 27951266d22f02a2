"""What one device was measured to do: prices any network's layers, glue and conversions.

    seconds = executed * exp(trees(columns)) * (bound + start)

*bound* is the device's roofline (`costmodels.calibrated.limits`), *trees* says by how much an
operator misses it (`costmodels.calibrated.forest`), *executed* how often it is executed at all and
not taken over by a neighbour, and *start* what starting any operator takes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.calibrated.domain import Domain
from costmodels.calibrated.features import NAMES, columns_of
from costmodels.calibrated.forest import Forest
from costmodels.calibrated.interval import NetworkInterval
from costmodels.calibrated.items import Items, is_layer
from costmodels.calibrated.limits import Limits
from costmodels.calibrated.textbook import Textbook
from costmodels.cells import BoolArray, FloatArray, TextArray
from costmodels.errors import CostError, TableError
from costmodels.measurement import Device

VERSION = 1
START_S = 3e-7
"""About what ONNX Runtime takes to start an operator; keeps ratios to tiny bounds moderate."""
LEVEL_SIGMAS = 1.6449
"""Standard deviations from the middle to the ends of a 90 % interval of a Gaussian."""

GROUPS = ("layers, float", "layers, integer", "glue", "conversions")
"""What has trees, and a scale, of its own."""
_GLUE = GROUPS[2]


@dataclass(frozen=True, eq=False)
class Part:
    """Trees for one of `GROUPS`.

    Args:
        kinds: operators that were measured, in the order of their columns.
        neighbours: makers and readers that have columns.
        forest: natural logarithm of seconds over ``bound + START_S``.
        scale: what seconds are multiplied by; another device's, see `hil.transfer`.
    """

    kinds: tuple[str, ...]
    neighbours: tuple[str, ...]
    forest: Forest
    scale: float = 1.0

    def columns(self, items: Items, integer: BoolArray, limits: Limits) -> FloatArray:
        """Return what the trees see of rows, (N, F)."""
        return columns_of(items, integer, limits, self.kinds, self.neighbours)

    def seconds(
        self, columns: FloatArray, items: Items, integer: BoolArray, limits: Limits
    ) -> FloatArray:
        """Return the seconds of rows that are executed, (N,).

        Never below the compute bound of the device that was measured, times `scale`.
        """
        start = limits.bound_s(items, integer) + START_S
        found = np.exp(self.forest.predict(columns)) * start
        bound = limits.compute_s(items, integer)
        return np.asarray(self.scale * np.maximum(found, bound), np.float64)


@dataclass(frozen=True, eq=False)
class Executed:
    """How often an operator is executed by itself, and not taken over by a neighbour.

    Args:
        near: share by what stands before it, see `Items.near`, and format.
        kind: share by kind and format, where that neighbourhood was not seen.
        glue: trees that correct the share of glue by its columns, to which the share is the last:
            whether an activation is taken over also depends on how its channels are laid out.
    """

    near: Mapping[str, float]
    kind: Mapping[str, float]
    glue: Forest

    def listed(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the share of each row by its neighbourhood alone, (N,)."""
        words = np.where(integer, "integer", "float")
        pairs = zip(items.near, items.kind, words, strict=True)
        return np.array(
            [
                self.near.get(f"{near}, {word}", self.kind.get(f"{kind}, {word}", 1.0))
                for near, kind, word in pairs
            ],
            np.float64,
        )

    def corrected(self, columns: FloatArray, listed: FloatArray) -> FloatArray:
        """Return the share of glue, (N,), from its columns and `listed` shares."""
        return np.clip(self.glue.predict(np.column_stack([columns, listed])), 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class DeviceModel:
    """A calibrated device.

    Args:
        device: who was measured.
        threads: of the runtime.
        limits: its roofline.
        parts: trees by group.
        executed: what neighbours take over.
        constant_s: seconds that every run of a network takes besides its operators.
        half_widths: relative half-width of a row's 90 % interval, by ``kind, format``; from whole
            networks that were never fitted.
        domain: what was measured.
        textbook: the closed formula, fitted to the same measurements.
        validation: how well networks that were never fitted are predicted; see
            `costmodels.calibrated.validating`.
        source: how it was made; JSON values.
    """

    device: Device
    threads: int
    limits: Limits
    parts: Mapping[str, Part]
    executed: Executed
    constant_s: float
    half_widths: Mapping[str, float]
    domain: Domain
    textbook: Textbook
    validation: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.parts) != set(GROUPS):
            raise CostError(f"a device model has trees for {', '.join(GROUPS)}")

    def seconds(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the seconds of each row, (N,).

        Args:
            items: (N) rows.
            integer: (N,) whether each reads integers.
        """
        found, group = np.zeros(len(items)), groups_of(items, integer)
        for name, part in self.parts.items():
            here = group == name
            if not here.any():
                continue
            some, reads = items.at(here), integer[here]
            columns = part.columns(some, reads, self.limits)
            share = self.executed.listed(some, reads)
            if name == _GLUE:
                share = self.executed.corrected(columns, share)
            found[here] = share * part.seconds(columns, some, reads, self.limits)
        return found

    def spread(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the relative half-width of each row's 90 % interval, (N,); NaN if not known."""
        words = np.where(integer, "integer", "float")
        keys = [f"{kind}, {word}" for kind, word in zip(items.kind, words, strict=True)]
        return np.array([self.half_widths.get(key, np.nan) for key in keys], np.float64)

    @property
    def interval(self) -> NetworkInterval | None:
        """The interval of a network's latency; None if too few networks judged."""
        found = self.validation.get("interval")
        return None if found is None else NetworkInterval.from_dict(found)

    def to_json(self) -> str:
        """Return the model as JSON; `from_json` gives one that predicts the same to four digits."""
        parts = {
            name: {
                "kinds": list(part.kinds),
                "neighbours": list(part.neighbours),
                "scale": part.scale,
                "forest": part.forest.to_dict(),
            }
            for name, part in self.parts.items()
        }
        content = {
            "version": VERSION,
            "what": "device",
            "device": self.device.to_dict(),
            "threads": self.threads,
            "columns": list(NAMES),
            "limits": self.limits.to_dict(),
            "parts": parts,
            "executed": {
                "near": dict(self.executed.near),
                "kind": dict(self.executed.kind),
                "glue": self.executed.glue.to_dict(),
            },
            "constant_s": self.constant_s,
            "half_widths": dict(self.half_widths),
            "domain": self.domain.to_dict(),
            "textbook": self.textbook.to_dict(),
            "validation": dict(self.validation),
            "source": dict(self.source),
        }
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "DeviceModel":
        """Read what `to_json` wrote.

        Raises:
            TableError: if the text is no device model, or one of another version.
        """
        try:
            values = json.loads(text)
            if values["what"] != "device" or values["version"] != VERSION:
                raise TableError(f"no calibrated device of version {VERSION}; calibrate anew")
            if values["columns"] != list(NAMES):
                raise TableError("its trees see other columns than this version; calibrate anew")
            return cls(
                Device.from_dict(values["device"]),
                int(values["threads"]),
                Limits.from_dict(values["limits"]),
                {name: _part(part) for name, part in values["parts"].items()},
                _executed(values["executed"]),
                float(values["constant_s"]),
                _numbers(values["half_widths"]),
                Domain.from_dict(values["domain"]),
                Textbook.from_dict(values["textbook"]),
                dict(values["validation"]),
                dict(values["source"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError, IndexError, CostError) as error:
            if isinstance(error, TableError):
                raise
            raise TableError(
                "this is no calibrated device; make one: quantmeter calibrate --cost ort "
                "--time 5m --out DEVICE.json"
            ) from None

    @classmethod
    def read(cls, path: str | Path) -> "DeviceModel":
        """Read a file that holds what `to_json` returned.

        Raises:
            TableError: if the file is missing or holds something else.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise TableError(f"cannot read {str(path)!r}: {error}") from None
        except TableError as error:
            raise TableError(f"{path}: {error}") from None


def _part(values: Mapping[str, Any]) -> Part:
    kinds, neighbours = tuple(values["kinds"]), tuple(values["neighbours"])
    return Part(kinds, neighbours, Forest.from_dict(values["forest"]), float(values["scale"]))


def _executed(values: Mapping[str, Any]) -> Executed:
    near, kind = _numbers(values["near"]), _numbers(values["kind"])
    return Executed(near, kind, Forest.from_dict(values["glue"]))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def groups_of(items: Items, integer: BoolArray) -> TextArray:
    """Return which of `GROUPS` each row belongs to, (N,)."""
    layer = is_layer(items.kind)
    crossing = np.isin(items.kind, ("quantize", "dequantize"))
    return np.where(
        layer, np.where(integer, GROUPS[1], GROUPS[0]), np.where(crossing, GROUPS[3], GROUPS[2])
    )
