"""Kernels that Apache TVM compiles for us beside ONNX Runtime's, layer by layer.

    OMP_NUM_THREADS=1 python benchmarks/tvm_kernels.py            # 19 layers, 2 minutes
    OMP_NUM_THREADS=1 python benchmarks/tvm_kernels.py --quick    # 3 small ones, for the test

Layers of MobileNetV2, ResNet-18 and a transformer block 768 wide, at batch 1. Each row is one
interleaved run on one thread: our kernels at 8, 6, 4 and 2 bits of weights, bytes in and out; ONNX
Runtime's float32 and INT8 (bytes in and out, bound buffers); of matrices of one row its
`MatMulNBits` too. Every kernel of ours is checked against the quantizer's arithmetic first, and is
cut as a short search finds best. From ONNX Runtime's times that of an empty session is taken off,
so that only operators are compared. Times are p10.

Expected before it was first run: 8 bits win everywhere, by 1.2x in the geometric mean; products of
3x3 convolutions are at the processor's limit in both, so hardly above 1x there; depthwise
convolutions 2x, since ONNX Runtime has no kernel of their own for bytes; matrices of one row gain
from fewer bits as far as weights come from memory, as those of a whole transformer do: that is the
line called cold. Warm, they lie in the third cache, and unpacking 4 bits takes as long as reading
them (measured: 2 bits are no quicker there; unpacking by GFNI's instruction is slower still on Zen
4, where it waits for the same units as the products).
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.onnxruntime_layers import (
    empty_session,
    float_layer,
    integer_layer,
    is_matrix,
    weights_only,
)
from hil.timing import Mode, Run, TimingOptions, time_interleaved
from hil.tvm.machine import Machine, this_machine
from hil.tvm.operations import Operation
from hil.tvm.shapes import Convolution
from hil.tvm.tiles import Tile
from hil.tvm.timer import Timer, TimerSetup

SAME = (1, 1, 1, 1)
LAYERS: dict[str, Convolution] = {
    "MobileNetV2 3x3/2 3-32 224": Convolution(224, 224, 3, 32, (3, 3), (2, 2), SAME),
    "MobileNetV2 dw 32 112": Convolution(112, 112, 32, 32, (3, 3), pads=SAME, depthwise=True),
    "MobileNetV2 dw/2 96 112": Convolution(112, 112, 96, 96, (3, 3), (2, 2), SAME, depthwise=True),
    "MobileNetV2 1x1 24-144 56": Convolution(56, 56, 24, 144),
    "MobileNetV2 dw 144 56": Convolution(56, 56, 144, 144, (3, 3), pads=SAME, depthwise=True),
    "MobileNetV2 1x1 144-24 56": Convolution(56, 56, 144, 24),
    "MobileNetV2 1x1 96-576 14": Convolution(14, 14, 96, 576),
    "MobileNetV2 dw 576 14": Convolution(14, 14, 576, 576, (3, 3), pads=SAME, depthwise=True),
    "MobileNetV2 1x1 160-960 7": Convolution(7, 7, 160, 960),
    "MobileNetV2 dw 960 7": Convolution(7, 7, 960, 960, (3, 3), pads=SAME, depthwise=True),
    "ResNet-18 7x7/2 3-64 224": Convolution(224, 224, 3, 64, (7, 7), (2, 2), (3, 3, 3, 3)),
    "ResNet-18 3x3 64-64 56": Convolution(56, 56, 64, 64, (3, 3), pads=SAME),
    "ResNet-18 3x3 256-256 14": Convolution(14, 14, 256, 256, (3, 3), pads=SAME),
    "ResNet-18 3x3 512-512 7": Convolution(7, 7, 512, 512, (3, 3), pads=SAME),
    "block 128 rows 768-768": Convolution(1, 128, 768, 768),
    "block 128 rows 768-3072": Convolution(1, 128, 768, 3072),
    "block 1 row 768-2304": Convolution(1, 1, 768, 2304),
    "block 1 row 768-3072": Convolution(1, 1, 768, 3072),
    "block 1 row 3072-768": Convolution(1, 1, 3072, 768),
}
QUICK = {
    "1x1 24-40 7": Convolution(7, 7, 24, 40),
    "dw 32 7": Convolution(7, 7, 32, 32, (3, 3), pads=SAME, depthwise=True),
    "1 row 96-64": Convolution(1, 1, 96, 64),
}
WIDTHS = (8, 6, 4, 2)
LEAST, LEAST_MEAN, LEAST_DEPTHWISE, LEAST_GAIN = 1.0, 1.2, 2.0, 1.7
"""8 bits against ONNX Runtime INT8: everywhere, in the geometric mean, of depthwise layers; and 4
bits against 8 of matrices of one row whose weights come from memory."""

_WARM = TimingOptions(blocks=12)
_COLD = TimingOptions(blocks=5, samples=5, turn_s=0.0, mode=Mode.COLD, warm_up=None)


@dataclass(frozen=True)
class Row:
    """Seconds of one layer.

    Args:
        warm: by what ran, the empty session taken off what ONNX Runtime ran.
        cold: of matrices of one row, the caches emptied before each run.
    """

    warm: Mapping[str, float]
    cold: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """ONNX Runtime's INT8 over ours at 8 bits."""
        return self.warm["int8"] / self.warm["w8"]


