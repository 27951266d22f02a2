"""The reference task: read 1,797 real handwritten digits with a small MobileNetV2-style network.

The images are scikit-learn's bundled digits, so the task needs no download. A network that reads
these digits with ease still does so with three-bit weights, which leaves a search for bit widths
nothing to find. Two things make bits matter, without favouring any way to spend them:

- The digits are photographed badly: reduced contrast, with sensor noise, under an illumination
  whose gradient across an image (a third of full intensity on average) is about as strong as
  the ink. This is part of the task's definition, fixed by a seed, and the same for training
  and for unseen images.
- The learning rate is low (0.0065; at 0.05 a like network loses next to nothing at three bits).
  The weights stay near their random start, so that what they learned is in small differences,
  which coarse rounding erases.

The network is exported with its batch normalisations as separate nodes, as training toolkits leave
them, so that whoever reads the file folds them, and every node with a weight carries the path of
its module.

torch and scikit-learn are imported inside the functions: importing this module costs numpy only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

logger = logging.getLogger(__name__)

CLASSES = 10
IMAGE_SIZE = 32
"""Height and width of an image, in pixels."""
TRAIN_COUNT = 900
"""Images the network learns from; the other 897 are the search's, unseen in training."""
CONTRAST = 0.4
"""Difference between ink and paper, as a share of the full intensity range [0, 1]."""
ILLUMINATION = 1.0
"""Peak-to-peak range of the illumination over all images and positions, in the same unit."""
NOISE = 0.02
"""Standard deviation of the sensor noise, as a share of the intensity range."""
SHIPPED_MODEL = Path(__file__).parent / "data" / "digits.onnx"
"""The trained network, written by ``benchmarks/train_digits.py``."""

_OPSET = 21
_IR_VERSION = 10  # the first that carries opset 21

_STEM_CHANNELS = 48
_HEAD_CHANNELS = 192
# (expansion, out_channels, stride). Wide and shallow at 16x16: the pointwise convolutions, where
# INT8 pays, carry 94 % of the multiply-accumulates; depthwise INT8 is no faster than float.
_BLOCKS = (
    (2, 64, 1),
    (2, 64, 1),
    (3, 80, 2),
    (3, 80, 1),
    (3, 80, 1),
    (3, 96, 1),
)


@dataclass(frozen=True)
class DigitsTask:
    """Images and labels of the reference task.

    Images are float32 in [0, 1], shape (images, 1, 32, 32); labels are int64, shape (images,),
    in 0..9.
    """

    train_images: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    unseen_images: NDArray[np.float32]
    unseen_labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        for images, labels in (
            (self.train_images, self.train_labels),
            (self.unseen_images, self.unseen_labels),
        ):
            if images.shape != (len(labels), 1, IMAGE_SIZE, IMAGE_SIZE):
                raise ValueError(f"{len(labels)} labels do not fit images of {images.shape}")


def load_digits_task(seed: int = 0) -> DigitsTask:
    """Rebuild the task from scikit-learn's digits; the same seed gives the same images.

    The 8x8 intensities are scaled to [0, 1] and enlarged to 32x32 bilinearly (pixel centres
    aligned, edges repeated). Image i is then

        x = 1/2 + ILLUMINATION * plane_i / 2 + CONTRAST * (digit_i - 1/2) + NOISE * normal,

    clipped to [0, 1], where plane_i = (a u + b v + c) / 3 with a, b, c uniform in [-1, 1] and
    u, v the pixel's position in (-1, 1).

    Args:
        seed: Draws illumination, noise and the split. The shipped network belongs to seed 0.

    Returns:
        900 training and 897 unseen images, split with the same share of every digit.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    enlarge = bilinear_matrix(digits.images.shape[1], IMAGE_SIZE)
    clean = enlarge @ (np.asarray(digits.images) / 16.0) @ enlarge.T

    generator = np.random.default_rng(seed)
    a, b, c = generator.uniform(-1.0, 1.0, (3, len(clean), 1, 1))
    position = (np.arange(IMAGE_SIZE) + 0.5) * 2.0 / IMAGE_SIZE - 1.0
    plane = (a * position[:, None] + b * position[None, :] + c) / 3.0
    noise = generator.standard_normal(clean.shape)
    lit = 0.5 + ILLUMINATION * plane / 2.0 + CONTRAST * (clean - 0.5) + NOISE * noise
    images = np.clip(lit, 0.0, 1.0).astype(np.float32)[:, None]

    train, unseen = train_test_split(
        np.arange(len(labels)), train_size=TRAIN_COUNT, stratify=labels, random_state=seed
    )
    return DigitsTask(images[train], labels[train], images[unseen], labels[unseen])


def bilinear_matrix(size: int, target: int) -> NDArray[np.float64]:
    """Return the matrix that resamples ``size`` pixels to ``target`` by linear interpolation.

    Pixel centres are aligned and the edge pixels repeated, as in ``align_corners=False``.

    Returns:
        Shape (target, size); every row sums to 1.

    >>> bilinear_matrix(2, 4).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    centre = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    left = np.floor(centre).astype(int)
    right = np.minimum(left + 1, size - 1)
    matrix = np.zeros((target, size))
    rows = np.arange(target)
    matrix[rows, left] += 1.0 - (centre - left)
    matrix[rows, right] += centre - left
    return matrix


