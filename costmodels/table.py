"""Cost tables: what each layer, glue operator and conversion of one network costs."""

import enum
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from costmodels.errors import TableError
from costmodels.units import UNITS, Metric, Unit
from quantization.bits import BitWidths, Format, formats_of
from quantization.network import Network

VERSION = 1
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
TextArray = npt.NDArray[np.str_]


class Provenance(enum.StrEnum):
    """Where the value of a cell comes from."""

    MEASURED = "measured"
    CALIBRATED = "calibrated"
    ANALYTICAL = "analytical"
    EXACT = "exact"
    ASSUMED = "assumed"
    ABSENT = "absent"


@dataclass(frozen=True)
class Cells:
    """One block of a table: values, and for each what is known about it.

    Args:
        value: the costs; infinite exactly where not supported.
        kernel: the executed kernel, such as ``QLinearConv``; empty where not known.
        provenance: names of `Provenance`; ``absent`` exactly where not supported.
        uncertainty: one standard deviation in the unit of the values; None if not known.

    All arrays have the same shape.

    Raises:
        TableError: if shapes differ, a value is NaN, or provenance contradicts support.
    """

    value: FloatArray
    kernel: TextArray
    provenance: TextArray
    uncertainty: FloatArray | None = None

    def __post_init__(self) -> None:
        shape = self.value.shape
        spread = self.value if self.uncertainty is None else self.uncertainty
        if not self.kernel.shape == self.provenance.shape == spread.shape == shape:
            raise TableError(f"the arrays of a block differ in shape, expected {shape}")
        if np.isnan(self.value).any() or np.isneginf(self.value).any():
            raise TableError("a cost is NaN or minus infinity")
        if not set(np.unique(self.provenance)) <= {p.value for p in Provenance}:
            raise TableError("unknown provenance in a table")
        if not np.array_equal(self.provenance == Provenance.ABSENT.value, ~self.supported):
            raise TableError("a cell is absent exactly where its value is infinite")

    @property
    def supported(self) -> BoolArray:
        """Where the backend can run, or price, the cell."""
        return np.isfinite(self.value)

    @classmethod
    def of(
        cls,
        value: FloatArray,
        provenance: Provenance | TextArray,
        *,
        kernel: str | TextArray = "",
        uncertainty: FloatArray | None = None,
    ) -> "Cells":
        """Build a block; a single provenance or kernel holds for all supported cells."""
        value = np.asarray(value, np.float64)
        supported = np.isfinite(value)

        def spread(given: str | TextArray, absent: str) -> TextArray:
            return np.where(supported, np.broadcast_to(np.asarray(given), value.shape), absent)

        text = provenance.value if isinstance(provenance, Provenance) else provenance
        return cls(value, spread(kernel, ""), spread(text, Provenance.ABSENT.value), uncertainty)


