"""What the reward of a trajectory is compared with."""

from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray

_SMALLEST_DEVIATION = 1e-12


@dataclass
class Baseline:
    """Moving average and deviation of the rewards of accepted trajectories.

    Rejected trajectories do not enter. They are rewarded as if they were one deviation below the
    average, and up to another one the farther they are from feasible.

    Args:
        momentum: share of the past that survives an update.
        mean: average reward; None before the first accepted trajectory.
        deviation: root of the moving mean squared distance from the average.
    """

    momentum: float
    mean: float | None = None
    deviation: float = 0.0

    def advantages(self, rewards: FloatArray, violation: FloatArray) -> FloatArray:
        """Take in one batch; return its advantages, (B,), in deviations of the reward.

        Args:
            rewards: (B,); entries of rejected trajectories are not looked at.
            violation: (B,) 0 for accepted trajectories, positive for rejected ones.
        """
        accepted = violation == 0
        depth = np.minimum(violation, 1.0)
        if accepted.any():
            self._take_in(rewards[accepted])
        if self.mean is None:  # nothing was ever feasible: climb towards the budgets
            mean, scale = float(depth.mean()), float(depth.std())
            return (mean - depth) / max(scale, _SMALLEST_DEVIATION)
        scale = max(self.deviation, _SMALLEST_DEVIATION)
        advantages: FloatArray = -1.0 - depth
        advantages[accepted] = (rewards[accepted] - self.mean) / scale
        return advantages

    def _take_in(self, rewards: FloatArray) -> None:
        if self.mean is None:
            self.mean, self.deviation = float(rewards.mean()), float(rewards.std())
            return
        spread = float(np.mean((rewards - self.mean) ** 2))
        keep, new = self.momentum, 1.0 - self.momentum
        self.deviation = float(np.sqrt(keep * self.deviation**2 + new * spread))
        self.mean = keep * self.mean + new * float(rewards.mean())
