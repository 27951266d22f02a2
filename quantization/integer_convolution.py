"""Convolutions of 8-bit integers by oneDNN: the sums of float32, in less time.

The processor multiplies bytes and sums in int32. Older ones sum pairs of products in int16, which
saturate: `is_exact` finds out, and is asked before any kernel of here is used.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from quantization.torch_windows import convolve, windows

_LOGGER = logging.getLogger(__name__)


class IntegerConvolution:
    """One convolution over two axes, of uint8 by int8.

    Args:
        weight: int8 (out, in / groups, height, width).
        zero_point: of what is convolved; what is padded counts as zero.
        given: attributes of the ONNX operator.
    """

    def __init__(self, weight: torch.Tensor, zero_point: int, given: Mapping[str, Any]) -> None:
        self._weight, self._zero_point, self._given = weight, zero_point, given
        self._scales = torch.ones(len(weight))
        self._zeros = torch.zeros(len(weight), dtype=torch.int64)
        self._packed: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return sums of products, float32 (N, out, *size), of uint8 (N, in, *size)."""
        kernel = self._weight.shape[2:]
        x, strides, padding, dilations = windows(x, kernel, self._given, self._zero_point)
        place = strides, padding, dilations, self._given.get("group", 1)
        kernels = torch.ops.onednn
        if self._packed is None:
            self._packed = kernels.qconv_prepack(
                self._weight, self._scales, 1.0, self._zero_point, *place, list(x.shape)
            )
        made: torch.Tensor = kernels.qconv2d_pointwise(
            x,
            1.0,
            self._zero_point,
            self._packed,
            self._scales,
            self._zeros,
            None,
            *place,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return made


@cache
def is_exact() -> bool:
    """Return whether this build and processor convolve the largest integers exactly."""
    exact = _convolves_exactly()
    if not exact:
        _LOGGER.info("no exact convolutions of bytes here: accuracy takes longer, in float32")
    return exact


def _convolves_exactly() -> bool:
    given = {"pads": [1, 1, 1, 1]}
    for channels, groups in ((64, 1), (64, 64), (3, 1)):
        x = torch.full((2, channels, 8, 8), 255, dtype=torch.uint8)
        weight = torch.full((64, channels // groups, 3, 3), -128, dtype=torch.int8)
        weight[::2] = 127
        placed = {**given, "group": groups}
        for zero_point in (0, 5):
            expected = convolve(x.double() - zero_point, weight.double(), None, placed)
            try:
                made = IntegerConvolution(weight, zero_point, placed)(x)
            except (AttributeError, RuntimeError):  # torch was built without them
                return False
            if not torch.equal(made.double(), expected):
                return False
    return True
