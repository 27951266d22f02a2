"""From a file of published costs to the cost table of a network."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.errors import CostError, TableError
from costmodels.published import haq, hawq, rows
from costmodels.published.content import Count, Published, Stated
from costmodels.table import BoolArray, Cells, CostTable, Provenance
from costmodels.units import METRIC_OF
from quantization.bits import formats_of
from quantization.errors import did_you_mean
from quantization.network import Layer, Network

READERS: Mapping[str, Callable[[bytes, Stated], Published]] = {
    "haq": haq.read,
    "hawq": hawq.read,
    "csv": rows.read,
}
"""How the bytes of a file in each format are read."""

NO_TERM = "0, because the file has no such term"
_NO_ROW = "0, because the file has no row for it"
_ROUNDING = 0.005
"""Relative: counts are published with three digits or more."""

_NAMED = 3
"""Differences that a message names at most."""


def read_table(
    form: str,
    path: Path,
    network: Network,
    stated: Stated | None = None,
    *,
    without: Sequence[str] = (),
) -> CostTable:
    """Read a file of published costs as a table of `network`, in the unit of the file.

    Glue and conversions between formats cost 0 in it, as `CostTable.source` says.

    Args:
        form: one of `READERS`.
        path: the file.
        network: whose layers the rows of the file are, in order of execution or by name.
        stated: what the file does not say itself.
        without: layers that the file has no rows for; they cost 0 at every width.

    Raises:
        CostError: if the file is missing or damaged, or is of another network; names the file.
        PolicyError: if `without` names no layer of the network.
    """
    if form not in READERS:
        raise TableError(f"no format {form!r}{did_you_mean(form, READERS)}; one of {[*READERS]}")
    given = stated or Stated()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: {error.strerror}") from None
    try:
        published = READERS[form](content, given)
        position = _positions(published, network, without)
        checked = _check_counts(published, network, position)
    except CostError as error:
        raise TableError(f"{path}: {error}") from None
    source = {
        "backend": f"import:{form}",
        "format": form,
        "file": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "batch": given.batch,
        "device": given.device,
        **published.source,
        "rows": "by order of execution" if published.names is None else "by name",
        "checked": ["number of layers" if published.names is None else "names", *checked],
        "ties": [[network.layer_names[position[row]] for row in tie] for tie in published.ties],
        "without": dict.fromkeys(without, _NO_ROW),
        "glue": NO_TERM,
        "conversion": NO_TERM,
    }
    return _table(published, network, position, {**source, "notes": _notes(published, source)})


def _positions(
    published: Published, network: Network, without: Sequence[str]
) -> npt.NDArray[np.intp]:
    """Return the layer of each row, (R,).

    Raises:
        TableError: unless each layer has a row or is left out, and no row is left over.
        PolicyError: if `without` names no layer of the network.
    """
    for name in without:
        network.layer(name)
    left = [i for i, name in enumerate(network.layer_names) if name not in without]
    if published.names is not None:
        return _by_name(published.names, network, without)
    if len(left) == len(published.value):
        return np.array(left, np.intp)
    named = f" without the {len(set(without))} that are left out" if without else ""
    found = f"{len(published.value)} layers in the file, {len(left)} in the network{named}"
    if len(left) < len(published.value):
        raise TableError(f"{found}; it is of another network")
    advice = _left_out(published, network) or ["LAYER", "LAYER"]
    raise TableError(f"{found}; name those that the file leaves out: --without {','.join(advice)}")


def _by_name(
    names: Sequence[str], network: Network, without: Sequence[str]
) -> npt.NDArray[np.intp]:
    position = {name: i for i, name in enumerate(network.layer_names)}
    if unknown := [name for name in names if name not in position]:
        raise TableError(
            f"the network has no layer {unknown[0]!r}{did_you_mean(unknown[0], position)}"
            f"{_more(unknown, 1)}; quantmeter inspect lists them"
        )
    if both := [name for name in names if name in without]:
        raise TableError(f"the file has rows for {both[0]!r}, which --without leaves out")
    missing = [name for name in position if name not in {*names, *without}]
    if missing:
        listed = ", ".join(map(repr, missing[:_NAMED]))
        raise TableError(
            f"{len(names)} layers in the file, {len(position)} in the network: no row for {listed}"
            f"{_more(missing, _NAMED)}; give rows, or --without LAYER,LAYER"
        )
    return np.array([position[name] for name in names], np.intp)


_COUNTED: Mapping[str, Callable[[Layer], int]] = {
    "weights": lambda layer: layer.weight_count,
    "multiply-accumulates": lambda layer: layer.macs,
}


def _expected(count: Count, network: Network) -> npt.NDArray[np.float64]:
    """Return the count of each layer of the network, (L,), for one input."""
    counted = np.array([_COUNTED[count.what](layer) for layer in network.layers], np.float64)
    if count.what == "weights":
        return counted
    shape = network.tensor_by_name[network.input_names[0]].shape
    return counted / (shape[0] if shape else 1)


def _check_counts(
    published: Published, network: Network, position: npt.NDArray[np.intp]
) -> list[str]:
    """Raise unless the counts in the file are those of the layers; return what was compared.

    Raises:
        TableError: names what differs.
    """
    checked = []
    for count in published.counts:
        expected = _expected(count, network)[position]
        # 1 in the file stands for what fits most layers.
        scale = max(count.scales, key=lambda s: _equal(count.values * s, expected).sum())
        wrong = np.flatnonzero(~_equal(count.values * scale, expected))
        if len(wrong):
            differences = ", ".join(
                f"{network.layer_names[position[row]]!r} has {count.values[row] * scale:,.0f} in "
                f"the file, {expected[row]:,.0f} in the network"
                for row in wrong[:_NAMED]
            )
            raise TableError(
                f"it is of another network: {count.what} differ at {len(wrong)} of "
                f"{len(expected)} layers: "
                f"{differences}{_more(wrong.tolist(), _NAMED)}"
            )
        checked.append(f"{count.what}, 1 in the file taken as {scale:,.0f}")
    return checked


def _equal(given: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> BoolArray:
    return np.isclose(given, expected, rtol=_ROUNDING, atol=0.0)


def _left_out(published: Published, network: Network) -> list[str]:
    """Guess from counts which layers have no row; empty where counts do not tell."""
    if not published.counts:
        return []
    same = np.ones((len(published.value), len(network.layers)), np.bool_)
    for count in published.counts:
        expected = _expected(count, network)[None]
        same &= np.any([_equal(count.values[:, None] * s, expected) for s in count.scales], axis=0)
    row, found = 0, []
    for i, name in enumerate(network.layer_names):
        if row < len(same) and same[row, i]:
            row += 1
        else:
            found.append(name)
    return found if row == len(same) else []


def _more(found: Sequence[object], named: int) -> str:
    return f" and {len(found) - named} more" if len(found) > named else ""


def _notes(published: Published, source: Mapping[str, Any]) -> list[str]:
    """Say what whoever reads a cost from the table must know."""
    notes = [*published.notes, "glue and conversions cost 0: the file has no such term"]
    if published.provenance in (Provenance.MEASURED, Provenance.CALIBRATED):
        device = source["device"] or "a device that the file does not name"
        notes.append(f"measured by others on {device}, not here")
    if source["batch"]:
        notes.append(f"one run is of a batch of {source['batch']}")
    if source["without"]:
        notes.append(f"{', '.join(source['without'])} cost 0: the file has no row for them")
    return notes


def _table(
    published: Published,
    network: Network,
    position: npt.NDArray[np.intp],
    source: Mapping[str, Any],
) -> CostTable:
    formats = len(formats_of(published.choices))
    tensors = tuple(tensor.name for tensor in network.tensors)
    shape = len(network.layers), len(published.choices)
    value = np.zeros(shape)
    value[position] = published.value
    known = np.full(shape, Provenance.ASSUMED.value, "U16")
    known[position] = published.provenance.value
    return CostTable(
        metric=METRIC_OF[published.unit],
        unit=published.unit,
        statistic=published.statistic,
        network=network.digest,
        layers=network.layer_names,
        choices=published.choices,
        glue_names=tuple(glue.name for glue in network.glue),
        tensors=tensors,
        unary=Cells.of(value, known),
        glue=Cells.of(np.zeros((len(network.glue), formats)), Provenance.ASSUMED),
        conversion=Cells.of(np.zeros((len(tensors), formats, formats)), Provenance.ASSUMED),
        source=source,
    )
