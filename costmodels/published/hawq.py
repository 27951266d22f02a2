"""Per-layer figures of HAWQ-V3 as JSON: latencies at several widths, counts, tied layers."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from costmodels.cells import number
from costmodels.errors import TableError
from costmodels.published.content import Count, Published, Stated, agreed
from costmodels.table import FloatArray, Provenance
from costmodels.units import Unit, parse_unit
from quantization.bits import INTEGER_WIDTHS, BitWidths

_LATENCY = re.compile(r"latency_([A-Za-zµ]+)_(\w+)")
_MEBI = 2.0**20
_COUNTS = {
    # The published figures of ResNet-50 are in 10^6 weights, those of ResNet-18 in 2^20.
    "parameters_millions": ("weights", (1e6, _MEBI)),
    "macs_millions": ("multiply-accumulates", (1e6,)),
}


def read(content: bytes, stated: Stated) -> Published:
    """Read the latencies, at b bits of weights and of activations alike, of each layer.

    The entry ``latency_UNIT_DEVICE`` maps widths to a number for each layer, in order of
    execution: ``latency_ms_nvidia_t4`` has milliseconds. ``parameters_millions``,
    ``macs_millions`` and ``tied_layers`` are used if they are there; sensitivities are not, a
    search measures them on the network itself. Yao et al., ICML 2021, measured INT4 and INT8
    kernels, both operands of the same width.

    Raises:
        TableError: if this is no such file, or says another unit than stated.
        CostError: if the unit is none.
    """
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        raise TableError("no JSON") from None
    if not isinstance(given, dict):
        raise TableError("the JSON is no object")
    keys = [key for key in given if _LATENCY.fullmatch(key)]
    if len(keys) != 1:
        found = ", ".join(keys) or "none"
        raise TableError(f"one entry such as latency_ms_nvidia_t4 expected; there is {found}")
    match = _LATENCY.fullmatch(keys[0])
    assert match is not None
    unit, factor = parse_unit(match[1])
    if unit is not Unit.SECONDS or (stated.unit and parse_unit(stated.unit) != (unit, factor)):
        raise TableError(f"{keys[0]} is in {match[1]}, not in {stated.unit or 'seconds'}")
    columns = _columns(keys[0], given[keys[0]])
    widths = sorted(width for width in columns if width in INTEGER_WIDTHS)
    if not widths:
        raise TableError(f"{keys[0]} holds no width of 2 to 8 or 16 bits")
    return Published(
        tuple(BitWidths(width, width) for width in widths),
        np.stack([columns[width] for width in widths], 1) * factor,
        unit,
        stated.statistic or "not stated",
        stated.provenance or Provenance.MEASURED,
        counts=tuple(
            Count(what, _numbers(key, given[key]), scales)
            for key, (what, scales) in _COUNTS.items()
            if key in given
        ),
        ties=_ties(given.get("tied_layers", [])),
        source={
            "unit_in_file": match[1],
            "device": agreed("device", None, stated.device) or match[2],
            "network_in_file": given.get("network"),
            "left_out": [f"w{w}a{w}" for w in sorted(set(columns) - set(widths))],
        },
    )


def _columns(key: str, given: Any) -> Mapping[int, FloatArray]:
    if not isinstance(given, dict) or not all(width.isdecimal() for width in given):
        raise TableError(f"{key} does not map widths in bits to numbers")
    columns = {int(width): _numbers(f"{key}.{width}", values) for width, values in given.items()}
    if len({len(column) for column in columns.values()}) > 1:
        counts = ", ".join(f"{len(column)} at {width}" for width, column in columns.items())
        raise TableError(f"{key} has unequally many layers: {counts} bits")
    return columns


def _numbers(key: str, given: Any) -> FloatArray:
    if not isinstance(given, list):
        raise TableError(f"{key} is no list of numbers")
    return np.array([number(key, value) for value in given], np.float64)


def _ties(given: Any) -> tuple[tuple[int, ...], ...]:
    ties = given if isinstance(given, list) else [given]
    for tie in ties:
        if not isinstance(tie, list) or not all(type(row) is int for row in tie):
            raise TableError("tied_layers is no list of lists of row numbers")
    return tuple(tuple(tie) for tie in ties)
