"""Rounding to a grid that gradients pass, with a step that learns."""

import math
from typing import Any

import torch

Level = torch.Tensor | float


class _LearnedStep(torch.autograd.Function):
    """``clamp(round(x / step), low, high) * step``; gradients as in `fake_quantize`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, step: torch.Tensor, low: Level, high: Level, share: Level
    ) -> torch.Tensor:
        ratio = x / step
        level = ratio.round().clamp_(low, high)  # type: ignore[arg-type]  # stub: both of one kind
        ctx.save_for_backward(ratio, level)
        ctx.low, ctx.high, ctx.share, ctx.shape = low, high, share, step.shape
        return level * step

    @staticmethod
    def backward(
        ctx: Any, *gradients: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        [gradient] = gradients
        ratio, level = ctx.saved_tensors
        passed = gradient * ((ratio >= ctx.low) & (ratio <= ctx.high))
        # Inside, d/ds of s * round(x / s) is round(x / s) - x / s; outside it is the end's level.
        of_step = (gradient * level - passed * ratio).sum_to_size(ctx.shape) * ctx.share
        return passed, of_step, None, None, None


def fake_quantize(
    x: torch.Tensor, step: torch.Tensor, low: Level, high: Level, count: int
) -> torch.Tensor:
    """Return ``clamp(round(x / step), low, high) * step``, rounded half to even.

    Gradients pass straight through the rounding and stop outside the grid. The gradient of the step
    is that of LSQ (S. Esser et al., Learned Step Size Quantization, ICLR 2020), times
    ``1 / sqrt(count * high)``, which gives steps and weights relative updates of equal size.

    Args:
        x: reals of any shape.
        step: distance of two levels, positive; broadcasts against `x`.
        low: lowest level, not positive; one for all, or in the shape of `step`.
        high: highest level, not negative; likewise.
        count: values that share one step (for activations, of one image).

    >>> step = torch.tensor(0.5, requires_grad=True)
    >>> fake_quantize(torch.tensor([-9.0, 0.3, 9.0]), step, -2, 1, 1).tolist()
    [-1.0, 0.5, 0.5]
    """
    share: Level
    if isinstance(high, torch.Tensor):
        share = (count * high.clamp_min(1.0)).rsqrt()
    else:
        share = 1.0 / math.sqrt(count * max(high, 1))
    made: torch.Tensor = _LearnedStep.apply(x, step, low, high, share)  # type: ignore[no-untyped-call]
    return made
