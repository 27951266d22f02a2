"""MAC counts of `onnx-tool`, beside ours, operator by operator.

It counts one for each product, as we do, and also one for each addition of a bias, and operations
of everything else (1 a ReLU, 2 a clip, 31 an element of a batch-norm) in the same sum.
"""

import contextlib
import io
from collections import Counter
from dataclasses import dataclass

import onnx

from quantization.network import Layer
from quantization.reading import read_network

TOLERANCE = 0.01
"""Relative difference above which a layer is explained."""


@dataclass(frozen=True)
class MacCounts:
    """Both counts of one network.

    Args:
        ours: multiply-accumulates of each layer, by name.
        theirs: their count of the same operators; a layer that they do not name is missing.
        biases: additions of a bias that they count on top, by layer.
        others: their counts of all other operators, by kind.
    """

    ours: dict[str, int]
    theirs: dict[str, int]
    biases: dict[str, int]
    others: Counter[str]

    @property
    def apart(self) -> list[str]:
        """Layers whose counts differ by more than `TOLERANCE`, or that they lack."""
        return [
            name
            for name, macs in self.ours.items()
            if abs(self.theirs.get(name, 0) - macs) > TOLERANCE * macs
        ]

    @property
    def unexplained(self) -> list[str]:
        """Those whose difference is not the additions of a bias."""
        return [
            name
            for name in self.apart
            if self.theirs.get(name, 0) != self.ours[name] + self.biases[name]
        ]


def count(model: onnx.ModelProto) -> MacCounts:
    """Count `model` by both."""
    from onnx_tool import Model

    layers = read_network(model).layers
    with contextlib.redirect_stdout(io.StringIO()):
        graph = Model(model, {"verbose": False}).graph
        graph.graph_reorder_nodes()
        graph.shape_infer(None)
        graph.profile()
    ours = {layer.name: layer.macs for layer in layers}
    theirs: dict[str, int] = {}
    others: Counter[str] = Counter()
    for name, node in graph.nodemap.items():
        if name in ours:
            theirs[name] = round(node.macs[0])
        else:
            others[node.op_type] += round(node.macs[0])
    return MacCounts(ours, theirs, {layer.name: _bias(layer) for layer in layers}, others)


def _bias(layer: Layer) -> int:
    return layer.output_count if layer.bias_count else 0
