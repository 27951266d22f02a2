"""Curvature of a network's loss along its weights and its layers' inputs, by differentiation."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from quantization.execution import Executor, Values
from quantization.export import Exporter
from quantization.network import Layer
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.ranges import check_inputs

FloatArray = npt.NDArray[np.float64]


class FloatNetwork:
    """The float network as a function that can be differentiated.

    Args:
        exporter: holds network, ranges and quantized weights.
    """

    def __init__(self, exporter: Exporter) -> None:
        self.network = exporter.network
        self._executor = Executor(exporter)
        self._plan = self._executor.plan(Policy({}))
        self.weights: Mapping[str, torch.Tensor] = {
            layer.name: self._executor.differentiable_weight(layer)
            for layer in self.network.layers
            if layer.has_weights
        }

    def run(self, images: Float32Array) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the first output, (N, ...), and by name the tensors that layers read, (N, ...).

        Both are differentiable.
        """
        check_inputs(self.network, images)
        start = torch.from_numpy(np.ascontiguousarray(images)).requires_grad_()
        values: Values = {self.network.input_names[0]: start}
        read: dict[str, torch.Tensor] = {}
        for node in self.network.execution_order:
            if isinstance(node, Layer):
                read |= {name: values[name] for name in node.inputs}
            self._executor.step(node, self._plan, values)
        return self._executor.output(self._plan, values), read


def squared_gradients(
    network: FloatNetwork, images: Float32Array, seed: int
) -> tuple[dict[str, FloatArray], dict[str, torch.Tensor]]:
    """Return the diagonal of the Fisher information along weights and layers' inputs.

    ``F = mean over images of g^2``, g the gradient of ``-log p(class | image)``, the class drawn
    from the network's own probabilities: then F is also the curvature of the Kullback-Leibler
    divergence from the network as it is.

    Args:
        network: classifies.
        images: (N, ...).
        seed: of the classes.

    Returns:
        By layer F of its weights, in their shape; by tensor the squared gradients, (N, ...), of
        what layers read.
    """
    draw = torch.Generator().manual_seed(seed)
    weights = {name: torch.zeros_like(weight) for name, weight in network.weights.items()}
    inputs: dict[str, list[torch.Tensor]] = {}
    for image in images:  # one at a time: gradients of weights are squared before they are added
        logits, read = network.run(image[None])
        loss = torch.nn.functional.cross_entropy(logits, _drawn(logits, draw), reduction="sum")
        wanted = [*network.weights.values(), *read.values()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        for (name, total), gradient in zip(weights.items(), found, strict=False):
            weights[name] = total + gradient.square()
        for name, gradient in zip(read, found[len(weights) :], strict=True):
            inputs.setdefault(name, []).append(gradient.square())
    return (
        {name: (total / len(images)).double().numpy() for name, total in weights.items()},
        {name: torch.cat(parts) for name, parts in inputs.items()},
    )


def hessian_traces(
    network: FloatNetwork,
    images: Float32Array,
    labels: npt.NDArray[np.int64],
    seed: int,
    draws: int = 32,
    batch: int = 64,
) -> tuple[dict[str, float], dict[str, float]]:
    """Estimate the trace of the cross-entropy's Hessian along weights and along layers' inputs.

    ``Tr H = E[v' H v]``, the entries of v drawn from {-1, 1} (Hutchinson); as HAWQ-V2 (Z. Dong et
    al., NeurIPS 2020) does, also for activations. Along inputs the trace is that of one image,
    averaged.

    Args:
        network: classifies.
        images: (N, ...).
        labels: (N,) right classes.
        seed: of v and of the images of each draw.
        draws: how many v are averaged.
        batch: images of each draw.

    Returns:
        The traces by layer, and by tensor that a layer reads.
    """
    draw = torch.Generator().manual_seed(seed)
    along_weights = dict.fromkeys(network.weights, 0.0)
    along_inputs: dict[str, float] = {}
    for _ in range(draws):
        some = torch.randperm(len(images), generator=draw)[:batch].numpy()
        logits, read = network.run(images[some])
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[some]))
        # The loss is a mean over images, so along inputs, too, the sum is the mean of one image's.
        for totals, variables in ((along_weights, dict(network.weights)), (along_inputs, read)):
            products = _quadratic(loss, list(variables.values()), draw)
            for name, product in zip(variables, products, strict=True):
                totals[name] = totals.get(name, 0.0) + product / draws
    return along_weights, along_inputs


def _quadratic(
    loss: torch.Tensor, variables: Sequence[torch.Tensor], draw: torch.Generator
) -> Iterable[float]:
    """Return ``v' H v`` of each variable's part of one drawn v."""
    gradients = torch.autograd.grad(
        loss, variables, create_graph=True, allow_unused=True, materialize_grads=True
    )
    signs = [torch.randint(0, 2, g.shape, generator=draw).to(g.dtype) * 2 - 1 for g in gradients]
    along = torch.stack([(g * v).sum() for g, v in zip(gradients, signs, strict=True)]).sum()
    curved = torch.autograd.grad(
        along, variables, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return [float((h * v).sum()) for h, v in zip(curved, signs, strict=True)]


def _drawn(logits: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """One class per image, (N,), by the probabilities of (N, classes) logits."""
    shares = logits.detach().softmax(1)
    return torch.multinomial(shares, 1, generator=draw)[:, 0]
