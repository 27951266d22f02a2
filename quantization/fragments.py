"""Pieces of a serialized ONNX graph, and the short names that are used in them.

Protobuf messages merge by concatenation, so a graph is built by joining the bytes of its pieces.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from quantization import packing
from quantization.network import Network

PRODUCER = "quantmeter"
_GRAPH_TAG = b"\x3a"  # field 7 of ModelProto, length-delimited


@dataclass(frozen=True)
class ShortNames:
    """Short names: layer 3 is ``L3``, glue operator 1 is ``G1``, tensor 5 is ``T5``.

    Names in the file add a colon and a letter. If the model itself has names of that form, all
    short names get underscores in front until none of them can clash.

    Args:
        layers: short name by layer.
        glue: short name by glue operator.
        tensors: short name by tensor.
    """

    layers: Mapping[str, str]
    glue: Mapping[str, str]
    tensors: Mapping[str, str]


@lru_cache(maxsize=64)
def short_names(network: Network) -> ShortNames:
    """Return the short names of `network` (kept for the most recent networks)."""
    graph = network.model.graph
    taken = {tensor.name for tensor in graph.initializer}
    taken |= {name for node in graph.node for name in (*node.input, *node.output)}
    mark = ""
    while any(re.match(rf"{mark}[LGT]\d+:", name) for name in taken):
        mark += "_"
    return ShortNames(
        {name: f"{mark}L{i}" for i, name in enumerate(network.layer_names)},
        {glue.name: f"{mark}G{i}" for i, glue in enumerate(network.glue)},
        {tensor.name: f"{mark}T{i}" for i, tensor in enumerate(network.tensors)},
    )


def fragment(
    nodes: list[onnx.NodeProto], constants: Mapping[str, npt.NDArray[np.generic]]
) -> bytes:
    """Return nodes and their constants as bytes of a `GraphProto`."""
    graph = onnx.GraphProto()
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in constants.items())
    return graph.SerializeToString(deterministic=True)


def dequantize(tensor: str, output: str) -> onnx.NodeProto:
    """Return the node that reads the tensor with short name `tensor` as real values."""
    inputs = [f"{tensor}:q", f"{tensor}:s", f"{tensor}:z"]
    return helper.make_node("DequantizeLinear", inputs, [output])


def model_header(model: onnx.ModelProto, *, packed: bool) -> bytes:
    """Return everything of the exported file but its graph.

    Args:
        model: what is exported; its opsets and functions are kept.
        packed: whether the function that unpacks bit planes is needed.
    """
    opsets = {entry.domain.removesuffix("ai.onnx"): entry.version for entry in model.opset_import}
    header = onnx.ModelProto(ir_version=model.ir_version, producer_name=PRODUCER)
    header.functions.extend(model.functions)
    if packed:
        header.functions.append(packing.unpack_function(opsets[""]))
        opsets[packing.DOMAIN] = 1
    header.opset_import.extend(helper.make_opsetid(d, v) for d, v in opsets.items())
    return header.SerializeToString(deterministic=True)


def graph_length_prefix(length: int) -> bytes:
    """Return what stands before the `length` bytes of the graph within the model."""
    encoded = bytearray()
    while length > 0x7F:  # seven bits a byte, lowest first
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return _GRAPH_TAG + bytes(encoded)
