"""A cost table from the kernels that a network takes at each choice.

A layer costs its kernel, and what brings its input in order; glue and conversions cost theirs.
Where a conversion vanishes in the operator behind it, such as a `HardSwish` that becomes a look-up,
the cells are such that uniform networks are priced by the kernels that run: what the look-up takes
more or less than the float operator is the price of the conversion behind it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from costmodels.table import Cells, CostTable, Provenance
from costmodels.units import Metric, Unit
from hil.records import Record
from hil.tvm.elementwise import TABLE, Lookup
from hil.tvm.kernel import ConvolutionKernel
from hil.tvm.layers import LayerKernels
from hil.tvm.layouts import Dequantize, Quantize, grid_factors, quantize_factors
from hil.tvm.lowering import lower
from hil.tvm.machine import Machine
from hil.tvm.operations import Operation
from hil.tvm.orders import elements, kernel_layout
from hil.tvm.program import (
    Kernel,
    Program,
    Purpose,
    Role,
    Step,
    Value,
    content_of,
    is_byte,
)
from quantization.bits import FLOAT32, BitWidths, Format, formats_of
from quantization.deployment import TVM_TARGET, not_deployable
from quantization.export import Exporter
from quantization.formats import Formats, formats
from quantization.network import Glue, Layer, Network
from quantization.policy import Policy

STATISTIC = "p10"

_LONGEST = 200


@dataclass(frozen=True, eq=False)
class Price:
    """What one step takes.

    Args:
        seconds: infinite if its kernel cannot be run.
        spread_s: one standard deviation.
        kernel: what it runs, in words.
    """

    seconds: float
    spread_s: float
    kernel: str


class Prices:
    """Prices the steps of one network by timing their kernels.

    Args:
        exporter: holds network, ranges and quantized parameters.
        machine: who runs the kernels.
        operation: times the kernels of an operation.
        step: times any other step.
    """

    def __init__(
        self,
        exporter: Exporter,
        machine: Machine,
        operation: Callable[[Operation], Record],
        step: Callable[[Step], Record],
    ) -> None:
        self.exporter, self.machine = exporter, machine
        self._operation, self._step = operation, step
        self._layers = LayerKernels(exporter)
        self.taken: dict[str, Measurement] = {}
        """The measurements behind the prices, by kernel."""

    @property
    def network(self) -> Network:
        """Whose steps they are."""
        return self.exporter.network

    def lowered(self, policy: Policy) -> Program:
        """Return the steps of a policy, their kernels cut in any way."""
        return lower(self.exporter, policy, self.machine, self._any_tile)

    def _any_tile(self, operation: Operation) -> Any:
        return operation.kernels(self.machine.instructions)[0].tile

    def price(self, step: Step, policy: Policy) -> Price:
        """Return what a step of `policy` takes."""
        if isinstance(step.kernel, ConvolutionKernel):
            layer = self.network.layer(step.purpose.name)
            operation = self._layers.operation(layer, policy[layer.name])
            assert operation is not None
            return self._priced(operation, self._operation(operation))
        return self._priced(step.kernel, self._step(step))

    def conversion(self, tensor: str, written: Format, target: Format) -> Price:
        """Return what it takes to bring a tensor from one format into another, channels last."""
        shape = self.network.tensor_by_name[tensor].shape
        layout = kernel_layout(shape)
        count = elements(shape, layout)
        grids = self.exporter.ranges
        total, spread, names = 0.0, 0.0, list[str]()
        given = Value(0, count, content_of(written))
        if not written.is_float and (target.is_float or written is Format.INT16):
            kernel: Kernel = Dequantize(count, content_of(written))
            factors = grid_factors(grids.grid(tensor, written.bits))
            steps = [(kernel, factors, content_of(Format.FLOAT32))]
        elif not written.is_float:
            kernel = Lookup(count, content_of(target), self.machine.shuffles and is_byte(target))
            steps = [(kernel, np.zeros(TABLE, content_of(target)), content_of(target))]
        else:
            steps = []
        if not target.is_float and not (is_byte(written)):
            kernel = Quantize(count, content_of(target))
            factors = quantize_factors(grids.grid(tensor, target.bits))
            steps.append((kernel, factors, content_of(target)))
        for kernel, constant, content in steps:
            made = Value(1, count, content)
            purpose = Purpose(Role.CONVERSION, tensor, (written, target))
            step = Step(kernel, (given,), (constant,), made, purpose)
            price = self._priced(kernel, self._step(step))
            total, spread = total + price.seconds, float(np.hypot(spread, price.spread_s))
            names.append(price.kernel)
            given = made
        return Price(total, spread, ", ".join(names))

    def _priced(self, kernel: Any, record: Record) -> Price:
        name = type(kernel).__name__
        if record.failure is not None:
            return Price(np.inf, 0.0, name)
        taken = record.measurements
        best = min(taken, key=lambda each: taken[each].p10_s)
        if isinstance(kernel, Operation):
            name = f"{record.facts['instructions']}, {kernel.width} bits, {best}"
        self.taken[_named(kernel)] = taken[best]
        samples = np.array(taken[best].samples_s)
        return Price(taken[best].p10_s, float(samples.std()), name)


@dataclass(eq=False)
class _Sums:
    """What a program takes, by purpose."""

    seconds: dict[Purpose, float] = field(default_factory=dict)
    variance: dict[Purpose, float] = field(default_factory=dict)
    kernels: dict[Purpose, str] = field(default_factory=dict)

    def add(self, purpose: Purpose, price: Price) -> None:
        """Count a step; the last one's kernel, behind what brings its input along, is named."""
        self.seconds[purpose] = self.seconds.get(purpose, 0.0) + price.seconds
        self.variance[purpose] = self.variance.get(purpose, 0.0) + price.spread_s**2
        self.kernels[purpose] = price.kernel