def main() -> int:
    """Print a row for each layer, and what is reached; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    machine, layers = this_machine(), QUICK if quick else LAYERS
    print(f"{machine.mcpu}, {machine.instructions.name}; us, p10; one thread")
    names = [*(f"w{bits}" for bits in WIDTHS), "float", "int8", "n8", "n4", "n2"]
    print(f"{'':28s}" + "".join(f"{name:>8s}" for name in names) + "  int8/w8")
    rows = {}
    for name, shape in layers.items():
        rows[name] = row = measured(shape, machine, quick=quick)
        times = "".join(_text(row.warm.get(each)) for each in names)
        print(f"{name:28s}{times}{row.ratio:9.2f}", flush=True)
        if row.cold:
            print(f"{'  cold':28s}" + "".join(_text(row.cold.get(each)) for each in names))
    return 0 if quick else judged(rows, layers)


def measured(shape: Convolution, machine: Machine, *, quick: bool) -> Row:
    """Time a layer in one interleaved run; matrices of one row cold as well."""
    timer = Timer(TimerSetup(machine))
    ours = {f"w{bits}": _kernel(timer, Operation(shape, bits, 8)) for bits in WIDTHS}
    matrix = is_matrix(shape)
    theirs: dict[str, Run] = {"float": float_layer(shape), "int8": integer_layer(shape)}
    if matrix and shape.width == 1:
        for bits in (8, 4, 2):
            theirs[f"n{bits}"] = weights_only(shape, bits)
    runs = {**ours, **theirs, "empty": empty_session()}
    warm = _timed(runs, TimingOptions(blocks=2, turn_s=1e-3) if quick else _WARM)
    cold = _timed(runs, _COLD) if matrix and shape.width == 1 and not quick else {}
    return Row(warm, cold)


def judged(rows: Mapping[str, Row], layers: Mapping[str, Convolution]) -> int:
    """Say what is reached; 1 if a target is missed."""
    ratios = {name: row.ratio for name, row in rows.items()}
    mean = float(np.exp(np.mean(np.log(list(ratios.values())))))
    depthwise = {name: ratio for name, ratio in ratios.items() if layers[name].depthwise}
    bound = {name: row for name, row in rows.items() if row.cold}
    gains = {name: row.cold["w8"] / row.cold["w4"] for name, row in bound.items()}
    checks = [
        _check("least, 8 bits against INT8", min(ratios.values()), LEAST),
        _check("geometric mean", mean, LEAST_MEAN),
        _check("least of depthwise layers", min(depthwise.values()), LEAST_DEPTHWISE),
    ]
    for name, row in bound.items():
        warm = row.warm["w8"] / row.warm["w4"]
        print(f"  4 bits against 8, {name}: {gains[name]:.2f}x cold, {warm:.2f}x warm")
    checks.append(
        _check("least gain of 4 bits, weights from memory", min(gains.values()), LEAST_GAIN)
    )
    return 0 if all(checks) else 1


def _check(what: str, found: float, least: float) -> bool:
    print(f"{what}: {found:.2f}x ({'reached' if found >= least else 'MISSED'}: {least:g}x)")
    return found >= least


def _kernel(timer: Timer, operation: Operation) -> Run:
    """Return the quickest kernel of an operation; checked to be exact, as all that are timed."""
    taken = timer(operation).measurements
    tile = Tile.parse(min(taken, key=lambda each: taken[each].p10_s))
    return timer.runnable(operation, tile).bound()


def _timed(runs: Mapping[str, Callable[[], object]], options: TimingOptions) -> dict[str, float]:
    found = {name: taken.p10_s for name, taken in time_interleaved(runs, options).items()}
    empty = found.pop("empty")
    return {name: t if name.startswith("w") else t - empty for name, t in found.items()}


def _text(seconds: float | None) -> str:
    return f"{'-' if seconds is None else f'{1e6 * seconds:.1f}':>8s}"


if __name__ == "__main__":
    sys.exit(main())
