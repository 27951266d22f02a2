"""Cost tables: what each layer, glue operator and conversion of one network costs."""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from costmodels import frames
from costmodels.cells import (
    BoolArray,
    Cells,
    FloatArray,
    Once,
    Provenance,
    TextArray,
    cells_from_json,
    cells_to_json,
    number,
    once_from_json,
    once_to_json,
    scaled_cells,
    select,
)
from costmodels.context import Context
from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.units import UNITS, Metric, Unit
from quantization.bits import FLOAT32, BitWidths, Format, formats_of
from quantization.channel_groups import parse_bits
from quantization.network import Network

__all__ = ["BoolArray", "Cells", "CostTable", "FloatArray", "Once", "Provenance", "TextArray"]

VERSION = 1
_NAMED = 12
"""Choices that a message names at most."""


@dataclass(frozen=True, eq=False)
class CostTable:
    """One metric, one unit, one statistic of one network.

    The cost of a policy is ``constant + once + sum(unary) + sum(glue) + sum(conversion)``, with
    formats by `quantization.formats`; `once` counts if the policy uses one of its cells. Values of
    `glue` and `conversion` may be negative (a fusion that is gained), and so may a fitted
    `constant`; but the network in float costs no less than nothing.

    Args:
        metric: what is priced.
        unit: of every value.
        statistic: what the values are, such as ``p10`` of measured times, ``exact`` or ``model``.
        network: digest of the network.
        layers: names of the layers, L.
        choices: bit-widths, K.
        glue_names: names of the glue operators, G.
        tensors: names of the tensors, T.
        unary: (L, K): a layer at a choice.
        glue: (G, F): a glue operator in a format; F formats as `formats` lists them.
        conversion: (T, F, F): a tensor written in the first format, read in the second; zero on
            the diagonal, which makes the split between the three blocks identifiable.
        constant: what every policy pays.
        source: who says so: backend, preset, device, options; JSON values. ``notes``, if there are
            any, are texts that are printed with the costs.
        measurements: raw samples behind the values, if any; JSON values.
        once: what is paid once if any layer is at one of some cells, or None.
        context: what groups of neighbouring layers add beyond the cells, or None. It is not part
            of the sum above: searches add up cells, `total` of a backend may know more.

    Raises:
        TableError: if shapes, signs, units or the diagonal are wrong.
    """

    metric: Metric
    unit: Unit
    statistic: str
    network: str
    layers: tuple[str, ...]
    choices: tuple[BitWidths, ...]
    glue_names: tuple[str, ...]
    tensors: tuple[str, ...]
    unary: Cells
    glue: Cells
    conversion: Cells
    constant: float = 0.0
    source: Mapping[str, Any] = field(default_factory=dict)
    measurements: Sequence[Mapping[str, Any]] = ()
    once: Once | None = None
    context: Context | None = None

    def __post_init__(self) -> None:
        self._check_texts()
        object.__setattr__(self, "constant", number("the constant", self.constant))
        if self.unit not in UNITS[self.metric]:
            raise TableError(f"{self.metric.value} is not measured in {self.unit.value}")
        if len(set(self.choices)) != len(self.choices) or not self.choices:
            raise TableError("a table needs at least one choice, each once")
        f = len(self.formats)
        expected = {
            "unary": (self.unary, (len(self.layers), len(self.choices))),
            "glue": (self.glue, (len(self.glue_names), f)),
            "conversion": (self.conversion, (len(self.tensors), f, f)),
        }
        for name, (cells, shape) in expected.items():
            if cells.value.shape != shape:
                raise TableError(f"{name} has shape {cells.value.shape}, expected {shape}")
        if self.once is not None and self.once.cells.shape != self.unary.value.shape:
            raise TableError(
                f"once has shape {self.once.cells.shape}, expected {self.unary.value.shape}"
            )
        if self.context is not None:
            self.context.check(len(self.layers))
        if (self.unary.value < 0).any():
            raise TableError("the cost of a layer is negative")
        if np.diagonal(self.conversion.value, axis1=1, axis2=2).any():
            raise TableError("a conversion from a format to itself must cost nothing")
        if not np.isfinite(self.constant):
            raise TableError("the constant is not finite")
        if (cost := self._float_cost()) < 0:
            raise TableError(
                f"with the constant {self.constant:g} {self.unit.value} the network in float "
                f"costs less than nothing, {cost:.3g} {self.unit.value}"
            )

    def _check_texts(self) -> None:
        for name in ("statistic", "network"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise TableError(f"the {name} {reprlib.repr(getattr(self, name))} is no text")
        for names in ("layers", "glue_names", "tensors"):
            if not all(isinstance(name, str) for name in getattr(self, names)):
                raise TableError(f"{names} holds what is no text")
        if not isinstance(self.source, Mapping):
            raise TableError(f"the source {reprlib.repr(self.source)} does not map names to values")
        notes = self.source.get("notes", ())
        if not isinstance(notes, list | tuple) or not all(isinstance(n, str) for n in notes):
            raise TableError(f"source.notes is {reprlib.repr(notes)}, not a list of texts")

    def _float_cost(self) -> float:
        """Return the cost of the network in float, where nothing is converted.

        A layer without a price there, as every one in a table without w32a32, counts its dearest
        choice; glue without one counts nothing.
        """
        unary = np.where(self.unary.supported, self.unary.value, 0.0)
        layers = unary.max(1)
        if FLOAT32 in self.choices:
            column = self.choices.index(FLOAT32)
            layers = np.where(self.unary.supported[:, column], unary[:, column], layers)
        glue = self.glue.value[:, self.formats.index(Format.FLOAT32)]
        return float(self.constant + layers.sum() + glue[np.isfinite(glue)].sum())

    @property
    def formats(self) -> tuple[Format, ...]:
        """The formats that the second axis of `glue` and both of `conversion` run over."""
        return formats_of(self.choices)

    @property
    def supported(self) -> BoolArray:
        """(L, K): the action mask of the search."""
        return self.unary.supported

    def check(self, network: Network) -> None:
        """Raise unless the table is one of `network`.

        Raises:
            TableError: if the digests or the names differ.
        """
        if self.network != network.digest:
            raise TableError(
                f"the table is of another network (digest {self.network[:12]}, "
                f"this one has {network.digest[:12]}); calibrate this network"
            )
        glue = tuple(glue.name for glue in network.glue)
        tensors = tuple(tensor.name for tensor in network.tensors)
        if (self.layers, self.glue_names, self.tensors) != (network.layer_names, glue, tensors):
            raise TableError("the table's names are not those of its network; calibrate it anew")

    def restrict(self, choices: Sequence[BitWidths]) -> "CostTable":
        """Return the table of `choices` only, in that order.

        Raises:
            UnsupportedChoiceError: if a choice is not in the table.
        """
        if tuple(choices) == self.choices:
            return self
        missing = [str(c) for c in choices if c not in self.choices]
        if missing:
            held = ", ".join(map(str, self.choices[:_NAMED]))
            more = len(self.choices) - _NAMED
            held += f" and {more} more" if more > 0 else ""
            raise UnsupportedChoiceError(
                f"the table holds no {', '.join(missing)}; it holds {held}"
            )
        columns = [self.choices.index(c) for c in choices]
        kept = [self.formats.index(f) for f in formats_of(choices)]
        once = self.once
        if once is not None:
            cells = once.cells[:, columns]
            once = Once(once.value, cells) if cells.any() else None
        return CostTable(
            self.metric,
            self.unit,
            self.statistic,
            self.network,
            self.layers,
            tuple(choices),
            self.glue_names,
            self.tensors,
            select(self.unary, np.ix_(range(len(self.layers)), columns)),
            select(self.glue, np.ix_(range(len(self.glue_names)), kept)),
            select(self.conversion, np.ix_(range(len(self.tensors)), kept, kept)),
            self.constant,
            self.source,
            self.measurements,
            once,
            self.context,
        )

    def scaled(self, factor: float) -> "CostTable":
        """Return the table with every cost and uncertainty multiplied by `factor`.

        What was measured stays as it was; ``source["rescaled"]`` holds the factor.

        Raises:
            TableError: if the factor is not positive and finite.
        """
        if not 0 < factor < math.inf:
            raise TableError(f"costs are scaled by a positive factor, not {factor!r}")
        before = self.source.get("rescaled", 1.0)
        return replace(
            self,
            unary=scaled_cells(self.unary, factor),
            glue=scaled_cells(self.glue, factor),
            conversion=scaled_cells(self.conversion, factor),
            constant=self.constant * factor,
            once=None if self.once is None else replace(self.once, value=self.once.value * factor),
            context=None if self.context is None else self.context.scaled(factor),
            source={**self.source, "rescaled": before * factor},
        )

    def to_json(self) -> str:
        """Return the table as JSON; `from_json` gives back the same table."""
        return json.dumps(
            {
                "version": VERSION,
                "metric": self.metric.value,
                "unit": self.unit.value,
                "statistic": self.statistic,
                "network": self.network,
                "layers": list(self.layers),
                "choices": [str(c) for c in self.choices],
                "glue_names": list(self.glue_names),
                "tensors": list(self.tensors),
                "formats": [f.label for f in self.formats],
                **{name: cells_to_json(getattr(self, name)) for name in _BLOCKS},
                "constant": self.constant,
                "once": once_to_json(self.once, self.layers, self.choices),
                "context": None if self.context is None else self.context.to_json(),
                "source": dict(self.source),
                "measurements": list(self.measurements),
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str) -> "CostTable":
        """Read what `to_json` wrote.

        Raises:
            TableError: if the text is no table, or one of a newer version.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TableError(f"a cost table is JSON; this is not: {error}") from None
        if not isinstance(content, dict) or "unary" not in content:
            raise TableError("this JSON holds no cost table")
        if content.get("version") != VERSION:
            raise TableError(
                f"table version {content.get('version')!r} is not known; use {VERSION}"
            )
        try:
            choices = tuple(parse_bits(c) for c in content["choices"])
            labels = [f.label for f in formats_of(choices)]
            if content["formats"] != labels:
                raise TableError(f"the formats of its choices are {', '.join(labels)}")
            f = len(labels)
            shapes = {
                "unary": (len(content["layers"]), len(choices)),
                "glue": (len(content["glue_names"]), f),
                "conversion": (len(content["tensors"]), f, f),
            }
            return cls(
                metric=Metric(content["metric"]),
                unit=Unit(content["unit"]),
                statistic=content["statistic"],
                network=content["network"],
                layers=tuple(content["layers"]),
                choices=choices,
                glue_names=tuple(content["glue_names"]),
                tensors=tuple(content["tensors"]),
                **{name: cells_from_json(name, content[name], shapes[name]) for name in _BLOCKS},
                constant=content["constant"],
                once=once_from_json(content.get("once"), content["layers"], choices),
                context=Context.from_json(content.get("context")),
                source=content["source"],
                measurements=list(content["measurements"]),
            )
        except KeyError as error:
            raise TableError(f"the cost table is damaged: it has no {error}; {_MEND}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise TableError(f"the cost table is damaged: {error}; {_MEND}") from None

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cell; see `costmodels.frames.to_frame`."""
        return frames.to_frame(self)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, attrs: Mapping[str, Any] | None = None) -> "CostTable":
        """Rebuild the table that `to_frame` wrote; `attrs` default to ``frame.attrs``.

        Raises:
            TableError: if columns, cells or attributes are missing or hold what they must not.
        """
        return cls(**frames.fields_of_frame(frame, attrs))

    def to_csv(self) -> str:
        """Return `to_frame` as CSV behind one comment line that holds the attributes as JSON."""
        return frames.to_csv(self)

    @classmethod
    def from_csv(cls, text: str) -> "CostTable":
        """Read what `to_csv` wrote.

        Raises:
            TableError: if the first line or the columns are not as `to_csv` writes them.
        """
        return cls(**frames.fields_of_csv(text))

    @classmethod
    def read(cls, path: str | Path) -> "CostTable":
        """Read a table file: CSV if its name ends so, else JSON.

        Raises:
            TableError: if the file is missing or holds no table; names the file.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.from_csv(text) if Path(path).suffix == ".csv" else cls.from_json(text)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise TableError(f"{path}: {reason}") from None
        except TableError as error:
            raise TableError(f"{path}: {error}") from None


_MEND = "restore the file or make the table anew"
_BLOCKS = ("unary", "glue", "conversion")
