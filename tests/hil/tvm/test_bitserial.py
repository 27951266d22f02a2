"""Counting bits gives exactly the sums of products, with each set of instructions."""

import numpy as np
import pytest

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install '.[tvm]'")

import tvm

from hil.tvm.arithmetic import AVX512, INSTRUCTION_SETS, InstructionSet
from hil.tvm.bitserial import BitSerialKernel
from hil.tvm.reference import Operands, expected
from hil.tvm.shapes import Convolution
from hil.tvm.tiles import Tile

PROCESSORS = {"avx512-vnni": "znver4", "avx2": "haswell", "portable": "x86-64"}
SHAPES = {
    "pointwise, two words less a half": Convolution(5, 7, 48, 32),
    "3x3 with pads": Convolution(9, 13, 24, 40, (3, 3), pads=(1, 1, 1, 1)),
    "strided": Convolution(9, 13, 64, 32, (3, 3), (2, 2), (0, 0, 1, 1)),
    "dilated": Convolution(9, 9, 16, 16, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "an image": Convolution(9, 13, 3, 16, (3, 3), (2, 2), (1, 1, 1, 1)),
    "eight words at once": Convolution(4, 4, 256, 32),
    "rows of a matrix": Convolution(1, 3, 100, 20),
}


def operands(kernel: BitSerialKernel, seed: int = 0) -> Operands:
    shape, draw = kernel.shape, np.random.default_rng(seed)
    kind = (shape.out_channels, *shape.kernel, shape.in_channels)
    inputs = draw.integers(0, 4, (shape.height, shape.width, shape.in_channels))
    factors = (draw.random(shape.out_channels) + 0.5) * 30 / np.sqrt(np.prod(kind[1:]))
    return Operands(
        inputs.astype(np.uint8),
        draw.integers(-2, 2, kind),
        draw.integers(-20, 20, shape.out_channels),
        factors.astype(np.float32),
        (1, 111),
    )


def run(kernel: BitSerialKernel) -> None:
    given = operands(kernel)
    target = {"kind": "llvm", "mcpu": PROCESSORS[kernel.instructions.name], "num-cores": 1}
    built = tvm.compile(kernel.function(), tvm.target.Target(target))
    shape, cpu = kernel.shape, tvm.cpu(0)
    made = tvm.runtime.empty((shape.output_count,), "uint8", cpu)
    laid_out = given.laid_out(kernel)
    assert laid_out[1].size == kernel.weight_count
    built["main"](*(tvm.runtime.tensor(each, cpu) for each in laid_out), made)
    found = made.numpy().reshape(*shape.output, shape.out_pixel)[..., : shape.out_channels]
    wanted = expected(kernel, given)
    assert len(np.unique(wanted)) > 3
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS, ids=lambda each: each.name)
@pytest.mark.parametrize("name", SHAPES)
def test_counts_are_sums_of_products(name: str, instructions: InstructionSet) -> None:
    shape = SHAPES[name]
    blocks = 2 if shape.out_step % 32 == 0 else 1
    for tile in (Tile(3, blocks), Tile(1, 1, weights_first=True)):
        run(BitSerialKernel(shape, 2, instructions, tile))


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="of 2 bits, not 4"):
        BitSerialKernel(SHAPES["strided"], 4, AVX512, Tile(3, 1))
