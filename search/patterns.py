"""Which kinds of layers got which bits, beside what chance would give.

A group of layers that has more bits than the network's mean shows a pattern only if that is more
than a draw of as many layers would show. The test permutes the layers: the bits of the policy are
dealt out anew, and the group's mean is looked at again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodels.table import BoolArray, FloatArray
from quantization.errors import PolicyError
from quantization.network import Layer, Network
from quantization.policy import PolicyBatch

ALPHA = 0.05
"""Chance that any group of one width is called a pattern where there is none."""

_DEALS = 9999
_TINY = 1e-9
"""Bits by which two means must differ not to be equal but for rounding."""


@dataclass(frozen=True)
class GroupBits:
    """The mean bits of one group of layers.

    Args:
        group: such as ``depthwise``.
        layers: how many.
        mean: bits, each layer counting alike.
        difference: from the mean of all layers.
        p: chance of a difference at least as large, to either side, if layers were dealt at random.
        adjusted: p, adjusted for how many groups are looked at; None where the group is all layers
            or all layers have the same bits: then nothing is tested.
    """

    group: str
    layers: int
    mean: float
    difference: float
    p: float | None
    adjusted: float | None

    @property
    def pattern(self) -> bool:
        """Whether the difference is more than chance gives."""
        return self.adjusted is not None and self.adjusted <= ALPHA

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "group": self.group,
            "layers": self.layers,
            "mean": self.mean,
            "difference": self.difference,
            "p": self.p,
            "p_adjusted": self.adjusted,
            "pattern": self.pattern,
        }


@dataclass(frozen=True)
class Patterns:
    """Mean bits of every group of layers.

    Args:
        weight_mean: mean weight bits of all layers that have weights.
        activation_mean: mean bits of all layers' input activations.
        weights: of each group; layers without weights are in none.
        activations: of each group.
        policies: how many policies were averaged.
        layers: how many layers the network has.
    """

    weight_mean: float
    activation_mean: float
    weights: tuple[GroupBits, ...]
    activations: tuple[GroupBits, ...]
    policies: int
    layers: int

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {
            "policies": self.policies,
            "layers": self.layers,
            "weight_mean": self.weight_mean,
            "activation_mean": self.activation_mean,
            "weights": [group.to_dict() for group in self.weights],
            "activations": [group.to_dict() for group in self.activations],
            "test": f"permutation of layers, Holm's adjustment, level {ALPHA}",
        }


def layer_groups(network: Network) -> dict[str, BoolArray]:
    """Return which layers, (L,), belong to each group; groups without a layer are left out.

    Kinds exclude each other: ``depthwise``, ``pointwise`` (a convolution of one input element),
    ``other convolution``, ``dense``. Places may overlap with kinds and each other: ``first``,
    ``last``, ``early third``, ``late third``, in execution order.
    """
    count = len(network.layers)
    kinds = np.array([_kind(layer) for layer in network.layers])
    place = np.arange(count)
    groups = {"first": place == 0, "last": place == count - 1}
    groups |= {kind: kinds == kind for kind in _KINDS}
    third = count / 3
    groups |= {"early third": place + 1 <= third, "late third": place >= count - third}
    return {name: members for name, members in groups.items() if members.any()}


_KINDS = ("depthwise", "pointwise", "other convolution", "dense")


def _kind(layer: Layer) -> str:
    if layer.kind in ("Gemm", "MatMul"):
        return "dense"
    if layer.is_depthwise:
        return "depthwise"
    return "pointwise" if set(layer.kernel) == {1} else "other convolution"


def measure_patterns(
    network: Network,
    policies: PolicyBatch,
    weights: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> Patterns:
    """Return the mean bits of every group of layers, over one policy or many.

    float32 counts as 32 bits, half precision as 16. With several policies the layers' bits are
    averaged first: a test of L layers is one of L numbers, however many policies there are.

    The p-value is (1 + deals at least as far from the mean) / (1 + deals), 9,999 deals (Phipson and
    Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010); adjusted over the
    groups of one width as in Holm, Scandinavian Journal of Statistics 6, 1979. Tied layers are
    dealt one value together. A group of one layer cannot have a p below 1 / L. A difference that a
    mask forces, where only some widths are allowed, is a pattern like any other.

    Args:
        network: L layers; with its ties, such as `Problem.network`.
        policies: P policies of all its layers.
        weights: (P,) how much each policy counts; None counts them alike.
        seed: of the deals.

    Raises:
        PolicyError: if there is no policy, one is of other layers, or the weights do not fit.
    """
    if policies.layers != network.layer_names or not len(policies):
        raise PolicyError("patterns need at least one policy of this network's layers")
    counts = np.ones(len(policies)) if weights is None else np.asarray(weights, np.float64)
    if counts.shape != (len(policies),) or (counts < 0).any() or not 0 < counts.sum() < np.inf:
        raise PolicyError(
            f"weights are not negative, some positive, one for each of {len(policies)} policies"
        )
    shares = counts / counts.sum()
    groups = layer_groups(network)
    held = np.array([layer.has_weights for layer in network.layers])
    weight_bits = shares @ np.array([c.mean_weights for c in policies.choices])[policies.index]
    activation_bits = shares @ np.array([c.activations for c in policies.choices])[policies.index]
    everywhere, decisions = np.ones(len(held), bool), _decisions(network)
    return Patterns(
        float(weight_bits[held].mean()) if held.any() else 0.0,
        float(activation_bits.mean()),
        _test(weight_bits, groups, held, decisions, seed),
        _test(activation_bits, groups, everywhere, decisions, seed),
        len(policies),
        len(network.layers),
    )


def _test(
    bits: FloatArray,
    groups: Mapping[str, BoolArray],
    counted: BoolArray,
    decision_of: npt.NDArray[np.intp],
    seed: int,
) -> tuple[GroupBits, ...]:
    """Compare each group with the mean of the counted layers."""
    bits = bits[counted]
    members = {name: who[counted] for name, who in groups.items() if who[counted].any()}
    if not members:
        return ()
    _, first, decision = np.unique(decision_of[counted], return_index=True, return_inverse=True)
    # what each decision adds to a group's mean, less what it adds to the mean of all
    contrast = np.array(
        [np.bincount(decision, who / who.sum() - 1 / len(bits)) for who in members.values()]
    )
    found = contrast @ bits[first]
    tested = (np.abs(contrast) > _TINY).any(1) & (np.ptp(bits) > _TINY)
    rng = np.random.default_rng(seed)
    deals = rng.permuted(np.broadcast_to(bits[first], (_DEALS, len(first))), axis=1)
    p = (1 + (np.abs(deals @ contrast.T) >= np.abs(found) - _TINY).sum(0)) / (1 + _DEALS)
    adjusted = np.ones(len(p))
    adjusted[tested] = holm(p[tested])
    return tuple(
        GroupBits(
            name,
            int(who.sum()),
            float(bits[who].mean()),
            float(bits[who].mean() - bits.mean()),
            float(p[i]) if tested[i] else None,
            float(adjusted[i]) if tested[i] else None,
        )
        for i, (name, who) in enumerate(members.items())
    )


def _decisions(network: Network) -> npt.NDArray[np.intp]:
    """Return for each layer, (L,), the position of the first layer that it is tied to."""
    position = {name: i for i, name in enumerate(network.layer_names)}
    first = {name: min(position[other] for other in tie) for tie in network.ties for name in tie}
    return np.array([first.get(name, i) for name, i in position.items()], np.intp)


def holm(p: npt.NDArray[np.float64]) -> FloatArray:
    """Return p-values, (N,), adjusted so that the chance of any false alarm stays at the level.

    The i-th smallest times N - i + 1, never less than the one before (Holm, 1979).

    >>> holm(np.array([0.01, 0.04, 0.03])).tolist()
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0)
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted
