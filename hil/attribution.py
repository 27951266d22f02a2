"""Which part of a network each operator of the optimized graph works for, and how long.

Operators that execute a layer or a glue operator are found by `hil.trace`. What lies between two of
these (quantize, dequantize, changes of the layout) is a conversion if the policy converts a tensor
there; else it belongs to whoever needs it: the operator behind.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from hil.trace import owners
from quantization.bits import Format
from quantization.formats import formats
from quantization.network import OUTPUT, Network
from quantization.policy import Policy

REVISION = 1
"""Raised whenever time goes to another part than before: stored measurements are of one."""

INPUT = "<input>"
"""Stands for the outside world before the network; `OUTPUT` for that behind it."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """Time of each part of a network, in the unit of the durations that were given.

    A part whose operator another one took over has no time and no operators.

    Args:
        layers: (L,) time.
        glue: (G,) time.
        conversions: tensor and format to which it is converted, to time; all that a policy has.
        layer_nodes: (L,) how many operators of the optimized graph that is.
        glue_nodes: (G,) likewise.
        conversion_nodes: likewise.
    """

    layers: npt.NDArray[np.float64]
    glue: npt.NDArray[np.float64]
    conversions: Mapping[tuple[str, Format], float]
    layer_nodes: npt.NDArray[np.int64]
    glue_nodes: npt.NDArray[np.int64]
    conversion_nodes: Mapping[tuple[str, Format], int]


def attribute(
    network: Network, policy: Policy, graph: onnx.GraphProto, durations: Sequence[float]
) -> Attribution:
    """Share the time of every operator of `graph` out among the parts of `network`.

    Args:
        network: the network.
        policy: what the graph executes.
        graph: the optimized graph.
        durations: time of each of its operators.
    """
    owner = owners(network, graph)
    above, below = _owned_above(graph, owner), _owned_below(graph, owner)
    conversions = _conversions(network, policy, frozenset(o for o in owner if o is not None))
    spent: dict[object, float] = defaultdict(float)
    nodes: dict[object, int] = defaultdict(int)
    for position, duration in enumerate(durations):
        parts: list[object]
        if (name := owner[position]) is not None:
            parts = [name]
        else:
            parts = [
                key
                for key, (sources, readers) in conversions.items()
                if sources & above[position] and readers & below[position]
            ]
            parts = parts or _needed_by(above[position], below[position])
        for part in parts:
            spent[part] += duration / len(parts)
            nodes[part] += 1
    layers, glue = network.layer_names, [each.name for each in network.glue]
    return Attribution(
        np.array([spent[name] for name in layers]),
        np.array([spent[name] for name in glue]),
        {key: spent[key] for key in conversions},
        np.array([nodes[name] for name in layers]),
        np.array([nodes[name] for name in glue], np.int64),
        {key: nodes[key] for key in conversions},
    )


def relative_to_float(
    network: Network, policy: Policy, spent: Attribution, floats: Attribution
) -> Attribution:
    """Charge what a neighbour's format changes about float glue to the conversion between them.

    An activation that a float convolution takes over runs by itself behind an integer one; a
    pooling that stands before a quantization changes its kernel. The operator itself costs what it
    costs in the float network, the rest is part of the conversion: so a table's cell means the same
    wherever it stands. A difference that no operator can have made is noise, and stays.

    Args:
        network: the network.
        policy: what was executed.
        spent: what it took.
        floats: what the float network took.
    """
    reads, glue, nodes = formats(network, policy).reads, spent.glue.copy(), spent.glue_nodes.copy()
    conversions, conversion_nodes = dict(spent.conversions), dict(spent.conversion_nodes)
    for i, each in enumerate(network.glue):
        more = glue[i] - floats.glue[i]
        if not reads[each.name].is_float or more <= 0:
            continue
        keys = [(name, Format.FLOAT32) for name in each.inputs]
        keys = [key for key in keys if key in conversions] or [
            key for key in ((name, Format.INT8) for name in each.outputs) if key in conversions
        ]
        added = max(int(nodes[i] - floats.glue_nodes[i]), 0)
        keys = [key for key in keys if conversion_nodes[key] + added > 0]
        for key in keys:
            conversions[key] += more / len(keys)
            conversion_nodes[key] += added
        if keys:
            glue[i], nodes[i] = floats.glue[i], floats.glue_nodes[i]
    return replace(
        spent,
        glue=glue,
        glue_nodes=nodes,
        conversions=conversions,
        conversion_nodes=conversion_nodes,
    )


def _needed_by(above: frozenset[str], below: frozenset[str]) -> list[object]:
    """Who a change of the layout is for: what is behind it, or, at the end, what is before it."""
    inside = sorted(below - {OUTPUT}) or sorted(above - {INPUT})
    return list(inside)


def _conversions(
    network: Network, policy: Policy, owning: frozenset[str]
) -> dict[tuple[str, Format], tuple[frozenset[str], frozenset[str]]]:
    """For each conversion the owning nodes that its tensor comes from, and those that it is for."""
    chosen = formats(network, policy)
    nodes = {node.name: node for node in network.execution_order}

    def sources(tensor: str) -> frozenset[str]:
        maker = network.tensor_by_name[tensor].producer
        if maker is None:
            return frozenset({INPUT})
        if maker in owning:
            return frozenset({maker})
        return frozenset[str]().union(*map(sources, nodes[maker].inputs))

    def readers(name: str) -> frozenset[str]:
        if name == OUTPUT or name in owning:
            return frozenset({name})
        node = nodes[name]
        outputs = (node.output,) if hasattr(node, "output") else node.outputs
        behind = [c for o in outputs for c in network.tensor_by_name[o].consumers]
        return frozenset[str]().union(*map(readers, behind))

    found = {}
    for tensor, _, target in chosen.conversions:
        asking = [
            name
            for name in network.tensor_by_name[tensor].consumers
            if chosen.reads.get(name, Format.FLOAT32) is target
        ]
        found[tensor, target] = sources(tensor), frozenset[str]().union(*map(readers, asking))
    return found


def _owned_above(graph: onnx.GraphProto, owner: Sequence[str | None]) -> list[frozenset[str]]:
    """For each operator the nearest owned ones that its inputs come from."""
    from_value = {value.name: frozenset({INPUT}) for value in graph.input}
    above = []
    for node, name in zip(graph.node, owner, strict=True):
        up = frozenset[str]().union(*(from_value.get(i, frozenset()) for i in node.input))
        above.append(up)
        own = up if name is None else frozenset({name})
        from_value |= dict.fromkeys(node.output, own)
    return above


def _owned_below(graph: onnx.GraphProto, owner: Sequence[str | None]) -> list[frozenset[str]]:
    """For each operator the nearest owned ones that its outputs go to."""
    to_value: dict[str, frozenset[str]] = {v.name: frozenset({OUTPUT}) for v in graph.output}
    below = []
    for node, name in zip(reversed(graph.node), reversed(owner), strict=True):
        down = frozenset[str]().union(*(to_value.get(o, frozenset()) for o in node.output))
        below.append(down)
        own = down if name is None else frozenset({name})
        for value in node.input:
            to_value[value] = to_value.get(value, frozenset()) | own
    return below[::-1]
