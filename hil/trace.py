"""Which layer or glue operator of a network a node of the optimized graph executes.

A session renames, fuses, splits and decomposes nodes. What stays of the original names is in
parameters, in tensors and in parts of node names; what loses even these, the parts of a function
that the runtime has no kernel for, is found by what stands above it.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from quantization.export import half_name, parameter_names, stored_name
from quantization.network import Glue, Network

INTEGER_KERNELS = frozenset(
    {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger"}
)
FLOAT_KERNELS = frozenset({"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
FLOAT_KERNELS |= {"ConvTranspose"}

_CONVERSIONS = frozenset({"ReorderInput", "ReorderOutput", "QuantizeLinear", "DequantizeLinear"})
"""What the exporter and the runtime put between the nodes of the network."""

_FUSION = re.compile(r"/\w+Fusion/?$")
"""What the runtime appends to the name of a node that takes the ones before it over."""


def executed_kernels(network: Network, graph: onnx.GraphProto) -> dict[str, str]:
    """Trace every layer of `network` in the optimized `graph`; returns layer name to kernel."""
    found = {layer: graph.node[at].op_type for at, layer in _layers(network, graph).items()}
    return {name: found.get(name, "absent") for name in network.layer_names}


def weight_types(network: Network, graph: onnx.GraphProto) -> dict[str, int]:
    """Return for each layer the element type of its kernel's second operand in `graph`.

    A number of ``onnx.TensorProto.DataType``; 0 where the kernel or the type is not known.
    """
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    values = (*graph.input, *graph.value_info, *graph.output)
    kinds |= {value.name: value.type.tensor_type.elem_type for value in values}
    found = dict.fromkeys(network.layer_names, 0)
    for at, layer in _layers(network, graph).items():
        operands = graph.node[at].input
        found[layer] = kinds.get(operands[1], 0) if len(operands) > 1 else 0
    return found


def owners(network: Network, graph: onnx.GraphProto) -> list[str | None]:
    """Return for each node of the optimized `graph` the layer or glue operator that it executes.

    None stands for what belongs to neither: conversions, changes of the layout. An operator that
    another one took over (an activation by its convolution) owns no node.
    """
    layers, traces = _layers(network, graph), _GlueTraces.of(network)
    found = [layers.get(at) or traces.glue(node) for at, node in enumerate(graph.node)]
    nameless = [not node.name and not traces.converts(node) for node in graph.node]
    return _with_parts(network, graph, found, nameless)


def _layers(network: Network, graph: onnx.GraphProto) -> dict[int, str]:
    """For each kernel of the optimized `graph`, by position, the layer that it executes."""
    traces = _Traces.of(network)
    found: dict[int, str] = {}
    for position, node in enumerate(graph.node):
        if node.op_type in INTEGER_KERNELS | FLOAT_KERNELS:
            traced = traces.layer(node)
            if traced is not None and traced not in found.values():
                found[position] = traced
    return found


def _bare(name: str) -> str:
    """A tensor's name without what the runtime puts before it where it widens half precision."""
    return name.removeprefix("InsertedPrecisionFreeCast_")


def _stems(node: onnx.NodeProto) -> list[str]:
    """Names of the node's outputs, then its own, without the optimizer's counters."""
    return [_bare(name).split("_token_")[0] for name in (*node.output, node.name)]


def _blocked(stems: Sequence[str]) -> list[str]:
    """Tensors after which nodes in the blocked layout are named."""
    return [stem.removesuffix("_nchwc") for stem in stems if stem.endswith("_nchwc")]


@dataclass(frozen=True)
class _Traces:
    """Names by which the runtime may still know a layer, each to the layer.

    Args:
        parameters: weights, scales and biases: the surest, as they belong to one layer only.
        outputs: output tensors, as floats and as integers, and those of activations behind them.
        nodes: the layers' own names.
    """

    parameters: dict[str, str]
    outputs: dict[str, str]
    nodes: dict[str, str]

    @classmethod
    def of(cls, network: Network) -> "_Traces":
        parameters: dict[str, str] = {}
        outputs: dict[str, str] = {}
        behind = {
            glue.inputs[0]: glue
            for glue in network.glue
            if len(glue.inputs) == len(glue.outputs) == 1
        }
        for layer in network.layers:
            names = parameter_names(network, layer.name)
            # What the runtime calls the weights of a float layer that it re-quantizes.
            requantized = (f"{layer.name}_weight_q", f"{layer.name}_bias_int32")
            parameters |= dict.fromkeys((*names, *requantized), layer.name)
            tensor = network.tensor_by_name[layer.output]
            while True:
                known = (stored_name(network, tensor.name), half_name(network, tensor.name))
                outputs |= dict.fromkeys((tensor.name, *known), layer.name)
                # A float convolution takes the activation behind it over, and then its name.
                if len(tensor.consumers) != 1 or tensor.name not in behind:
                    break
                tensor = network.tensor_by_name[behind[tensor.name].outputs[0]]
        return cls(parameters, outputs, {name: name for name in network.layer_names})

    def layer(self, node: onnx.NodeProto) -> str | None:
        """Return the layer that kernel `node` executes; suffixes of the optimizer are removed."""
        stems = _stems(node)
        candidates = (
            *(self.parameters.get(_bare(name)) for name in node.input[1:]),
            *(self.outputs.get(_bare(name)) for name in node.output),
            # Convolutions in the blocked layout are named after their output.
            *(self.outputs.get(name) for name in _blocked(stems)),
            *(self.nodes.get(stem) for stem in reversed(stems)),
        )
        return next((found for found in candidates if found is not None), None)


