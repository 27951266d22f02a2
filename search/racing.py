"""Score on growing subsets of the images, and stop once a policy is beaten.

A searcher keeps the best policies. Most others are worse by so much that a part of the images
tells. Each policy is compared with the K-th best so far on the same images, drawn in one random
order: only images that exactly one of the two gets right tell them apart, and of those, were the
policy as good as its rival, at least half would be its own. It is abandoned where so few of them
are, that a fair coin shows as few in a share `error` of all cases, divided by the number of looks.
So a policy that ties or beats the K-th best on all images is abandoned with a probability of at
most `error` (sign test, Q. McNemar, Psychometrika 12, 1947; Bonferroni over the looks). The images
are drawn without replacement, which makes the coin's bound a safe one.
"""

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from costmodels.table import BoolArray, FloatArray
from quantization.errors import DataError
from quantization.policy import Policy, PolicyBatch
from search.oracle import ImageOracle, policy_key

LOOKS = (1 / 8, 1 / 4, 1 / 2)
"""Shares of the images after which a policy may be abandoned: 250, 500, 1,000 of 2,000."""


def tail(fewer: int, total: int) -> float:
    """Return the probability that a fair coin, thrown `total` times, shows heads so rarely.

    ``sum over i <= fewer of C(total, i) / 2^total``

    >>> tail(1, 5)
    0.1875
    """
    return float(sum(comb(total, i) for i in range(fewer + 1)) / 2**total)


@dataclass(frozen=True, eq=False)
class Kept:
    """A policy that was scored on all images.

    Args:
        policy: the bits.
        score: its share of right answers.
        right: (N,) which images it gets right; None if only its score is known.
    """

    policy: Policy
    score: float
    right: BoolArray | None


class RacingOracle:
    """Scores policies by another oracle, and abandons those that the K-th best beats.

    A score of a policy that was run to the end is the other oracle's. An abandoned one gets the
    K-th best's score less the difference on the images that both were run on: an estimate of its
    own, comparable with all others, and below the K-th best's, which only rises. So no abandoned
    policy is ever among the K best.

    Args:
        oracle: says which images a policy gets right.
        keep: K, how many best policies are to be exact.
        looks: shares of the images, ascending, after which a policy may be abandoned.
        error: how likely a policy that ties or beats the K-th best is abandoned at most, per
            policy.
        seed: of the order of the images.

    Raises:
        DataError: if `keep`, `looks` or `error` are out of range.
    """

    def __init__(
        self,
        oracle: ImageOracle,
        *,
        keep: int = 1,
        looks: Sequence[float] = LOOKS,
        error: float = 0.01,
        seed: int = 0,
    ) -> None:
        if keep < 1 or not 0 < error < 0.5:
            raise DataError("a race keeps at least one policy, at an error between 0 and 0.5")
        if list(looks) != sorted(set(looks)) or not all(0 < share < 1 for share in looks):
            raise DataError("looks are ascending shares of the images, each between 0 and 1")
        self._oracle = oracle
        self._keep = keep
        self._looks = sorted({round(share * oracle.count) for share in looks} - {0, oracle.count})
        self._level = error / max(1, len(self._looks))
        self._order = np.random.default_rng(seed).permutation(oracle.count)
        self._best: list[Kept] = []  # ascending
        self._known: dict[tuple[str, ...], float] = {}
        self._abandoned: dict[tuple[str, ...], int] = {}

    @property
    def count(self) -> int:
        """Images that the accuracy of a policy that was run to the end is the share of."""
        return self._oracle.count

    @property
    def evaluations(self) -> int:
        """How many distinct policies were scored, abandoned ones included."""
        return len(self._known)

    @property
    def abandoned(self) -> int:
        """How many of them were not run to the end."""
        return len(self._abandoned)

    @property
    def images_run(self) -> int:
        """How many images were scored, over all policies."""
        return self._oracle.images_run

    def is_abandoned(self, policy: Policy) -> bool:
        """Whether the policy's score is an estimate on a part of the images."""
        return policy_key(self._oracle.network, policy) in self._abandoned

    def accuracy(self, policies: PolicyBatch) -> FloatArray:
        """See `search.oracle.AccuracyOracle.accuracy`; the policies race one after another."""
        return np.array([self.score(policies[i]) for i in range(len(policies))], np.float64)

    def score(self, policy: Policy) -> float:
        """Return the share of right answers of one policy, or the estimate if it is abandoned."""
        key = policy_key(self._oracle.network, policy)
        if key not in self._known:
            self._known[key] = self._race(key, policy)
        return self._known[key]

    def restore(self, scored: Iterable[tuple[Policy, float]]) -> None:
        """Take over what an interrupted search scored, in its order.

        Scores that follow are those of the uninterrupted search. Only a policy that others are
        compared with is run again, once.
        """
        for policy, score in scored:
            self._known[policy_key(self._oracle.network, policy)] = score
            self._insert(Kept(policy, score, None))

    def _race(self, key: tuple[str, ...], policy: Policy) -> float:
        rival = self._rival() if len(self._best) == self._keep else None
        right = np.zeros(self.count, bool)
        done = 0
        for look in (*(self._looks if rival is not None else ()), self.count):
            part = self._order[done:look]
            right[part] = self._oracle.right(policy, part)
            done = look
            if rival is None or rival.right is None or done == self.count:
                continue
            seen = self._order[:done]
            won = int((right[seen] & ~rival.right[seen]).sum())
            lost = int((~right[seen] & rival.right[seen]).sum())
            if won < lost and tail(won, won + lost) <= self._level:
                self._abandoned[key] = done
                estimate: float = max(rival.score - (lost - won) / done, 0.0)
                return estimate
        score = int(right.sum()) / self.count
        self._insert(Kept(policy, score, right))
        return score

    def _rival(self) -> Kept:
        """The K-th best policy, with what it gets right."""
        rival = self._best[0]
        if rival.right is None:
            right = np.zeros(self.count, bool)
            right[self._order] = self._oracle.right(rival.policy, self._order)
            rival = self._best[0] = Kept(rival.policy, rival.score, right)
        return rival

    def _insert(self, kept: Kept) -> None:
        """Keep a policy if it is among the K best; among equals the earlier one stays."""
        if len(self._best) < self._keep or kept.score > self._best[0].score:
            insort(self._best, kept, key=lambda one: one.score)
            del self._best[: max(0, len(self._best) - self._keep)]