@dataclass(frozen=True, eq=False)
class CostTable:
    """One metric, one unit, one statistic of one network.

    The cost of a policy is ``constant + sum(unary) + sum(glue) + sum(conversion)``, with formats by
    `quantization.formats`. Values may be negative (a fusion that is gained), `unary` may not.

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
        source: who says so: backend, preset, device, options; JSON values.
        measurements: raw samples behind the values, if any; JSON values.

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

    def __post_init__(self) -> None:
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
        if (self.unary.value < 0).any():
            raise TableError("the cost of a layer is negative")
        if np.diagonal(self.conversion.value, axis1=1, axis2=2).any():
            raise TableError("a conversion from a format to itself must cost nothing")
        if not np.isfinite(self.constant):
            raise TableError("the constant is not finite")

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
            TableError: if the digests differ.
        """
        if self.network != network.digest:
            raise TableError(
                f"the table is of another network (digest {self.network[:12]}, "
                f"this one has {network.digest[:12]}); calibrate this network"
            )

    def restrict(self, choices: Sequence[BitWidths]) -> "CostTable":
        """Return the table of `choices` only, in that order.

        Raises:
            TableError: if a choice is not in the table.
        """
        if tuple(choices) == self.choices:
            return self
        missing = [str(c) for c in choices if c not in self.choices]
        if missing:
            held = ", ".join(map(str, self.choices))
            raise TableError(f"the table holds no {', '.join(missing)}; it holds {held}")
        columns = [self.choices.index(c) for c in choices]
        kept = [self.formats.index(f) for f in formats_of(choices)]
        return CostTable(
            self.metric,
            self.unit,
            self.statistic,
            self.network,
            self.layers,
            tuple(choices),
            self.glue_names,
            self.tensors,
            _select(self.unary, np.ix_(range(len(self.layers)), columns)),
            _select(self.glue, np.ix_(range(len(self.glue_names)), kept)),
            _select(self.conversion, np.ix_(range(len(self.tensors)), kept, kept)),
            self.constant,
            self.source,
            self.measurements,
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
                **{name: _cells_to_json(getattr(self, name)) for name in _BLOCKS},
                "constant": self.constant,
                "source": dict(self.source),
                "measurements": list(self.measurements),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "CostTable":
        """Read what `to_json` wrote.

        Raises:
            TableError: if the text is no table, or one of a newer version.
        """
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise TableError(f"a cost table is JSON; this is not: {error}") from None
        if not isinstance(content, dict) or "unary" not in content:
            raise TableError("this JSON holds no cost table")
        if content.get("version") != VERSION:
            raise TableError(
                f"table version {content.get('version')!r} is not known; use {VERSION}"
            )
        try:
            choices = tuple(BitWidths.parse(c) for c in content["choices"])
            f = len(formats_of(choices))
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
                **{name: _cells_from_json(content[name], shapes[name]) for name in _BLOCKS},
                constant=content["constant"],
                source=content["source"],
                measurements=content["measurements"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"the cost table is damaged: {error}") from None

    @classmethod
    def read(cls, path: str | Path) -> "CostTable":
        """Read a table file.

        Raises:
            TableError: if the file is missing or holds no table; names the file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise TableError(f"{path}: {reason}") from None
        except TableError as error:
            raise TableError(f"{path}: {error}") from None

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cell: block, name, choice or formats, value and what is known of it.

        Columns: ``block`` (constant, unary, glue, conversion), ``name`` (layer, glue operator or
        tensor), ``given`` (choice, or format that is read or written), ``target`` (format a
        conversion leads to), ``value``, ``kernel``, ``provenance``, ``uncertainty``. What is one
        for the whole table is in ``DataFrame.attrs``; measurements are left out.
        """
        labels = [f.label for f in self.formats]
        axes = {
            "unary": (self.layers, [str(c) for c in self.choices]),
            "glue": (self.glue_names, labels),
            "conversion": (self.tensors, labels, labels),
        }
        rows: list[tuple[object, ...]] = [
            ("constant", "", "", "", self.constant, "", self._constant_provenance(), np.nan)
        ]
        for block, names in axes.items():
            cells: Cells = getattr(self, block)
            for where in np.ndindex(*cells.value.shape):
                keys = [axis[i] for axis, i in zip(names, where, strict=True)]
                spread = np.nan if cells.uncertainty is None else cells.uncertainty[where]
                rows.append(
                    (block, *keys, *([""] * (3 - len(keys))), cells.value[where])
                    + (cells.kernel[where], cells.provenance[where], spread)
                )
        frame = pd.DataFrame(rows, columns=_COLUMNS)
        frame.attrs = {
            "metric": self.metric.value,
            "unit": self.unit.value,
            "statistic": self.statistic,
            "network": self.network,
            "source": dict(self.source),
        }
        return frame

    def _constant_provenance(self) -> str:
        known = self.unary.provenance[self.unary.supported]
        return str(known[0]) if known.size else Provenance.ASSUMED.value

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, attrs: Mapping[str, Any] | None = None) -> "CostTable":
        """Rebuild a table from what `to_frame` returned, or from the same columns read from CSV.

        Args:
            frame: columns as in `to_frame`, any order of rows within a block's own order of names.
            attrs: what is one for the whole table; defaults to ``frame.attrs``.

        Raises:
            TableError: if columns, cells or attributes are missing.
        """
        about = attrs if attrs is not None else frame.attrs
        if missing := [c for c in _COLUMNS if c not in frame.columns]:
            raise TableError(f"columns missing: {', '.join(missing)}")
        if missing := [k for k in ("metric", "unit", "statistic", "network") if k not in about]:
            raise TableError(f"attributes missing: {', '.join(missing)}")
        by_block = {block: frame[frame["block"] == block] for block in ("constant", *_BLOCKS)}
        layers = list(dict.fromkeys(by_block["unary"]["name"]))
        choices = tuple(BitWidths.parse(c) for c in dict.fromkeys(by_block["unary"]["given"]))
        labels = [f.label for f in formats_of(choices)]
        glue_names = list(dict.fromkeys(by_block["glue"]["name"]))
        tensors = list(dict.fromkeys(by_block["conversion"]["name"]))
        if len(by_block["constant"]) != 1:
            raise TableError("exactly one row holds the constant")
        return cls(
            metric=Metric(about["metric"]),
            unit=Unit(about["unit"]),
            statistic=about["statistic"],
            network=about["network"],
            layers=tuple(layers),
            choices=choices,
            glue_names=tuple(glue_names),
            tensors=tuple(tensors),
            unary=_cells_from_rows(by_block["unary"], layers, [str(c) for c in choices]),
            glue=_cells_from_rows(by_block["glue"], glue_names, labels),
            conversion=_cells_from_rows(by_block["conversion"], tensors, labels, labels),
            constant=float(by_block["constant"]["value"].iloc[0]),
            source=dict(about.get("source", {})),
        )

    def to_csv(self) -> str:
        """Return `to_frame` as CSV behind one comment line that holds the attributes as JSON."""
        frame = self.to_frame()
        return f"# {json.dumps(frame.attrs)}\n" + frame.to_csv(index=False)

    @classmethod
    def from_csv(cls, text: str) -> "CostTable":
        """Read what `to_csv` wrote.

        Raises:
            TableError: if the first line or the columns are not as `to_csv` writes them.
        """
        import io

        first, _, rest = text.partition("\n")
        try:
            attrs = json.loads(first.removeprefix("#"))
        except json.JSONDecodeError:
            raise TableError("the first line of the CSV must be '# {JSON attributes}'") from None
        keep = dict.fromkeys(("name", "given", "target", "kernel"), str)
        frame = pd.read_csv(
            io.StringIO(rest),
            dtype=keep,
            keep_default_na=False,
            na_values={"uncertainty": [""]},
            float_precision="round_trip",
        )
        return cls.from_frame(frame, attrs)


