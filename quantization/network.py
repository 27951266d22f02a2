"""Networks as the rest of the project sees them: layers, glue, tensors and their wiring."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import onnx

from quantization.digests import structure_digest
from quantization.errors import ModelError, PolicyError, did_you_mean

LAYER_KINDS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
OUTPUT = "<output>"
"""The consumer that stands for "this tensor is an output of the network"."""


@dataclass(frozen=True)
class Layer:
    """An operator whose bits are chosen: a convolution or a matrix product.

    Args:
        name: the ONNX node's name.
        kind: the ONNX operator, one of `LAYER_KINDS`.
        in_channels: input channels; the contracted extent of a matrix product.
        out_channels: output channels; the columns of a matrix product.
        kernel: kernel extent per spatial axis; empty for matrix products.
        stride: stride per spatial axis; empty for matrix products.
        groups: groups of channels; 1 for matrix products.
        in_size: spatial extents of the input; rows of a matrix product.
        out_size: spatial extents of the output; rows of a matrix product.
        batch: leading extents, multiplied.
        inputs: names of the input activations: one, or two for a product of two activations.
        output: name of the output activation.
        bias_count: elements of the bias, 0 without one.
        factor_counts: elements of each factor of a product of two activations: the other extents
            are those of the result, along which a factor may be broadcast. None with a weight.

    Raises:
        ModelError: if an extent is not positive, the groups do not divide the channels, or
            `factor_counts` are not given exactly for a product of two activations.

    >>> depthwise = Layer("dw", "Conv", 144, 144, (3, 3), (1, 1), 144, (56, 56), (56, 56), 1,
    ...                   ("x",), "y")
    >>> depthwise.macs, depthwise.weight_count, depthwise.is_depthwise
    (4064256, 1296, True)
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    batch: int
    inputs: tuple[str, ...]
    output: str
    bias_count: int = 0
    factor_counts: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in LAYER_KINDS:
            raise ModelError(f"layer {self.name!r}: {self.kind} is no layer kind")
        extents = (self.in_channels, self.out_channels, self.groups, self.batch)
        if min((*extents, *self.kernel, *self.stride, *self.in_size, *self.out_size)) < 1:
            raise ModelError(f"layer {self.name!r}: every extent must be at least 1")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ModelError(
                f"layer {self.name!r}: {self.groups} groups do not divide "
                f"{self.in_channels} -> {self.out_channels} channels"
            )
        if len(self.inputs) not in (1, 2):
            raise ModelError(f"layer {self.name!r}: one or two input activations expected")
        if (self.factor_counts is None) != self.has_weights:
            raise ModelError(f"layer {self.name!r}: two activations have two counts, weights none")

    @property
    def has_weights(self) -> bool:
        """Whether one operand is a weight; false for a product of two activations."""
        return len(self.inputs) == 1

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel is convolved on its own."""
        return self.groups > 1 and self.groups == self.in_channels

    @property
    def groupable(self) -> bool:
        """Whether groups of its output channels can have weights of widths of their own."""
        return self.has_weights and self.kind != "ConvTranspose"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        per_output = self.in_channels // self.groups * math.prod(self.kernel)
        if self.kind == "ConvTranspose":
            per_input = self.out_channels // self.groups * math.prod(self.kernel)
            return self.batch * math.prod(self.in_size) * self.in_channels * per_input
        return self.output_count * per_output

    @property
    def weight_count(self) -> int:
        """Weights, without the bias; 0 for a product of two activations."""
        if not self.has_weights:
            return 0
        return self.out_channels * self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def input_count(self) -> int:
        """Elements of all input activations."""
        if self.factor_counts is not None:
            return sum(self.factor_counts)
        return self.batch * self.in_channels * math.prod(self.in_size)

    @property
    def output_count(self) -> int:
        """Elements of the output activation."""
        return self.batch * self.out_channels * math.prod(self.out_size)


@dataclass(frozen=True)
class Glue:
    """An operator whose format is derived from its neighbours.

    Args:
        name: the ONNX node's name.
        kind: the ONNX operator.
        inputs: names of the tensors it reads (no constants, no values that are not float32).
        outputs: names of the tensors it writes (such as are read by somebody).
        integer: whether runtimes have an integer kernel for it, so that it may run quantized.
        moves_only: whether it only moves values (reshape, transpose, max pooling, ...), so that
            its output keeps the scale of its input.
        fused: whether it is an activation that an integer producer takes over: requantization
            clamps to the range that the activation leaves, so the operator vanishes.
        known: whether Quantmeter knows the operator; unknown ones count as uncovered, and so does
            a convolution or matrix product that is no layer (its weight is computed, say).
        macs: multiply-accumulates of such a convolution or matrix product, else 0.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integer: bool
    moves_only: bool = False
    fused: bool = False
    known: bool = True
    macs: int = 0


