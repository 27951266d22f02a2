"""What a device model prices, one row each: layers, glue operators and conversions.

A row has a *kind* (the operator, told apart where runtimes have different kernels) and numbers that
decide its cost, all of them read from the network: no name, no position, nothing that another
network could not have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx

from costmodels.cells import BoolArray, FloatArray, TextArray
from quantization.network import LAYER_KINDS, OUTPUT, Glue, Layer, Network, Tensor

FEATURES = (
    "macs",
    "inputs",
    "outputs",
    "weights",
    "depth",
    "in_channels",
    "out_channels",
    "pixels",
    "window",
    "stride",
    "groups",
    "operands",
    "smallest",
    "readers",
    "added",
    "even_in",
    "even_out",
    "network",
    "passed",
    "work",
)
"""Columns of `Items.features`.

    macs          multiply-accumulates
    inputs        elements of all inputs; outputs of all outputs; weights of the weight
    depth         elements of a sum: input channels of a group times the kernel's extents
    in_channels   of the first input; out_channels of the first output
    pixels        places of the output: spatial extents times batch, or rows of a product
    window        the kernel's extents, multiplied, of a convolution or a pooling
    stride        along the last axis; groups of channels
    operands      activations that are read; smallest: elements of the smallest of these
    readers       of the output
    added         operators that a kernel may take over: activations and sums right behind it
    even_in       the largest power of two, 64 at most, that divides the input channels; even_out
                  likewise: kernels work on blocks of channels
    network       weights of the whole network; passed: elements of all its activations; work: its
                  multiply-accumulates. They tell what a run leaves in the caches for the next one
