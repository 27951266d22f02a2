"""The bytes of exported files: stored timings are of one revision of the exporter."""

import hashlib

import numpy as np
import pytest

from quantization.bits import BitWidths
from quantization.deployment import ExportOptions
from quantization.export import REVISION, Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from quantization.reading import read_network
from tests.quantization.graphs import make_model, node

GOLDEN = (3, "10783d6226e1866ed39a1fac4df3acca2c1d6d8e44b30a0e25a5eef9be2f6d16")
"""The revision, and the SHA-256 of the files of all `POLICIES` under both options."""

POLICIES = (
    "w32a32 w32a32 w32a32 w32a32",
    "w8a8 w8a8 w8a8 w8a8",
    "w4a8 w2a8 w3a8 w7a8",
    "w8a8 w32a32 w8a8 w32a32",
    "w32a32 w8a8 w32a32 w4a8",
)
OPTIONS = (
    ExportOptions(weight_method="minmax"),
    ExportOptions(weight_method="minmax", reduce_range=True, pack=False, guard_float=False),
)


def _values(*shape: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    """Numbers that no library draws: eighths from -2 to 2, in a fixed order."""
    count = int(np.prod(shape))
    return ((np.arange(count) * 7 % 33 - 16) / 8).astype(np.float32).reshape(shape)


def _network() -> Network:
    nodes = [
        node("Conv", "x stem.w stem.b", "a", "stem", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "a", "m", "relu"),
        node("MaxPool", "m", "b", "most", kernel_shape=[2, 2]),
        node("Conv", "b deep.w", "c", "deep", pads=[1] * 4, group=6),
        node("Add", "b c", "d", "add"),
        node("Conv", "d point.w point.b", "e", "point"),
        node("Sigmoid", "e", "f", "sigmoid"),
        node("GlobalAveragePool", "f", "g", "pool"),
        node("Flatten", "g", "h", "flat"),
        node("Gemm", "h last.w last.b", "y", "last", transB=1),
    ]
    constants = {
        "stem.w": _values(6, 3, 3, 3),
        "stem.b": _values(6),
        "deep.w": _values(6, 1, 3, 3),
        "point.w": _values(8, 6, 1, 1),
        "point.b": _values(8),
        "last.w": _values(5, 8),
        "last.b": _values(5),
    }
    return read_network(make_model(nodes, constants, {"x": (1, 3, 8, 8)}, {"y": None}))


def _digest(network: Network) -> str:
    hashed = hashlib.sha256()
    for options in OPTIONS:
        exporter = Exporter(network, made_up_ranges(network), options)
        for text in POLICIES:
            bits = map(BitWidths.parse, text.split())
            model = exporter.build(Policy(dict(zip(network.layer_names, bits, strict=True))))
            hashed.update(hashlib.sha256(model).digest())
    return hashed.hexdigest()


def test_the_exporter_writes_the_bytes_of_its_revision() -> None:
    network = _network()
    assert len(network.layers) == len(POLICIES[0].split())
    revision, golden = GOLDEN
    found = _digest(network)
    if (REVISION, found) == GOLDEN:
        return
    if found != golden and revision == REVISION:
        pytest.fail(
            "the exporter writes other bytes than its revision did, so timings in users' stores "
            f"are not of these files: raise quantization.export.REVISION to {REVISION + 1}, then "
            f"set GOLDEN = ({REVISION + 1}, {found!r})"
        )
    pytest.fail(f"the revision was raised: set GOLDEN = ({REVISION}, {found!r})")
