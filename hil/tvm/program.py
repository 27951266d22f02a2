"""A network as kernels on flat buffers: what is computed, from what, and for whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Any, Protocol

import numpy.typing as npt

from quantization.bits import Format

Array = npt.NDArray[Any]


class Kernel(Protocol):
    """What a step runs; equal kernels are compiled once.

    Its parameters are the step's inputs, its constants, and its output.
    """

    def function(self, name: str) -> Any:
        """Return the kernel as a ``tirx.PrimFunc``, or a ``relax.Function`` of ONNX's shapes."""
        ...


class Role(StrEnum):
    """What a step is part of."""

    LAYER = "layer"
    GLUE = "glue"
    CONVERSION = "conversion"
    ENDS = "ends"
    """What inputs and outputs of the network are brought into order by."""


@dataclass(frozen=True)
class Purpose:
    """For whom a step is.

    Args:
        role: what it is part of.
        name: of the layer, the glue operator or the tensor.
        formats: of a conversion, the written and the target format.
    """

    role: Role
    name: str
    formats: tuple[Any, ...] = ()


def is_byte(form: Format) -> bool:
    """Whether elements of a tensor in some format take a byte."""
    return not form.is_float and form.bits <= Format.INT8.bits


def content_of(form: Format) -> Any:
    """Return the type of the elements of a tensor in some format."""
    if form.is_float:
        return "float32"
    return "uint8" if is_byte(form) else "int16"


@dataclass(frozen=True)
class Value:
    """A buffer between steps.

    Args:
        number: of the value.
        count: elements.
        content: their type.
    """

    number: int
    count: int
    content: str


@dataclass(frozen=True, eq=False)
class Step:
    """A kernel with what it is run on.

    Args:
        kernel: what is run.
        inputs: values.
        constants: parameters behind the inputs.
        output: the value that it makes.
        purpose: for whom.
    """

    kernel: Kernel
    inputs: tuple[Value, ...]
    constants: tuple[Array, ...]
    output: Value
    purpose: Purpose


@dataclass(frozen=True, eq=False)
class Program:
    """A network under one policy.

    Args:
        inputs: the network's inputs by name.
        steps: in the order of execution.
        outputs: the network's outputs by name.
        shapes: of inputs and outputs.
    """

    inputs: Mapping[str, Value]
    steps: Sequence[Step]
    outputs: Mapping[str, Value]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, step: Step) -> "Program":
        """Return a step as a program; its inputs are called by their place."""
        inputs = {str(place): value for place, value in enumerate(step.inputs)}
        shapes = {name: (value.count,) for name, value in inputs.items()}
        return cls(inputs, (step,), {"made": step.output}, shapes | {"made": (step.output.count,)})

    @property
    def is_integer(self) -> bool:
        """Whether floats are only read, quantized, dequantized and written."""
        ends = {value.number for value in (*self.inputs.values(), *self.outputs.values())}
        return all(
            step.output.content != "float32" or step.output.number in ends for step in self.steps
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all kernels and their wiring; what parameters hold does not count."""
        described = [
            (repr(step.kernel), [value.number for value in step.inputs], step.output)
            for step in self.steps
        ]
        return sha256(repr((described, self.inputs, self.outputs)).encode()).hexdigest()
