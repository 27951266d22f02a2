"""A whole network in training under one policy: what the exported file computes, with gradients.

It stands on the prepared ONNX network, not on the torch module that this may come from: formats,
glue, ranges and grids are those of the exporter, and any network can be trained. Tensors are kept
as reals on their grids. Batch-norms are folded before; `layers` puts live ones behind convolutions.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from quantization.bits import Format
from quantization.execution import fake_quantize as round_to
from quantization.export import Exporter
from quantization.formats import formats
from quantization.network import Glue, Layer
from quantization.passes import initializer_arrays
from quantization.policy import Policy
from quantization.qat.fake_quantize import fake_quantize
from quantization.qat.layers import TrainedLayer
from quantization.quantizer import AffineGrid, Float32Array
from quantization.ranges import Limits, Ranges, check_inputs
from quantization.torch_operators import attributes, constant, operator

_SHARES = np.linspace(0.1, 1.0, 37)
"""Shares of a range that the search for the least squared error tries, below 8 bits."""
_SAMPLE = 1 << 16
"""Values that it looks at."""
_SMALLEST = 1e-3
"""Of what a step was at first: the least that it may become."""

Values = dict[str, torch.Tensor]


class QatNetwork(nn.Module):
    """A network under one policy, to be trained; starts as the statistics-corrected network.

    Args:
        exporter: network, ranges and quantized weights to start from.
        policy: the bits; any widths, deployable or not.
        calibration: (N, ...) float32 images that activation steps below 8 bits and the first
            statistics of normalizations come from.
        momentum: by which running statistics follow those of each batch.

    Raises:
        PolicyError: if the policy does not fit the network.
        DataError: if the images do not fit the network.
        ModelError: if an operator is not known.
    """

    def __init__(
        self,
        exporter: Exporter,
        policy: Policy,
        calibration: Float32Array,
        momentum: float = 0.05,
    ) -> None:
        super().__init__()
        check_inputs(exporter.network, calibration)
        self.exporter, self.policy = exporter, policy
        self.network = exporter.network
        self._formats = formats(self.network, policy)
        nodes = {node.name: node for node in self.network.model.graph.node}
        self._inputs = {name: list(node.input) for name, node in nodes.items()}
        self._outputs = {name: list(node.output) for name, node in nodes.items()}
        self._attributes = {name: attributes(node) for name, node in nodes.items()}
        arrays = initializer_arrays(self.network.model.graph)
        read_by_glue = {name for glue in self.network.glue for name in self._inputs[glue.name]}
        self._constants = {n: constant(a) for n, a in arrays.items() if n in read_by_glue}
        self._after = {glue.inputs[0]: glue.outputs[0] for glue in self.network.glue if glue.fused}
        self._position = {
            layer.name: i
            for i, layer in enumerate(layer for layer in self.network.layers if layer.has_weights)
        }
        self.layers = nn.ModuleList(
            TrainedLayer(
                layer, policy[layer.name], exporter, self._attributes[layer.name], momentum
            )
            for layer in self.network.layers
            if layer.has_weights
        )
        self._owner = self._owners()
        self._widths = self._widths_in_use()
        self._limits = {
            (name, bits): exporter.ranges.at_width.get(bits, {}).get(
                name, exporter.ranges.limits[name]
            )
            for name, widths in self._widths.items()
            for bits in widths
        }
        self._start(torch.from_numpy(calibration))
        self._grids = {
            (name, bits): AffineGrid.of_range(*limits, bits)
            for (name, bits), limits in self._limits.items()
        }
        self._step_position = {key: i for i, key in enumerate(self._grids)}
        self.steps = nn.ParameterList(torch.tensor(grid.scale) for grid in self._grids.values())
        self.settle(calibration)
        self.eval()

    def trained_layer(self, name: str) -> TrainedLayer:
        """Return the parameters of layer `name`, which has weights."""
        found = self.layers[self._position[name]]
        assert isinstance(found, TrainedLayer)
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, ...) images to the network's first output."""
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        values: Values = {}
        feed = self.network.input_names[0]
        values[feed] = self._store(feed, x, self._formats.writes[feed])
        for node in self.network.execution_order:
            if isinstance(node, Layer):
                self._run_layer(node, values)
            elif not (node.fused and not self._formats.reads[node.name].is_float):
                self._run_glue(node, values)
        return self._read(self.network.output_names[0], Format.FLOAT32, values)

    def ranges(self) -> Ranges:
        """Return the learned ranges, at each width that is in use; others are as they were."""
        limits = dict(self.exporter.ranges.limits)
        at_width: dict[int, dict[str, Limits]] = {}
        for name in limits:
            owner = self._owner.get(name, name)
            for bits in self._widths.get(owner, ()):
                grid, (low, high) = self._grids[owner, bits], self._limits[owner, bits]
                factor = float(self._step(owner, bits).detach()) / grid.scale
                learned = at_width.setdefault(bits, {})
                learned[name] = (low * factor, high * factor)
        limits |= at_width.pop(8, {})
        return replace(
            self.exporter.ranges, limits=limits, method="trained", at_width=at_width, weights={}
        )

    @torch.no_grad()
    def stay_positive(self) -> None:
        """Push steps and gains that training brought to zero or below back above it."""
        for step, grid in zip(self.steps, self._grids.values(), strict=True):
            step.clamp_min_(grid.scale * _SMALLEST)
        for layer in self.layers:
            assert isinstance(layer, TrainedLayer)
            layer.stay_positive()

    @torch.no_grad()
    def settle(self, images: Float32Array) -> None:
        """Set the running statistics to those of the quantized network on `images`, (N, ...)."""
        was_training = self.training
        kept = [(layer, layer.momentum) for layer in self.layers if isinstance(layer, TrainedLayer)]
        for layer, _ in kept:
            layer.momentum = 1.0
        self.train()
        self(torch.from_numpy(images))
        for layer, momentum in kept:
            layer.momentum = momentum
        self.train(was_training)

    def _owners(self) -> dict[str, str]:
        """Tensors that only moved values of another one make: they share its step."""
        owner: dict[str, str] = {}
        for glue in self.network.glue:
            if glue.moves_only and glue.outputs:
                owner[glue.outputs[0]] = owner.get(glue.inputs[0], glue.inputs[0])
        return owner

    def _widths_in_use(self) -> dict[str, set[int]]:
        """The integer widths at which each step-owning tensor is written and read."""
        widths: dict[str, set[int]] = {}
        for tensor in self.network.tensors:
            readers = [n for n in tensor.consumers if n in self._formats.reads]
            found = {self._formats.reads[reader] for reader in readers}
            found.add(self._formats.writes[tensor.name])
            bits = {f.bits for f in found if not f.is_float}
            if bits and tensor.name not in self.network.inner_tensors:
                owner = self._owner.get(tensor.name, tensor.name)
                widths.setdefault(owner, set()).update(bits)
        return widths

    @torch.no_grad()
    def _start(self, x: torch.Tensor) -> None:
        """Run the float network: start normalizations, and steps of coarse activations."""
        values: Values = {self.network.input_names[0]: x}
        for name in self.network.input_names:
            self._start_range(name, x)
        for node in self.network.execution_order:
            if isinstance(node, Layer):
                operands = [values[name] for name in node.inputs]
                if node.has_weights:
                    trained = self.trained_layer(node.name).eval()
                    trained.start_normalization(operands[0])
                    made = trained.with_weight(operands[0], trained.weight)
                else:
                    made = self._product(node, operands)
                values[node.output] = made
                self._start_range(node.output, made)
            else:
                for name, value in self._made_by_glue(node, values).items():
                    values[name] = value
                    self._start_range(name, value)

    def _start_range(self, name: str, value: torch.Tensor) -> None:
        """Shrink the ranges of a tensor below 8 bits to their least squared error."""
        flat = value.flatten()
        sample = flat[:: max(1, len(flat) // _SAMPLE)]
        for bits in self._widths.get(name, ()):
            if bits >= 8:
                continue
            low, high = self._limits[name, bits]
            errors = []
            for share in _SHARES:
                grid = AffineGrid.of_range(low * share, high * share, bits)
                errors.append(float((round_to(sample, grid) - sample).square().mean()))
            share = float(_SHARES[int(np.argmin(errors))])
            self._limits[name, bits] = (low * share, high * share)

    def _run_layer(self, layer: Layer, values: Values) -> None:
        reads = self._formats.reads[layer.name]
        operands = [self._read(name, reads, values) for name in layer.inputs]
        if layer.has_weights:
            step = (
                None if reads.is_float else float(self._step(layer.inputs[0], reads.bits).detach())
            )
            made = self.trained_layer(layer.name)(operands[0], step)
        else:
            made = self._product(layer, operands)
        self._keep(layer.output, made, values)

    def _product(self, layer: Layer, operands: list[torch.Tensor]) -> torch.Tensor:
        made = operator(layer.kind)(operands, self._attributes[layer.name])
        assert isinstance(made, torch.Tensor)
        return made

    def _run_glue(self, glue: Glue, values: Values) -> None:
        reads = self._formats.reads[glue.name]
        given = {name: self._read(name, reads, values) for name in glue.inputs}
        for name, value in self._made_by_glue(glue, given).items():
            if glue.moves_only and not self._formats.writes[name].is_float:
                values[self._after.get(name, name)] = value  # it is on its grid already
            else:
                self._keep(name, value, values)

    def _made_by_glue(self, glue: Glue, values: Values) -> Values:
        inputs = [
            None if not n else self._constants[n] if n in self._constants else values[n]
            for n in self._inputs[glue.name]
        ]
        made = operator(glue.kind)(inputs, self._attributes[glue.name])
        outputs = made if isinstance(made, tuple) else (made,)
        named = zip(self._outputs[glue.name], outputs, strict=False)
        return {name: value for name, value in named if name in glue.outputs}

    def _keep(self, name: str, value: torch.Tensor, values: Values) -> None:
        written = self._formats.writes[name]
        # An integer operator takes a fused activation over: the grid's ends clamp as it would.
        stored = name if written.is_float else self._after.get(name, name)
        values[stored] = self._store(stored, value, written)

    def _store(self, name: str, value: torch.Tensor, written: Format) -> torch.Tensor:
        if written is Format.FLOAT32:
            return value
        if written is Format.FLOAT16:
            return value.half().float()
        grid = self._grids[self._owner.get(name, name), written.bits]
        high = 2**grid.bits - 1 - grid.zero_point
        step = self._step(name, written.bits)
        return fake_quantize(value, step, -grid.zero_point, high, value[0].numel())

    def _step(self, name: str, bits: int) -> torch.Tensor:
        """The learned step of a tensor at one of the widths in use."""
        step: torch.Tensor = self.steps[self._step_position[self._owner.get(name, name), bits]]
        return step

    def _read(self, name: str, reads: Format, values: Values) -> torch.Tensor:
        written, value = self._formats.writes[name], values[name]
        if written is reads or reads is Format.FLOAT32:
            return value
        return self._store(name, value, reads)
