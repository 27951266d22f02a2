"""Two steps a layer: first the width of its weights, then that of its activations.

Both are of the one LSTM, whose second step sees what the first took. What follows from choices, as
costs, masks and budgets, is that of the environment of whole choices, so choices need not form a
grid: the second step offers what goes with the weights that were taken.
"""

import numpy as np

from costmodels.table import BoolArray
from quantization.bits import BitWidths
from quantization.policy import IndexArray
from search.environment import Environment, Rollouts
from search.features import Float32Array
from search.problem import Problem
from search.reinforce_config import Constraint
from search.repair import Repaired
from search.settling import States


class StagedEnvironment:
    """An environment of 2 G steps; actions are positions among W weight or A activation widths.

    Args:
        problem: G decisions.
        constraint: see `Environment`.
    """

    def __init__(self, problem: Problem, constraint: Constraint = "repair") -> None:
        self.problem = problem
        self.whole = Environment(problem, constraint)
        weights = list(dict.fromkeys(map(_weights, problem.choices)))
        activations = list(dict.fromkeys(map(_activations, problem.choices)))
        self.stages = np.array(
            [
                (weights.index(_weights(c)), activations.index(_activations(c)))
                for c in problem.choices
            ]
        )
        self.widths = len(weights), len(activations)

    @property
    def mask(self) -> BoolArray:
        """(2 G, max(W, A)): what may be taken at each step after some earlier choice."""
        allowed = self.whole.mask
        mask = np.zeros((len(allowed), 2, max(self.widths)), bool)
        for choice, (weights, activations) in enumerate(self.stages):
            mask[:, 0, weights] |= allowed[:, choice]
            mask[:, 1, activations] |= allowed[:, choice]
        return mask.reshape(-1, mask.shape[2])

    @property
    def mask_varies(self) -> bool:
        """Always: activations depend on weights."""
        return True

    @property
    def feature_count(self) -> int:
        """A state of whole choices, whether this is the second step, and the weights one-hot."""
        return self.whole.feature_count + 1 + self.widths[0]

    def begin(self, rollouts: int) -> "StagedRollouts":
        """Return `rollouts` rollouts before their first step."""
        return StagedRollouts(self, rollouts)

    def decide(self, actions: IndexArray) -> IndexArray:
        """Return the decisions (P, G) that actions (P, 2 G) amount to."""
        pairs = actions.reshape(len(actions), -1, 2)
        same = (pairs[:, :, None] == self.stages).all(3)
        decisions: IndexArray = same.argmax(2).astype(np.uint8)
        return decisions

    def act(self, decisions: IndexArray) -> IndexArray:
        """Return the actions (P, 2 G) that amount to decisions (P, G)."""
        actions: IndexArray = self.stages[decisions].reshape(len(decisions), -1).astype(np.uint8)
        return actions

    def finish(self, decisions: IndexArray) -> Repaired:
        """See `Environment.finish`."""
        return self.whole.finish(decisions)


class StagedRollouts:
    """B rollouts side by side; made by `StagedEnvironment.begin`.

    Attributes:
        features: (2 G, B, S) float32 the state at each step, as of `Rollouts`.
    """

    def __init__(self, environment: StagedEnvironment, rollouts: int) -> None:
        self._environment = environment
        self._whole: Rollouts = environment.whole.begin(rollouts)
        self._rows = np.arange(rollouts)
        self._taken = np.zeros(rollouts, np.intp)
        self._offered = self._whole.allowed()
        self._done = 0
        shape = (len(environment.mask), rollouts, environment.feature_count)
        self.features: Float32Array = np.zeros(shape, np.float32)
        self._show()

    def allowed(self) -> BoolArray:
        """Return the actions, (B, max(W, A)), that may be taken at the present step."""
        stages = self._environment.stages
        stage = self._done % 2
        offered = self._offered
        if stage:
            offered = offered & (stages[:, 0] == self._taken[:, None])
        allowed = np.zeros((len(self._rows), max(self._environment.widths)), bool)
        for choice, action in enumerate(stages[:, stage]):
            allowed[:, action] |= offered[:, choice]
        return allowed

    def step(self, action: States) -> None:
        """Take the next action, (B,), of every rollout; it must be allowed."""
        if self._done % 2 == 0:
            self._taken = np.asarray(action, np.intp)
        else:
            pair = np.stack([self._taken, action], 1)
            choice = (pair[:, None] == self._environment.stages).all(2).argmax(1)
            self._whole.step(choice)
        self._done += 1
        if self._done < len(self.features):
            if self._done % 2 == 0:
                self._offered = self._whole.allowed()
            self._show()

    def _show(self) -> None:
        decision, second = divmod(self._done, 2)
        state = self.features[self._done]
        length = self._environment.whole.feature_count
        state[:, :length] = self._whole.features[decision]
        if second:
            state[:, length] = 1.0
            state[self._rows, length + 1 + self._taken] = 1.0


def _weights(bits: BitWidths) -> tuple[bool, int]:
    return bits.is_float, bits.weights


def _activations(bits: BitWidths) -> tuple[bool, int]:
    return bits.is_float, bits.activations
