"""Short names for what kernels are made of: TVM's expressions on vectors, and functions of them."""

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

Expression = Any
"""A value of a kernel: a number or a vector of them."""
Buffer = Any


def function(name: str, emit: Callable[[], None]) -> Any:
    """Return the ``tirx.PrimFunc`` that `emit` states, parameters first.

    Its parameters never overlap.
    """
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        emit()
    return builder.get()


def parameter(name: str, count: int, content: str) -> Buffer:
    """Return a parameter of the function: so many elements."""
    return T.arg(name, T.Buffer((count,), content))


def scratch(count: int, content: str) -> Buffer:
    """Return a buffer of the function's own."""
    return T.alloc_buffer((count,), content)


def named(value: Expression) -> Expression:
    """Return a variable that holds `value`, so that it is computed once."""
    return T.Bind(value)


def load(buffer: Buffer, place: Expression, content: str, lanes: int) -> Expression:
    """Return so many elements from `place` on."""
    return buffer.vload([place], dtype=_type(content, lanes)) if lanes > 1 else buffer[place]


def store(buffer: Buffer, place: Expression, value: Expression, lanes: int) -> None:
    """Write a vector from `place` on."""
    T.buffer_store(buffer, value, [T.ramp(place, 1, lanes) if lanes > 1 else place])


def spread(value: Expression, lanes: int) -> Expression:
    """Return a number in all lanes."""
    return T.broadcast(value, lanes) if lanes > 1 else value


def constant(value: float, lanes: int, content: str = "int32") -> Expression:
    """Return a known number in all lanes."""
    return spread(tirx.const(value, content), lanes)


def cast(value: Expression, content: str, lanes: int) -> Expression:
    """Return the same numbers in another type."""
    return T.Cast(_type(content, lanes), value)


def reinterpret(value: Expression, content: str, lanes: int) -> Expression:
    """Return the same bytes as another type."""
    return T.reinterpret(value, dtype=_type(content, lanes))


def intrinsic(name: str, content: str, *operands: Expression) -> Expression:
    """Return what an instruction of LLVM gives, of type `content`."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=content)


def _type(content: str, lanes: int) -> str:
    return f"{content}x{lanes}" if lanes > 1 else content
