"""The environment of the agent: states, masks and costs of rollouts, many side by side.

One step decides one layer (or tie), in execution order. What a decision costs is charged as soon as
it is settled: glue and conversions at the step that decides the last of their formats, what is paid
once at the first step that brings it about. So the cost so far includes the conversions already
decided, and the last one equals the price of the policy. What is still needed at best is shown
beside it. Budgets are hard: policies that break them are repaired when the rollout is complete.
"""

import numpy as np

from costmodels.deciders import split
from costmodels.table import BoolArray, FloatArray
from costmodels.units import Metric
from quantization.policy import IndexArray
from search.features import Float32Array, static_features
from search.problem import SLACK, Problem
from search.reinforce_config import Constraint
from search.repair import Repaired, admit, judge, repair
from search.settling import States, plan, still_needed

SLOTS = (Metric.LATENCY, Metric.ENERGY, Metric.SIZE)
"""Each has its place in the state, so that states of other budgets have the same length."""

_FINISH = {"repair": repair, "mask": repair, "reject": judge, "soft": admit}

_PER_SLOT = 3
"""Whether there is such a budget, share spent, share still needed at best."""

_LARGEST_SHARE = 4.0
"""Shares of the budget are cut off here (unsupported costs are infinite)."""


class Environment:
    """The environment of one problem.

    Args:
        problem: G decisions among K choices, M budgets.
        constraint: what happens to policies that break a budget, see
            `search.reinforce_config.ReinforceConfig.constraint`.
    """

    def __init__(self, problem: Problem, constraint: Constraint = "repair") -> None:
        self.problem = problem
        self.constraint = constraint
        tables = [problem.tables[metric] for metric in problem.budgets]
        self._terms = split(problem.network, problem.choices, problem.decision_of, tables)
        self._limits = np.array(list(problem.budgets.values()))
        self._plan = plan(self._terms)
        self._static = static_features(problem)
        self._slots = [SLOTS.index(metric) for metric in problem.budgets]
        self.needed = still_needed(self._terms, self._plan, problem.allowed_decisions)

    @property
    def steps(self) -> int:
        """Decisions of one rollout, G."""
        return len(self._plan)

    @property
    def mask(self) -> BoolArray:
        """(G, K): the choices that may be taken at each step."""
        return self.problem.allowed_decisions

    @property
    def mask_varies(self) -> bool:
        """Whether what is allowed depends on earlier choices (`Rollouts.allowed`)."""
        return self.constraint == "mask"

    @property
    def feature_count(self) -> int:
        """Length of a state; of problems with the same number of choices it is the same.

        Static features, previous choice one-hot, and three figures for each of `SLOTS`.
        """
        static = int(self._static.shape[1])
        return static + len(self.problem.choices) + _PER_SLOT * len(SLOTS)

    def begin(self, rollouts: int) -> "Rollouts":
        """Return `rollouts` rollouts before their first step."""
        return Rollouts(self, rollouts)

    def decide(self, actions: IndexArray) -> IndexArray:
        """Return the decisions (P, G) that actions (P, steps) amount to: here the same."""
        return actions

    def act(self, decisions: IndexArray) -> IndexArray:
        """Return the actions (P, steps) that amount to decisions (P, G): here the same."""
        return decisions

    def finish(self, decisions: IndexArray) -> Repaired:
        """Price complete rollouts, (P, G) decisions, and treat those that break a budget."""
        return _FINISH[self.constraint](self.problem, self.problem.expand(decisions))


class Rollouts:
    """B rollouts side by side; made by `Environment.begin`.

    Attributes:
        features: (G, B, S) float32 the state at each step; rows beyond the present step hold only
            their static part.
        spent: (B, M) cost so far in the tables of the budgets.
    """

    def __init__(self, environment: Environment, rollouts: int) -> None:
        self._environment = environment
        self._plan = environment._plan
        self._limits = environment._limits
        terms, static = environment._terms, environment._static
        self.features: Float32Array = np.zeros(
            (environment.steps, rollouts, environment.feature_count), np.float32
        )
        self._choice_at = static.shape[1]
        first = environment.feature_count - _PER_SLOT * len(SLOTS)
        self._spent_at = [first + _PER_SLOT * slot + 1 for slot in environment._slots]
        self._needed_at = [at + 1 for at in self._spent_at]
        self.features[:, :, : self._choice_at] = static[:, None]
        for at in self._spent_at:
            self.features[:, :, at - 1] = 1.0
        share = environment.needed[:-1] / self._limits
        np.clip(share, -_LARGEST_SHARE, _LARGEST_SHARE, out=share)
        self.features[:, :, self._needed_at] = share[:, None]
        self.spent: FloatArray = np.tile(terms.constant, (rollouts, 1))
        self._charges = terms.charges
        self._charged = np.zeros((len(terms.charges), rollouts), bool)
        self._states = np.zeros((len(terms.states), rollouts), np.intp)
        self._rows = np.arange(rollouts)
        self._done = 0
        self._show_costs()

    def allowed(self) -> BoolArray:
        """Return the choices, (B, K), that may be taken at the present step.

        If the environment masks by what is still needed, those after which some budget cannot be
        met are not among them; where that leaves none, the one that exceeds least is.
        """
        static = self._environment.mask[self._done]
        if not self._environment.mask_varies:
            return np.broadcast_to(static, (len(self._rows), len(static)))
        best = self._outlook() + self._environment.needed[self._done + 1]
        excess = np.where(static[None], (best / self._limits).max(2, initial=0.0) - 1.0, np.inf)
        met: BoolArray = excess <= SLACK
        stuck = ~met.any(1)
        met[stuck, excess[stuck].argmin(1)] = True
        return met

    def _outlook(self) -> FloatArray:
        """Return the cost so far, (B, K, M), after each choice at the present step."""
        choices, plan = self._environment.mask.shape[1], self._plan[self._done]
        states = np.repeat(self._states, choices, axis=1)
        states[self._done] = np.tile(np.arange(choices), len(self._rows))
        for merge in plan.merges:
            states[merge.decider] = merge.state(states)
        spent = np.repeat(self.spent, choices, axis=0)
        for charge in plan.charges:
            spent += charge.charge(states)
        for once, charged in zip(self._charges, self._charged, strict=True):
            due = once.states[self._done].take(states[self._done])
            spent[:, once.table] += once.value * (due & ~np.repeat(charged, choices))
        return spent.reshape(len(self._rows), choices, -1)

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
        self.features[self._done, :, self._spent_at] = share.T

    @property
    def decisions(self) -> IndexArray:
        """(B, G) what was decided; 0 for steps to come."""
        return self._states[: len(self._plan)].T.astype(np.uint8)
