"""Simulate what the exported file computes, in torch, many images at a time.

A tensor that is written as integers is kept as integers less its zero point, in float32, where
sums of products are exact below 2^24. An integer layer adds its int32 bias, multiplies by one
factor per channel, rounds half to even and saturates, as the runtime's kernel does. So integers
differ from the file's only where float arithmetic between them (glue, float layers) falls on the
other side of a tie.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from quantization.bits import FLOAT32, BitWidths, Format
from quantization.errors import ModelError
from quantization.export import Correction, Corrections, Exporter
from quantization.formats import Formats, formats
from quantization.network import Glue, Layer, Network
from quantization.passes import initializer_arrays
from quantization.policy import Policy
from quantization.quantizer import AffineGrid, Float32Array, quantize_bias
from quantization.ranges import batches, check_inputs
from quantization.torch_operators import (
    Attributes,
    attributes,
    constant,
    convolve,
    operator,
    product,
)

_GAIN_LIMIT = 4.0
"""A channel that lost nearly all of its variance is not blown up further than this."""
_BLOCK = 64
"""Images simulated at a time: activations of small networks stay in the cache."""


class Simulation:
    """Accuracy-relevant execution of any policy of one network.

    Args:
        exporter: holds network, ranges and quantized weights.
        calibration: (N, ...) float32 images that statistics are corrected on; not for scoring.

    Raises:
        DataError: if the images do not fit the network.
        ModelError: if an operator is not known, or the float result differs from ONNX Runtime's.
    """

    def __init__(self, exporter: Exporter, calibration: Float32Array) -> None:
        self.exporter = exporter
        self.network: Network = exporter.network
        check_inputs(self.network, calibration)
        self._calibration = torch.from_numpy(np.ascontiguousarray(calibration))
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
        self._last_reader = {
            tensor.name: tensor.consumers[-1]
            for tensor in self.network.tensors
            if tensor.name not in self.network.output_names
        }
        self._check_against_runtime(calibration)
        self._float_statistics = self._measure_float()

    def logits(
        self, policy: Policy, images: Float32Array, corrections: Corrections | None = None
    ) -> Float32Array:
        """Return the network's first output, (N, ...), for each of `images`, (N, ...).

        Args:
            policy: the bits; any widths, deployable or not.
            images: inputs of the network.
            corrections: as `correct` returned them for the same policy; None corrects nothing.

        Raises:
            PolicyError: if the policy does not fit the network.
            DataError: if the images do not fit the network.
        """
        check_inputs(self.network, images)
        chosen = formats(self.network, policy)
        found = corrections or {}
        with torch.inference_mode():
            parts = [self._run(policy, chosen, block, found) for block in _blocks(images)]
        return torch.cat(parts).numpy()

    def correct(self, policy: Policy) -> dict[str, Correction]:
        """Return what brings each quantized layer's output statistics back to the float network's.

        Layer by layer in execution order, on the calibration images: per output channel, the mean
        and the standard deviation of the output before its activation.

        Raises:
            PolicyError: if the policy does not fit the network.
        """
        policy.check(self.network)
        found: dict[str, Correction] = {}
        with torch.inference_mode():
            chosen = formats(self.network, policy)
            self._run(policy, chosen, self._calibration, found, measure=True)
        return found

    @torch.inference_mode()
    def sweep(
        self, choices: Sequence[BitWidths], images: Float32Array
    ) -> Iterator[tuple[str, BitWidths, Float32Array]]:
        """Quantize one layer at a time, corrected; all others stay float.

        The same as `logits` of each such policy with its own `correct`, but what lies before the
        layer is computed once for all: about half of the work.

        Args:
            choices: bit-widths to try on every layer.
            images: (N, ...) inputs of the network.

        Yields:
            Layer, bits, and the network's first output, (N, ...).

        Raises:
            DataError: if the images do not fit the network.
        """
        check_inputs(self.network, images)
        order = self.network.execution_order
        found: dict[tuple[str, BitWidths], dict[str, Correction]] = {}
        for position, values in self._float_values(self._calibration):
            if isinstance(layer := order[position], Layer) and layer.has_weights:
                for bits in choices:
                    if not bits.is_float:
                        alone = Policy({layer.name: bits})
                        chosen = formats(self.network, alone)
                        summed = self._sum_of_products(layer, alone, chosen, values)
                        correction = self._find_correction(layer, alone, summed)
                        found[layer.name, bits] = {layer.name: correction}
        walks = [self._float_values(block) for block in _blocks(images)]
        for blocks in zip(*walks, strict=True):
            position = blocks[0][0]
            if not isinstance(layer := order[position], Layer):
                continue
            for bits in choices:
                alone = Policy({layer.name: bits})
                chosen = formats(self.network, alone)
                known = found.get((layer.name, bits), {})
                parts = [
                    self._continue(alone, chosen, dict(values), position, known)
                    for _, values in blocks
                ]
                yield layer.name, bits, torch.cat(parts).numpy()

    def _float_values(self, images: torch.Tensor) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        """Walk through the float network; yields each position and what is known before it."""
        float_policy = Policy({})
        chosen = formats(self.network, float_policy)
        values: dict[str, torch.Tensor] = {self.network.input_names[0]: images}
        for position, node in enumerate(self.network.execution_order):
            yield position, values
            self._step(node, float_policy, chosen, values, {})

    def _run(
        self,
        policy: Policy,
        chosen: Formats,
        images: torch.Tensor,
        corrections: dict[str, Correction] | Corrections,
        *,
        measure: bool = False,
    ) -> torch.Tensor:
        """Execute the network; with `measure`, find corrections on the way and keep them."""
        values: dict[str, torch.Tensor] = {self.network.input_names[0]: images}
        return self._continue(policy, chosen, values, 0, corrections, measure=measure)

    def _continue(
        self,
        policy: Policy,
        chosen: Formats,
        values: dict[str, torch.Tensor],
        position: int,
        corrections: dict[str, Correction] | Corrections,
        *,
        measure: bool = False,
    ) -> torch.Tensor:
        for node in self.network.execution_order[position:]:
            self._step(node, policy, chosen, values, corrections, measure=measure)
        return self._read(self.network.output_names[0], Format.FLOAT32, chosen, values)

    def _step(
        self,
        node: Layer | Glue,
        policy: Policy,
        chosen: Formats,
        values: dict[str, torch.Tensor],
        corrections: dict[str, Correction] | Corrections,
        *,
        measure: bool = False,
    ) -> None:
        """Execute one node: takes its inputs from `values`, leaves its outputs there."""
        if isinstance(node, Layer):
            summed = self._sum_of_products(node, policy, chosen, values)
            if measure and not policy[node.name].is_float and node.has_weights:
                assert isinstance(corrections, dict)
                corrections[node.name] = self._find_correction(node, policy, summed)
            name = self._after.get(node.output, node.output)
            if chosen.writes[node.output].is_float:
                name = node.output
            values[name] = self._finish(node, policy, summed, corrections)
        elif not (node.fused and not chosen.reads[node.name].is_float):
            self._glue(node, chosen, values)
        for name in node.inputs:
            if self._last_reader.get(name) == node.name:
                values.pop(name, None)

    def _glue(self, glue: Glue, chosen: Formats, values: dict[str, torch.Tensor]) -> None:
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
        return _centred(value, self.exporter.ranges.grid(name, written.bits))

    def _read(
        self, name: str, reads: Format, chosen: Formats, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What a consumer in format `reads` gets: integers less their zero point, or reals."""
        written, value = chosen.writes[name], values[name]
        if written is reads or (written.is_float and reads is Format.FLOAT32):
            return value
        if not written.is_float:
            value = value * self.exporter.ranges.grid(name, written.bits).scale
        return self._store(name, value, reads)

    def _real(
        self, name: str, reads: Format, chosen: Formats, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """What glue computes on: the real values of what it reads."""
        value = self._read(name, reads, chosen, values)
        return (
            value if reads.is_float else value * self.exporter.ranges.grid(name, reads.bits).scale
        )

    def _finish(
        self, layer: Layer, policy: Policy, summed: torch.Tensor, corrections: Corrections
    ) -> torch.Tensor:
        """Turn the sums of products into what is kept for the layer's output."""
        bits, correction = policy[layer.name], corrections.get(layer.name)
        if bits.is_float or (bits.reads.is_float and not layer.has_weights):
            bias = torch.from_numpy(self.exporter.bias(layer.name))
            return self._store(layer.output, _along(bias, summed, layer) + summed, bits.writes)
        output = self._after.get(layer.output, layer.output)
        if not layer.has_weights:
            first, second = (self.exporter.ranges.grid(n, bits.reads.bits) for n in layer.inputs)
            scale = np.array([first.scale], np.float32) * np.float32(second.scale)
            return self._requantize(summed, scale, output, layer, policy)
        scale, bias_real = self.exporter.corrected(layer, bits, correction)
        if bits.reads.is_float:
            factor = _along(torch.from_numpy(scale), summed, layer)
            return summed * factor + _along(torch.from_numpy(bias_real), summed, layer)
        step = self.exporter.ranges.grid(layer.inputs[0], bits.reads.bits).scale
        if layer.kind != "MatMul":
            if bits.reads is Format.INT16:  # such kernels add a wider bias, which never saturates
                steps = np.rint(bias_real / (np.float32(step) * scale))
            else:
                steps = quantize_bias(bias_real, step, scale).astype(np.float32)
            bias = torch.from_numpy(steps)
            summed = summed + _along(bias, summed, layer)
        return self._requantize(summed, np.float32(step) * scale, output, layer, policy)

    def _requantize(
        self, summed: torch.Tensor, scale: Float32Array, output: str, layer: Layer, policy: Policy
    ) -> torch.Tensor:
        grid = self.exporter.ranges.grid(output, policy[layer.name].writes.bits)
        factor = torch.from_numpy(scale / np.float32(grid.scale))
        result = summed * (_along(factor, summed, layer) if len(factor) > 1 else factor)
        return result.round_().clamp_(-grid.zero_point, 2**grid.bits - 1 - grid.zero_point)

    def _sum_of_products(
        self, layer: Layer, policy: Policy, chosen: Formats, values: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The layer without bias and scales: on integers where it reads integers."""
        given = self._attributes[layer.name]
        operands = [
            self._read(name, chosen.reads[layer.name], chosen, values) for name in layer.inputs
        ]
        if layer.has_weights:
            operands.append(self._weight(layer, policy))
        x, weight = operands
        if layer.kind == "ConvTranspose":
            made = operator(layer.kind)([x, weight], given)
            assert isinstance(made, torch.Tensor)
            return made
        return (convolve if layer.kind == "Conv" else product)(x, weight, None, given)

    def _weight(self, layer: Layer, policy: Policy) -> torch.Tensor:
        """Integers as float32 for a quantized layer, else the float weights."""
        bits = policy[layer.name]
        key = layer.name, bits.weights, bits.half
        if key not in self._weights:
            exact = self._constants[self._inputs[layer.name][1]]
            if bits == FLOAT32:
                self._weights[key] = exact
            elif bits.half:
                self._weights[key] = exact.half().float()
            else:
                values = self.exporter.weight(layer.name, bits.weights).values
                self._weights[key] = torch.from_numpy(values.astype(np.float32))
        return self._weights[key]

    def _find_correction(self, layer: Layer, policy: Policy, summed: torch.Tensor) -> Correction:
        bits = policy[layer.name]
        sum_mean, sum_deviation = _statistics(summed, layer)
        scale, bias = (torch.from_numpy(a) for a in self.exporter.corrected(layer, bits, None))
        if not bits.reads.is_float:
            scale = scale * self.exporter.ranges.grid(layer.inputs[0], bits.reads.bits).scale
        mean, deviation = sum_mean * scale + bias, sum_deviation * scale
        float_mean, float_deviation = self._float_statistics[layer.name]
        tiny = 1e-6 * float_deviation.mean().clamp_min(1e-12)
        gain = (float_deviation + tiny) / (deviation + tiny)
        gain = gain.clamp(1 / _GAIN_LIMIT, _GAIN_LIMIT)
        if layer.kind == "MatMul":  # it has no bias that could take a shift
            return Correction(gain.numpy(), np.zeros(len(gain), np.float32))
        return Correction(gain.numpy(), (float_mean - gain * mean).numpy())

    def _measure_float(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Mean and standard deviation of every layer's output in the float network."""
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        float_policy, order = Policy({}), self.network.execution_order
        chosen = formats(self.network, float_policy)
        with torch.inference_mode():
            for position, values in self._float_values(self._calibration):
                if isinstance(layer := order[position], Layer):
                    summed = self._sum_of_products(layer, float_policy, chosen, values)
                    found[layer.name] = _statistics(
                        self._finish(layer, float_policy, summed, {}), layer
                    )
        return found

    def _check_against_runtime(self, images: Float32Array) -> None:
        """Compare the float network on two images at once with ONNX Runtime, one at a time."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(
            self.network.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        few = images[:2]
        feed = self.network.input_names[0]
        parts = [session.run(None, {feed: part})[0] for part in batches(self.network, few)]
        expected = np.concatenate(parts)[: len(few)]
        try:
            found = self.logits(Policy({}), few)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"the network cannot be simulated on many images: {reason}") from error
        tolerance = 1e-3 * max(float(np.abs(expected).max()), 1e-6)
        if expected.shape != found.shape or float(np.abs(expected - found).max()) > tolerance:
            raise ModelError(
                "the simulation of the float network differs from ONNX Runtime; "
                "one of these operators is simulated wrongly: "
                f"{', '.join(sorted({g.kind for g in self.network.glue}))}"
            )


def _blocks(images: Float32Array) -> tuple[torch.Tensor, ...]:
    return torch.split(torch.from_numpy(np.ascontiguousarray(images)), _BLOCK)


def _centred(value: torch.Tensor, grid: AffineGrid) -> torch.Tensor:
    """Quantize reals to integers less their zero point."""
    low, high = -grid.zero_point, 2**grid.bits - 1 - grid.zero_point
    return value.div(grid.scale).round_().clamp_(low, high)


def _statistics(result: torch.Tensor, layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per output channel, (channels,) each."""
    if layer.kind in ("Conv", "ConvTranspose"):
        rows = result.flatten(2)
    else:
        rows = result.reshape(-1, result.shape[-1], 1)
    # Sums of rows in float32, sums of these in float64: torch.std_mean takes 16 times as long.
    count = rows.shape[0] * rows.shape[2]
    mean = rows.sum(2).double().sum(0) / count
    square = rows.square().sum(2).double().sum(0) / count
    deviation = (square - mean.square()).clamp_min(0.0).sqrt()
    return mean.float(), deviation.float()


def _along(per_channel: torch.Tensor, result: torch.Tensor, layer: Layer) -> torch.Tensor:
    """View (channels,) so that it broadcasts against a layer's result."""
    shape = [1] * result.dim()
    shape[1 if layer.kind in ("Conv", "ConvTranspose") else -1] = -1
    return per_channel.reshape(shape)
