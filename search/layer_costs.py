"""What each layer's bits make a policy pay: itself, and its part of glue and conversions.

A cost belongs to the layers whose bits settle it. The operators that follow one layer's format are
that layer's; a join, and a conversion between formats that several layers settle, is split among
them in equal parts. So the costs of all layers, with what no layer can change and what is paid
once, are the cost of the policy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.deciders import Merge, split
from costmodels.table import FloatArray
from costmodels.units import Metric
from quantization.policy import IndexArray
from search.problem import Problem


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs in one metric, in the unit of its table.

    Args:
        name: of the layer.
        bits: that it has.
        unary: of the layer itself.
        beside: its part of the glue and the conversions that its bits settle; may be negative,
            where a fusion is gained.
    """

    name: str
    bits: str
    unary: float
    beside: float

    @property
    def cost(self) -> float:
        """Of the layer with its part of glue and conversions."""
        return self.unary + self.beside

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as JSON values."""
        return {
            "name": self.name,
            "bits": self.bits,
            "cost": self.cost,
            "unary": self.unary,
            "beside": self.beside,
        }


def layer_costs(problem: Problem, index: IndexArray, metric: Metric) -> tuple[LayerCost, ...]:
    """Return what each layer costs under one supported policy, (L,), in execution order.

    Raises:
        KeyError: if the problem has no table for `metric`.
    """
    table, layers = problem.tables[metric], len(problem.network.layers)
    terms = split(problem.network, problem.choices, np.arange(layers), [table])
    states: dict[int, int] = dict(enumerate(map(int, index)))
    settled_by: dict[int, frozenset[int]] = {d: frozenset([d]) for d in range(layers)}
    for merge in terms.merges:
        arrays = {decider: np.array([state]) for decider, state in states.items()}
        states[merge.decider] = int(merge.state(arrays)[0])
        settled_by[merge.decider] = _layers_of(merge, settled_by)
    arrays = {decider: np.array([state]) for decider, state in states.items()}
    unary = table.unary.value[np.arange(layers), index]
    beside = np.zeros(layers)
    for decider, costs in enumerate(terms.states):
        _divide(beside, settled_by[decider], float(costs[states[decider], 0]))
    beside -= unary  # the state of a layer holds what it costs itself
    for conversion in terms.conversions:
        involved = frozenset().union(*(settled_by[decider] for decider in conversion.involved))
        _divide(beside, involved, float(conversion.costs(arrays)[0, 0]))
    return tuple(
        LayerCost(name, str(problem.choices[k]), float(own), float(rest))
        for name, k, own, rest in zip(
            problem.network.layer_names, index, unary, beside, strict=True
        )
    )


def _layers_of(merge: Merge, settled_by: Mapping[int, frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*(settled_by[decider] for decider in merge.inputs))


def _divide(costs: FloatArray, among: frozenset[int], cost: float) -> None:
    costs[list(among)] += cost / len(among)
