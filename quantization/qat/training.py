"""The training loop of quantization-aware training, and its recipe."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from quantization.errors import DataError
from quantization.qat.layers import TrainedLayer
from quantization.qat.network import QatNetwork
from quantization.task import Augment, Examples


@dataclass(frozen=True)
class Recipe:
    """How long and how fast quantized weights and steps are trained.

    Nesterov SGD; the learning rates fall to zero along half a cosine.

    Args:
        epochs: passes over the images.
        learning_rate: of weights, biases and normalizations, at the start.
        step_learning_rate: of the steps of all grids, at the start.
        momentum: of the gradient.
        weight_decay: of the weights only.
        batch: images per update.
        images: images per epoch, drawn anew for each; None takes all.
        label_smoothing: share of the target that is spread over all classes.

    Raises:
        DataError: if a number makes no sense.
    """

    epochs: int = 5
    learning_rate: float = 0.01
    step_learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch: int = 128
    images: int | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.epochs, self.batch, 1 if self.images is None else self.images)
        rates = (self.learning_rate, self.step_learning_rate)
        if min(counts) < 1 or not all(math.isfinite(rate) and rate > 0 for rate in rates):
            raise DataError("a recipe needs at least one epoch, image and positive learning rates")
        shares = (self.momentum, self.label_smoothing)
        if not all(0 <= share < 1 for share in shares) or not 0 <= self.weight_decay < math.inf:
            raise DataError("momentum and smoothing lie in [0, 1), weight decay is not negative")


PHASE_1 = Recipe(epochs=5)
"""For each candidate: enough to tell good policies from bad ones."""
PHASE_2 = Recipe(epochs=50)
"""For the best few."""


def train(
    network: QatNetwork,
    examples: Examples,
    recipe: Recipe,
    *,
    seed: int,
    augment: Augment | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train `network` in place and leave it in evaluation mode.

    Args:
        network: what `QatNetwork` made, or what an earlier phase left.
        examples: images and classes to learn from.
        recipe: see `Recipe`.
        seed: of the order of the images and the augmentation.
        augment: changes a batch of images at random; None changes nothing.
        on_epoch: called after every epoch with its number, from 1, and its mean loss; it may
            evaluate the network.

    Returns:
        Mean cross-entropy of every epoch, in nats.
    """
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(examples.images), torch.from_numpy(examples.labels)
    count = min(recipe.images or len(images), len(images))
    optimizer = _optimizer(network, recipe)
    updates = recipe.epochs * math.ceil(count / recipe.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    losses = []
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        total = 0.0
        order = torch.randperm(len(images), generator=generator)[:count]
        for chosen in order.split(recipe.batch):  # type: ignore[no-untyped-call]
            x = images[chosen] if augment is None else augment(images[chosen], generator)
            loss = functional.cross_entropy(
                network(x), labels[chosen], label_smoothing=recipe.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            network.stay_positive()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        losses.append(total / count)
        network.eval()
        if on_epoch is not None:
            on_epoch(epoch, losses[-1])
    return losses


def mean_loss(network: QatNetwork, examples: Examples, batch: int = 128) -> tuple[float, int]:
    """Return the mean cross-entropy of `network`, in evaluation mode, in nats; and its classes.

    It is not finite where a weight or a step of the network is not, whatever its grids make of it.
    """
    if not all(bool(torch.isfinite(values).all()) for values in network.state_dict().values()):
        return math.nan, 0
    total, classes = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(examples.labels), batch):
            part = slice(start, start + batch)
            logits = network(torch.from_numpy(examples.images[part]))
            labels = torch.from_numpy(examples.labels[part])
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            classes = logits.shape[1]
    return total / len(examples.labels), classes


def accuracy(network: QatNetwork, examples: Examples, batch: int = 128) -> float:
    """Return the share of `examples` that `network`, in evaluation mode, reads correctly."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(examples.labels), batch):
            part = slice(start, start + batch)
            logits = network(torch.from_numpy(examples.images[part]))
            right += int((logits.argmax(1).numpy() == examples.labels[part]).sum())
    return right / len(examples.labels)


def _optimizer(network: QatNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    layers = [layer for layer in network.layers if isinstance(layer, TrainedLayer)]
    weights = [layer.weight for layer in layers]
    steps = [*network.steps, *(layer.step for layer in layers if layer.step is not None)]
    special = {id(parameter) for parameter in (*weights, *steps)}
    others = [parameter for parameter in network.parameters() if id(parameter) not in special]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others},
        {"params": steps, "lr": recipe.step_learning_rate},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(
        groups, recipe.learning_rate, recipe.momentum, nesterov=recipe.momentum > 0
    )
