"""Simulate what exported files compute, many images at a time, and correct their statistics."""

from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
import torch

from quantization.bits import BitWidths
from quantization.deployment import Correction, Corrections
from quantization.errors import ModelError
from quantization.execution import Executor, Plan, Values, channels_last
from quantization.export import Exporter
from quantization.network import Layer
from quantization.policy import Policy
from quantization.prefixes import LIMIT, Prefixes, State, detached
from quantization.quantizer import Float32Array
from quantization.ranges import batches, check_inputs
from quantization.statistics import ChannelStatistics, channel_statistics, match

_BLOCK = 128
"""Images simulated at a time, at most; fewer cost more calls, more fit no cache."""
_VALUES = 10_000_000
"""Of the largest tensor, over the images simulated at a time."""


class Simulation:
    """Accuracy-relevant execution of any policy of one network.

    Args:
        exporter: holds network, ranges and quantized weights.
        calibration: (N, ...) float32 images that statistics are corrected on; not for scoring.
        limit: bytes of memory for what policies share that begin alike, see
            `quantization.prefixes`; 0 computes all of it anew.

    Attributes:
        calibration: the same images.

    Raises:
        DataError: if the images do not fit the network.
        ModelError: if an operator is not known, or the float result differs from ONNX Runtime's.
    """

    def __init__(
        self, exporter: Exporter, calibration: Float32Array, *, limit: int = LIMIT
    ) -> None:
        self.exporter = exporter
        self.network = exporter.network
        check_inputs(self.network, calibration)
        self.calibration = calibration
        self._executor = Executor(exporter)
        largest = max(tensor.count for tensor in self.network.tensors)
        self._block = min(_BLOCK, max(1, _VALUES // largest))
        self._prefixes = Prefixes(self.network, limit)
        self._check_against_runtime(calibration[:2])
        self._float_statistics = self._measure_float()

    @torch.inference_mode()
    def logits(
        self,
        policy: Policy,
        images: Float32Array,
        corrections: Corrections | None = None,
        *,
        token: Hashable = None,
    ) -> Float32Array:
        """Return the network's first output, (N, ...), for each of `images`, (N, ...).

        Args:
            policy: the bits; any widths, deployable or not.
            images: inputs of the network.
            corrections: as `correct` returned them for the same policy; None corrects nothing.
            token: stands for the images: of policies that begin alike, what they share is computed
                once for one token. None for images that no other policy is run on.

        Raises:
            PolicyError: if the policy does not fit the network.
            DataError: if the images do not fit the network.
        """
        check_inputs(self.network, images)
        plan = self._executor.plan(policy, corrections)
        if token is None:
            parts = [self._continue(plan, values, 0) for values in self._start(images)]
            return torch.cat(parts).numpy()
        keys = self._prefixes.keys(token, len(images), policy, corrections or {})
        state = self._prefixes.latest(keys) or State(0, self._start(images))
        passed: dict[int, list[Values]] = {cut: [] for cut in keys if cut > state.position}
        parts = [self._continue(plan, v, state.position, passed) for v in state.blocks]
        for cut, blocks in passed.items():
            self._prefixes.keep(keys[cut], State(cut, blocks))
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def correct(self, policy: Policy) -> dict[str, Correction]:
        """Return what brings each quantized layer's output statistics back to the float network's.

        Layer by layer in execution order, on the calibration images: per output channel, the mean
        and the standard deviation of the output before its activation.

        Raises:
            PolicyError: if the policy does not fit the network.
        """
        keys = self._prefixes.keys("calibration", len(self.calibration), policy)
        state = self._prefixes.latest(keys) or State(0, self._start(self.calibration))
        blocks, found = state.blocks, dict(state.found)
        plan = self._executor.plan(policy, found)  # each layer runs corrected for the next ones
        for position, node in enumerate(self.network.execution_order):
            if position < state.position:
                continue
            if position in keys and position > state.position:
                passed = [detached(values) for values in blocks]
                self._prefixes.keep(keys[position], State(position, passed, dict(found)))
            if isinstance(node, Layer) and node.has_weights and not policy[node.name].is_float:
                summed = [self._executor.sum_of_products(node, plan, v) for v in blocks]
                found[node.name] = self._match(node, policy[node.name], summed)
                for values, known in zip(blocks, summed, strict=True):
                    self._executor.step(node, plan, values, known)
            else:
                for values in blocks:
                    self._executor.step(node, plan, values)
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
        found = self.correct_alone(choices)
        for position, blocks in self._walk_float(images):
            if not isinstance(layer := order[position], Layer):
                continue
            for bits in choices:
                correction = found.get((layer.name, bits))
                alone = self._executor.plan(
                    Policy({layer.name: bits}), {layer.name: correction} if correction else {}
                )
                parts = [self._continue(alone, dict(values), position) for values in blocks]
                yield layer.name, bits, torch.cat(parts).numpy()

    @torch.inference_mode()
    def correct_alone(
        self, choices: Sequence[BitWidths]
    ) -> dict[tuple[str, BitWidths], Correction]:
        """Return the correction of each layer with weights at each quantized width, all else float.

        The same as `correct` of each such policy, in one run.
        """
        found: dict[tuple[str, BitWidths], Correction] = {}
        order = self.network.execution_order
        for position, blocks in self._walk_float(self.calibration):
            if isinstance(layer := order[position], Layer) and layer.has_weights:
                for bits in choices:
                    if not bits.is_float:
                        alone = self._executor.plan(Policy({layer.name: bits}))
                        summed = [self._executor.sum_of_products(layer, alone, v) for v in blocks]
                        found[layer.name, bits] = self._match(layer, bits, summed)
        return found

    @torch.inference_mode()
    def output_errors(
        self, choices: Sequence[BitWidths], images: Float32Array
    ) -> dict[tuple[str, BitWidths], float]:
        """Return how far each layer's output, before its activation, is off at each width.

        ``sum (y - y_float)^2 / sum y_float^2``, the layer alone quantized and corrected. Errors of
        its weights and of what it reads; rounding of its output counts where that is read.

        Args:
            choices: bit-widths to try on every layer.
            images: (N, ...) inputs of the network.

        Raises:
            DataError: if the images do not fit the network.
        """
        check_inputs(self.network, images)
        order, corrections = self.network.execution_order, self.correct_alone(choices)
        floats = self._executor.plan(Policy({}))
        found: dict[tuple[str, BitWidths], float] = {}
        for position, blocks in self._walk_float(images):
            if not isinstance(layer := order[position], Layer):
                continue
            exact = [self._executor.real_output(layer, floats, values) for values in blocks]
            signal = sum(float(part.double().square().sum()) for part in exact)
            for bits in choices:
                correction = corrections.get((layer.name, bits))
                alone = self._executor.plan(
                    Policy({layer.name: bits}), {layer.name: correction} if correction else {}
                )
                error = 0.0
                for values, part in zip(blocks, exact, strict=True):
                    made = self._executor.real_output(layer, alone, values)
                    error += float((made - part).double().square().sum())
                found[layer.name, bits] = error / max(signal, 1e-30)
        return found

    def _start(self, images: Float32Array) -> list[Values]:
        """Cut images into blocks: what is known of each before the first node."""
        blocks = torch.split(torch.from_numpy(np.ascontiguousarray(images)), self._block)
        return [{self.network.input_names[0]: channels_last(block)} for block in blocks]

    def _walk_float(self, images: Float32Array) -> Iterator[tuple[int, list[Values]]]:
        """Walk through the float network; yields each position and what is known before it."""
        plan, blocks = self._executor.plan(Policy({})), self._start(images)
        for position, node in enumerate(self.network.execution_order):
            yield position, blocks
            for values in blocks:
                self._executor.step(node, plan, values)

    def _continue(
        self,
        plan: Plan,
        values: Values,
        position: int,
        passed: Mapping[int, list[Values]] | None = None,
    ) -> torch.Tensor:
        """Execute a block from a position on; what is known at those of `passed` is added to it."""
        for here, node in enumerate(self.network.execution_order[position:], start=position):
            if passed and here in passed:
                passed[here].append(detached(values))
            self._executor.step(node, plan, values)
        return self._executor.output(plan, values)

    def _match(self, layer: Layer, bits: BitWidths, summed: Sequence[torch.Tensor]) -> Correction:
        statistics = channel_statistics(layer, summed)
        known = self._float_statistics[layer.name]
        return match(self.exporter, layer, bits, statistics, known)

    @torch.inference_mode()
    def _measure_float(self) -> Mapping[str, ChannelStatistics]:
        """Statistics of every layer's output in the float network."""
        found: dict[str, ChannelStatistics] = {}
        plan, order = self._executor.plan(Policy({})), self.network.execution_order
        for position, blocks in self._walk_float(self.calibration):
            if isinstance(layer := order[position], Layer):
                results = []
                for values in blocks:
                    summed = self._executor.sum_of_products(layer, plan, values)
                    results.append(self._executor.finish(layer, plan, summed))
                found[layer.name] = channel_statistics(layer, results)
        return found

    def _check_against_runtime(self, few: Float32Array) -> None:
        """Compare the float network on a few images at once with ONNX Runtime, one at a time."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(
            self.network.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
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
