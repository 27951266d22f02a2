"""The environment of the agent: states, masks and costs of rollouts, many side by side.

One step decides one layer (or tie), in execution order. What a decision costs is charged as soon as
it is settled: glue and conversions at the step that decides the last of their formats, what is paid
once at the first step that brings it about. So the cost so far includes the conversions already
decided, and the last one equals the price of the policy. Budgets are hard: policies that break them
are repaired when the rollout is complete.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.deciders import Conversion, Merge, Terms, split
from costmodels.table import BoolArray, FloatArray
from quantization.policy import IndexArray
from search.features import Float32Array, static_features
from search.problem import Problem
from search.repair import Repaired, repair

States = npt.NDArray[np.intp]

_LARGEST_TABLE = 4096
"""Joint states of the deciders of a tensor up to which its conversions are looked up."""

_LARGEST_SHARE = 4.0
"""Costs so far are shown as shares of the budget, cut off here (unsupported ones are infinite)."""


@dataclass(frozen=True, eq=False)
class _Lookup:
    """What the joint state of some deciders costs: (joint states, M)."""

    deciders: tuple[int, ...]
    sizes: tuple[int, ...]
    costs: FloatArray

    def charge(self, states: States) -> FloatArray:
        """Return the cost (B, M) of states (deciders, B)."""
        joint = states[self.deciders[0]]
        for decider, size in zip(self.deciders[1:], self.sizes[1:], strict=True):
            joint = joint * size + states[decider]
        paid: FloatArray = self.costs[joint]
        return paid


@dataclass(frozen=True, eq=False)
class _Fan:
    """Conversions of a tensor among too many deciders for a table."""

    conversion: Conversion

    def charge(self, states: States) -> FloatArray:
        return self.conversion.costs(states)


@dataclass(frozen=True, eq=False)
class _Step:
    """What one decision settles: merges in order, then costs."""

    merges: tuple[Merge, ...]
    charges: tuple[_Lookup | _Fan, ...]


class Environment:
    """The environment of one problem.

    Args:
        problem: G decisions among K choices, M budgets.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        tables = [problem.tables[metric] for metric in problem.budgets]
        self._terms = split(problem.network, problem.choices, problem.decision_of, tables)
        self._limits = np.array(list(problem.budgets.values()))
        self._plan = _plan(self._terms)
        self._static = static_features(problem)

    @property
    def steps(self) -> int:
        """Decisions of one rollout, G."""
        return len(self._plan)

    @property
    def mask(self) -> BoolArray:
        """(G, K): the choices that may be taken at each step."""
        return self.problem.allowed_decisions

    @property
    def feature_count(self) -> int:
        """Length of a state: static features, previous choice one-hot, cost so far per budget."""
        return int(self._static.shape[1]) + len(self.problem.choices) + len(self._limits)

    def begin(self, rollouts: int) -> "Rollouts":
        """Return `rollouts` rollouts before their first step."""
        return Rollouts(self, rollouts)

    def replay(self, decisions: IndexArray) -> "Rollouts":
        """Return the complete rollouts that take `decisions`, (P, G)."""
        rollouts = self.begin(len(decisions))
        for choice in decisions.T:
            rollouts.step(choice.astype(np.intp))
        return rollouts

    def finish(self, decisions: IndexArray) -> Repaired:
        """Price complete rollouts, (P, G) decisions, and repair those that break a budget."""
        return repair(self.problem, self.problem.expand(decisions))


