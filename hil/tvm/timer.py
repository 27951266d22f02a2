"""Times kernels and whole networks; made for a worker process, which a kernel may crash.

A layer's kernels are compared with the quantizer's own arithmetic before they are timed: one that
is not exact is never timed. Those of glue, and of products of two activations, are compared with
ONNX Runtime by tests.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from hil.records import Record
from hil.timing import Mode, TimingOptions, WarmUp
from hil.tvm.address import Address
from hil.tvm.boards import Board, Run, ThisMachine, empty, tensor
from hil.tvm.compiling import build
from hil.tvm.imported import OnnxOperator
from hil.tvm.kernel import ConvolutionKernel
from hil.tvm.machine import Machine
from hil.tvm.operations import Operation
from hil.tvm.program import Program, Step, Value
from hil.tvm.reference import Operands, expected, random_operands
from hil.tvm.remote import Patience, RemoteBoard
from hil.tvm.tiles import Tile

Array = npt.NDArray[Any]
_Made = TypeVar("_Made")

KERNEL = "kernel"
"""Name of the only measurement of a step or a network."""

WARM_TIMING = TimingOptions(blocks=6, turn_s=4e-3, warm_up=WarmUp(cap_s=0.05))
COLD_TIMING = TimingOptions(blocks=4, samples=3, turn_s=0.0, mode=Mode.COLD, warm_up=None)

_FINALISTS = 3
_SCREENING = TimingOptions(blocks=2, turn_s=2e-3, warm_up=WarmUp(cap_s=0.02))
_FLOAT_TOLERANCE = 1e-5
_ROTATED_BYTES = 4 << 20
_MOST_COPIES = 1024


@dataclass(frozen=True)
class TimerSetup:
    """What all jobs of a timer have in common; can be pickled.

    Args:
        machine: what kernels are compiled for.
        address: of the board that runs them; None for this machine.
        timing: how long each is timed.
        patience: how long to wait for a board.
    """

    machine: Machine
    address: Address | None = None
    timing: TimingOptions = WARM_TIMING
    patience: Patience = field(default_factory=Patience)


class InexactKernelError(Exception):
    """A kernel does not compute what the quantizer does."""


class Timer:
    """Compiles, checks and times.

    Args:
        setup: see `TimerSetup`.

    Raises:
        BackendError: if there is no such board.
    """

    def __init__(self, setup: TimerSetup) -> None:
        self._setup = setup
        self._remote = None if setup.address is None else _remote(setup)
        self._board: Board = self._remote or ThisMachine()

    def __call__(self, job: Operation | Step | Program) -> Record:
        """Time the kernels of an operation, one step, or a whole program.

        Returns:
            Of an operation, measurements by tile of those that were quickest; its facts tell the
            instructions, all tiles that were tried, and any that were not exact. Else a
            measurement called `KERNEL`.

        Raises:
            InexactKernelError: if no kernel of an operation is exact.
            BackendError: if the board is gone.
        """
        return self._patiently(lambda: self._time(job))

    @property
    def _screening(self) -> TimingOptions:
        """How long each kernel of an operation is timed, before the quickest are timed again."""
        if self._setup.timing.mode is Mode.COLD:
            return replace(self._setup.timing, blocks=2)
        return _SCREENING

    def _time(self, job: Operation | Step | Program) -> Record:
        if isinstance(job, Operation):
            return self._operation(job)
        run = self._step(job) if isinstance(job, Step) else self._program(job)
        run.bound()()
        return Record(self._board.time({KERNEL: run}, self._setup.timing))

    def _patiently(self, job: Callable[[], _Made]) -> _Made:
        """Do a job, anew where the board was lost meanwhile."""
        for _ in range(self._setup.patience.retries):
            try:
                return job()
            except RuntimeError:
                if self._remote is None or not self._remote.is_lost():
                    raise
                self._remote.connect_again()
        return job()

    def runnable(self, operation: Operation, tile: Tile) -> Run:
        """Return the kernel of an operation that is cut in some way, with operands to run on.

        Raises:
            InexactKernelError: if it is not exact.
        """
        kernel = operation.kernel(self._setup.machine.instructions, tile)
        operands = random_operands(kernel, operation.activations)
        return self._kernel(kernel, operands, expected(kernel, operands))

    def _operation(self, operation: Operation) -> Record:
        machine = self._setup.machine
        kernels = operation.kernels(machine.instructions)
        operands = random_operands(kernels[0], operation.activations)
        wanted = expected(kernels[0], operands)
        runs, inexact = dict[str, Run](), list[str]()
        for kernel in kernels:
            try:
                runs[str(kernel.tile)] = self._kernel(kernel, operands, wanted)
            except InexactKernelError:
                inexact.append(str(kernel.tile))
        if not runs:
            raise InexactKernelError(f"no kernel of {operation}")
        first = self._board.time(runs, self._screening)
        best = sorted(first, key=lambda tile: first[tile].p10_s)[:_FINALISTS]
        measured = self._board.time({tile: runs[tile] for tile in best}, self._setup.timing)
        facts = {
            "instructions": kernels[0].arithmetic.name,
            "tried": {tile: taken.p10_s for tile, taken in first.items()},
            "inexact": inexact,
        }
        return Record(measured, facts=facts)

    def _kernel(self, kernel: ConvolutionKernel, operands: Operands, wanted: Array) -> Run:
        board, shape = self._board, kernel.shape
        module = board.load(tvm.compile(kernel.function(), self._setup.machine.target))
        laid_out = operands.laid_out(kernel)
        inputs, weights, *rest = (tensor(board, each) for each in laid_out)
        made = empty(board, shape.output_count, kernel.arithmetic.inputs)
        count = 0 if self._remote else _copies(laid_out[1].nbytes)
        copies = [tensor(board, laid_out[1]) for _ in range(count)]
        run = Run(
            module,
            (inputs, weights, *rest, made),
            [(inputs, copy, *rest, made) for copy in copies],
        )
        run.bound()()
        found = made.numpy().reshape(*shape.output, shape.out_pixel)[..., : shape.out_channels]
        if not _agrees(found, wanted):
            raise InexactKernelError(f"{kernel.tile} of {kernel.bits} bits, {shape}")
        return run

    def _step(self, step: Step) -> Run:
        if isinstance(step.kernel, OnnxOperator):
            return self._program(Program.of(step))
        module = self._board.load(
            tvm.compile(step.kernel.function("main"), self._setup.machine.target)
        )
        given = [*map(_drawn, step.inputs), *step.constants]
        made = empty(self._board, step.output.count, step.output.content)
        return Run(module, (*(tensor(self._board, each) for each in given), made))

    def _program(self, program: Program) -> Run:
        loaded = self._board.load(build(program, self._setup.machine.target))
        machine = relax.VirtualMachine(loaded, self._board.device)
        given = [tensor(self._board, _drawn(value)) for value in program.inputs.values()]
        return Run(machine, given)


def _drawn(value: Value) -> Array:
    """Return what some value may hold."""
    draw = np.random.default_rng(value.count)
    if value.content == "float32":
        return draw.standard_normal(value.count).astype(np.float32)
    limits = np.iinfo(value.content)
    return draw.integers(limits.min, limits.max + 1, value.count).astype(value.content)


def _copies(weight_bytes: int) -> int:
    """How many copies of a layer's weights take turns.

    In a network, others' weights come between two runs of a layer: its own are no longer in the
    second cache, while its input is, which was made just before. A board has one copy.
    """
    return min(_ROTATED_BYTES // max(weight_bytes, 1), _MOST_COPIES)


def _remote(setup: TimerSetup) -> RemoteBoard:
    assert setup.address is not None
    return RemoteBoard(setup.address, setup.patience)


def _agrees(found: Array, wanted: Array) -> bool:
    if found.dtype != np.float32:
        return np.array_equal(found, wanted)
    return bool(np.abs(found - wanted).max() <= _FLOAT_TOLERANCE * np.abs(wanted).max())
