"""Price thousands of policies from one table.

Looking up every cell of every policy would cost about three gathers per layer. Instead, what
depends on the same *decider* (`costmodels.deciders`; here every layer decides for itself) is summed
into one look-up table before any policy is seen. Then

- what one decider determines is a look-up on its state,
- a tensor between two deciders is a look-up on the pair, which takes in the costs of one of them,
- a tensor among more is a look-up on the written format and the set of formats that are asked for,
- what is paid once asks each layer that may bring it about; a table without it pays nothing for it.

Policies are priced in blocks that stay in the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from costmodels.deciders import Conversion, split, state_of
from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.table import CostTable, FloatArray
from quantization.channel_groups import ChannelGroups, brief
from quantization.formats import CodeArray
from quantization.network import Network
from quantization.policy import PolicyBatch

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
        which = "the policy" if len(costs) == 1 else f"policy {first}"
        raise UnsupportedChoiceError(f"{which} is not supported: {priced.why(index[first])}")
    return costs


def uniform_totals(table: CostTable, network: Network) -> FloatArray:
    """Return what the policy costs that gives every layer the same choice, (K,).

    In the table's unit; infinite where a layer does not support the choice.

    Raises:
        TableError: if the table is of another network.
    """
    index = np.repeat(np.arange(len(table.choices), dtype=np.uint8)[:, None], len(table.layers), 1)
    return priced_network(table, network).price(index)


@lru_cache(maxsize=32)
def priced_network(table: CostTable, network: Network) -> "PricedNetwork":
    """Return the compiled form of `table` (kept for the most recent tables).

    Raises:
        TableError: if the table is of another network.
    """
    return PricedNetwork(table, network)


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


class _Fan:
    """The conversions of a tensor among three deciders or more.

    Looked up by the written format and the set of formats that are asked for, in the low bits.
    """

    def __init__(self, conversion: Conversion) -> None:
        cells = conversion.cells[:, :, 0]
        formats = np.arange(len(cells))
        member = (np.arange(1 << len(cells))[:, None] >> formats & 1).astype(bool)
        self._conversion = conversion
        self._bit = (1 << formats).astype(np.uint16)
        # (written, asked set): the sum over the set; inf * 0 must not become NaN
        self._lut: FloatArray = np.where(member[None], cells[:, None], 0.0).sum(2)

    def cost(self, states: States) -> FloatArray:
        writer, readers = self._conversion.writer, self._conversion.readers
        asked = self._bit.take(state_of(readers[0], readers[0].reads, states))
        for reader in readers[1:]:
            asked = asked | self._bit.take(state_of(reader, reader.reads, states))
        written = state_of(writer, writer.writes, states).astype(np.uint16)
        return self._lut.ravel().take(written * np.uint16(self._lut.shape[1]) + asked)


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
        terms = split(network, table.choices, np.arange(len(table.layers)), [table])
        self._merges = terms.merges
        self._constant = float(terms.constant[0])
        alone = [costs[:, 0] for costs in terms.states]
        self._pairs = _pairs(alone, [c for c in terms.conversions if len(c.involved) == 2])
        self._charges = terms.charges
        self._fans = [_Fan(c) for c in terms.conversions if len(c.involved) > 2]

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
                states[merge.decider] = merge.state(states)
            sums = np.full(len(block), self._constant)
            for pair in self._pairs:
                sums += pair.cost(states)
            for fan in self._fans:
                sums += fan.cost(states)
            for charge in self._charges:
                sums += charge.value * charge.due(states)
            result[start : start + _BLOCK] = sums
        return result

    def why(self, index: npt.NDArray[np.uint8]) -> str:
        """Say which cell of one policy, (L,), is not supported."""
        for layer, choice in enumerate(index):
            if not self.table.supported[layer, choice]:
                name, bits = self.table.layers[layer], self.table.choices[choice]
                if isinstance(bits, ChannelGroups):
                    return (
                        f"layer {name!r} has channel groups ({brief(bits)}) without a price here; "
                        f'give it one width, such as "w{bits.weight_widths[-1]}a{bits.activations}"'
                    )
                return f"layer {name!r} at {bits}"
        return "a glue operator or conversion between its formats"


def _pairs(alone: Sequence[FloatArray], conversions: Sequence[Conversion]) -> list[_Pair]:
    """Let each pair take in the look-up of a decider that no other pair took.

    Args:
        alone: for each decider what its states cost by themselves.
        conversions: those that two deciders settle.
    """
    grids: dict[tuple[int, int], FloatArray] = {}
    for conversion in conversions:
        first, second = conversion.involved
        shape = len(alone[first]), len(alone[second])
        states = np.indices(shape).reshape(2, -1)
        cost = conversion.costs({first: states[0], second: states[1]})[:, 0].reshape(shape)
        grids[first, second] = grids.get((first, second), 0.0) + cost
    left = dict(enumerate(alone))
    for (first, second), grid in grids.items():
        if first in left:
            grid += left.pop(first)[:, None]
        if second in left and sum(second in key for key in grids) == 1:
            grid += left.pop(second)[None, :]
    joined = [_Pair(first, second, grid) for (first, second), grid in grids.items()]
    return joined + [_Pair(d, d, lut) for d, lut in left.items() if lut.any()]
