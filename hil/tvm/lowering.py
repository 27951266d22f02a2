"""From a network and a policy to kernels.

Tensors lie channels last where convolutions and matrix products read them, with the padding that
kernels want, and as in ONNX where an operator has no kernel of ours.

Float operators between integer tensors that compute each element from one integer, such as
`HardSwish`, or a product of a tensor and its own `HardSigmoid`, become a look-up in 256 entries.
Operators that only move elements move integers where there are any.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from costmodels.errors import BackendError
from hil.tvm.chains import Chain, Fit, chain_of, fit, laid_out, limits_of
from hil.tvm.channelwise import Extent, FloatChain, Operand, PickChannels
from hil.tvm.glue import glue_kernel
from hil.tvm.imported import OnnxOperator
from hil.tvm.layers import LayerKernels
from hil.tvm.layouts import grid_factors
from hil.tvm.machine import Machine
from hil.tvm.moves import KEEPS_ORDER, MOVES, picked_channels, relabelled
from hil.tvm.operations import Operation
from hil.tvm.orders import IMAGE, Layout, channel_axis, elements, kernel_layout
from hil.tvm.products import ActivationProduct, matrix_factors
from hil.tvm.program import Kernel, Program, Purpose, Role, Value, content_of
from hil.tvm.shapes import channel_step
from hil.tvm.tensors import Table, Tensors
from hil.tvm.tiles import Tile
from quantization.bits import BitWidths, Format
from quantization.deployment import Correction, Corrections
from quantization.export import Exporter
from quantization.formats import formats
from quantization.network import Glue, Layer, Network
from quantization.passes import initializer_arrays
from quantization.policy import Policy
from quantization.quantizer import AffineGrid
from quantization.torch_operators import attributes, constant, operator

Array = npt.NDArray[Any]
ChooseTile = Callable[[Operation], Tile]

POINTWISE = frozenset(
    (
        *("Relu", "Clip", "Sigmoid", "Tanh", "Erf", "Exp", "Log", "Sqrt", "Neg", "Abs"),
        *("HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Gelu"),
        *("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"),
    )
)
"""Operators that compute each element from those at its place."""
UNBOUNDED = frozenset({"Log", "Div", "Pow"})
"""Those that may make infinities of what pads a tensor, which no weight of zero takes away."""

_SHUFFLE = ("Reshape", "Transpose", "Reshape")


def lower(
    exporter: Exporter,
    policy: Policy,
    machine: Machine,
    choose: ChooseTile,
    corrections: Corrections | None = None,
) -> Program:
    """Return the kernels that run a network under a policy.

    Args:
        exporter: holds network, ranges and quantized parameters.
        policy: the bits.
        machine: who runs it.
        choose: tells how the kernel of an operation is cut.
        corrections: of outputs of layers.

    Raises:
        PolicyError: if the policy does not fit the network.
        BackendError: if a layer cannot run at its bits; names it and its operator.
    """
    walk = _Lowering(exporter, policy, machine, choose, corrections or {})
    for node in exporter.network.execution_order:
        walk.add(node)
    return walk.program()


class _Lowering:
    """One walk through a network.

    Args:
        exporter: see `lower`.
        policy: see `lower`.
        machine: see `lower`.
        choose: see `lower`.
        corrections: see `lower`.
    """

    def __init__(
        self,
        exporter: Exporter,
        policy: Policy,
        machine: Machine,
        choose: ChooseTile,
        corrections: Mapping[str, Correction],
    ) -> None:
        self._policy, self._choose = policy, choose
        self._machine, self._corrections = machine, corrections
        self._network: Network = exporter.network
        self._formats = formats(self._network, policy)
        self._layers = LayerKernels(exporter)
        self._tensors = Tensors(exporter, self._formats, shuffles=machine.shuffles)
        graph = self._network.model.graph
        self._nodes = {node.name: node for node in graph.node}
        self._glue = {node.name: node for node in self._network.glue}
        self._arrays = initializer_arrays(graph)
        self._fused = {each.inputs[0]: each for each in self._network.glue if each.fused}
        self._absorbed: set[str] = set()
        self._inputs: dict[str, Value] = {}
        for name in self._network.input_names:
            count = self._tensors.elements(name, Layout.PLAIN)
            value = self._inputs[name] = self._tensors.value(count, "float32")
            self._tensors.made(name, Format.FLOAT32, Layout.PLAIN, value)

    def program(self) -> Program:
        """Return what the walk found."""
        outputs = {
            name: self._tensors.get(name, Format.FLOAT32, Layout.PLAIN, Purpose(Role.ENDS, name))
            for name in self._network.output_names
        }
        shapes = {name: self._shape(name) for name in (*self._inputs, *outputs)}
        return Program(self._inputs, self._tensors.steps, outputs, shapes)

    def add(self, node: Layer | Glue) -> None:
        """Lower one node whose inputs are lowered."""
        if isinstance(node, Layer):
            self._add_layer(node)
        elif node.name not in self._absorbed:
            self._add_glue(node)

    def _add_layer(self, layer: Layer) -> None:
        bits, purpose = self._policy[layer.name], Purpose(Role.LAYER, layer.name)
        if bits.reads.is_float and bits != BitWidths(32, 32):
            raise BackendError(f"layer {layer.name!r} ({layer.kind}): TVM runs no {bits}")
        if not layer.has_weights and self._product(layer, bits, purpose):
            return
        operation = self._layers.operation(layer, bits)
        if operation is None:
            if not bits.reads.is_float:
                raise BackendError(
                    f"layer {layer.name!r} ({layer.kind}) has no integer kernel in TVM at {bits}; "
                    "give it w32a32"
                )
            self._import(layer.name, layer.inputs, (layer.output,), purpose)
            return
        layout = Layout.IMAGES if layer.kind == "Conv" else Layout.ROWS
        kernel = operation.kernel(self._machine.instructions, self._choose(operation))
        given = self._tensors.get(layer.inputs[0], bits.reads, layout, purpose)
        constants: Sequence[Array]
        if bits.reads.is_float:
            output, (low, high) = self._behind(layer.output)
            constants = self._layers.float_constants(layer, kernel, (float(low), float(high)))
        else:
            output = self._stored(layer.output)
            correction = self._corrections.get(layer.name)
            constants = self._layers.constants(layer, bits, kernel, output, correction)
        written, count = self._formats.writes[layer.output], kernel.shape.output_count
        made = self._tensors.step(kernel, (given,), constants, count, written, purpose)
        self._tensors.made(output, written, layout, made)

    def _product(self, layer: Layer, bits: BitWidths, purpose: Purpose) -> bool:
        """Multiply two activations, if these are matrices, or as many pairs of them."""
        first, second = (self._shape(name) for name in layer.inputs)
        plain = layer.kind == "MatMul" and min(len(first), len(second)) > 1
        if not plain or first[:-2] != second[:-2] or bits.reads is Format.INT16:
            return False
        values = [self._tensors.get(n, bits.reads, Layout.ROWS, purpose) for n in layer.inputs]
        rows, inner, columns = *first[-2:], second[-1]
        content = content_of(bits.reads)
        kernel = ActivationProduct(math.prod(first[:-2]), rows, inner, columns, content)
        written, output, constants = self._formats.writes[layer.output], layer.output, []
        if not bits.reads.is_float:
            output = self._stored(layer.output)
            one, other = (self._tensors.grid(name, bits.reads) for name in layer.inputs)
            constants = [matrix_factors(one, other, self._tensors.grid(output, written))]
        count = self._tensors.elements(layer.output, Layout.ROWS)
        made = self._tensors.step(kernel, values, constants, count, written, purpose)
        self._tensors.made(output, written, Layout.ROWS, made)
        return True

    def _stored(self, output: str) -> str:
        """Return the tensor that an integer operator writes: behind the activation fused to it."""
        follower = self._fused.get(output)
        return output if follower is None else follower.outputs[0]

    def _behind(self, output: str) -> tuple[str, Array]:
        """Take over the activation that alone reads a float, if that is so.

        Returns:
            The tensor that is then written, and what the activation leaves of all numbers.
        """
        whole = np.array([-np.inf, np.inf], np.float32)
        readers = self._network.tensor_by_name[output].consumers
        follower = self._glue.get(readers[0]) if len(readers) == 1 else None
        if follower is None or follower.kind not in ("Relu", "Clip"):
            return output, whole
        limits = limits_of(self._nodes[follower.name], self._arrays)
        if limits is None:
            return output, whole
        self._absorbed.add(follower.name)
        return follower.outputs[0], limits

    def _add_glue(self, node: Glue) -> None:
        reads, purpose = self._formats.reads[node.name], Purpose(Role.GLUE, node.name)
        if node.fused and not reads.is_float:
            return  # its producer wrote under its name
        if node.kind in MOVES and self._moved(node, reads, purpose):
            return
        if reads is Format.INT8 and self._own_glue(node, reads, purpose):
            return
        if reads is not Format.INT8 and self._float_glue(node, purpose):
            return
        self._import(node.name, node.inputs, node.outputs, purpose)

    def _moved(self, node: Glue, reads: Format, purpose: Purpose) -> bool:
        """Move elements: integers if there are any."""
        names = self._nodes[node.name].input
        if len(node.inputs) != 1 or any(n not in self._arrays for n in names[1:]):
            return False
        chain = self._shuffle(node)
        [source], outputs = node.inputs, chain[-1].outputs
        if not reads.is_float and any(
            self._tensors.grid(source, reads) != self._tensors.grid(name, reads) for name in outputs
        ):
            return False
        moved = self._tensors.table(source) if reads.is_float else None
        held, form = (source, reads) if moved is None else (moved.tensor, moved.form)
        for output in outputs:
            layout, value = self._moved_value(chain, held, output, form, purpose)
            if moved is None:
                self._tensors.made(output, reads, layout, value)
            else:
                self._tensors.keep_moved(output, node.name, moved, layout, value)
        return True

    def _moved_value(
        self, chain: Sequence[Glue], source: str, output: str, form: Format, purpose: Purpose
    ) -> tuple[Layout, Value]:
        """Return what moves make of a tensor in some format, and its layout.

        Args:
            chain: operators one behind the other; more than one if they shuffle channels.
            source: what is moved.
            output: the tensor that is made.
            form: the format.
            purpose: for whom.
        """
        nodes = [self._nodes[each.name] for each in chain]
        shape, tensors = self._shape(source), self._tensors
        if len(nodes) == 1 and nodes[0].op_type in KEEPS_ORDER:
            return Layout.PLAIN, tensors.get(source, form, Layout.PLAIN, purpose)
        if len(nodes) == 1 and (layouts := relabelled(nodes[0])) is not None:
            return layouts[1], tensors.get(source, form, layouts[0], purpose)
        layout = kernel_layout(shape)
        content = content_of(form)
        kernel: Kernel
        picked = picked_channels(nodes, output, shape, self._arrays, layout)
        if picked is None:
            layout = Layout.PLAIN
            shapes = {nodes[0].input[0]: shape}
            kernel = OnnxOperator.of(nodes[0], shapes, output, self._arrays, content)
        else:
            channels = shape[channel_axis(shape, layout)]
            kernel = PickChannels(math.prod(shape) // channels, channels, picked, content)
        value = tensors.get(source, form, layout, purpose)
        count = elements(self._shape(output), layout)
        return layout, tensors.step(kernel, [value], (), count, form, purpose)

    def _shuffle(self, node: Glue) -> tuple[Glue, ...]:
        """Return an operator with the two behind it that shuffle channels with it, or alone."""
        chain = [node]
        while len(chain) < len(_SHUFFLE):
            readers = self._network.tensor_by_name[chain[-1].outputs[0]].consumers
            follower = self._glue.get(readers[0]) if len(readers) == 1 else None
            if follower is None:
                return (node,)
            chain.append(follower)
        shape, output = self._shape(node.inputs[0]), chain[-1].outputs[0]
        if tuple(each.kind for each in chain) != _SHUFFLE or len(shape) != IMAGE:
            return (node,)
        nodes = [self._nodes[each.name] for each in chain]
        if picked_channels(nodes, output, shape, self._arrays, Layout.IMAGES) is None:
            return (node,)
        self._absorbed |= {each.name for each in chain[1:]}
        return tuple(chain)

    def _own_glue(self, node: Glue, reads: Format, purpose: Purpose) -> bool:
        """Run glue by a kernel of ours, if there is one, on INT8 or on floats."""
        output = node.outputs[0] if reads.is_float else self._stored(node.outputs[0])
        grids: Mapping[str, AffineGrid] | None = None
        if not reads.is_float:
            grids = {name: self._tensors.grid(name, reads) for name in (*node.inputs, output)}
        shapes = {name: self._shape(name) for name in (*node.inputs, *node.outputs)}
        found = glue_kernel(
            self._nodes[node.name], shapes, output, grids, shuffles=self._machine.shuffles
        )
        if found is None:
            return False
        values = [self._tensors.get(name, reads, found.layout, purpose) for name in found.inputs]
        count = elements(shapes[node.outputs[0]], found.layout)
        made = self._tensors.step(found.kernel, values, found.constants, count, reads, purpose)
        if reads.is_float:
            self._made_of_floats(output, found.layout, made, purpose)
        else:
            self._tensors.made(output, reads, found.layout, made)
        return True

    def _made_of_floats(self, output: str, layout: Layout, made: Value, purpose: Purpose) -> None:
        """Keep what an operator made, which computes on floats but may write integers."""
        written = self._formats.writes[output]
        if not written.is_float:
            output = self._stored(output)
            made = self._tensors.quantized(output, made, written, purpose)
        self._tensors.made(output, written, layout, made)

    def _float_glue(self, node: Glue, purpose: Purpose) -> bool:
        """Run a float operator by a table, a kernel of ours, or alone on each element."""
        if node.kind in POINTWISE and len(node.outputs) == 1 and self._function_of_one(node):
            return True
        if self._own_glue(node, Format.FLOAT32, purpose) or self._chain(node, purpose):
            return True
        if node.kind not in POINTWISE or len(node.outputs) != 1:
            return False
        inputs = [name for name in self._nodes[node.name].input if name not in self._arrays]
        alike = all(self._shape(name) == self._shape(node.outputs[0]) for name in inputs if name)
        numbers = all(
            self._arrays[n].size == 1 for n in self._nodes[node.name].input if n in self._arrays
        )
        if not (alike and numbers and inputs):
            return False
        bounded = node.kind not in UNBOUNDED
        layout = self._tensors.at_hand(inputs[0]) if bounded else Layout.PLAIN
        self._import(node.name, node.inputs, node.outputs, purpose, layout)
        return True

    def _function_of_one(self, node: Glue) -> bool:
        """Keep what an operator makes of each value of one tensor of bytes."""
        tables, given = list[Table](), list[torch.Tensor | None]()
        for name in self._nodes[node.name].input:
            if not name:
                given.append(None)
            elif name in self._arrays:
                given.append(constant(self._arrays[name]))
                if self._arrays[name].size != 1:
                    return False
            else:
                table = self._tensors.table(name)
                if table is None or self._shape(name) != self._shape(node.outputs[0]):
                    return False
                tables.append(table)
                given.append(torch.from_numpy(table.values))
        if len({table.tensor for table in tables}) != 1:
            return False
        made = operator(node.kind)(given, attributes(self._nodes[node.name]))
        assert isinstance(made, torch.Tensor)
        kept = Table(tables[0].tensor, tables[0].form, made.reshape(-1).numpy(), node.name)
        self._tensors.keep(node.outputs[0], kept)
        return True

    def _chain(self, node: Glue, purpose: Purpose) -> bool:
        """Run an operator of one element of each input, with the activation behind it."""
        chain = chain_of(self._nodes[node.name], self._arrays)
        limits = limits_of(self._nodes[node.name], self._arrays)
        if chain is None or limits is None:
            return False
        shape = self._shape(node.outputs[0])
        first = next(each for each in chain.operands if isinstance(each, str))
        fitting = fit(chain, shape, self._shape, self._tensors.at_hand(first))
        if fitting is None:
            return False
        output = node.outputs[0]
        if node.kind not in ("Relu", "Clip") and self._formats.writes[output].is_float:
            output, limits = self._behind(output)
        self._add_chain(chain, fitting, output, limits, purpose)
        return True

    def _add_chain(
        self, chain: Chain, fitting: Fit, output: str, limits: Array, purpose: Purpose
    ) -> None:
        layout, shape, tensors = fitting.layout, self._shape(output), self._tensors
        values, constants, operands, factors = [], [], [], []
        for each, extent in zip(chain.operands, fitting.extents, strict=True):
            content: Any = "float32"
            if not isinstance(each, str):
                pad = float("Div" in chain.operators)
                constants.append(laid_out(each, extent, shape, layout, pad))
            elif (codes := tensors.codes(each)) and not tensors.holds(each, Format.FLOAT32):
                values.append(tensors.get(codes.tensor, codes.form, layout, purpose))
                factors.append(grid_factors(codes.grid))
                content = "uint8"
            else:
                values.append(tensors.get(each, Format.FLOAT32, layout, purpose))
            operands.append(Operand(extent, content, not isinstance(each, str)))
        factors.append(limits)
        form = self._read_alone(output)
        if not form.is_float:
            factors.append(grid_factors(tensors.grid(output, form)))
        count = elements(shape, layout)
        axis = channel_axis(shape, layout)
        pixel = channel_step(shape[axis]) if Extent.PIXEL in fitting.extents else count
        kernel = FloatChain(count, pixel, tuple(operands), chain.operators, content_of(form))
        constants.append(np.concatenate(factors))
        made = tensors.step(kernel, values, constants, count, form, purpose)
        if form.is_float:
            self._made_of_floats(output, layout, made, purpose)
        else:
            tensors.made(output, form, layout, made)

    def _read_alone(self, name: str) -> Format:
        """Return INT8 if a float tensor is only read so, else float."""
        if not self._formats.writes[name].is_float:
            return Format.FLOAT32
        readers = self._network.tensor_by_name[name].consumers
        wanted = {self._formats.reads.get(reader, Format.FLOAT32) for reader in readers}
        return Format.INT8 if wanted == {Format.INT8} else Format.FLOAT32

    def _import(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        purpose: Purpose,
        layout: Layout = Layout.PLAIN,
    ) -> None:
        """Run a node as Apache TVM runs operators of ONNX: on floats.

        Args:
            name: of the node.
            inputs: tensors that it reads.
            outputs: tensors that it writes and somebody reads.
            purpose: for whom.
            layout: of all of them; unless plain, the node computes each element alone.
        """
        tensors = self._tensors
        values = [tensors.get(each, Format.FLOAT32, layout, purpose) for each in inputs]
        plain = layout is Layout.PLAIN
        shapes = {n: self._shape(n) if plain else (tensors.elements(n, layout),) for n in inputs}
        for output in outputs:
            kernel = OnnxOperator.of(self._nodes[name], shapes, output, self._arrays)
            count = tensors.elements(output, layout)
            made = tensors.step(kernel, values, (), count, Format.FLOAT32, purpose)
            self._made_of_floats(output, layout, made, purpose)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(name)
