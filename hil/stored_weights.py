"""Reads the weights of exported files back: how they are stored, how many bits they use."""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

from quantization import packing
from quantization.network import Layer
from quantization.passes import attribute

Widths = npt.NDArray[np.int64]


class StoredWeights:
    """Reads the weights of an exported file back, tensor by tensor.

    Args:
        model: the exported model.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = {node.name: node for node in model.graph.node if node.name}
        self._producer = {name: node for node in model.graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def of(self, layer: Layer) -> tuple[int, str]:
        """Return stored width in bits, and how the weight is stored."""
        if not layer.has_weights:
            return 8 if self._is_integer_product(layer) else 32, "activations"
        source = self._weight_source(layer)
        if source is None:
            return 32, "absent"
        if isinstance(source, onnx.NodeProto) and source.op_type == "Gather":
            widths, _, how = self.of_channels(layer)
            return int(widths.max()), how
        if isinstance(source, onnx.NodeProto):
            planes = self._planes(source)
            return planes, f"int{planes} (bit planes)"
        kind = TensorProto.DataType.Name(source.data_type).lower()
        width = {"float": 32, "float16": 16, "int8": 8, "uint8": 8, "int16": 16}.get(kind, 0)
        return width, {"float": "float32"}.get(kind, kind)

    def used_bits(self, layer: Layer) -> int:
        """Return the width of the smallest signed grid that holds the stored integers."""
        source = self._weight_source(layer)
        if source is None:
            return 0
        return _used_bits(self._values(source))

    def of_channels(self, layer: Layer) -> tuple[Widths, Widths, str]:
        """Return (channels,) stored widths, (channels,) widths that are used, and how it is stored.

        Both are empty if the weights are not stored as integers.
        """
        source, axis = self._weight_source(layer), self._channel_axis(layer)
        if isinstance(source, onnx.NodeProto) and source.op_type == "Gather" and axis is not None:
            return self._of_groups(source, axis)
        width, how = self.of(layer)
        if source is None or axis is None or width > 8:
            return np.empty(0, np.int64), np.empty(0, np.int64), how
        used = _of_rows(self._values(source), axis)
        return np.full(len(used), width, np.int64), used, how

    def _of_groups(self, gather: onnx.NodeProto, axis: int) -> tuple[Widths, Widths, str]:
        """Look at every group that is joined before `gather` puts channels in order."""
        joined, order = (self._producer[name] for name in gather.input)
        place = numpy_helper.to_array(self._tensors[order.input[0]])
        stored: list[Widths] = []
        used: list[Widths] = []
        for name in joined.input:
            made = self._producer.get(name)
            rows = _of_rows(self._values(self._tensors[name] if made is None else made), axis)
            stored.append(np.full(len(rows), 8 if made is None else self._planes(made), np.int64))
            used.append(rows)
        how = " + ".join(f"int{each[0]}" for each in stored) + " (by channel)"
        return np.concatenate(stored)[place], np.concatenate(used)[place], how

    def _channel_axis(self, layer: Layer) -> int | None:
        """The axis of a layer's quantized weight that runs over output channels."""
        node = self._nodes.get(layer.name)
        made = None if node is None else self._producer.get(node.input[1])
        if made is None or made.op_type != "DequantizeLinear":
            return None
        return int(attribute(made, "axis", 1))

    def _planes(self, node: onnx.NodeProto) -> int:
        return int(self._tensors[node.input[0]].dims[0])

    def _values(self, source: onnx.NodeProto | onnx.TensorProto) -> npt.NDArray[np.int64]:
        """The integers of an initializer, or that bit planes stand for."""
        if isinstance(source, onnx.NodeProto):
            return self._unpacked(source).astype(np.int64)
        return numpy_helper.to_array(source).astype(np.int64)

    def _unpacked(self, node: onnx.NodeProto) -> npt.NDArray[np.int8]:
        """The integers that bit planes stand for."""
        planes, shape = (numpy_helper.to_array(self._tensors[name]) for name in node.input)
        return packing.unpack(planes, len(planes), tuple(int(extent) for extent in shape))

    def _is_integer_product(self, layer: Layer) -> bool:
        node = self._nodes.get(layer.name)
        made = self._producer.get(node.input[0]) if node is not None else None
        return made is not None and made.op_type == "DequantizeLinear"

    def _weight_source(self, layer: Layer) -> onnx.NodeProto | onnx.TensorProto | None:
        """The initializer behind a layer's weight, or the node that unpacks it."""
        node = self._nodes.get(layer.name)
        if node is None or len(node.input) < 2:
            return None
        name = node.input[1]
        if name in self._producer and self._producer[name].op_type == "DequantizeLinear":
            name = self._producer[name].input[0]
        made = self._producer.get(name)
        if made is not None and made.op_type in (packing.FUNCTION, "Gather"):
            return made
        return self._tensors.get(name)


def _of_rows(values: npt.NDArray[np.int64], axis: int) -> Widths:
    """Return the width that each channel uses, (channels,)."""
    return np.array([_used_bits(row) for row in np.moveaxis(values, axis, 0)], np.int64)


def _used_bits(values: npt.NDArray[np.int64]) -> int:
    """Return the width of the smallest signed grid that holds some integers."""
    high, low = max(int(values.max()), 0), min(int(values.min()), -1)
    return max(high.bit_length(), (~low).bit_length()) + 1
