"""Price thousands of policies from one table.

Looking up every cell of every policy would cost about three gathers per layer. Instead, what
depends on the same decision is summed into one look-up table before any policy is seen. Rows of the
network's wiring have few *deciders*: a layer decides for itself and for the glue that follows its
format; glue that joins several deciders decides for itself, by its format. Then

- what one decider determines is a look-up on its state,
- a tensor between two deciders is a look-up on the pair, which takes in the costs of one of them,
- a tensor among more is a look-up on the written format and the set of formats that are asked for.

Policies are priced in blocks that stay in the cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.table import CostTable, FloatArray
from quantization.bits import Format
from quantization.formats import float_glue_codes, wiring
from quantization.network import Network
from quantization.policy import PolicyBatch

CodeArray = npt.NDArray[np.uint8]
States = Mapping[int, CodeArray]
"""The state of each decider for a block of policies: a layer's choice, or a format's code."""

_BLOCK = 8192
"""Policies priced at a time: a block's states and sums stay in a core's L2 cache."""


def total(table: CostTable, network: Network, policies: PolicyBatch) -> FloatArray:
    """Return the table's cost of each policy, (P,), in the table's unit.

    Raises:
        TableError: if the table is of another network.
        UnsupportedChoiceError: if a policy uses bits that the table does not hold or support.
    """
    priced = priced_network(table, network)
    index = priced.recode(policies)
    costs = priced.price(index)
    if not np.isfinite(costs).all():
        first = int(np.flatnonzero(~np.isfinite(costs))[0])
        raise UnsupportedChoiceError(f"policy {first} is not supported: {priced.why(index[first])}")
    return costs


@lru_cache(maxsize=32)
def priced_network(table: CostTable, network: Network) -> "PricedNetwork":
    """Return the compiled form of `table` (kept for the most recent tables).

    Raises:
        TableError: if the table is of another network.
    """
    return PricedNetwork(table, network)


@dataclass(frozen=True, eq=False)
class _Row:
    """One row of the wiring: who decides its formats, and how.

    Args:
        decider: position among the deciders; -1 for the outside world, which never changes.
        reads: format code that it reads, by the decider's state.
        writes: format code that it writes, by the decider's state.
    """

    decider: int
    reads: CodeArray
    writes: CodeArray


@dataclass(frozen=True, eq=False)
class _Merge:
    """A decider that is glue between several others: its state is its format's code."""

    sources: tuple[_Row, ...]
    state_of_widest: CodeArray

    def state(self, states: States) -> CodeArray:
        widest = _of(self.sources[0].writes, self.sources[0], states)
        for source in self.sources[1:]:
            widest = np.maximum(widest, _of(source.writes, source, states))
        return self.state_of_widest.take(widest)


def _of(lut: npt.NDArray[np.uint8], row: _Row, states: States) -> CodeArray:
    return lut[:1] if row.decider < 0 else lut.take(states[row.decider])


@dataclass(frozen=True, eq=False)
class _Pair:
    """Costs by the states of two deciders (or of one, if both are the same)."""

    first: int
    second: int
    lut: FloatArray  # (states of first, states of second), or (states,) if both are the same

    def cost(self, states: States) -> FloatArray:
        if self.first == self.second:
            return self.lut.take(states[self.first])
        width = np.uint8(self.lut.shape[1])
        first = states[self.first]
        if self.lut.size > 256:
            return self.lut.ravel().take(first.astype(np.uint16) * width + states[self.second])
        return self.lut.ravel().take(first * width + states[self.second])


@dataclass(frozen=True, eq=False)
class _Fan:
    """The conversions of a tensor among three deciders or more."""

    writer: _Row
    readers: tuple[_Row, ...]
    lut: FloatArray  # (written formats, sets of asked formats)

    def cost(self, states: States) -> FloatArray:
        bit = (1 << np.arange(self.lut.shape[0])).astype(np.uint16)
        asked = bit.take(_of(self.readers[0].reads, self.readers[0], states))
        for reader in self.readers[1:]:
            asked = asked | bit.take(_of(reader.reads, reader, states))
        written = _of(self.writer.writes, self.writer, states).astype(np.uint16)
        return self.lut.ravel().take(written * np.uint16(self.lut.shape[1]) + asked)


