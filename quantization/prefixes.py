"""Policies that begin alike compute alike up to the first layer that differs: once is enough.

Formats are decided looking backwards (`quantization.formats`), so what is known before some node
depends on nothing but the images, and the bits and corrections of the layers before it. Policies
that a search tries share these more often than not.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from quantization.deployment import Corrections
from quantization.execution import Values
from quantization.network import Layer, Network
from quantization.policy import Policy

LIMIT = 2**30
"""Bytes that are kept by default."""
_PARTS = 8
"""A network is cut once in each of so many parts of about equal work."""


@dataclass(frozen=True, eq=False)
class State:
    """What is known of some images before some node.

    Args:
        position: of the node in execution order.
        blocks: what is known of each block of images.
        found: corrections that were found on the way; empty where they were given.
    """

    position: int
    blocks: Sequence[Values]
    found: Corrections = field(default_factory=dict)


class Prefixes:
    """States of policies that were run in part or to the end, the latest used ones.

    Args:
        network: the network.
        limit: bytes that are kept between runs at most; no state may take more than an eighth of
            them. 0 keeps nothing.

    Attributes:
        cuts: positions in execution order, ascending, where states may be kept; to the values of
            one image that are live there.
        size: bytes that are kept.
    """

    def __init__(self, network: Network, limit: int = LIMIT) -> None:
        self.cuts = _cuts(network)
        self.size = 0
        self._network, self._limit = network, limit
        self._states: OrderedDict[Hashable, State] = OrderedDict()

    def keys(
        self, images: Hashable, count: int, policy: Policy, corrections: Corrections | None = None
    ) -> dict[int, Hashable]:
        """Return what a state depends on, by the cuts where it is small enough to be kept.

        Args:
            images: stands for the images that are run.
            count: how many images.
            policy: the bits.
            corrections: those that are given; None where they are found on the way.
        """
        found: dict[int, Hashable] = {}
        passed: list[Hashable] = [images, corrections is None]
        for position, node in enumerate(self._network.execution_order):
            live = self.cuts.get(position)
            if live is not None and 4 * count * live <= self._limit // 8:
                found[position] = tuple(passed)
            if isinstance(node, Layer):
                passed.append(str(policy[node.name]))
                if corrections and (given := corrections.get(node.name)):
                    passed += given.gain.tobytes(), given.shift.tobytes()
        return found

    def latest(self, keys: dict[int, Hashable]) -> State | None:
        """Return the known state that is furthest on, if there is one."""
        for position, key in reversed(keys.items()):
            if (state := self._states.get(key)) is not None:
                self._states.move_to_end(key)
                blocks = [dict(block) for block in state.blocks]
                return State(position, blocks, dict(state.found))
        return None

    def keep(self, key: Hashable, state: State) -> None:
        """Keep a state of `detached` values, and forget others if there is no room."""
        self._states[key] = state
        self.size += _bytes(state)
        while self.size > self._limit:
            self.size -= _bytes(self._states.popitem(last=False)[1])


def detached(values: Values) -> Values:
    """Return a copy of values in which a part of a tensor does not hold the whole."""
    return {
        name: value.clone() if value.untyped_storage().nbytes() > value.nbytes else value
        for name, value in values.items()
    }


def _bytes(state: State) -> int:
    return sum(value.nbytes for block in state.blocks for value in block.values())


def _cuts(network: Network) -> dict[int, int]:
    """Return `Prefixes.cuts`: where the fewest values are live in each part of about equal MACs."""
    tensors, order = network.tensor_by_name, network.execution_order
    live = {name: tensors[name].count for name in network.input_names}
    done, fewest = 0, dict[int, tuple[int, int]]()
    for position, node in enumerate(order, start=1):
        made = [node.output] if isinstance(node, Layer) else node.outputs
        live |= {name: tensors[name].count for name in made}
        for name in node.inputs:
            if tensors[name].consumers[-1] == node.name:
                live.pop(name, None)
        done += node.macs if isinstance(node, Layer) else 0
        if done and position < len(order):  # there is something to save, and something left to do
            part = done * _PARTS // network.macs
            here = sum(live.values()), position
            fewest[part] = min(here, fewest.get(part, here))
    return {position: count for count, position in fewest.values()}