def build_network(seed: int = 0) -> nn.Module:
    """Return the untrained network, initialised from ``seed``.

    Stem 3x3, six inverted residuals (expansion 1x1, depthwise 3x3, projection 1x1), head 1x1,
    global average pool, linear classifier. Input float32 (batch, 1, 32, 32), output logits
    (batch, 10).
    """
    import torch
    from torch import nn

    class InvertedResidual(nn.Module):
        def __init__(self, channels: int, expansion: int, out_channels: int, stride: int) -> None:
            super().__init__()
            hidden = channels * expansion
            self.expand = nn.Conv2d(channels, hidden, 1, bias=False)
            self.expand_norm = nn.BatchNorm2d(hidden)
            self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
            self.depthwise_norm = nn.BatchNorm2d(hidden)
            self.project = nn.Conv2d(hidden, out_channels, 1, bias=False)
            self.project_norm = nn.BatchNorm2d(out_channels)
            self.residual = stride == 1 and channels == out_channels

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.expand_norm(self.expand(x)))
            y = torch.relu(self.depthwise_norm(self.depthwise(y)))
            y = self.project_norm(self.project(y))
            return x.add(y) if self.residual else y

    class DigitsNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, _STEM_CHANNELS, 3, 2, 1, bias=False)
            self.stem_norm = nn.BatchNorm2d(_STEM_CHANNELS)
            channels = _STEM_CHANNELS
            blocks = []
            for expansion, out_channels, stride in _BLOCKS:
                blocks.append(InvertedResidual(channels, expansion, out_channels, stride))
                channels = out_channels
            self.features = nn.Sequential(*blocks)
            self.head = nn.Conv2d(channels, _HEAD_CHANNELS, 1, bias=False)
            self.head_norm = nn.BatchNorm2d(_HEAD_CHANNELS)
            self.classifier = nn.Linear(_HEAD_CHANNELS, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem_norm(self.stem(x)))
            x = torch.relu(self.head_norm(self.head(self.features(x))))
            logits: torch.Tensor = self.classifier(x.mean((2, 3)))
            return logits

    # fork_rng: building a network must not reseed the caller's own random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DigitsNetwork()


