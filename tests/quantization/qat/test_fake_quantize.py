"""Rounding that gradients pass, and steps that learn."""

import numpy as np
import pytest
import torch

from quantization.qat.fake_quantize import fake_quantize
from quantization.quantizer import AffineGrid, quantize_weight


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_activations_land_on_the_grid_of_the_exporter(bits: int) -> None:
    grid = AffineGrid.of_range(-0.7, 2.9, bits)
    x = np.linspace(-2, 4, 1001, dtype=np.float32)
    high = 2**bits - 1 - grid.zero_point
    found = fake_quantize(torch.from_numpy(x), torch.tensor(grid.scale), -grid.zero_point, high, 1)
    np.testing.assert_array_equal(found.numpy(), grid.dequantize(grid.quantize(x)))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weights_land_on_the_grid_of_the_exporter(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((4, 30)).astype(np.float32)
    expected = quantize_weight(weight, bits, 0)
    step = torch.from_numpy(expected.scale)[:, None]
    high = 2 ** (bits - 1) - 1
    found = fake_quantize(torch.from_numpy(weight), step, -high - 1, high, 30)
    np.testing.assert_array_equal(found.numpy(), expected.dequantize())


def test_gradients_pass_inside_the_grid_and_stop_outside() -> None:
    x = torch.tensor([-2.0, -0.6, 0.2, 0.9, 7.0], requires_grad=True)
    fake_quantize(x, torch.tensor(0.5), -2, 3, 1).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_the_gradient_of_the_step_is_that_of_lsq() -> None:
    """Inside round(v) - v, outside the end's level; times 1 / sqrt(count * high)."""
    step = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([-2.0, 0.2, 7.0])
    made = fake_quantize(x, step, -2, 3, count=12)
    made.backward(torch.tensor([1.0, 10.0, 100.0]))  # type: ignore[no-untyped-call]
    assert step.grad is not None
    expected = (1.0 * -2 + 10.0 * (0.0 - 0.4) + 100.0 * 3) / 6.0
    assert float(step.grad) == pytest.approx(expected)


def test_each_channel_gets_the_gradient_of_its_own_step() -> None:
    step = torch.tensor([[1.0], [1.0]], requires_grad=True)
    x = torch.tensor([[9.0, 9.0], [-9.0, 0.0]])
    fake_quantize(x, step, -2, 1, count=1).sum().backward()  # type: ignore[no-untyped-call]
    assert step.grad is not None
    assert step.grad.tolist() == [[2.0], [-2.0]]
