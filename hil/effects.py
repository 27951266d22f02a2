"""The linear model behind a calibrated table: what makes a policy differ from the float network."""

from collections.abc import Mapping

import numpy as np

from costmodels.spread import INTEGER
from costmodels.table import BoolArray, FloatArray
from hil.regression import Prior
from quantization.bits import BitWidths, Format
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy

_LEAST_SHARE = 1e-4
"""Share of the float network's time that a layer takes at least.

The profiler counts whole microseconds, so that a tiny layer may get none; but no layer is free.
"""

_LEAST_GAIN = 0.02
"""Share of its own float cost that an integer layer costs at least.

The fitted gain of a layer may exceed its float cost, because a gain of its neighbours (a fusion, a
layout that is kept) is split among them by the prior only. A negative cost would reward a search
for quantizing the layer whatever else it does; and no integer kernel is 50 times as fast as float.
"""

_FEW_CONVERSIONS = 1 / 50
"""Brings the count of conversions to the order of their share of all elements."""


class Effects:
    """The columns of the linear model, and how a policy turns into a row.

    Args:
        network: the network.
        narrow: the bits beside float32 that layers may have. Only some glue runs on integers; all
            of it runs in half precision.
    """

    def __init__(self, network: Network, narrow: BitWidths = INTEGER) -> None:
        self.network, self.narrow = network, narrow
        self.layers = network.layer_names
        self._glue = tuple(glue for glue in network.glue if glue.integer or narrow.half)
        self.glue = tuple(glue.name for glue in self._glue)
        self.conversions = tuple(
            (tensor.name, target)
            for tensor in network.tensors
            for target in (narrow.reads, Format.FLOAT32)
        )
        self.count = len(self.layers) + len(self.glue) + len(self.conversions)

    @property
    def blocks(self) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """(D,): 0 for layers, 1 for glue, 2 and 3 for conversions to the narrow format and back."""
        target = [3 if target is Format.FLOAT32 else 2 for _, target in self.conversions]
        return np.array([0] * len(self.layers) + [1] * len(self.glue) + target, np.intp)

    def row(self, policy: Policy) -> FloatArray:
        """Return the features of `policy`, (D,)."""
        chosen = formats(self.network, policy)
        narrow = [policy[name].reads is not Format.FLOAT32 for name in self.layers]
        glue = [chosen.reads[name] is not Format.FLOAT32 for name in self.glue]
        paid = {(tensor, target) for tensor, _, target in chosen.conversions}
        return np.array([*narrow, *glue, *(key in paid for key in self.conversions)], float)

    def prior(
        self, float_shares: Mapping[str, float], integer_shares: Mapping[str, float], ratio: float
    ) -> Prior:
        """Return what profiles of the float and the all-integer network let one expect.

        Args:
            float_shares: share of the float network's time by node.
            integer_shares: the same of the all-integer network.
            ratio: time of the all-integer network over the float one.
        """
        nodes = (*self.layers, *self.glue)
        before = np.array([float_shares.get(name, 0.0) for name in nodes])
        after = np.array([integer_shares.get(name, 0.0) for name in nodes]) * ratio
        # Nothing is known of what a conversion costs before it is timed; it may even gain a fusion:
        # the mean is zero. It streams its tensor once, so costs are thought to scatter in
        # proportion to sizes; how widely is fitted (the block's scale).
        counts = [self.network.tensor_by_name[name].count for name, _ in self.conversions]
        streamed = np.array(counts) / max(sum(counts), 1)
        mean = np.concatenate([after - before, np.zeros(len(streamed))])
        spread = np.concatenate([before + after + 1e-3, streamed + 1e-3])
        return Prior(mean, spread, self.blocks, self._shared(before + after, streamed))

    def _shared(self, cost: FloatArray, streamed: FloatArray) -> FloatArray:
        """What the members of a class have in common, (D, S).

        Layers and glue operators of a kind run the same kernels, which the profile misjudges in
        proportion to their cost. Conversions in one direction take a time per element and a time
        per operator.
        """
        kinds = [
            *(f"{layer.kind} {layer.is_depthwise}" for layer in self.network.layers),
            *(glue.kind for glue in self._glue),
        ]
        of_kind = [np.where(np.array(kinds) == kind, cost, 0.0) for kind in sorted(set(kinds))]
        targets = np.array([target is not Format.FLOAT32 for _, target in self.conversions])
        of_target = [
            np.where(targets == target, each, 0.0)
            for target in (True, False)
            for each in (streamed, np.full(len(streamed), _FEW_CONVERSIONS))
        ]
        nodes, conversions = len(kinds), len(targets)
        columns = [
            *(np.concatenate([column, np.zeros(conversions)]) for column in of_kind),
            *(np.concatenate([np.zeros(nodes), column]) for column in of_target),
        ]
        return np.stack(columns, axis=1)

    def plausible(self, coefficients: FloatArray, shares: FloatArray) -> FloatArray:
        """Return `coefficients`, (D,), with no layer's gain greater than it can be.

        Args:
            coefficients: effects relative to the float network's time.
            shares: (L,) or longer: share of that time that each layer takes as floats.
        """
        result, layers = coefficients.copy(), len(self.layers)
        result[:layers] = np.maximum(result[:layers], (_LEAST_GAIN - 1) * shares[:layers])
        return result

    def paid(self, rows: FloatArray) -> BoolArray:
        """Return which effects, (D,), any of `rows`, (N, D), has."""
        return np.asarray(rows.any(axis=0), np.bool_)


def shares_of_nodes(network: Network, found: Mapping[str, float]) -> FloatArray:
    """Return the share of the float network's time of each layer, then glue operator, (L + G,).

    They add up to 1, and no layer's is zero.

    Args:
        network: the network.
        found: share by node, from a profile.
    """
    least = dict.fromkeys(network.layer_names, _LEAST_SHARE)
    names = (*network.layer_names, *(glue.name for glue in network.glue))
    shares = np.array([max(found.get(n, 0.0), least.get(n, 0.0)) for n in names])
    return np.asarray(shares / shares.sum(), np.float64)
