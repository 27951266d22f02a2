"""Kernels compute what the quantizer does, bit by bit, with each set of instructions."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install '.[tvm]'")

import tvm

from hil.tvm.arithmetic import INSTRUCTION_SETS, InstructionSet
from hil.tvm.dense import DenseKernel
from hil.tvm.depthwise import DepthwiseKernel
from hil.tvm.kernel import ConvolutionKernel
from hil.tvm.packing import WIDTHS
from hil.tvm.reference import Operands, expected, random_operands
from hil.tvm.shapes import Convolution
from hil.tvm.tiles import Tile

PROCESSORS = {"avx512-vnni": "znver4", "avx2": "haswell", "portable": "x86-64"}
SHAPES = {
    "3x3 with pads, gaps between channels": Convolution(9, 13, 24, 40, (3, 3), pads=(1, 1, 1, 1)),
    "an image, strided, rows of a window in one run": Convolution(
        9, 13, 3, 40, (3, 3), (2, 2), (0, 0, 1, 1)
    ),
    "pointwise": Convolution(5, 7, 48, 32),
    "dilated": Convolution(9, 9, 16, 16, (3, 3), pads=(2, 2, 2, 2), dilation=(2, 2)),
    "rows of a matrix": Convolution(1, 3, 100, 20),
}


def run(kernel: ConvolutionKernel) -> None:
    check(kernel, random_operands(kernel), spread=4)


def check(kernel: ConvolutionKernel, given: Operands, *, spread: int = 2) -> None:
    target = {"kind": "llvm", "mcpu": PROCESSORS[kernel.instructions.name], "num-cores": 1}
    built = tvm.compile(kernel.function(), tvm.target.Target(target))
    shape, cpu = kernel.shape, tvm.cpu(0)
    made = tvm.runtime.empty((shape.output_count,), kernel.arithmetic.inputs, cpu)
    built["main"](*(tvm.runtime.tensor(each, cpu) for each in given.laid_out(kernel)), made)
    found = made.numpy().reshape(*shape.output, shape.out_pixel)[..., : shape.out_channels]
    wanted = expected(kernel, given)
    if kernel.bits == 32:
        np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
        return
    assert len(np.unique(wanted)) >= spread
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS, ids=lambda each: each.name)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("name", SHAPES)
def test_convolutions_that_see_all_channels(
    name: str, bits: int, instructions: InstructionSet
) -> None:
    shape = SHAPES[name]
    blocks = 3 if shape.out_step % 48 == 0 else 1
    for tile in (Tile(3, blocks), Tile(1, 1, weights_first=True)):
        run(DenseKernel(shape, bits, instructions, tile))


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS, ids=lambda each: each.name)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("kernel", "stride", "pad"), [(3, 1, 1), (5, 2, 2), (3, 2, 0)])
def test_depthwise_convolutions(
    kernel: int, stride: int, pad: int, bits: int, instructions: InstructionSet
) -> None:
    shape = Convolution(
        9, 13, 24, 24, (kernel, kernel), (stride, stride), (pad,) * 4, depthwise=True
    )
    run(DepthwiseKernel(shape, bits, instructions, Tile(4)))


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS, ids=lambda each: each.name)
@pytest.mark.parametrize("bits", [2, 8, 16])
def test_the_least_weights_and_inputs_do_not_overflow(
    bits: int, instructions: InstructionSet
) -> None:
    """Four times the least int16 is one more than an int32 holds."""
    kernel = DenseKernel(SHAPES["pointwise"], bits, instructions, Tile(3, 1))
    drawn = random_operands(kernel)
    inputs, weights = drawn.inputs.copy(), np.full_like(drawn.weights, -(2 ** (bits - 1)))
    inputs[::2] = np.iinfo(inputs.dtype).min
    weights[::2] += 1
    check(kernel, replace(drawn, inputs=inputs, weights=weights))


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS, ids=lambda each: each.name)
@pytest.mark.parametrize("pad", [0, 1])
def test_depthwise_convolutions_of_an_image(pad: int, instructions: InstructionSet) -> None:
    """A vector of 16 channels reads beyond the pixel of an image, which has four elements."""
    shape = Convolution(8, 8, 3, 3, (3, 3), pads=(pad,) * 4, depthwise=True)
    kernel = DepthwiseKernel(shape, 8, instructions, Tile(4))
    assert kernel.overrun == 12
    run(kernel)