class PricedNetwork:
    """A table compiled for its network.

    Args:
        table: the table.
        network: its network.

    Raises:
        TableError: if the table is of another network.
    """

    def __init__(self, table: CostTable, network: Network) -> None:
        table.check(network)
        self.table = table
        self._merges: list[_Merge] = []
        self._deciders: list[FloatArray] = [row.copy() for row in table.unary.value]
        self._fans: list[_Fan] = []
        self._constant = table.constant
        pairs: dict[tuple[int, int], FloatArray] = {}
        rows = self._decide(network)
        self._add_tensors(network, rows, pairs)
        self._pairs = self._absorb(pairs)

    def recode(self, policies: PolicyBatch) -> npt.NDArray[np.uint8]:
        """Return the index array of `policies` in terms of the table's choices, (P, L).

        Raises:
            TableError: if the policies are of other layers, or of the layers in another order.
            UnsupportedChoiceError: if the table does not hold a choice.
        """
        if policies.layers != self.table.layers:
            raise TableError("the policies are not of the layers of this table, in their order")
        position = {bits: i for i, bits in enumerate(self.table.choices)}
        missing = [str(bits) for bits in policies.choices if bits not in position]
        if missing:
            held = ", ".join(map(str, self.table.choices))
            raise UnsupportedChoiceError(f"the table has no {', '.join(missing)}; it has {held}")
        if policies.choices == self.table.choices[: len(policies.choices)]:
            return policies.index
        return np.array([position[b] for b in policies.choices], np.uint8)[policies.index]

    def price(self, index: npt.NDArray[np.uint8]) -> FloatArray:
        """Return the cost of each policy.

        Args:
            index: (P, L) indices into the table's choices.

        Returns:
            (P,) in the table's unit; infinite where a policy uses an unsupported cell.
        """
        result = np.empty(len(index))
        for start in range(0, len(index), _BLOCK):
            block = index[start : start + _BLOCK]
            states = dict(enumerate(np.ascontiguousarray(block.T)))
            for merge in self._merges:
                states[len(states)] = merge.state(states)
            sums = np.full(len(block), self._constant)
            for pair in self._pairs:
                sums += pair.cost(states)
            for fan in self._fans:
                sums += fan.cost(states)
            result[start : start + _BLOCK] = sums
        return result

    def why(self, index: npt.NDArray[np.uint8]) -> str:
        """Say which cell of one policy, (L,), is not supported."""
        for layer, choice in enumerate(index):
            if not self.table.supported[layer, choice]:
                return f"layer {self.table.layers[layer]!r} at {self.table.choices[choice]}"
        return "a glue operator or conversion between its formats"

    def _decide(self, network: Network) -> list[_Row]:
        """Find each row's decider; costs of glue go to the decider's look-up."""
        table, wires = self.table, wiring(network)
        code = {f: i for i, f in enumerate(table.formats)}
        outside = np.array([code[Format.FLOAT32]], np.uint8)
        identity = np.arange(len(code), dtype=np.uint8)
        in_float = float_glue_codes(table.formats)
        layer_reads = np.array([code[c.reads] for c in table.choices], np.uint8)
        layer_writes = np.array([code[c.writes] for c in table.choices], np.uint8)
        rows = [_Row(-1, outside, outside)] * wires.rows
        for column, row in enumerate(wires.layer_rows):
            rows[row] = _Row(column, layer_reads, layer_writes)
        for position, row in enumerate(wires.glue_rows):
            sources = [rows[s] for s in wires.glue_sources[position]] or [rows[0]]
            to_own = identity if wires.glue_integer[position] else in_float
            if len({source.decider for source in sources}) == 1:
                widest = sources[0].writes
                for source in sources[1:]:
                    widest = np.maximum(widest, source.writes)
                own = to_own[widest]
                rows[row] = _Row(sources[0].decider, own, own)
            else:
                self._merges.append(_Merge(tuple(sources), to_own))
                self._deciders.append(np.zeros(len(code)))
                rows[row] = _Row(len(self._deciders) - 1, identity, identity)
            self._add(rows[row].decider, table.glue.value[position][rows[row].reads])
        return rows

    def _add(self, decider: int, costs: FloatArray) -> None:
        if decider < 0:
            self._constant += float(costs[0])
        else:
            self._deciders[decider] += costs

    def _add_tensors(
        self, network: Network, rows: list[_Row], pairs: dict[tuple[int, int], FloatArray]
    ) -> None:
        wires = wiring(network)
        sets = np.arange(1 << len(self.table.formats))
        member = (sets[:, None] >> np.arange(len(self.table.formats)) & 1).astype(bool)
        for tensor, writer_row in enumerate(wires.tensor_writers):
            writer = rows[writer_row]
            readers = tuple(rows[r] for r in wires.tensor_readers[tensor])
            # (written, asked set): the sum over the set; inf * 0 must not become NaN
            cells = self.table.conversion.value[tensor]
            lut = np.where(member[None], cells[:, None], 0.0).sum(2)
            if not lut[np.isfinite(lut)].any() and np.isfinite(lut).all():
                continue
            involved = sorted({r.decider for r in (writer, *readers)} - {-1})
            if len(involved) > 2:
                self._fans.append(_Fan(writer, readers, lut))
                continue
            first, second = (involved or [-1])[0], (involved or [-1])[-1]
            sizes = [len(self._deciders[d]) if d >= 0 else 1 for d in (first, second)]
            states = np.indices(sizes).reshape(2, -1).astype(np.uint8)
            seen = {first: states[0], second: states[1]}
            fan = _Fan(writer, readers, lut)
            flat = np.broadcast_to(fan.cost(seen), states.shape[1:])
            if first == second:
                self._add(first, np.diagonal(flat.reshape(sizes)))
            else:
                grid = pairs.setdefault((first, second), np.zeros(sizes))
                grid += flat.reshape(sizes)

    def _absorb(self, pairs: dict[tuple[int, int], FloatArray]) -> list[_Pair]:
        """Let each pair take in the look-up of a decider that no other pair took."""
        left = dict(enumerate(self._deciders))
        for (first, second), grid in pairs.items():
            if first in left:
                grid += left.pop(first)[:, None]
            if second in left and sum(second in key for key in pairs) == 1:
                grid += left.pop(second)[None, :]
        joined = [_Pair(first, second, grid) for (first, second), grid in pairs.items()]
        return joined + [_Pair(d, d, lut) for d, lut in left.items() if lut.any()]
