"""The tensors of a network as buffers, in each format and order that somebody asks for.

Where a consumer wants a tensor in another format or order than it was made in, a step brings it
there, once. What an operator makes of each value of a tensor of bytes is kept as a table of 256
entries, and is looked up in the format that is asked for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hil.tvm.elementwise import TABLE, Lookup
from hil.tvm.layouts import (
    MIDDLE,
    ChannelsFirst,
    ChannelsLast,
    Dequantize,
    Quantize,
    grid_factors,
    quantize_factors,
)
from hil.tvm.orders import Layout, elements, plainest
from hil.tvm.program import Kernel, Purpose, Role, Step, Value, content_of, is_byte
from quantization.bits import Format
from quantization.export import Exporter
from quantization.formats import Formats
from quantization.quantizer import AffineGrid

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Codes:
    """Where integers lie that stand for the values of a tensor.

    Args:
        tensor: under whose name they are kept.
        form: their format.
        grid: what they stand for.
    """

    tensor: str
    form: Format
    grid: AffineGrid


@dataclass(frozen=True, eq=False)
class Table:
    """A tensor as a function of bytes.

    Args:
        tensor: under whose name these are kept.
        form: their format.
        values: what each byte stands for, float32[256].
        node: the operator that makes the tensor.
        grid: if the values are those of a grid, this grid.
    """

    tensor: str
    form: Format
    values: Array
    node: str
    grid: AffineGrid | None = None


class Tensors:
    """The buffers of one network under one policy, and the steps that make them.

    Args:
        exporter: holds network and ranges.
        written: the format of each tensor.
        shuffles: whether bytes are looked up by shuffles.

    Attributes:
        steps: so far.
    """

    def __init__(self, exporter: Exporter, written: Formats, *, shuffles: bool) -> None:
        self.steps: list[Step] = []
        self._ranges, self._formats, self._shuffles = exporter.ranges, written, shuffles
        self._shapes = {each.name: each.shape for each in exporter.network.tensors}
        self._forms: dict[str, dict[tuple[Format, Layout], Value]] = {}
        self._tables: dict[str, Table] = {}
        self._count = 0

    def shape(self, name: str) -> Shape:
        """Return the shape of a tensor."""
        return self._shapes[name]

    def grid(self, name: str, form: Format) -> AffineGrid:
        """Return the grid of a tensor in an integer format."""
        return self._ranges.grid(name, form.bits)

    def elements(self, name: str, layout: Layout) -> int:
        """Return how many elements a tensor has in memory."""
        return elements(self.shape(name), layout)

    def holds(self, name: str, form: Format) -> bool:
        """Whether a tensor is there in some format."""
        return any(known is form for known, _ in self._forms.get(name, {}))

    def at_hand(self, name: str) -> Layout:
        """Return a layout in which a tensor is there already."""
        held = self._tables[name].tensor if name in self._tables else name
        forms = self._forms.get(name) or self._forms[held]
        return next(layout for _, layout in forms)

    def table(self, name: str) -> Table | None:
        """Return a tensor as a function of bytes, if it is one."""
        if name in self._tables:
            return self._tables[name]
        form = self._formats.writes[name]
        if not is_byte(form):
            return None
        grid = self.grid(name, form)
        return Table(name, form, _levels(grid), "", grid)

    def codes(self, name: str) -> Codes | None:
        """Return the bytes that stand for a tensor by a grid, if there are any."""
        known = self.table(name)
        if known is None or known.grid is None:
            return None
        return Codes(known.tensor, known.form, known.grid)

    def keep(self, name: str, table: Table) -> None:
        """Make a tensor as a function of bytes; no step, until somebody asks for it."""
        self._tables[name] = table

    def keep_moved(self, name: str, node: str, source: Table, layout: Layout, value: Value) -> None:
        """Make a tensor of moved bytes, which stand for what they stood for.

        Args:
            name: of the tensor.
            node: the operator that moved them.
            source: what was moved.
            layout: of the bytes.
            value: the bytes.
        """
        held = f"{name}:moved"
        self._shapes[held] = self.shape(name)
        self.made(held, source.form, layout, value)
        self.keep(name, Table(held, source.form, source.values, node, source.grid))

    def made(self, name: str, form: Format, layout: Layout, value: Value) -> None:
        """Make a tensor in some form."""
        self._forms.setdefault(name, {})[form, self._plainest(name, layout)] = value

    def value(self, count: int, content: str) -> Value:
        """Return a new buffer."""
        self._count += 1
        return Value(self._count - 1, count, content)

    def step(
        self,
        kernel: Kernel,
        inputs: Sequence[Value],
        constants: Sequence[Array],
        count: int,
        form: Format,
        purpose: Purpose,
    ) -> Value:
        """Add a step and return what it makes."""
        made = self.value(count, content_of(form))
        self.steps.append(Step(kernel, tuple(inputs), tuple(constants), made, purpose))
        return made

    def get(self, name: str, form: Format, layout: Layout, purpose: Purpose) -> Value:
        """Return a tensor in some form; where it is not there yet, add the steps that make it."""
        layout = self._plainest(name, layout)
        forms = self._forms.setdefault(name, {})
        if not self.holds(name, form):
            self._convert(name, form, layout, purpose)
        if (form, layout) not in forms:
            held = next(where for known, where in forms if known is form)
            if Layout.PLAIN not in (held, layout):
                self.get(name, form, Layout.PLAIN, purpose)
                held = Layout.PLAIN
            kernel = self._order(name, held, layout, content_of(form))
            count = self.elements(name, layout)
            forms[form, layout] = self.step(kernel, [forms[form, held]], (), count, form, purpose)
        return forms[form, layout]

    def quantized(self, name: str, value: Value, target: Format, purpose: Purpose) -> Value:
        """Add a step that rounds floats to the grid of a tensor."""
        kernel = Quantize(value.count, content_of(target))
        factors = quantize_factors(self.grid(name, target))
        return self.step(kernel, [value], [factors], value.count, target, purpose)

    def _convert(self, name: str, target: Format, wanted: Layout, purpose: Purpose) -> None:
        """Make a tensor in another format than it was written in."""
        known = self.table(name)
        source = name if known is None else known.tensor
        written = self._formats.writes[name] if known is None else known.form
        if name in self._tables:
            purpose = Purpose(Role.GLUE, self._tables[name].node)
        elif (name, written, target) in self._formats.conversions:
            purpose = Purpose(Role.CONVERSION, name, (written, target))
        forms = self._forms[source]
        held = wanted if (written, wanted) in forms else next(w for k, w in forms if k is written)
        value = forms[written, held]
        if target.is_float and (known is None or known.grid is not None):
            grid = self.grid(name, written) if known is None else known.grid
            assert grid is not None
            made, held = self._dequantized(name, value, written, grid, held, wanted, purpose)
        elif known is not None:
            made = self._looked_up(name, known, value, target, purpose)
        elif not written.is_float:  # 16 bits to fewer
            real = self.get(name, Format.FLOAT32, held, purpose)
            made = self.quantized(name, real, target, purpose)
        elif held is Layout.PLAIN is not wanted and target is Format.INT8:
            kernel = self._order(name, held, wanted, "uint8", converts=True)
            factors, count = grid_factors(self.grid(name, target)), self.elements(name, wanted)
            made, held = self.step(kernel, [value], [factors], count, target, purpose), wanted
        else:
            made = self.quantized(name, value, target, purpose)
        self.made(name, target, held, made)

    def _dequantized(
        self,
        name: str,
        value: Value,
        written: Format,
        grid: AffineGrid,
        held: Layout,
        wanted: Layout,
        purpose: Purpose,
    ) -> tuple[Value, Layout]:
        """Add a step that turns integers into floats; return these and their layout."""
        kernel: Kernel
        if wanted is Layout.PLAIN is not held and is_byte(written):
            kernel = self._order(name, held, wanted, "uint8", converts=True)
            count, held = self.elements(name, wanted), wanted
        else:
            kernel, count = Dequantize(value.count, content_of(written)), value.count
        factors = grid_factors(grid)
        return self.step(kernel, [value], [factors], count, Format.FLOAT32, purpose), held

    def _looked_up(
        self, name: str, known: Table, value: Value, target: Format, purpose: Purpose
    ) -> Value:
        """Add a step that looks bytes up, unless they stay as they are."""
        table = known.values.astype(np.float32)
        if not target.is_float:
            codes = self.grid(name, target).quantize(table)
            stored = codes - MIDDLE if target is Format.INT16 else codes
            table = stored.astype(content_of(target))
            used = 2**known.form.bits
            if is_byte(target) and np.array_equal(table[:used], np.arange(used)):
                return value
        shuffles = self._shuffles and is_byte(target)
        kernel = Lookup(value.count, content_of(target), shuffles)
        return self.step(kernel, [value], [table], value.count, target, purpose)

    def _order(
        self, name: str, held: Layout, wanted: Layout, content: Any, *, converts: bool = False
    ) -> Kernel:
        """Return what brings a tensor into another order, and perhaps into or out of integers."""
        shape = self.shape(name)
        inner = wanted if held is Layout.PLAIN else held
        if inner is Layout.IMAGES:
            extents = shape[1], math.prod(shape[2:]), shape[0]
        else:
            extents = shape[-1], 1, math.prod(shape[:-1])
        kind = ChannelsLast if held is Layout.PLAIN else ChannelsFirst
        return kind(*extents, content, converts)

    def _plainest(self, name: str, layout: Layout) -> Layout:
        """Return the layout that a tensor has anyway if it has `layout`."""
        return plainest(self.shape(name), layout)


def _levels(grid: AffineGrid) -> Array:
    """Return the real values of all bytes, (256,); those beyond the grid repeat."""
    return grid.dequantize(np.minimum(np.arange(TABLE), 2**grid.bits - 1))
