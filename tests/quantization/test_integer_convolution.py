"""Convolutions of bytes against the same in float64; and what is done where they are not exact."""

from typing import Any

import numpy as np
import pytest
import torch

import quantization.execution
from quantization.integer_convolution import IntegerConvolution, is_exact
from quantization.policy import Policy
from quantization.simulation import Simulation
from quantization.torch_windows import convolve
from tests.networks import Subject, uniform

needs_kernels = pytest.mark.skipif(
    not is_exact(), reason="no exact kernels for bytes in this build or on this processor"
)

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "pointwise": ((3, 16, 7, 5), (24, 16, 1, 1), {}),
    "padded": ((2, 3, 9, 9), (5, 3, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided and padded on one side": (
        (2, 8, 8, 8),
        (8, 8, 3, 3),
        {"auto_pad": b"SAME_UPPER", "strides": [2, 2]},
    ),
    "uneven padding": ((2, 8, 8, 8), (8, 8, 3, 3), {"pads": [0, 1, 0, 1]}),
    "depthwise": ((2, 19, 8, 8), (19, 1, 3, 3), {"group": 19, "pads": [1, 1, 1, 1]}),
    "grouped and dilated": (
        (1, 12, 11, 11),
        (18, 4, 3, 3),
        {"group": 3, "dilations": [2, 2], "pads": [2, 2, 2, 2]},
    ),
}


@needs_kernels
@pytest.mark.parametrize("zero_point", [0, 9, 128, 255])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_exact(shape: str, zero_point: int) -> None:
    extents, kernel, given = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, extents, generator=generator).to(torch.uint8)
    weight = torch.randint(-128, 128, kernel, generator=generator).to(torch.int8)
    convolution = IntegerConvolution(weight, zero_point, given)
    expected = convolve(x.double() - zero_point, weight.double(), None, given)
    for images in (x, x[:1]):  # another number of images after the first
        made = convolution(images)
        assert made.dtype is torch.float32
        torch.testing.assert_close(made.double(), expected[: len(images)], rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("bits", ["w2a8", "w8a8", "w4a4", "w8a3"])
def test_a_processor_without_exact_kernels_simulates_the_same(
    bits: str, small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, images = uniform(small.network, bits), small.images[:40]
    with_bytes = small.simulation.logits(policy, images)
    monkeypatch.setattr(quantization.execution, "is_exact", lambda: False)
    without = Simulation(small.exporter, small.images[:40])
    np.testing.assert_array_equal(without.logits(policy, images), with_bytes)


@needs_kernels
def test_quantized_convolutions_are_convolved_as_bytes(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    run = IntegerConvolution.__call__

    def counted(self: IntegerConvolution, x: torch.Tensor) -> torch.Tensor:
        made.append(tuple(x.shape))
        return run(self, x)

    monkeypatch.setattr(IntegerConvolution, "__call__", counted)
    small.simulation.logits(uniform(small.network, "w4a8"), small.images[:4])
    assert len(made) == sum(layer.kind == "Conv" for layer in small.network.layers)
    made.clear()
    small.simulation.logits(uniform(small.network, "w4a32"), small.images[:4])
    assert not made


def test_blocks_of_a_large_network_hold_fewer_images(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = small.images[:40]
    expected = small.simulation.logits(Policy({}), images)
    largest = max(tensor.count for tensor in small.network.tensors)
    monkeypatch.setattr("quantization.simulation._VALUES", 3 * largest)
    simulation = Simulation(small.exporter, images)
    assert [
        len(block[small.network.input_names[0]]) for block in simulation._start(images[:8])
    ] == [3, 3, 2]
    np.testing.assert_allclose(simulation.logits(Policy({}), images), expected, atol=1e-5)
