"""Where compiled kernels run: in this process, or on a board behind Apache TVM's RPC."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm

from costmodels.measurement import Measurement
from hil.timing import TimingOptions, time_interleaved

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Run:
    """What is timed.

    Args:
        module: that a board loaded.
        arguments: of its ``main``, on the board.
        others: more arguments, of which runs on this machine take the next ones each time.
    """

    module: Any
    arguments: Sequence[Any]
    others: Sequence[Sequence[Any]] = ()

    def bound(self) -> Callable[[], object]:
        """Return what runs it once."""
        function, arguments = self.module["main"], self.arguments
        if not self.others:
            return lambda: function(*arguments)
        turn = cycle((arguments, *self.others))
        return lambda: function(*next(turn))


class Board(Protocol):
    """Takes what is compiled, and times it."""

    @property
    def device(self) -> Any:
        """The ``tvm`` device on which tensors are made."""
        ...

    def load(self, compiled: Any) -> Any:
        """Return the module of an executable that TVM compiled, ready to call."""
        ...

    def time(self, runs: Mapping[str, Run], options: TimingOptions) -> dict[str, Measurement]:
        """Time functions interleaved.

        Args:
            runs: what to time, by name.
            options: how long.
        """
        ...


@dataclass(frozen=True)
class ThisMachine:
    """This process."""

    @property
    def device(self) -> Any:
        """See `Board.device`."""
        return tvm.cpu(0)

    def load(self, compiled: Any) -> Any:
        """See `Board.load`."""
        return compiled.jit()

    def time(self, runs: Mapping[str, Run], options: TimingOptions) -> dict[str, Measurement]:
        """See `Board.time`."""
        return time_interleaved({name: run.bound() for name, run in runs.items()}, options)


def tensor(board: Board, values: Array) -> Any:
    """Return `values` on the board, aligned as kernels want them."""
    return tvm.runtime.tensor(np.ascontiguousarray(values), board.device)


def empty(board: Board, count: int, content: str) -> Any:
    """Return room for so many elements on the board."""
    return tvm.runtime.empty((count,), content, board.device)
