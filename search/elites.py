"""The best choices so far, which the agent imitates: priority queue training.

D. A. Abolafia, M. Norouzi, J. Shen, R. Zhao, Q. V. Le, "Neural Program Synthesis with Priority
Queue Training", 2018.
"""

from bisect import insort

import numpy as np

from costmodels.table import FloatArray
from quantization.policy import IndexArray


class Elites:
    """What was sampled for the best policies; of each policy what led to it first.

    A repaired policy is remembered by the choices before its repair: these the agent can learn.

    Args:
        count: how many are kept; 0 keeps none.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._ranked: list[tuple[float, int, bytes, IndexArray]] = []
        self._kept: set[bytes] = set()
        self._seen = 0

    def take_in(self, decisions: IndexArray, index: IndexArray, rewards: FloatArray) -> None:
        """Remember what is among the best.

        Args:
            decisions: (B, G) as sampled.
            index: (B, L) the policies that they became.
            rewards: (B,); -inf for what was rejected.
        """
        for sampled, policy, reward in zip(decisions, index, rewards, strict=True):
            row = policy.tobytes()
            if not reward > -np.inf or row in self._kept:
                continue
            self._seen += 1
            self._kept.add(row)
            insort(self._ranked, (-float(reward), self._seen, row, sampled.copy()))
            for _, _, left, _ in self._ranked[self._count :]:
                self._kept.discard(left)
            del self._ranked[self._count :]

    @property
    def decisions(self) -> IndexArray:
        """(at most count, G), best first."""
        return np.array([entry[3] for entry in self._ranked], np.uint8)
