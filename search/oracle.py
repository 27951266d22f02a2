"""Accuracy of a policy on real images: what a search maximises."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from costmodels.table import BoolArray, FloatArray
from quantization.deployment import Corrections
from quantization.divergence import divergences
from quantization.errors import DataError
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.quantizer import Float32Array
from quantization.simulation import Simulation

Labels = npt.NDArray[np.int64]
Positions = npt.NDArray[np.intp]
_WILSON_Z = 1.959963984540054


class AccuracyOracle(Protocol):
    """Scores policies by accuracy, however a policy's network comes to be.

    Post-training quantization, agreement with the float network, and training with quantization
    in the loop all fit. A distinct policy is run once; asked for again, its score is remembered.
    """

    @property
    def count(self) -> int:
        """Images that an accuracy is the share of."""

    @property
    def evaluations(self) -> int:
        """How many distinct policies were scored, to the end or not."""

    def accuracy(self, policies: PolicyBatch) -> FloatArray:
        """Return the share of right answers of each policy, (P,), 0..1.

        Raises:
            PolicyError: if a policy does not fit the network.
        """


class ImageOracle(AccuracyOracle, Protocol):
    """An oracle that can say which images a policy gets right, some at a time.

    What `search.racing.RacingOracle` stops early. Training oracles do not fit: their cost is the
    training, not the images that are scored.
    """

    @property
    def network(self) -> Network:
        """The network that is scored."""

    @property
    def images_run(self) -> int:
        """How many images were run through quantized networks in order to score them."""

    def right(self, policy: Policy, where: Positions) -> BoolArray:
        """Return whether the images at `where`, (n,), are classified right, (n,).

        Raises:
            PolicyError: if the policy does not fit the network.
        """


@dataclass(frozen=True)
class Interval:
    """A share of successes with its 95 % interval.

    >>> Interval.wilson(97, 100)
    Interval(share=0.97, low=0.9154806357094724, high=0.9897454759759611)
    """

    share: float
    low: float
    high: float

    @classmethod
    def wilson(cls, right: int, count: int) -> "Interval":
        """Return the Wilson score interval (E. B. Wilson, JASA 1927) of `right` out of `count`.

        Raises:
            DataError: if `count` is not positive.
        """
        if count < 1:
            raise DataError("an accuracy needs at least one image")
        share, z2 = right / count, _WILSON_Z**2
        scale = 1 + z2 / count
        center = (share + z2 / (2 * count)) / scale
        half = _WILSON_Z / scale * sqrt(share * (1 - share) / count + z2 / (4 * count**2))
        # At 0 and 1 the ends equal the share but for rounding.
        return cls(share, max(min(center - half, share), 0.0), min(max(center + half, share), 1.0))


@dataclass(frozen=True)
class _Scored:
    """What is known of one policy: share of right answers, and divergence in nats."""

    accuracy: float
    divergence: float


class PostTrainingOracle:
    """Scores after post-training quantization with statistics correction, remembered per policy.

    Args:
        simulation: simulates what the exported file computes.
        images: (N, ...) float32; not those that ranges and corrections come from.
        labels: (N,) right classes; None scores agreement with the float network's first choice.

    Raises:
        DataError: if images and labels differ in number.
    """

    def __init__(
        self, simulation: Simulation, images: Float32Array, labels: Labels | None = None
    ) -> None:
        if labels is not None and len(labels) != len(images):
            raise DataError(f"{len(images)} images, but {len(labels)} labels")
        self._simulation = simulation
        self._images, self._token = images, object()
        self._labels: Labels = self._float_logits.argmax(1) if labels is None else labels
        self._known: dict[tuple[str, ...], _Scored] = {}
        self._corrected: tuple[tuple[str, ...], Corrections] | None = None
        self._images_run = 0

    @property
    def count(self) -> int:
        """Images that an accuracy is the share of."""
        return len(self._images)

    @property
    def network(self) -> Network:
        """The network that is scored."""
        return self._simulation.network

    @property
    def evaluations(self) -> int:
        """How many distinct policies were scored."""
        return len(self._known)

    @property
    def images_run(self) -> int:
        """How many images were scored, over all policies; those of corrections do not count."""
        return self._images_run

    def accuracy(self, policies: PolicyBatch) -> FloatArray:
        """See `AccuracyOracle.accuracy`; a policy that was scored before is not run again."""
        return np.array([self.score(policies[i]) for i in range(len(policies))], np.float64)

    def score(self, policy: Policy) -> float:
        """Return the share of right answers of one policy, 0..1."""
        return self._of(policy).accuracy

    def divergence(self, policies: PolicyBatch) -> FloatArray:
        """Return how far class probabilities are from the float network's, (P,), in nats.

        The mean Kullback-Leibler divergence over the images; no label enters it. It is found along
        with the accuracy.

        Raises:
            PolicyError: if a policy does not fit the network.
        """
        return np.array([self._of(policies[i]).divergence for i in range(len(policies))])

    def _of(self, policy: Policy) -> _Scored:
        key = policy_key(self.network, policy)
        if key not in self._known:
            logits = self._logits(policy, np.arange(self.count))
            self._known[key] = _Scored(
                count_right(logits, self._labels) / self.count,
                max(float(divergences(self._float_logits, logits).mean()), 0.0),
            )
        return self._known[key]

    @cached_property
    def _float_logits(self) -> Float32Array:
        return self._simulation.logits(Policy({}), self._images)

    def right(self, policy: Policy, where: Positions) -> BoolArray:
        """See `ImageOracle.right`; corrections are those of the exported file.

        They are kept until another policy is asked for, so that a policy may be run in parts.
        """
        right: BoolArray = self._logits(policy, where).argmax(1) == self._labels[where]
        return right

    def _logits(self, policy: Policy, where: Positions) -> Float32Array:
        key = policy_key(self.network, policy)
        if self._corrected is None or self._corrected[0] != key:
            self._corrected = key, self._simulation.correct(policy)
        token = self._token, where.tobytes()
        logits = self._simulation.logits(
            policy, self._images[where], self._corrected[1], token=token
        )
        self._images_run += len(where)
        return logits


def policy_key(network: Network, policy: Policy) -> tuple[str, ...]:
    """Return what two policies of `network` share exactly if they give equal bits."""
    return tuple(str(policy[name]) for name in network.layer_names)


def count_right(logits: npt.NDArray[np.floating], labels: Labels) -> int:
    """Return how many rows of `logits`, (N, classes), have their largest entry at the label."""
    return int((logits.argmax(1) == labels).sum())
