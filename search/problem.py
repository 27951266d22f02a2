"""What a search solves: a network, its choices, their costs, the budgets and the proxy loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.pricing import priced_network
from costmodels.table import BoolArray, CostTable, FloatArray
from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.errors import BudgetError, PolicyError
from quantization.network import Network
from quantization.policy import IndexArray

Positions = npt.NDArray[np.intp]

SLACK = 1e-9
"""Relative excess over a budget that is rounding: sums in another order differ by this much."""

_UNSUPPORTED = 1e6
"""Violation of a policy that a table does not support: worse than any budget that is exceeded."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose the bits of every layer: little loss, every cost within its budget.

    Policies are index arrays (P, L) of uint8 into `choices`. Tied layers are one *decision*:
    `groups` lists them, and (P, G) arrays of decisions become policies by `expand`.

    Args:
        network: L layers; its ties are respected.
        choices: K bit-widths.
        tables: what is priced; each of `network`, over exactly `choices`.
        budgets: the most that a metric may cost, in the unit of its table.
        loss: (L, K) proxy loss of each layer at each choice, not negative; the proxy loss of a
            policy is the sum. Cells that are not allowed are not looked at, and become infinite.

    Raises:
        BudgetError: if a budget has no table or is not positive and finite.
        TableError: if a table is of another network or other choices.
        PolicyError: if `loss` has another shape, or an allowed cell is negative or not finite.
        UnsupportedChoiceError: if a layer, or a tie, has no choice that every table supports.
    """

    network: Network
    choices: tuple[BitWidths, ...]
    tables: Mapping[Metric, CostTable]
    budgets: Mapping[Metric, float]
    loss: FloatArray

    def __post_init__(self) -> None:
        for metric, table in self.tables.items():
            table.check(self.network)
            if table.metric is not metric:
                raise TableError(f"the table for {metric.value} prices {table.metric.value}")
            if table.choices != self.choices:
                held = ",".join(map(str, table.choices))
                raise TableError(f"the {metric.value} table is over {held}; restrict it first")
        for metric, budget in self.budgets.items():
            if metric not in self.tables:
                raise BudgetError(
                    f"a budget for {metric.value} needs a {metric.value} table; add one"
                )
            if not (np.isfinite(budget) and budget > 0):
                raise BudgetError(f"the {metric.value} budget {budget} is not positive and finite")
        self._require_choices()
        loss = np.asarray(self.loss, np.float64)
        if loss.shape != self.allowed.shape:
            raise PolicyError(f"loss has shape {loss.shape}, expected {self.allowed.shape}")
        seen = loss[self.allowed]
        if not (np.isfinite(seen) & (seen >= 0)).all():
            raise PolicyError("the loss of a supported choice is negative or not finite")
        object.__setattr__(self, "loss", np.where(self.allowed, loss, np.inf))

    def _require_choices(self) -> None:
        for group, allowed in zip(self.groups, self.allowed_decisions, strict=True):
            if not allowed.any():
                names = ", ".join(repr(self.network.layer_names[i]) for i in group)
                raise UnsupportedChoiceError(
                    f"no choice is supported for layer {names} in every table; add w32a32 to the "
                    "choices"
                )

    @cached_property
    def allowed(self) -> BoolArray:
        """(L, K): the choices that every table supports."""
        shape = (len(self.network.layers), len(self.choices))
        supported = [table.supported for table in self.tables.values()]
        allowed: BoolArray = np.logical_and.reduce([np.ones(shape, bool), *supported])
        return allowed

    @cached_property
    def groups(self) -> tuple[Positions, ...]:
        """For each decision the positions of its layers, ordered by the first of them."""
        position = {name: i for i, name in enumerate(self.network.layer_names)}
        tied = [sorted(position[name] for name in tie) for tie in self.network.ties if tie]
        single = set(position.values()) - {i for group in tied for i in group}
        return tuple(np.array(g, np.intp) for g in sorted(tied + [[i] for i in single]))

    @cached_property
    def decision_of(self) -> Positions:
        """(L,): the decision that each layer belongs to."""
        owner = np.empty(len(self.network.layers), np.intp)
        for decision, group in enumerate(self.groups):
            owner[group] = decision
        return owner

    @cached_property
    def allowed_decisions(self) -> BoolArray:
        """(G, K): the choices that every layer of a decision allows."""
        return np.array([self.allowed[group].all(0) for group in self.groups])

    @cached_property
    def decision_loss(self) -> FloatArray:
        """(G, K): proxy loss of a decision; infinite where not allowed."""
        return np.array([self.loss[group].sum(0) for group in self.groups])

    def expand(self, decisions: npt.NDArray[np.integer]) -> IndexArray:
        """Return the policies (P, L) of decisions (P, G)."""
        if len(self.groups) == len(self.decision_of):  # nothing is tied
            return np.ascontiguousarray(decisions, np.uint8)
        return np.ascontiguousarray(decisions[:, self.decision_of], np.uint8)

    def decide(self, index: IndexArray) -> IndexArray:
        """Return the decisions (P, G) of policies (P, L) that respect the ties."""
        return np.ascontiguousarray(index[:, [group[0] for group in self.groups]])

    def costs(self, index: IndexArray) -> dict[Metric, FloatArray]:
        """Return what each policy costs.

        Args:
            index: (P, L).

        Returns:
            For each table (P,) costs in its unit; infinite where a policy is not supported.
        """
        return {
            metric: priced_network(table, self.network).price(index)
            for metric, table in self.tables.items()
        }

    def violation(self, costs: Mapping[Metric, FloatArray]) -> FloatArray:
        """Return how far priced policies are from feasible, (P,): 0 exactly where they are.

        The sum over budgets of the fraction by which they are exceeded, and a large number for each
        table that does not support the policy.
        """
        total: FloatArray = np.zeros(len(next(iter(costs.values()), ())))
        for metric, cost in costs.items():
            supported = np.isfinite(cost)
            total += np.where(supported, 0.0, _UNSUPPORTED)
            if metric in self.budgets:
                budget = self.budgets[metric]
                over = supported & (cost > budget * (1 + SLACK))
                total += np.where(over, np.minimum(cost / budget - 1.0, _UNSUPPORTED), 0.0)
        return total

    def within(self, costs: Mapping[Metric, FloatArray]) -> BoolArray:
        """Return which of the priced policies, (P,), are supported and within every budget."""
        met: BoolArray = np.logical_and.reduce(
            [np.isfinite(cost) for cost in costs.values()]
            + [costs[m] <= b * (1 + SLACK) for m, b in self.budgets.items()]
        )
        return met

    def feasible(self, index: IndexArray) -> BoolArray:
        """Return which policies, (P,), are supported, within every budget, and respect ties."""
        tied = (index == self.expand(self.decide(index))).all(1)
        allowed = self.allowed[np.arange(index.shape[1]), index].all(1)
        within = self.within(self.costs(index)) if self.tables else True
        result: BoolArray = tied & allowed & within
        return result

    def proxy_loss(self, index: IndexArray) -> FloatArray:
        """Return the sum of the layers' losses, (P,); infinite where a choice is not allowed."""
        total: FloatArray = self.loss[np.arange(index.shape[1]), index].sum(1)
        return total

    @cached_property
    def lowest_loss(self) -> IndexArray:
        """(1, L): the policy of the least proxy loss, whatever it costs."""
        return self.expand(self.decision_loss.argmin(1)[None])
