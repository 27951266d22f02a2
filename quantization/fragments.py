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
from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.network import Network
from quantization.quantizer import QuantizedWeight

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


def stored_planes(
    own: str, weight: QuantizedWeight, bits: BitWidths
) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[np.generic]]]:
    """Return how weights below 8 bits are stored: what makes ``own:i``, and from which constants.

    Args:
        own: short name of the layer.
        weight: its integers.
        bits: its bit-widths; at least one is below 8.
    """
    if not isinstance(bits, ChannelGroups):
        return _unpacked(own, "", weight.values, bits.weights)
    nodes: list[onnx.NodeProto] = []
    stored: dict[str, npt.NDArray[np.generic]] = {}
    for width, channels in bits.groups:
        values: npt.NDArray[np.signedinteger] = weight.values.take(channels, weight.axis)
        if width == 8:
            stored[f"{own}:i8"] = values
            continue
        makes, planes = _unpacked(own, str(width), values, width)
        nodes += makes
        stored |= planes
    # Behind each other as the groups are, and from there each channel to its place.
    place = np.argsort(np.concatenate([channels for _, channels in bits.groups]))
    smallest = np.uint8 if len(place) <= 1 << 8 else np.uint16
    fits = len(place) <= 1 << 16
    stored[f"{own}:g"] = place.astype(smallest if fits else np.int32)
    parts = [f"{own}:i{width}" for width in bits.weight_widths]
    return [
        *nodes,
        helper.make_node("Concat", parts, [f"{own}:j"], axis=weight.axis),
        helper.make_node("Cast", [f"{own}:g"], [f"{own}:h"], to=onnx.TensorProto.INT32),
        helper.make_node("Gather", [f"{own}:j", f"{own}:h"], [f"{own}:i"], axis=weight.axis),
    ], stored


def _unpacked(
    own: str, group: str, values: npt.NDArray[np.signedinteger], width: int
) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[np.generic]]]:
    """Return the node that unpacks some integers, and their bit planes and shape."""
    planes, shape = f"{own}:p{group}", f"{own}:d{group}"
    node = helper.make_node(
        packing.FUNCTION, [planes, shape], [f"{own}:i{group}"], domain=packing.DOMAIN
    )
    return [node], {planes: packing.pack(values, width), shape: np.array(values.shape, np.int64)}


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
