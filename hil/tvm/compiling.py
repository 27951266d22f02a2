"""Programs compiled by Apache TVM: one shared library for a whole network."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tvm
from tvm import relax

from hil.tvm.imported import OnnxOperator
from hil.tvm.program import Kernel, Program, Step, Value
from quantization.errors import DataError, ModelError
from quantization.quantizer import Float32Array

Array = npt.NDArray[Any]

_ENDS = "ends"
_MAGIC = b"\x7fELF"
_HEADER = struct.Struct("<40xQ10xHH2x")
"""Of an ELF file of 64 bits: where the table of its sections begins, size and count of entries."""


def build(program: Program, target: Any) -> Any:
    """Return a program compiled for a ``tvm.target.Target``.

    Buffers between steps are reused.

    Its ``main`` takes the network's inputs and returns its outputs, all of them flat; ``ends``
    tells their names and shapes.
    """
    blocks = relax.BlockBuilder()
    functions: dict[Kernel, Any] = {}
    for step in program.steps:
        if step.kernel not in functions:
            name = f"k{len(functions)}"
            functions[step.kernel] = blocks.add_func(step.kernel.function(name), name)
    known = {value: relax.Var(f"v{value.number}", _type(value)) for value in _inputs(program)}
    with blocks.function("main", list(known.values())):
        for step in program.steps:
            known[step.output] = blocks.emit(_call(step, functions[step.kernel], known))
        outputs = [known[value] for value in program.outputs.values()]
        blocks.emit_func_output(relax.Tuple(outputs))
    with blocks.function(_ENDS, []):
        blocks.emit_func_output(blocks.emit(relax.const(_described(program))))
    pipeline = relax.get_pipeline("default_build")
    return tvm.compile(blocks.get(), target, relax_pipeline=pipeline)


def _described(program: Program) -> Array:
    """Return names and shapes of inputs and outputs as bytes of JSON."""
    ends = {"inputs": program.inputs, "outputs": program.outputs}
    named = {part: {name: program.shapes[name] for name in ends[part]} for part in ends}
    return np.frombuffer(json.dumps(named).encode(), np.uint8)


def _inputs(program: Program) -> list[Value]:
    return list(program.inputs.values())


def _type(value: Value) -> Any:
    return relax.TensorType((value.count,), value.content)


def _call(step: Step, function: Any, known: Mapping[Value, Any]) -> Any:
    inputs = [known[value] for value in step.inputs]
    if isinstance(step.kernel, OnnxOperator):
        shaped = [
            relax.op.reshape(value, shape)
            for value, shape in zip(inputs, step.kernel.inputs, strict=True)
        ]
        return relax.op.reshape(function(*shaped), (step.output.count,))
    # Without its type, int64 would become int32.
    constants = [relax.const(np.ascontiguousarray(c), str(c.dtype)) for c in step.constants]
    return relax.call_tir(function, [*inputs, *constants], _type(step.output))


class CompiledNetwork:
    """A compiled network, ready to run on one thread.

    Args:
        library: what `build` made, as a board loaded it.

    Raises:
        ModelError: if it is no library that `build` made.
    """

    def __init__(self, library: Any) -> None:
        self._cpu = tvm.cpu(0)
        try:
            self._machine = relax.VirtualMachine(library, self._cpu)
            self._main = self._machine["main"]
            ends = json.loads(self._machine[_ENDS]().numpy().tobytes())
        except (AttributeError, KeyError, ValueError, RuntimeError) as error:
            raise ModelError("the library holds no network that quantmeter compiled") from error
        self.inputs, self.outputs = (
            {name: tuple(shape) for name, shape in ends[part].items()}
            for part in ("inputs", "outputs")
        )

    @classmethod
    def of(cls, program: Program, target: Any) -> "CompiledNetwork":
        """Compile a program for this process."""
        return cls(build(program, target).jit())

    @classmethod
    def read(cls, path: str | Path) -> "CompiledNetwork":
        """Load a shared library that ``quantmeter export --runtime tvm`` wrote.

        Raises:
            ModelError: if it is missing, or no such library.
        """
        _require_whole(Path(path))
        try:
            return cls(tvm.runtime.load_module(str(Path(path).resolve())))
        except (OSError, RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ModelError(f"{path} cannot be loaded: {text[-200:]}") from error

    def run(self, feed: Mapping[str, Float32Array]) -> list[Array]:
        """Run once and return the outputs.

        Args:
            feed: inputs by name, in the network's shapes; float32, or what becomes that.

        Raises:
            DataError: if an input is missing or has another shape.
        """
        made, shapes = self.bound(feed)(), self.outputs.values()
        return [each.numpy().reshape(shape) for each, shape in zip(made, shapes, strict=True)]

    def bound(self, feed: Mapping[str, Float32Array]) -> Callable[[], Any]:
        """Return what runs the network on `feed`; for timing.

        Raises:
            DataError: if an input is missing or has another shape.
        """
        given = []
        if unknown := sorted(set(feed) - set(self.inputs)):
            raise DataError(f"the network has no input {unknown[0]!r}; it reads {self.inputs}")
        for name, shape in self.inputs.items():
            if name not in feed or np.shape(feed[name]) != shape:
                found = f"{np.shape(feed[name])}" if name in feed else "nothing"
                raise DataError(f"the network reads {name!r} of shape {shape} a call, not {found}")
            flat = np.ascontiguousarray(feed[name], np.float32).reshape(-1)
            given.append(tvm.runtime.tensor(flat, self._cpu))
        main = self._main
        return lambda: main(*given)


def _require_whole(path: Path) -> None:
    """Raise unless a file is a shared library with nothing cut off: loading one ends the process.

    Raises:
        ModelError: if it is not.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise ModelError(
            f"{path} is no shared library; quantmeter export --runtime tvm --out FILE.so writes one"
        )
    start, size, count = _HEADER.unpack_from(content)
    if start + size * count > len(content):
        raise ModelError(f"{path} is cut off after {len(content):,} bytes; export it again")