"""
_BLOCK = 64
_FUSED = frozenset({"Relu", "Clip"})
_ELEMENTWISE = frozenset({"Add", "Mul", "Sub", "Div"})
QUANTIZE, DEQUANTIZE = "quantize", "dequantize"
_OUTSIDE = "outside"


@dataclass(frozen=True, eq=False)
class Items:
    """Rows to price.

    Args:
        kind: (N,) operator, such as ``Conv depthwise``, ``Add``, ``quantize``.
        maker: (N,) operator that makes the first input; kernels before and behind decide layouts.
        reader: (N,) operator that reads the first output.
        near: (N,) kind and all that stands before it: decides whether a neighbour takes it over.
        features: (N, F) numbers as `FEATURES` names them.
    """

    kind: TextArray
    maker: TextArray
    reader: TextArray
    near: TextArray
    features: FloatArray

    def __len__(self) -> int:
        return len(self.kind)

    def column(self, name: str) -> FloatArray:
        """Return one column of the features, (N,)."""
        return np.asarray(self.features[:, FEATURES.index(name)], np.float64)

    def at(self, where: npt.NDArray[np.intp] | BoolArray) -> "Items":
        """Return some of the rows."""
        texts = (self.kind[where], self.maker[where], self.reader[where], self.near[where])
        return Items(*texts, self.features[where])

    @classmethod
    def of(cls, rows: "Sequence[Row]") -> "Items":
        """Collect rows; a feature that is not given is 0."""
        values = [[float(row.numbers.get(name, 0.0)) for name in FEATURES] for row in rows]
        return cls(
            np.array([row.kind for row in rows], np.str_),
            np.array([row.maker for row in rows], np.str_),
            np.array([row.reader for row in rows], np.str_),
            np.array([row.near for row in rows], np.str_),
            np.array(values, np.float64).reshape(len(rows), len(FEATURES)),
        )

    @classmethod
    def joined(cls, parts: Sequence["Items"]) -> "Items":
        """Return the rows of all parts, in order."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def to_dict(self) -> dict[str, Any]:
        """Return the rows as JSON values."""
        return {field.name: getattr(self, field.name).tolist() for field in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Items":
        """Read what `to_dict` wrote."""
        numbers = np.array(values["features"], np.float64)
        return cls(
            np.array(values["kind"], np.str_),
            np.array(values["maker"], np.str_),
            np.array(values["reader"], np.str_),
            np.array(values["near"], np.str_),
            numbers.reshape(len(values["kind"]), len(FEATURES)),
        )


class Row(NamedTuple):
    """One row, see `Items`; numbers by feature."""

    kind: str
    maker: str
    reader: str
    near: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class NetworkItems:
    """The rows of one network.

    Args:
        layers: (L) rows.
        glue: (G) rows.
        quantize: (T) rows, one a tensor: from floats to integers.
        dequantize: (T) rows: from integers to floats.
    """

    layers: Items
    glue: Items
    quantize: Items
    dequantize: Items


@lru_cache(maxsize=64)
def items_of(network: Network) -> NetworkItems:
    """Return the rows of `network` (kept for the most recent networks)."""
    nodes = {node.name: node for node in network.model.graph.node}
    crossings = [_conversion(network, tensor) for tensor in network.tensors]
    return NetworkItems(
        Items.of([_layer(network, layer) for layer in network.layers]),
        Items.of([_glue(network, glue, nodes[glue.name]) for glue in network.glue]),
        Items.of([row._replace(kind=QUANTIZE) for row in crossings]),
        Items.of([row._replace(kind=DEQUANTIZE) for row in crossings]),
    )


def layer_kind(layer: Layer) -> str:
    """Return the kind of a layer.

    >>> layer_kind(Layer("dw", "Conv", 8, 8, (3, 3), (1, 1), 8, (4, 4), (4, 4), 1, ("x",), "y"))
    'Conv depthwise'
    """
    words = [layer.kind]
    if layer.is_depthwise:
        words.append("depthwise")
    elif layer.groups > 1:
        words.append("grouped")
    if not layer.has_weights:
        words.append("of activations")
    if layer.kernel and len(layer.kernel) != 2:
        words.append(f"{len(layer.kernel)}d")
    return " ".join(words)


def _layer(network: Network, layer: Layer) -> Row:
    window = math.prod(layer.kernel)
    kind = layer_kind(layer)
    return Row(
        kind,
        _maker(network, layer.inputs[0]),
        _reader(network, layer.output),
        kind,
        {
            "macs": layer.macs,
            "inputs": layer.input_count,
            "outputs": layer.output_count,
            "weights": layer.weight_count,
            "depth": layer.in_channels // layer.groups * window,
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "pixels": layer.batch * math.prod(layer.out_size),
            "window": window,
            "stride": layer.stride[-1] if layer.stride else 1,
            "groups": layer.groups,
            "operands": len(layer.inputs),
            "smallest": min(layer.factor_counts or (layer.input_count,)),
            "readers": len(network.tensor_by_name[layer.output].consumers),
            "added": len(_taken_over(network, layer.output)),
            "even_in": math.gcd(layer.in_channels, _BLOCK),
            "even_out": math.gcd(layer.out_channels, _BLOCK),
            **_whole(network),
        },
    )


def _glue(network: Network, glue: Glue, node: onnx.NodeProto) -> Row:
    read = [network.tensor_by_name[name] for name in glue.inputs]
    written = [network.tensor_by_name[name] for name in glue.outputs]
    given: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    counts = [tensor.count for tensor in read] or [0]
    out_count = sum(tensor.count for tensor in written)
    kind = glue.kind
    if kind in _ELEMENTWISE and min(counts) < max(counts):
        kind += " broadcast"
    elif kind in _ELEMENTWISE and len(counts) < 2:
        kind += " constant"
    if kind == "Transpose" and written and given.get("perm", [0])[-1] != len(written[0].shape) - 1:
        kind += " inner"
    channels = [_channels(tensor) for tensor in (*read[:1], *written[:1])] or [1]
    return Row(
        kind,
        _maker(network, glue.inputs[0]) if glue.inputs else _OUTSIDE,
        _reader(network, glue.outputs[0]) if glue.outputs else _OUTSIDE,
        _near(network, glue, kind),
        {
            "inputs": sum(counts),
            "outputs": out_count,
            "in_channels": channels[0],
            "out_channels": channels[-1],
            "pixels": out_count / channels[-1],
            "window": math.prod(given.get("kernel_shape", [1])),
            "stride": given.get("strides", [1])[-1],
            "groups": 1,
            "operands": len(read),
            "smallest": min(counts),
            "readers": sum(len(tensor.consumers) for tensor in written),
            "even_in": math.gcd(channels[0], _BLOCK),
            "even_out": math.gcd(channels[-1], _BLOCK),
            **_whole(network),
        },
    )


def _near(network: Network, glue: Glue, kind: str) -> str:
    """The kind, what makes its inputs, and whether it alone reads each of them."""
    before = []
    for name in glue.inputs:
        tensor = network.tensor_by_name[name]
        maker = _node_kind(network, tensor.producer)
        before.append(maker + ("" if len(tensor.consumers) == 1 else "+"))
    fused = "fused " if glue.fused else ""
    return f"{fused}{kind} behind {', '.join(sorted(before)) or 'constants'}"


def _conversion(network: Network, tensor: Tensor) -> Row:
    """A conversion in either direction; its kind is still to be given."""
    channels = _channels(tensor)
    maker = _node_kind(network, tensor.producer)
    readers = {_node_kind(network, None if c == OUTPUT else c) for c in tensor.consumers}
    return Row(
        "",
        _maker(network, tensor.name),
        _reader(network, tensor.name),
        f"conversion from {maker} to {', '.join(sorted(readers))}",
        {
            "inputs": tensor.count,
            "outputs": tensor.count,
            "in_channels": channels,
            "out_channels": channels,
            "pixels": tensor.count / channels,
            "window": 1,
            "stride": 1,
            "groups": 1,
            "operands": 1,
            "smallest": tensor.count,
            "readers": len(tensor.consumers),
            "even_in": math.gcd(channels, _BLOCK),
            "even_out": math.gcd(channels, _BLOCK),
            **_whole(network),
        },
    )


def _maker(network: Network, tensor: str) -> str:
    """Kind of what makes a tensor; an activation that its maker takes over is not one."""
    nodes = _nodes(network)
    while True:
        producer = network.tensor_by_name[tensor].producer
        if producer is None:
            return _OUTSIDE
        node = nodes[producer]
        if node.kind not in _FUSED or not node.inputs:
            return _node_kind(network, producer)
        tensor = node.inputs[0]


def _reader(network: Network, tensor: str) -> str:
    """Kind of the first that reads a tensor; an activation that is taken over is not one."""
    nodes = _nodes(network)
    while True:
        consumer = network.tensor_by_name[tensor].consumers[0]
        if consumer == OUTPUT:
            return _OUTSIDE
        node = nodes[consumer]
        if not isinstance(node, Glue) or node.kind not in _FUSED or not node.outputs:
            return _node_kind(network, consumer)
        tensor = node.outputs[0]


def _taken_over(network: Network, tensor: str) -> list[Glue]:
    """Activations and sums that stand right behind a tensor which nobody else reads."""
    nodes = _nodes(network)
    found: list[Glue] = []
    while True:
        consumers = network.tensor_by_name[tensor].consumers
        behind = nodes.get(consumers[0]) if len(consumers) == 1 else None
        if not isinstance(behind, Glue) or behind.kind not in (*_FUSED, "Add"):
            return found
        if not behind.outputs:
            return found
        found.append(behind)
        tensor = behind.outputs[0]


def _node_kind(network: Network, name: str | None) -> str:
    """Kind of a node: a layer as `layer_kind` has it, glue by its operator alone."""
    if name is None:
        return _OUTSIDE
    return _kinds(network)[name]


@lru_cache(maxsize=64)
def _kinds(network: Network) -> dict[str, str]:
    return {
        name: layer_kind(node) if isinstance(node, Layer) else node.kind
        for name, node in _nodes(network).items()
    }


@lru_cache(maxsize=64)
def _nodes(network: Network) -> dict[str, Layer | Glue]:
    return {node.name: node for node in network.execution_order}


@lru_cache(maxsize=64)
def _whole(network: Network) -> dict[str, int]:
    """What all rows of a network have in common."""
    return {
        "network": sum(layer.weight_count for layer in network.layers),
        "passed": sum(tensor.count for tensor in network.tensors),
        "work": network.macs,
    }


def _channels(tensor: Tensor) -> int:
    """Extent of the axis that runtimes lay out in blocks: the second of an image, else the last."""
    if len(tensor.shape) == 4:
        return tensor.shape[1]
    return tensor.shape[-1] if tensor.shape else 1


def is_layer(kinds: TextArray) -> BoolArray:
    """Return which kinds are of layers, (N,)."""
    return np.array([kind.split(" ")[0] in LAYER_KINDS for kind in kinds], np.bool_)
