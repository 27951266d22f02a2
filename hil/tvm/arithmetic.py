"""What kernels multiply, and with which instructions.

An arithmetic takes a vector of weights, 64 bytes: 16 output channels with so many consecutive
inputs each as fit. It goes through it in chunks, multiplies them with the same inputs for every
channel (or, in depthwise layers, with inputs of each channel), and adds the products into one or
several partial sums a channel.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from tvm.script.ir_builder import tirx as T

from hil.tvm.shapes import CHANNELS
from hil.tvm.vectors import (
    Buffer,
    Expression,
    cast,
    constant,
    intrinsic,
    load,
    reinterpret,
)

VECTOR_BYTES = 64

Kind = Literal["vnni", "madd", "plain"]
Content = Literal["int8", "int16", "float32"]


@dataclass(frozen=True)
class Arithmetic:
    """How products are made and added up.

    Args:
        name: of the instructions, as answers tell it.
        content: of the weights; activations are uint8, int16 or float32 beside them.
        kind: ``vnni`` multiplies and adds four bytes in one instruction, ``madd`` two int16 (bytes
            are widened first), ``plain`` leaves it to the compiler.
        chunk_bytes: of weights that one step takes.
        partial: sums of each channel that are kept apart.
    """

    name: str
    content: Content
    kind: Kind
    chunk_bytes: int
    partial: int

    @property
    def inputs(self) -> str:
        """Type of the activations."""
        return "uint8" if self.content == "int8" else self.content

    @property
    def sums(self) -> str:
        """Type of the sums; of int16, two products may fill an int32."""
        return {"int8": "int32", "int16": "int64", "float32": "float32"}[self.content]

    @property
    def depth(self) -> int:
        """Inputs of one channel that stand side by side."""
        return {"int8": 4, "int16": 2, "float32": 1}[self.content]

    @property
    def chunk(self) -> int:
        """Weights that one step takes."""
        return self.chunk_bytes * CHANNELS * self.depth // VECTOR_BYTES

    @property
    def chunks(self) -> int:
        """Steps for a vector of weights."""
        return VECTOR_BYTES // self.chunk_bytes

    @property
    def chunk_sums(self) -> int:
        """Partial sums that one step adds to."""
        return self.chunk // self.depth * self.partial

    def spread(self, buffer: Buffer, place: Expression) -> Expression:
        """Return `depth` inputs from `place` on, the same ones for every channel of a chunk."""
        if self.depth == 1:
            return T.broadcast(buffer[place], self.chunk)
        few = T.reinterpret(load(buffer, place, self.inputs, self.depth), dtype="int32")
        words = T.broadcast(few, self.chunk // self.depth)
        return reinterpret(words, self.inputs, self.chunk)

    def multiply_add(
        self, total: Expression, inputs: Expression, weights: Expression
    ) -> Expression:
        """Return `total` and the products added up.

        Args:
            total: `chunk_sums` of them.
            inputs: `chunk` of them.
            weights: `chunk` of them.
        """
        if self.content == "float32":
            return total + inputs * weights
        if self.kind == "vnni":
            return intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32x16", total, inputs, weights)
        if self.content == "int8":
            inputs, weights = (cast(each, "int16", self.chunk) for each in (inputs, weights))
        if self.kind == "madd":
            name = {32: "llvm.x86.avx512.pmaddw.d.512", 16: "llvm.x86.avx2.pmadd.wd"}[self.chunk]
            made = intrinsic(name, f"int32x{self.chunk // 2}", inputs, weights)
        elif self.content == "int8":  # 255 * -128 is within int16
            made = cast(inputs * weights, "int32", self.chunk)
        else:
            made = cast(inputs, "int64", self.chunk) * cast(weights, "int64", self.chunk)
        if self.content == "int16" and self.kind == "madd":
            made = _widened(made, self.chunk_sums)
        return total + made


def _widened(sums: Expression, lanes: int) -> Expression:
    """Turn sums of two products of int16 into int64.

    2^31, of four times the least number, has wrapped to -2^31, which no other products sum up to:
    so one less is widened, and one is added.
    """
    less = reinterpret(sums, "uint32", lanes) - constant(1, lanes, "uint32")
    wide = cast(reinterpret(less, "int32", lanes), "int64", lanes)
    return wide + constant(1, lanes, "int64")


@dataclass(frozen=True)
class InstructionSet:
    """What a processor offers.

    Args:
        name: as answers tell it.
        needs: features of the processor, as LLVM names them.
        registers: of vectors.
        register_bytes: of each.
        arithmetics: how weights of each content are multiplied.
    """

    name: str
    needs: frozenset[str]
    registers: int
    register_bytes: int
    arithmetics: tuple[Arithmetic, Arithmetic, Arithmetic]

    def of(self, content: Content) -> Arithmetic:
        """Return the arithmetic of weights of some content."""
        return next(each for each in self.arithmetics if each.content == content)


AVX512 = InstructionSet(
    "avx512-vnni",
    frozenset({"avx512f", "avx512bw", "avx512vnni"}),
    32,
    64,
    (
        Arithmetic("avx512-vnni", "int8", "vnni", 64, 1),
        Arithmetic("avx512-vnni", "int16", "madd", 64, 1),
        Arithmetic("avx512-vnni", "float32", "plain", 64, 1),
    ),
)
AVX2 = InstructionSet(
    "avx2",
    frozenset({"avx2", "fma"}),
    16,
    32,
    (
        Arithmetic("avx2", "int8", "madd", 16, 2),
        Arithmetic("avx2", "int16", "madd", 32, 1),
        Arithmetic("avx2", "float32", "plain", 32, 1),
    ),
)
PORTABLE = InstructionSet(
    "portable",
    frozenset(),
    16,
    16,
    (
        Arithmetic("portable", "int8", "plain", 16, 4),
        Arithmetic("portable", "int16", "plain", 16, 2),
        Arithmetic("portable", "float32", "plain", 16, 1),
    ),
)
INSTRUCTION_SETS = (AVX512, AVX2, PORTABLE)
"""The quickest first."""


def choose_instructions(features: Collection[str]) -> InstructionSet:
    """Return the quickest instruction set that a processor with `features` has."""
    return next(each for each in INSTRUCTION_SETS if each.needs <= set(features))
