"""Which layers of a network may change each other's cost: neighbours, and theirs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.context import ORDER, GroupArray, products
from hil.regression import FloatArray, Prior
from quantization.network import Layer, Network

_MOST_GROUPS = 2000
"""Of each kind; a densely connected network has more, of which those of large tensors are kept."""


@dataclass(frozen=True, eq=False)
class Interactions:
    """Groups of layers, and what is believed of their effect before anything is timed.

    Args:
        groups: (K, 3) positions of layers, -1 for none: see `costmodels.context.Context`.
        spread: (K,) relative prior deviation of their values; the means are zero.
        blocks: (K,) kind: 0 the constant, then layers, neighbours, layers two apart, and chains
            of three.
    """

    groups: GroupArray
    spread: FloatArray
    blocks: npt.NDArray[np.intp]

    @classmethod
    def of(cls, network: Network, cost: FloatArray) -> "Interactions":
        """List the groups of `network`.

        Args:
            network: the network.
            cost: (L,) rough cost of each layer, relative to the whole network's.
        """
        edges = neighbours(network)
        after: dict[int, list[int]] = {}
        for first, second in edges:
            after.setdefault(first, []).append(second)
        chains = sorted({(a, b, c) for a, b in edges for c in after.get(b, ())})
        apart = sorted({(a, c) for a, _, c in chains} - set(edges))
        counts = [network.tensor_by_name[layer.output].count for layer in network.layers]
        size = np.array(counts) / max(sum(counts), 1)
        # What a boundary costs grows with the tensor that is converted: that of the first layer.
        kinds: list[list[tuple[tuple[int, ...], float]]] = [
            [((), 0.01)],
            [((i,), 0.1 * float(np.sqrt(c))) for i, c in enumerate(cost)],
            [((a, b), 0.1 * float(np.sqrt(size[a]))) for a, b in edges],
            [((a, c), float(np.sqrt(size[a] * size[c]))) for a, c in apart],
            [((a, b, c), float(np.sqrt(size[a] * size[b]))) for a, b, c in chains],
        ]
        largest = [
            sorted(kind, key=lambda group: -group[1])[:_MOST_GROUPS] for kind in kinds if kind
        ]
        flat = [(group, spread, k) for k, kind in enumerate(largest) for group, spread in kind]
        padded = [(*group, *[-1] * (ORDER - len(group))) for group, _, _ in flat]
        return cls(
            np.array(padded, np.int16),
            np.array([spread for _, spread, _ in flat]),
            np.array([k for _, _, k in flat], np.intp),
        )

    def features(self, integer: npt.NDArray[np.bool_]) -> FloatArray:
        """Return the features, (P, K), of policies that run layers `integer`, (P, L)."""
        return products(self.groups, integer)

    @property
    def prior(self) -> Prior:
        """Of the values: zero, scattered in proportion to their spread."""
        return Prior.apart(np.zeros(len(self.spread)), self.spread, self.blocks)


def neighbours(network: Network) -> list[tuple[int, int]]:
    """Return the pairs of positions of layers between which there is only glue, in order."""
    position = {name: i for i, name in enumerate(network.layer_names)}
    behind: dict[str, frozenset[int]] = {}
    pairs: set[tuple[int, int]] = set()
    for node in network.execution_order:
        above = frozenset[int]().union(*(behind.get(name, frozenset()) for name in node.inputs))
        if isinstance(node, Layer):
            own = position[node.name]
            pairs |= {(layer, own) for layer in above}
            behind[node.output] = frozenset({own})
        else:
            behind |= dict.fromkeys(node.outputs, above)
    return sorted(pairs)