class Rollouts:
    """B rollouts side by side; made by `Environment.begin`.

    Attributes:
        features: (G, B, S) float32 the state at each step; rows beyond the present step hold only
            their static part.
        spent: (B, M) cost so far in the tables of the budgets.
    """

    def __init__(self, environment: Environment, rollouts: int) -> None:
        self._plan = environment._plan
        self._limits = environment._limits
        terms, static = environment._terms, environment._static
        self.features: Float32Array = np.zeros(
            (environment.steps, rollouts, environment.feature_count), np.float32
        )
        self._choice_at = static.shape[1]
        self._cost_at = environment.feature_count - len(self._limits)
        self.features[:, :, : self._choice_at] = static[:, None]
        self.spent: FloatArray = np.tile(terms.constant, (rollouts, 1))
        self._charges = terms.charges
        self._charged = np.zeros((len(terms.charges), rollouts), bool)
        self._states = np.zeros((len(terms.states), rollouts), np.intp)
        self._rows = np.arange(rollouts)
        self._done = 0
        self._show_costs()

    def step(self, choice: States) -> None:
        """Decide the next layer of every rollout.

        Args:
            choice: (B,) position among the choices; must be allowed by the mask.
        """
        states, plan = self._states, self._plan[self._done]
        states[self._done] = choice
        for merge in plan.merges:
            states[merge.decider] = merge.state(states)
        for charge in plan.charges:
            self.spent += charge.charge(states)
        for once, charged in zip(self._charges, self._charged, strict=True):
            due = once.states[self._done].take(choice)
            self.spent[:, once.table] += once.value * (due & ~charged)
            charged |= due
        self._done += 1
        if self._done < len(self._plan):
            self.features[self._done, self._rows, self._choice_at + choice] = 1.0
            self._show_costs()

    def _show_costs(self) -> None:
        share = self.spent / self._limits
        np.clip(share, -_LARGEST_SHARE, _LARGEST_SHARE, out=share)
        self.features[self._done, :, self._cost_at :] = share

    @property
    def decisions(self) -> IndexArray:
        """(B, G) what was decided; 0 for steps to come."""
        return self._states[: len(self._plan)].T.astype(np.uint8)


def _plan(terms: Terms) -> tuple[_Step, ...]:
    """Sort merges and costs by the step that settles them."""
    step_of = list(range(terms.decisions))
    merges: list[list[Merge]] = [[] for _ in step_of]
    for merge in terms.merges:
        step_of.append(max(step_of[d] for d in merge.inputs))
        merges[step_of[-1]].append(merge)
    sizes = [len(costs) for costs in terms.states]
    tables: dict[tuple[int, ...], FloatArray] = {(d,): c for d, c in enumerate(terms.states)}
    fans: list[Conversion] = []
    for conversion in terms.conversions:
        shape = [sizes[d] for d in conversion.involved]
        if math.prod(shape) > _LARGEST_TABLE:
            fans.append(conversion)
            continue
        grid = dict(
            zip(conversion.involved, np.indices(shape).reshape(len(shape), -1), strict=True)
        )
        known = tables.get(conversion.involved)
        added = conversion.costs(grid)
        tables[conversion.involved] = added if known is None else known + added
    charges: list[list[_Lookup | _Fan]] = [[] for _ in range(terms.decisions)]
    for involved, costs in _absorbed(tables, sizes, step_of).items():
        shape_of = tuple(sizes[d] for d in involved)
        charges[max(step_of[d] for d in involved)].append(_Lookup(involved, shape_of, costs))
    for fan in fans:
        charges[max(step_of[d] for d in fan.involved)].append(_Fan(fan))
    return tuple(_Step(tuple(m), tuple(c)) for m, c in zip(merges, charges, strict=True))


def _absorbed(
    tables: dict[tuple[int, ...], FloatArray], sizes: Sequence[int], step_of: Sequence[int]
) -> dict[tuple[int, ...], FloatArray]:
    """Add each table to one of the same step over more deciders, if any; drop empty ones."""
    kept = {key: costs for key, costs in tables.items() if costs.any()}
    for key in sorted(kept, key=len):
        step = max(step_of[d] for d in key)
        for larger in kept:
            if set(key) < set(larger) and max(step_of[d] for d in larger) == step:
                own = kept.pop(key).reshape(*(sizes[d] if d in key else 1 for d in larger), -1)
                grid = kept[larger].reshape(*(sizes[d] for d in larger), -1) + own
                kept[larger] = grid.reshape(-1, grid.shape[-1])
                break
    return kept