@dataclass(frozen=True)
class Tensor:
    """An activation of float32 values: one producer, any number of consumers.

    Indices, masks and other values that are not float32 are no tensors: they have no range, and
    are never quantized or converted.

    Args:
        name: the ONNX value's name.
        shape: extents.
        producer: the node that makes it; None for an input of the network.
        consumers: the nodes that read it, each once, and `OUTPUT` for an output of the network.
    """

    name: str
    shape: tuple[int, ...]
    producer: str | None
    consumers: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Coverage:
    """How many operators are layers, known glue, and unknown to Quantmeter.

    Args:
        layers: number of layers.
        glue: number of known glue operators.
        unknown: kinds of the other operators; they run in float.
        unknown_macs: multiply-accumulates of those that are convolutions or matrix products; no
            layer counts them.
    """

    layers: int
    glue: int
    unknown: tuple[str, ...]
    unknown_macs: int = 0


@dataclass(frozen=True, eq=False)
class Network:
    """A prepared ONNX model and what Quantmeter knows about it.

    Made by `quantization.reading.read_network`; equal contents have equal digests.

    Args:
        model: the prepared float model: constants and batch-norms folded, no shared initializers.
        layers: the operators whose bits are chosen, in execution order.
        glue: the other operators, in execution order.
        tensors: all activations of float32, inputs first, then in order of production.
        ties: groups of layer names that must get equal bits.
        folded: what reading changed, such as ``{"BatchNormalization": 52}``.
    """

    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    glue: tuple[Glue, ...]
    tensors: tuple[Tensor, ...]
    ties: tuple[tuple[str, ...], ...] = ()
    folded: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        nodes: list[Layer | Glue] = [*self.layers, *self.glue]
        names = [node.name for node in nodes]
        repeated = [name for name, n in Counter(names).items() if n > 1]
        if repeated:
            raise ModelError(f"node names given twice: {', '.join(repeated[:5])}")
        if not self.layers:
            raise ModelError("the model has no convolution or matrix product to quantize")
        flat = [name for tie in self.ties for name in tie]
        for name in flat:
            self.layer(name)
        if len(flat) != len(set(flat)):
            raise ModelError("a layer stands in two ties; merge them")

    @cached_property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers in execution order."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def _layer_by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def tensor_by_name(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def inner_tensors(self) -> frozenset[str]:
        """Tensors between a node and the fused activation behind it: never stored if quantized."""
        return frozenset(glue.inputs[0] for glue in self.glue if glue.fused)

    @cached_property
    def execution_order(self) -> tuple[Layer | Glue, ...]:
        """Layers and glue as one sequence in execution order."""
        nodes: list[Layer | Glue] = [*self.layers, *self.glue]
        by_name = {node.name: node for node in nodes}
        return tuple(by_name[node.name] for node in self.model.graph.node)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the network's inputs."""
        return tuple(t.name for t in self.tensors if t.producer is None)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the network's outputs."""
        return tuple(value.name for value in self.model.graph.output)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layers in one run; `coverage` counts the others."""
        return sum(layer.macs for layer in self.layers)

    @property
    def coverage(self) -> Coverage:
        """Counts of layers, known glue and the kinds of unknown operators."""
        unknown = tuple(sorted({glue.kind for glue in self.glue if not glue.known}))
        known = sum(glue.known for glue in self.glue)
        macs = sum(glue.macs for glue in self.glue)
        return Coverage(len(self.layers), known, unknown, macs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the structure: what a cost table depends on. Weight values do not count."""
        described = repr((self.layers, self.glue, self.tensors))
        return structure_digest(self.model, self._layer_by_name, described)

    @cached_property
    def weights_digest(self) -> str:
        """SHA-256 of structure and weight values: what accuracies depend on."""
        return hashlib.sha256(
            self.digest.encode() + self.model.SerializeToString(deterministic=True)
        ).hexdigest()

    def layer(self, name: str) -> Layer:
        """Return the layer called `name`.

        Raises:
            PolicyError: if there is none; names close matches.
        """
        try:
            return self._layer_by_name[name]
        except KeyError:
            raise PolicyError(
                f"no layer {name!r} in this network{did_you_mean(name, self.layer_names)}; "
                "`quantmeter inspect` lists them"
            ) from None

    def tied(self, groups: Iterable[Iterable[str]]) -> "Network":
        """Return the same network with `groups` as its ties.

        Raises:
            PolicyError: for an unknown layer.
            ModelError: if a layer stands in two groups.
        """
        return replace(self, ties=tuple(tuple(group) for group in groups))
