"""What training leaves, ready to be exported: integers, scales, biases and ranges."""

from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from quantization.bits import BitWidths
from quantization.deployment import ExportOptions
from quantization.errors import PolicyError
from quantization.export import Exporter
from quantization.network import Network
from quantization.parameters import Parameters
from quantization.policy import Policy
from quantization.qat.layers import TrainedLayer
from quantization.qat.network import QatNetwork
from quantization.quantizer import QuantizedWeight
from quantization.ranges import Ranges


@dataclass(frozen=True, eq=False)
class TunedModel:
    """A policy with the parameters that were trained for it.

    Args:
        policy: the bits.
        exporter: exports and simulates this policy; its network holds the trained float weights.
    """

    policy: Policy
    exporter: Exporter

    def build(self) -> bytes:
        """Return the serialized deployable model.

        Raises:
            PolicyError: if a layer is not deployable.
        """
        return self.exporter.build(self.policy)


class TunedParameters(Parameters):
    """Trained integers and scales in place of those that rounding the float weights gives.

    Args:
        network: the network with its trained float weights.
        ranges: its learned ranges.
        options: how weights are stored.
        weights: the trained weights of each quantized layer.
        policy: the widths that they were trained at.
    """

    def __init__(
        self,
        network: Network,
        ranges: Ranges,
        options: ExportOptions,
        weights: dict[str, QuantizedWeight],
        policy: Policy,
    ) -> None:
        super().__init__(network, ranges, options)
        self._trained, self._policy = weights, policy

    def weight(self, layer: str, bits: int) -> QuantizedWeight:
        """Return the trained weights of `layer`.

        Raises:
            PolicyError: at another width than it was trained at.
        """
        return self.quantized(layer, BitWidths(bits, self._policy[layer].activations))

    def quantized(self, layer: str, bits: BitWidths) -> QuantizedWeight:
        """Return the trained weights of `layer`.

        Raises:
            PolicyError: at other widths than it was trained at.
        """
        asked = self._policy[layer]
        if layer not in self._trained or bits != asked:
            raise PolicyError(f"layer {layer!r} was trained at {asked}, not {bits}; train it again")
        known, least = self._trained[layer], self._smallest_scale(layer)
        if least is None or (known.scale >= least).all():
            return known
        # The int32 bias of a channel that training brought near zero would saturate.
        scale = np.maximum(known.scale, least).astype(np.float32)
        shape = [1] * known.values.ndim
        shape[known.axis] = -1
        values = np.rint(known.values * (known.scale / scale).reshape(shape))
        narrow = known.values.dtype == np.int8
        stored = values.astype(np.int8) if narrow else values.astype(np.int16)
        return replace(known, values=stored, scale=scale)


def freeze(network: QatNetwork) -> TunedModel:
    """Fold the normalizations of a trained network, and fix its integers and ranges.

    A normalization's factor goes into the scales of the weights, channel by channel, and leaves
    their integers alone: what is exported is what was trained, without another rounding.
    """
    exporter = network.exporter
    ranges = network.ranges()
    model = onnx.ModelProto()
    model.CopyFrom(network.network.model)
    nodes = {node.name: node for node in model.graph.node}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = {}
    for layer in network.network.layers:
        if not layer.has_weights:
            continue
        trained = network.trained_layer(layer.name)
        factor, bias = trained.folded()
        weight = trained.weight.detach()
        if factor is not None:  # of a convolution: output channels come first
            weight = weight * factor.view(-1, *[1] * (weight.dim() - 1))
        names = nodes[layer.name].input
        _store(stored[names[1]], weight)
        if bias is not None:
            _store(stored[names[2]], bias)
        if trained.step is not None:
            weights[layer.name] = _integers(trained, factor)
    tuned = replace(network.network, model=model)
    parameters = TunedParameters(tuned, ranges, exporter.options, weights, network.policy)
    return TunedModel(
        network.policy, Exporter(tuned, ranges, exporter.options, exporter.target, parameters)
    )


def _integers(trained: TrainedLayer, factor: torch.Tensor | None) -> QuantizedWeight:
    assert trained.step is not None
    step = trained.step.detach()
    scale = (step if factor is None else step * factor).numpy().astype(np.float32)
    widest = trained.bits.weight_widths[-1]
    levels = trained.levels().numpy()
    values = levels.astype(np.int8) if widest <= 8 else levels.astype(np.int16)
    return QuantizedWeight(values, scale, trained.axis, widest)


def _store(tensor: onnx.TensorProto, value: torch.Tensor) -> None:
    array = np.ascontiguousarray(value.numpy(), np.float32)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