def train(
    network: nn.Module,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    epochs: int = 34,
    batch: int = 50,
    peak_learning_rate: float = 0.0065,
    seed: int = 0,
    on_epoch: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train ``network`` in place and leave it in evaluation mode.

    Nesterov SGD (momentum 0.9) under a one-cycle schedule, on images shifted and rotated at random.

    Args:
        network: From ``build_network``.
        images: Float32, shape (images, 1, 32, 32).
        labels: Int64, shape (images,).
        epochs: Passes over the images.
        batch: Images per step.
        peak_learning_rate: Highest learning rate of the cycle.
        seed: Draws the order of the images and the augmentation.
        on_epoch: Called after every epoch with its number, from 1, and its mean loss.

    Returns:
        Mean cross-entropy of every epoch, in nats.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # stub lacks it
    network.train()
    all_images, all_labels = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.SGD(
        network.parameters(), peak_learning_rate, momentum=0.9, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peak_learning_rate, total_steps=epochs * math.ceil(len(images) / batch)
    )
    losses = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(images), generator=generator).split(batch):  # type: ignore[no-untyped-call]
            x = _shift_and_rotate(all_images[chosen], generator)
            logits = network(x.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits, all_labels[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(chosen)
        losses.append(total / len(images))
        logger.info("epoch %d of %d: loss %.4f", epoch, epochs, losses[-1])
        if on_epoch is not None:
            on_epoch(epoch, losses[-1])
    network.eval()
    return losses


def _shift_and_rotate(
    images: torch.Tensor, generator: torch.Generator, *, pixels: float = 1.0, degrees: float = 5.0
) -> torch.Tensor:
    """Move every image by up to ``pixels`` and turn it by up to ``degrees``, at random."""
    import torch
    from torch.nn import functional

    def uniform(bound: float) -> torch.Tensor:
        return (torch.rand(len(images), generator=generator) * 2.0 - 1.0) * bound

    angle = uniform(math.radians(degrees))
    # affine_grid measures in half images.
    shift_x, shift_y = uniform(2.0 * pixels / IMAGE_SIZE), uniform(2.0 * pixels / IMAGE_SIZE)
    rows = (
        torch.stack([angle.cos(), -angle.sin(), shift_x], 1),
        torch.stack([angle.sin(), angle.cos(), shift_y], 1),
    )
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    # Border padding continues the illumination; zeros would draw a black edge no image has.
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def predict(network: nn.Module, images: NDArray[np.float32], batch: int = 64) -> NDArray[np.int64]:
    """Return the digit that ``network`` reads in each image, int64, shape (images,)."""
    import torch

    # Small channels-last batches stay in the cache: about twice as fast as one large batch.
    with torch.inference_mode():
        logits = [
            network(part.contiguous(memory_format=torch.channels_last))
            for part in torch.from_numpy(images).split(batch)  # type: ignore[no-untyped-call]
        ]
        return np.asarray(torch.cat(logits).argmax(1).numpy(), dtype=np.int64)


def export_onnx(network: nn.Module, path: Path) -> None:
    """Write a trained network as float32 ONNX, opset 21, and check it against torch.

    Input ``x``, shape (1, 1, 32, 32); output ``logits``, shape (1, 10). Batch normalisations stay
    nodes of their own. A node with a weight is named by its module (``features.1.depthwise``), and
    its weight by that name and ``.weight``; no two nodes share an initializer.

    The graph is written node by node because torch's own exporter either folds the batch
    normalisations away or leaves a graph padded with shape arithmetic.

    Raises:
        ValueError: If ONNX Runtime and torch differ by more than 1e-4 on one of 16 random images.
    """
    import onnx

    model = _onnx_model(network)
    onnx.checker.check_model(model, full_check=True)
    _check_equality(network, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def _onnx_model(network: nn.Module) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def add(operator: str, inputs: list[str], name: str, output: str = "", **fields: Any) -> str:
        output = output or name
        nodes.append(helper.make_node(operator, inputs, [output], name, **fields))
        return output

    def constants(module: str, *tensors: str) -> list[str]:
        names = [f"{module}.{tensor}" for tensor in tensors]
        owner = network.get_submodule(module)
        for tensor, name in zip(tensors, names, strict=True):
            array = np.ascontiguousarray(getattr(owner, tensor).detach().numpy())
            initializers.append(numpy_helper.from_array(array, name))
        return names

    def convolution(source: str, module: str, *, relu: bool = True) -> str:
        layer: Any = network.get_submodule(module)
        norm: Any = network.get_submodule(f"{module}_norm")
        source = add(
            "Conv",
            [source, *constants(module, "weight")],
            module,
            kernel_shape=list(layer.kernel_size),
            strides=list(layer.stride),
            pads=list(layer.padding) * 2,
            group=layer.groups,
        )
        statistics = constants(f"{module}_norm", "weight", "bias", "running_mean", "running_var")
        source = add(
            "BatchNormalization", [source, *statistics], f"{module}_norm", epsilon=norm.eps
        )
        return add("Relu", [source], f"{module}_relu") if relu else source

    source = convolution("x", "stem")
    blocks: Any = network.get_submodule("features")
    for index, block in enumerate(blocks):
        path = f"features.{index}"
        hidden = convolution(convolution(source, f"{path}.expand"), f"{path}.depthwise")
        projected = convolution(hidden, f"{path}.project", relu=False)
        source = add("Add", [source, projected], f"{path}.add") if block.residual else projected
    source = add("GlobalAveragePool", [convolution(source, "head")], "pool")
    source = add("Flatten", [source], "flatten")
    parameters = constants("classifier", "weight", "bias")
    add("Gemm", [source, *parameters], "classifier", output="logits", transB=1)

    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, IMAGE_SIZE, IMAGE_SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])
    graph = helper.make_graph(nodes, "digits", [image], [logits], initializers)
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="quantmeter",
    )


def _check_equality(network: nn.Module, model: onnx.ModelProto, tolerance: float = 1e-4) -> None:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(0)
    for _ in range(16):
        image = generator.random((1, 1, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(image)).numpy()
        difference = float(np.abs(session.run(["logits"], {"x": image})[0] - expected).max())
        if not difference <= tolerance:
            raise ValueError(
                f"the exported network differs from torch by {difference:.2e}, more than "
                f"{tolerance:.0e}; is the network in evaluation mode?"
            )
