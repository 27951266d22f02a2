"""Groups of layers that must get equal bits: what joins them, and how groups merge."""

from collections.abc import Iterable, Sequence

from quantization.errors import PolicyError, did_you_mean
from quantization.network import Layer, Network

RESIDUAL = "residual"
"""Stands for the groups of `residual_groups` where ties are asked for."""
_ADDITIONS = frozenset({"Add", "Sum"})


def residual_groups(network: Network) -> tuple[tuple[str, ...], ...]:
    """Return the groups of layers whose outputs are added up.

    Hardware that adds integers of one scale wants the layers that write into one residual stream
    alike. An output is followed through operators with one input and through further additions;
    where anything else joins tensors, it ends.

    Returns:
        Groups of at least two layers, none in two of them.
    """
    writers: dict[str, list[str]] = {}
    added: list[list[str]] = []
    for node in network.execution_order:
        if isinstance(node, Layer):
            writers[node.output] = [node.name]
            continue
        adds = node.kind in _ADDITIONS and len(node.inputs) > 1
        if adds or len(node.inputs) == 1:
            behind = [name for tensor in node.inputs for name in writers.get(tensor, [])]
            writers |= {tensor: list(dict.fromkeys(behind)) for tensor in node.outputs}
        if adds:
            added.append(writers[node.outputs[0]])
    return merge_ties([group for group in added if len(group) > 1])


def merge_ties(groups: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Merge groups that have a layer in common.

    >>> merge_ties([("a", "b"), ("c", "d"), ("d", "a")])
    (('a', 'b', 'c', 'd'),)
    """
    merged: list[list[str]] = []
    for group in groups:
        joined = [other for other in merged if not set(other).isdisjoint(group)]
        names = [name for other in joined for name in other] + list(group)
        merged = [other for other in merged if other not in joined]
        merged.append(list(dict.fromkeys(names)))
    return tuple(tuple(group) for group in merged)


def resolve_ties(network: Network, asked: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Return the network's own ties and those that are asked for, merged where they overlap.

    Args:
        network: its layers are tied.
        asked: groups of at least two layers; one that is the word ``residual`` alone stands for
            `residual_groups`.

    Raises:
        PolicyError: for a group of fewer layers, an unknown layer, or a network without additions
            of what layers write.
    """
    groups: list[Sequence[str]] = [*network.ties]
    for group in asked:
        if tuple(group) == (RESIDUAL,):
            found = residual_groups(network)
            if not found:
                raise PolicyError(
                    "no layers are added up in this network: leave out --tie residual"
                )
            groups += found
        elif len(set(group)) < 2:
            close = did_you_mean(group[0], [RESIDUAL]) if len(group) == 1 else ""
            names = ",".join(group) or "none"
            raise PolicyError(f"a tie names at least two layers, not {names}{close}")
        else:
            groups.append(group)
    merged = merge_ties(groups)
    network.tied(merged)  # says that there is no such layer
    return merged
