"""The arithmetic of an exported file, in torch: one node of one policy at a time.

A tensor that is written as integers of at most 8 bits is kept as these, in uint8; of 16 bits, less
its zero point, in float32. Sums of products are exact below 2^24: those of bytes are taken in int32
or, as all others, in float32. An integer layer adds its int32 bias, multiplies by one factor per
channel, rounds half to even and saturates, as the runtime's kernel does. So integers differ from
the file's only where float arithmetic between them (glue, float layers) falls on the other side of
a tie.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from quantization.bits import FLOAT32, BitWidths, Format
from quantization.channel_groups import ChannelGroups
from quantization.deployment import Correction, Corrections
from quantization.export import Exporter
from quantization.formats import Formats, formats
from quantization.integer_convolution import IntegerConvolution, is_exact
from quantization.network import Glue, Layer
from quantization.passes import initializer_arrays
from quantization.policy import Policy
from quantization.quantizer import AffineGrid, Float32Array, quantize_bias
from quantization.torch_operators import (
    Attributes,
    attributes,
    constant,
    operator,
    product,
)
from quantization.torch_windows import convolve

Values = dict[str, torch.Tensor]
"""What is kept of each tensor that somebody still reads: integers in uint8, or float32."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is executed.

    Args:
        policy: the bits; any widths, deployable or not.
        formats: of every tensor and glue operator, derived from the policy.
        corrections: of each corrected layer.
        requantizing: of each layer that was finished, what its sums of products are shifted and
            multiplied by.
    """

    policy: Policy
    formats: Formats
    corrections: Corrections
    requantizing: dict[str, tuple[torch.Tensor | None, Float32Array]] = field(default_factory=dict)


class Executor:
    """Executes the nodes of one network under any policy.

    Args:
        exporter: holds network, ranges and quantized weights.
    """

    def __init__(self, exporter: Exporter) -> None:
        self.exporter = exporter
        self.network = exporter.network
        nodes = {node.name: node for node in self.network.model.graph.node}
        self._inputs = {name: list(node.input) for name, node in nodes.items()}
        self._outputs = {name: list(node.output) for name, node in nodes.items()}
        self._attributes: dict[str, Attributes] = {n: attributes(v) for n, v in nodes.items()}
        self._constants = {
            name: constant(array)
            for name, array in initializer_arrays(self.network.model.graph).items()
        }
        self._after = {glue.inputs[0]: glue.outputs[0] for glue in self.network.glue if glue.fused}
        self._weights: dict[tuple[str, int, bool], torch.Tensor] = {}
        self._grouped: dict[str, tuple[ChannelGroups, torch.Tensor]] = {}
        self._integer: dict[tuple[str, int, int], IntegerConvolution] = {}
        self._last_reader = {
            tensor.name: tensor.consumers[-1]
            for tensor in self.network.tensors
            if tensor.name not in self.network.output_names
        }

    def plan(self, policy: Policy, corrections: Corrections | None = None) -> Plan:
        """Derive the formats of `policy`.

        Raises:
            PolicyError: if the policy does not fit the network.
        """
        return Plan(
            policy, formats(self.network, policy), {} if corrections is None else corrections
        )

    def step(
        self, node: Layer | Glue, plan: Plan, values: Values, summed: torch.Tensor | None = None
    ) -> None:
        """Execute one node: takes its inputs from `values`, leaves its outputs there.

        Args:
            node: a layer or glue operator.
            plan: what is executed.
            values: changed in place; what nobody reads any more is dropped.
            summed: `sum_of_products` of a layer, if it is known already.
        """
        if isinstance(node, Layer):
            name = self._after.get(node.output, node.output)
            if plan.formats.writes[node.output].is_float:
                name = node.output
            if summed is None:
                summed = self.sum_of_products(node, plan, values)
            values[name] = self.finish(node, plan, summed)
        elif not (node.fused and not plan.formats.reads[node.name].is_float):
            self._glue(node, plan.formats, values)
        for name in node.inputs:
            if self._last_reader.get(name) == node.name:
                values.pop(name, None)

    def output(self, plan: Plan, values: Values) -> torch.Tensor:
        """Return the network's first output as reals, once every node is executed."""
        return self._read(self.network.output_names[0], Format.FLOAT32, plan.formats, values)

    def sum_of_products(
        self, layer: Layer, plan: Plan, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return a layer's result without bias and scales: on integers where it reads integers."""
        given, reads = self._attributes[layer.name], plan.formats.reads[layer.name]
        operands = [self._read(name, reads, plan.formats, values) for name in layer.inputs]
        bits = plan.policy[layer.name]
        if (convolution := self._integer_convolution(layer, bits)) is not None:
            return convolution(operands[0])
        operands = [
            self._centred(name, reads, value)
            for name, value in zip(layer.inputs, operands, strict=True)
        ]
        if layer.has_weights:
            operands.append(self._weight(layer, bits))
        x, weight = operands
        if layer.kind == "ConvTranspose":
            made = operator(layer.kind)([x, weight], given)
            assert isinstance(made, torch.Tensor)
            return made
        return (convolve if layer.kind == "Conv" else product)(x, weight, None, given)

    def finish(self, layer: Layer, plan: Plan, summed: torch.Tensor) -> torch.Tensor:
        """Turn sums of products into what is kept for the layer's output; may change `summed`."""
        bits, correction = plan.policy[layer.name], plan.corrections.get(layer.name)
        if bits.is_float or (bits.reads.is_float and not layer.has_weights):
            bias = torch.from_numpy(self.exporter.parameters.bias(layer.name))
            bias = bias.half().float() if bits.half else bias
            return self._store(layer.output, summed.add_(along(bias, summed, layer)), bits.writes)
        output = self._after.get(layer.output, layer.output)
        if not layer.has_weights:
            first, second = (self.exporter.ranges.grid(n, bits.reads.bits) for n in layer.inputs)
            scale = np.array([first.scale], np.float32) * np.float32(second.scale)
            return self._requantize(summed, scale, output, layer, bits)
        if layer.name not in plan.requantizing:
            plan.requantizing[layer.name] = self._requantizing(layer, bits, correction)
        shift, scale = plan.requantizing[layer.name]
        if bits.reads.is_float:
            assert shift is not None
            factor = along(torch.from_numpy(scale), summed, layer)
            return summed.mul_(factor).add_(along(shift, summed, layer))
        if shift is not None:
            summed = summed.add_(along(shift, summed, layer))
        return self._requantize(summed, scale, output, layer, bits)

    def _requantizing(
        self, layer: Layer, bits: BitWidths, correction: Correction | None
    ) -> tuple[torch.Tensor | None, Float32Array]:
        """Bias, (channels,), in the unit of what it is added to, or None; and scale, (channels,).

        Integer layers add their bias before they multiply, others after it.
        """
        scale, bias = self.exporter.parameters.corrected(layer, bits, correction)
        if bits.reads.is_float:
            return torch.from_numpy(bias), scale
        step = np.float32(self.exporter.ranges.grid(layer.inputs[0], bits.reads.bits).scale)
        if layer.kind == "MatMul":
            return None, step * scale
        if bits.reads is Format.INT16:  # such kernels add a wider bias, which never saturates
            steps = np.rint(bias / (step * scale))
        else:
            steps = quantize_bias(bias, float(step), scale).astype(np.float32)
        return torch.from_numpy(steps), step * scale

    def real_output(
        self, layer: Layer, plan: Plan, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Return a layer's result as reals, bias added, before it is rounded or activated."""
        summed = self.sum_of_products(layer, plan, values)
        bits, reads = plan.policy[layer.name], plan.formats.reads[layer.name]
        if not reads.is_float:
            for name in layer.inputs:
                summed = summed * self.exporter.ranges.grid(name, reads.bits).scale
        if bits.is_float or not layer.has_weights:
            bias = torch.from_numpy(self.exporter.parameters.bias(layer.name))
            return summed + along(bias, summed, layer)
        correction = plan.corrections.get(layer.name)
        scale, bias_real = self.exporter.parameters.corrected(layer, bits, correction)
        scaled = summed * along(torch.from_numpy(scale), summed, layer)
        return scaled + along(torch.from_numpy(bias_real), summed, layer)

    def differentiable_weight(self, layer: Layer) -> torch.Tensor:
        """Let `layer` in float run with a copy of its weights, and return the copy.

        Gradients can be taken of it.
        """
        exact = self._constants[self._inputs[layer.name][1]]
        weight = exact.clone().requires_grad_()
        self._weights[layer.name, FLOAT32.weights, FLOAT32.half] = weight
        return weight

    def _glue(self, glue: Glue, chosen: Formats, values: Values) -> None:
        inputs = [
            None
            if not name
            else self._constants[name]
            if name in self._constants
            else self._real(name, chosen.reads[glue.name], chosen, values)
            for name in self._inputs[glue.name]
        ]
        made = operator(glue.kind)(inputs, self._attributes[glue.name])
        outputs = made if isinstance(made, tuple) else (made,)
        for name, value in zip(self._outputs[glue.name], outputs, strict=False):
            if name not in glue.outputs:
                continue  # nobody reads it
            written = chosen.writes[name]
            # An integer operator takes a fused activation over, as a layer does.
            stored = name if written.is_float else self._after.get(name, name)
            values[stored] = self._store(stored, value, written)

    def _store(self, name: str, value: torch.Tensor, written: Format) -> torch.Tensor:
        """Turn a real value into what is kept for a tensor in format `written`."""
        if written is Format.FLOAT32:
            return value
        if written is Format.FLOAT16:
            return value.half().float()
        grid = self.exporter.ranges.grid(name, written.bits)
        return _saturated(value.div(grid.scale), grid)

    def _read(
        self, name: str, reads: Format, chosen: Formats, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What a consumer in format `reads` gets, as it is kept in that format."""
        written, value = chosen.writes[name], values[name]
        if written is reads or (written.is_float and reads is Format.FLOAT32):
            return value
        return self._store(name, self._dequantized(name, written, value), reads)

    def _real(
        self, name: str, reads: Format, chosen: Formats, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What glue computes on: the real values of what it reads."""
        return self._dequantized(name, reads, self._read(name, reads, chosen, values))

    def _dequantized(self, name: str, kept_in: Format, value: torch.Tensor) -> torch.Tensor:
        """Return the real values of what is kept of a tensor in some format."""
        if kept_in.is_float:
            return value
        scale = self.exporter.ranges.grid(name, kept_in.bits).scale
        return self._centred(name, kept_in, value) * scale

    def _centred(self, name: str, kept_in: Format, value: torch.Tensor) -> torch.Tensor:
        """Return integers less their zero point, or reals, in float32."""
        if value.dtype is not torch.uint8:
            return value
        return value.float().sub_(self.exporter.ranges.grid(name, kept_in.bits).zero_point)

    def _requantize(
        self, summed: torch.Tensor, scale: Float32Array, output: str, layer: Layer, bits: BitWidths
    ) -> torch.Tensor:
        grid = self.exporter.ranges.grid(output, bits.writes.bits)
        factor = torch.from_numpy(scale / np.float32(grid.scale))
        result = summed.mul_(along(factor, summed, layer) if len(factor) > 1 else factor)
        return _saturated(result, grid)

    def _integer_convolution(self, layer: Layer, bits: BitWidths) -> IntegerConvolution | None:
        """Return the layer's kernel for bytes; None where it has none."""
        reads = bits.reads
        if layer.kind != "Conv" or len(layer.kernel) != 2 or isinstance(bits, ChannelGroups):
            return None
        if reads.is_float or reads.bits > 8 or bits.weights > 8 or not is_exact():
            return None
        key = layer.name, bits.weights, reads.bits
        if key not in self._integer:
            values = self.exporter.parameters.weight(layer.name, bits.weights).values
            zero_point = self.exporter.ranges.grid(layer.inputs[0], reads.bits).zero_point
            self._integer[key] = IntegerConvolution(
                torch.from_numpy(values), zero_point, self._attributes[layer.name]
            )
        return self._integer[key]

    def _weight(self, layer: Layer, bits: BitWidths) -> torch.Tensor:
        """Integers as float32 for a quantized layer, else the float weights."""
        if isinstance(bits, ChannelGroups):
            return self._grouped_weight(layer.name, bits)
        key = layer.name, bits.weights, bits.half
        if key not in self._weights:
            exact = self._constants[self._inputs[layer.name][1]]
            if bits == FLOAT32:
                used = exact
            elif bits.half:
                used = exact.half().float()
            else:
                values = self.exporter.parameters.weight(layer.name, bits.weights).values
                used = torch.from_numpy(values.astype(np.float32))
            self._weights[key] = channels_last(used)
        return self._weights[key]

    def _grouped_weight(self, layer: str, bits: ChannelGroups) -> torch.Tensor:
        """Integers as float32; there are too many groupings to keep more than a layer's last."""
        known = self._grouped.get(layer)
        if known is None or known[0] != bits:
            values = self.exporter.parameters.quantized(layer, bits).values
            used = channels_last(torch.from_numpy(values.astype(np.float32)))
            known = self._grouped[layer] = bits, used
        return known[1]


def channels_last(value: torch.Tensor) -> torch.Tensor:
    """Lay out images, or weights of convolutions over them, so that channels are neighbours.

    Convolutions are quicker so, most of all depthwise ones.
    """
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def along(per_channel: torch.Tensor, result: torch.Tensor, layer: Layer) -> torch.Tensor:
    """View (channels,) so that it broadcasts against a layer's result."""
    shape = [1] * result.dim()
    shape[1 if layer.kind in ("Conv", "ConvTranspose") else -1] = -1
    return per_channel.reshape(shape)


def fake_quantize(value: torch.Tensor, grid: AffineGrid) -> torch.Tensor:
    """Return the values of `grid` that reals are rounded to."""
    return _rounded(value.div(grid.scale), grid) * grid.scale


def _rounded(steps: torch.Tensor, grid: AffineGrid) -> torch.Tensor:
    """Round multiples of a scale to integers on a grid, less its zero point; changes `steps`."""
    return steps.round_().clamp_(-grid.zero_point, 2**grid.bits - 1 - grid.zero_point)


def _saturated(steps: torch.Tensor, grid: AffineGrid) -> torch.Tensor:
    """Round multiples of a scale to what is kept of integers on a grid; changes `steps`."""
    integers = _rounded(steps, grid)
    if grid.bits > 8:
        return integers
    integers = integers.add_(grid.zero_point) if grid.zero_point else integers
    return integers.to(torch.int16).to(torch.uint8)  # quicker than at once
