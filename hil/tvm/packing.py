"""Weights as kernels read them, and how these unpack them.

A vector of 64 bytes holds 16 channels x 4 inputs at 8 bits, x 2 at 16 bits, x 1 in float32. Below 8
bits, several groups of 4 inputs lie over each other: two at 4 bits, four at 2 bits, and four in
three vectors at 6 bits (two of 4 low bits, one of 2 high bits). Unpacking shifts a group to the
*top* of its bytes and masks it, so an int8 there is the weight times 2^(8 - bits): the sign comes
for free, and one shift of the sum takes the factor away.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tvm.script.ir_builder import tirx as T

from hil.tvm.arithmetic import Content
from hil.tvm.shapes import CHANNELS
from hil.tvm.vectors import Expression, constant, reinterpret

WIDTHS = (2, 4, 6, 8, 16, 32)
"""Bits of weights that kernels take; 32 is float32."""


@dataclass(frozen=True)
class Packing:
    """How weights of one width lie.

    Args:
        bits: one of `WIDTHS`.
    """

    bits: int

    @property
    def content(self) -> Content:
        """What the arithmetic is given."""
        return {16: "int16", 32: "float32"}.get(self.bits, "int8")  # type: ignore[return-value]

    @property
    def depth(self) -> int:
        """Inputs of one channel side by side."""
        return {16: 2, 32: 1}.get(self.bits, 4)

    @property
    def groups(self) -> int:
        """Groups of `depth` inputs that share a vector, or three at 6 bits."""
        return {4: 2, 2: 4, 6: 4}.get(self.bits, 1)

    @property
    def vectors(self) -> int:
        """How many hold the groups."""
        return 3 if self.bits == 6 else 1

    @property
    def inputs(self) -> int:
        """Which a step takes, per channel."""
        return self.depth * self.groups

    @property
    def vector(self) -> int:
        """Elements of a vector."""
        return CHANNELS * self.depth

    def pack(self, weights: npt.NDArray[Any], blocks: int) -> npt.NDArray[Any]:
        """Return weights (O, K) as (O / 16 / blocks, K / inputs, vectors, blocks, vector), flat.

        Args:
            weights: within the width; O a multiple of ``16 * blocks``, K of `inputs`.
            blocks: of 16 channels that a tile takes.
        """
        rows, columns = weights.shape
        shape = (rows // (CHANNELS * blocks), blocks, CHANNELS, columns // self.inputs)
        fields = weights.reshape(*shape, self.groups, self.depth).transpose(0, 3, 4, 1, 2, 5)
        if self.bits >= 8:
            return np.ascontiguousarray(fields, self.content).reshape(-1)
        fields = fields.astype(np.int64) & (2**self.bits - 1)
        group = [fields[:, :, q] for q in range(self.groups)]
        if self.bits == 6:
            low = [each & 15 for each in group]
            high = [each >> 4 for each in group]
            laid = [_overlaid(low[:2], 4), _overlaid(low[2:], 4), _overlaid(high, 2)]
        else:
            laid = [_overlaid(group, self.bits)]
        stacked = np.stack(laid, axis=2).astype(np.uint8)
        return np.ascontiguousarray(stacked).view(np.int8).reshape(-1)

    def unpack(self, loads: list[Expression], group: int, lanes: int) -> Expression:
        """Return one group of packed bytes as int8, at the top of their bytes.

        Args:
            loads: of each vector, `lanes` of int32.
            group: which.
            lanes: of 4 bytes.
        """
        if self.bits == 6:
            low = _field(loads[group // 2], 2 - 4 * (group % 2), 0x3C, lanes)
            found = T.bitwise_or(low, _field(loads[2], 6 - 2 * group, 0xC0, lanes))
        else:
            top = 8 - self.bits
            found = _field(loads[0], top - self.bits * group, 0xFF & (0xFF << top), lanes)
        return reinterpret(found, "int8", 4 * lanes)


def _overlaid(groups: list[npt.NDArray[np.int64]], bits: int) -> npt.NDArray[np.int64]:
    found = np.zeros_like(groups[0])
    for place, group in enumerate(groups):
        found |= group << (bits * place)
    return found


def _field(vector: Expression, left: int, mask: int, lanes: int) -> Expression:
    """Shift by `left` (right if negative), and keep `mask` of each byte."""
    word = int.from_bytes(bytes([mask] * 4), "little", signed=True)
    if left:
        shift = T.shift_left if left > 0 else T.shift_right
        vector = shift(vector, constant(abs(left), lanes))
    return T.bitwise_and(vector, constant(word, lanes))
