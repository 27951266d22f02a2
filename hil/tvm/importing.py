"""Float networks as Apache TVM imports and compiles them by itself: what its users have today."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import from_onnx

from hil.tvm.machine import Machine, this_machine
from quantization.network import Network
from quantization.quantizer import Float32Array


class ImportedNetwork:
    """A float network through ``relax.frontend.onnx`` and TVM's default passes, without tuning.

    Args:
        network: the network.
        machine: what it is compiled for; None for this machine.
    """

    def __init__(self, network: Network, machine: Machine | None = None) -> None:
        target = (machine or this_machine()).target
        module = from_onnx(network.model, keep_params_in_input=False)
        self._names, self._cpu = network.input_names, tvm.cpu(0)
        self._machine = relax.VirtualMachine(tvm.compile(module, target), self._cpu)
        self._main = self._machine["main"]

    def run(self, feed: Mapping[str, Float32Array]) -> list[npt.NDArray[Any]]:
        """Run once and return the outputs."""
        made = self.bound(feed)()
        outputs = made if isinstance(made, list | tuple | tvm.ir.Array) else [made]
        return [each.numpy() for each in outputs]

    def bound(self, feed: Mapping[str, Float32Array]) -> Callable[[], Any]:
        """Return what runs the network on `feed`; for timing."""
        given = [
            tvm.runtime.tensor(np.ascontiguousarray(feed[name]), self._cpu) for name in self._names
        ]
        main = self._main
        return lambda: main(*given)