def priced_table(
    prices: Prices,
    choices: Sequence[BitWidths],
    source: Mapping[str, Any],
    progress: Callable[[float, str], None],
) -> CostTable:
    """Return the cost of every layer, glue operator and conversion of a network.

    Args:
        prices: of the network's steps.
        choices: bit-widths.
        source: who measured, and how.
        progress: called with the share done and what is being done.

    Raises:
        BackendError: if no layer runs at any of the choices.
    """
    network = prices.network
    runs = np.array(
        [
            [not not_deployable(each, bits, TVM_TARGET) for bits in choices]
            for each in network.layers
        ]
    )
    if not runs.any():
        asked = ", ".join(map(str, choices))
        raise BackendError(f"no layer runs at {asked} in TVM; try --choices w4a8,w8a8,w32a32")
    table = _Table(prices, choices)
    columns = [FLOAT32, *(bits for bits in choices if bits != FLOAT32)]
    for done, bits in enumerate(columns):

        def moved(share: float, done: int = done, bits: BitWidths = bits) -> None:
            progress((done + share) / len(columns), f"timing kernels at {bits}")

        table.add(bits, moved)
    progress(1.0, "timing kernels")
    return table.finished(runs, source)


class _Table:
    """Cells under construction.

    Args:
        prices: of the network's steps.
        choices: bit-widths.
    """

    def __init__(self, prices: Prices, choices: Sequence[BitWidths]) -> None:
        self._prices, self._choices = prices, tuple(choices)
        self._network = prices.network
        self._known = formats_of(choices)
        self._layers: dict[tuple[str, BitWidths], tuple[float, float, str]] = {}
        self._glue: dict[tuple[str, Format], tuple[float, float, str]] = {}
        self._conversions: dict[tuple[str, Format, Format], tuple[float, float, str]] = {}

    @cached_property
    def _makers(self) -> dict[str, Layer | Glue]:
        """Who makes each tensor."""
        found: dict[str, Layer | Glue] = {}
        for node in self._network.execution_order:
            outputs = (node.output,) if isinstance(node, Layer) else node.outputs
            found |= dict.fromkeys(outputs, node)
        return found

    def add(self, bits: BitWidths, progress: Callable[[float], None]) -> None:
        """Price the network with all layers at `bits` that run there; float32 comes first."""
        network = self._network
        policy = Policy(
            {
                layer.name: FLOAT32 if not_deployable(layer, bits, TVM_TARGET) else bits
                for layer in network.layers
            }
        )
        given, sums = formats(network, policy), self._summed(policy, progress)
        for layer in network.layers:
            found = _cell(sums, Purpose(Role.LAYER, layer.name))
            self._layers.setdefault((layer.name, policy[layer.name]), found)
        converted = {
            each: _cell(sums, Purpose(Role.CONVERSION, each[0], each[1:]))
            for each in given.conversions
        }
        for glue in network.glue:
            self._add_glue(glue, given, sums, converted)
        for key, found in converted.items():
            self._conversions.setdefault(key, found)

    def _summed(self, policy: Policy, progress: Callable[[float], None]) -> _Sums:
        sums, steps = _Sums(), self._prices.lowered(policy).steps
        for done, step in enumerate(steps):
            progress(done / len(steps))
            purpose, price = step.purpose, self._prices.price(step, policy)
            if purpose.role is Role.ENDS:
                maker = self._makers[purpose.name]
                role = Role.LAYER if isinstance(maker, Layer) else Role.GLUE
                purpose = Purpose(role, maker.name)
                price = replace(price, kernel=sums.kernels.get(purpose, price.kernel))
            sums.add(purpose, price)
        return sums

    def _add_glue(
        self,
        glue: Glue,
        given: Formats,
        sums: _Sums,
        converted: dict[tuple[str, Format, Format], tuple[float, float, str]],
    ) -> None:
        """Price an operator; one that takes conversions in changes what these cost.

        Behind it, a conversion costs what it does where the operator reads floats. Before it, one
        costs the rest: the operator takes over both only where its input is integers.
        """
        found = _cell(sums, Purpose(Role.GLUE, glue.name))
        known = self._glue.setdefault((glue.name, given.reads[glue.name]), found)
        more = found[0] - known[0]
        vanished = [key for key in converted if not converted[key][2]]
        before = [key for key in vanished if key[0] in glue.inputs]
        if not (more and before and np.isfinite(more)):
            return
        for key in (key for key in vanished if key[0] in glue.outputs):
            price = self._prices.conversion(*key)
            converted[key] = price.seconds, price.spread_s, price.kernel
            more -= price.seconds
        cost, spread, _ = converted[before[0]]
        converted[before[0]] = cost + more, spread, ""

    def finished(self, runs: npt.NDArray[np.bool_], source: Mapping[str, Any]) -> CostTable:
        """Return the table; `runs` tells which layers run at which choice."""
        network, known = self._network, self._known
        layers = {
            (x.name, k): self._layers.get((x.name, k), _ABSENT)
            for x in network.layers
            for k in self._choices
        }
        glue = {
            (x.name, f): self._glue.get((x.name, f), _ABSENT) for x in network.glue for f in known
        }
        conversions = {
            (tensor.name, written, target): self._conversion(tensor.name, written, target)
            for tensor in network.tensors
            for written in known
            for target in known
        }
        unary = _cells(layers, (len(network.layers), len(self._choices)))
        return CostTable(
            Metric.LATENCY,
            Unit.SECONDS,
            STATISTIC,
            network.digest,
            network.layer_names,
            self._choices,
            tuple(each.name for each in network.glue),
            tuple(tensor.name for tensor in network.tensors),
            Cells.of(
                np.where(runs, unary.value, np.inf),
                Provenance.MEASURED,
                kernel=unary.kernel,
                uncertainty=unary.uncertainty,
            ),
            _cells(glue, (len(network.glue), len(known))),
            _cells(conversions, (len(network.tensors), len(known), len(known))),
            source={**source, "kernels": len(self._prices.taken)},
            measurements=[
                {"kernel": name, "measurement": taken.to_dict()}
                for name, taken in self._prices.taken.items()
            ],
        )

    def _conversion(self, name: str, written: Format, target: Format) -> tuple[float, float, str]:
        """What a conversion costs on its own, unless a uniform network brought it about."""
        if written is target:
            return 0.0, 0.0, ""
        held = self._conversions.get((name, written, target))
        if held is not None:
            return held
        narrow = not written.is_float and written.bits < Format.INT8.bits
        if narrow or name in self._network.inner_tensors:
            return _ABSENT  # nobody writes that, or reads it in another format
        found = self._prices.conversion(name, written, target)
        return found.seconds, found.spread_s, found.kernel


def _named(kernel: Kernel | Operation) -> str:
    """Return what a measurement is kept under: a kernel in words, a long one by its digest too."""
    text = repr(kernel)
    digest = sha256(text.encode()).hexdigest()[:12]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... {digest}"


_ABSENT = np.inf, 0.0, ""


def _cell(sums: _Sums, purpose: Purpose) -> tuple[float, float, str]:
    spread = float(np.sqrt(sums.variance.get(purpose, 0.0)))
    return sums.seconds.get(purpose, 0.0), spread, sums.kernels.get(purpose, "")


def _cells(found: Mapping[Any, tuple[float, float, str]], shape: tuple[int, ...]) -> Cells:
    value = np.array([cell[0] for cell in found.values()], np.float64).reshape(shape)
    spread = np.array([cell[1] for cell in found.values()], np.float64).reshape(shape)
    kernel = np.array([cell[2] for cell in found.values()], np.str_).reshape(shape)
    return Cells.of(value, Provenance.MEASURED, kernel=kernel, uncertainty=spread)