_BLOCKS = ("unary", "glue", "conversion")
_COLUMNS = ["block", "name", "given", "target", "value", "kernel", "provenance", "uncertainty"]


def _select(cells: Cells, where: tuple[npt.NDArray[np.intp], ...]) -> Cells:
    spread = None if cells.uncertainty is None else cells.uncertainty[where]
    return Cells(cells.value[where], cells.kernel[where], cells.provenance[where], spread)


def _cells_to_json(cells: Cells) -> dict[str, Any]:
    value = cells.value.astype(object)
    value[~cells.supported] = None
    return {
        "value": value.tolist(),
        "kernel": cells.kernel.tolist(),
        "provenance": cells.provenance.tolist(),
        "uncertainty": None if cells.uncertainty is None else cells.uncertainty.tolist(),
    }


def _cells_from_json(content: Mapping[str, Any], shape: tuple[int, ...]) -> Cells:
    # An axis of length 0 disappears in nested lists, hence the reshapes.
    value = np.array(content["value"], object)
    value[value == None] = np.inf  # noqa: E711 - elementwise on an object array
    spread = content["uncertainty"]
    return Cells(
        value.astype(np.float64).reshape(shape),
        np.array(content["kernel"], np.str_).reshape(shape),
        np.array(content["provenance"], np.str_).reshape(shape),
        None if spread is None else np.array(spread, np.float64).reshape(shape),
    )


def _cells_from_rows(rows: pd.DataFrame, *axes: Sequence[str]) -> Cells:
    shape = tuple(len(axis) for axis in axes)
    keys = rows[["name", "given", "target"][: len(axes)]]
    positions = [{name: i for i, name in enumerate(axis)} for axis in axes]
    try:
        where = tuple(
            np.array([position[k] for k in keys.iloc[:, i]], np.intp)
            for i, position in enumerate(positions)
        )
    except KeyError as error:
        raise TableError(f"a row names {error.args[0]!r}, which its block does not have") from None
    seen = np.zeros(shape, np.int64)
    np.add.at(seen, where, 1)
    if (seen != 1).any():
        raise TableError("each cell must stand in exactly one row")
    value = np.empty(shape)
    kernel, provenance = (np.empty(shape, object) for _ in range(2))
    uncertainty = np.empty(shape)
    value[where] = rows["value"].astype(float)
    kernel[where] = rows["kernel"]
    provenance[where] = rows["provenance"]
    uncertainty[where] = rows["uncertainty"].astype(float)
    known = None if np.isnan(uncertainty).all() else uncertainty
    return Cells(value, kernel.astype(np.str_), provenance.astype(np.str_), known)