@dataclass(frozen=True)
class _GlueTraces:
    """Names by which the runtime may still know a glue operator, each to the operator.

    Args:
        outputs: output tensors, as floats, as integers and before requantization.
        nodes: the operators' own names.
        converted: what conversions in several steps read and write in between.
        halves: tensors in half precision.
    """

    outputs: dict[str, str]
    nodes: dict[str, str]
    converted: frozenset[str]
    halves: frozenset[str]

    @classmethod
    def of(cls, network: Network) -> "_GlueTraces":
        outputs: dict[str, str] = {}
        steps: set[str] = set()
        halves: set[str] = set()
        for tensor in network.tensors:
            own = stored_name(network, tensor.name).removesuffix("q")
            steps |= {f"{own}u", f"{own}v"}
            halves.add(half := half_name(network, tensor.name))
            names = (tensor.name, f"{own}q", f"{own}r", half)
            outputs |= dict.fromkeys(names, tensor.producer or "")
        glue = {glue.name for glue in network.glue}
        made = {name: producer for name, producer in outputs.items() if producer in glue}
        return cls(made, {name: name for name in glue}, frozenset(steps), frozenset(halves))

    def converts(self, node: onnx.NodeProto) -> bool:
        """Whether `node` is a conversion or one step of it."""
        ends = {*node.input, *node.output}
        if node.op_type == "Cast" and node.name not in self.nodes and ends & self.halves:
            return True
        return node.op_type in _CONVERSIONS or bool(ends & self.converted)

    def glue(self, node: onnx.NodeProto) -> str | None:
        """Return the glue operator that `node` names, if any."""
        if self.converts(node) or node.op_type in INTEGER_KERNELS | FLOAT_KERNELS:
            return None
        stems = _stems(node)
        if node.op_type == "Transpose":  # the runtime's own ones are all called that
            stems = [*stems[:-1], node.name]
        candidates = (
            *(self.outputs.get(name) for name in _blocked(stems)),
            *(self.nodes.get(_FUSION.sub("", stem)) for stem in reversed(stems)),
            *(self.outputs.get(_bare(name)) for name in node.output),
        )
        return next((found for found in candidates if found is not None), None)


def _with_parts(
    network: Network,
    graph: onnx.GraphProto,
    found: Sequence[str | None],
    nameless: Sequence[bool],
) -> list[str | None]:
    """Give the nameless parts of decomposed functions to their glue operators.

    In the blocked layout such parts lose their names and those of their tensors. A part belongs to
    the first operator whose function holds such a part that is not found yet, and above which in
    the network stands exactly what stands above the part in the graph.
    """
    missing = {glue.name: _function_parts(network, glue) for glue in network.glue}
    for node, name in zip(graph.node, found, strict=True):
        if name in missing:
            missing[name][node.op_type] -= 1
    above, owning = _above(network), set(found)
    result = list(found)
    reached: dict[str, frozenset[str]] = {}
    for position, node in enumerate(graph.node):
        up = frozenset[str]().union(*(reached.get(name, ()) for name in node.input))
        if result[position] is None and nameless[position]:
            for name, parts in missing.items():
                if parts[node.op_type] > 0 and up - {name} == above[name] & owning:
                    parts[node.op_type] -= 1
                    owning.add(name)
                    result[position] = name
                    break
        owner = result[position]
        reached |= dict.fromkeys(node.output, up if owner is None else up | {owner})
    return result


def _above(network: Network) -> dict[str, frozenset[str]]:
    """For each node of the network the nodes that it depends on."""
    above: dict[str | None, frozenset[str]] = {None: frozenset()}
    for node in network.execution_order:
        makers = [network.tensor_by_name[name].producer for name in node.inputs]
        above[node.name] = frozenset(m for m in makers if m).union(*(above[m] for m in makers))
    return {name: nodes for name, nodes in above.items() if name is not None}


def _function_parts(network: Network, glue: Glue) -> "Counter[str]":
    """The operators that the runtime replaces `glue` by if it has no kernel for it."""
    opset = next(o.version for o in network.model.opset_import if o.domain in ("", "ai.onnx"))
    try:
        schema = onnx.defs.get_schema(glue.kind, opset)
    except onnx.defs.SchemaError:
        return Counter()
    return Counter(part.op_type for part in schema.function_body.node)
