"""Accuracy after training with quantization in the loop, and the two phases that use it."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.table import FloatArray
from quantization.errors import DataError
from quantization.export import Exporter
from quantization.policy import Policy, PolicyBatch
from quantization.qat.network import QatNetwork
from quantization.qat.training import PHASE_1, PHASE_2, Recipe, accuracy, mean_loss, train
from quantization.qat.tuned import TunedModel, freeze
from quantization.quantizer import Float32Array
from quantization.task import Augment, Examples
from search.oracle import policy_key

_LOGGER = logging.getLogger(__name__)
_JUDGED = 256
"""Images that were learned from, on which the loss before and after training is compared."""
_FAR = 2.0
"""Nats above chance, and above the loss before training: so far, training itself did harm."""


class QatOracle:
    """Accuracy of each policy after it was trained by one recipe; an `AccuracyOracle`.

    Every policy is trained from the float network with the same images in the same order, so that
    differences are those of the policies.

    Training that diverges is no score: it raises where a loss, weight or step is not finite, or
    where the loss on images that were learned from ends 2 nats above both that of chance and that
    before training. One that merely ends above chance may have too few bits: it is scored, and a
    warning tells the first.

    Args:
        exporter: network, ranges and quantized weights to start from.
        calibration: (N, ...) float32 images that ranges come from.
        examples: what is learned from.
        scored: what is scored on; not among the other two.
        recipe: `PHASE_1` (short) by default; `PHASE_2` makes it a full oracle.
        seed: of the training.
        augment: changes a batch of training images at random.
        on_epoch: called after every epoch of any training with its number, from 1, and its mean
            loss.
    """

    def __init__(
        self,
        exporter: Exporter,
        calibration: Float32Array,
        examples: Examples,
        scored: Examples,
        recipe: Recipe = PHASE_1,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> None:
        self.exporter, self.recipe = exporter, recipe
        self._calibration, self._examples, self._scored = calibration, examples, scored
        self._seed, self._augment, self._on_epoch = seed, augment, on_epoch
        self._known: dict[tuple[str, ...], float] = {}
        self._judged = examples.drawn(_JUDGED, seed)
        self._warned = False

    @property
    def count(self) -> int:
        """Images that an accuracy is the share of."""
        return len(self._scored)

    @property
    def evaluations(self) -> int:
        """How many distinct policies were trained and scored."""
        return len(self._known)

    def accuracy(self, policies: PolicyBatch) -> FloatArray:
        """See `AccuracyOracle.accuracy`; a policy that was scored before is not trained again."""
        return np.array([self.score(policies[i]) for i in range(len(policies))], np.float64)

    def score(self, policy: Policy) -> float:
        """Return the share of right answers of one policy, 0..1.

        Raises:
            DataError: if training diverges.
            PolicyError: if the policy does not fit the network.
        """
        key = policy_key(self.exporter.network, policy)
        if key not in self._known:
            self.trained(policy)
        return self._known[key]

    def knows(self, policy: Policy) -> bool:
        """Whether a policy was trained and scored before."""
        return policy_key(self.exporter.network, policy) in self._known

    def trained(self, policy: Policy) -> QatNetwork:
        """Train the network of `policy`, remember its score, and return it.

        Raises:
            DataError: if training diverges.
            PolicyError: if the policy does not fit the network.
        """
        network = QatNetwork(self.exporter, policy, self._calibration)
        self._train(network, self.recipe)
        key = policy_key(self.exporter.network, policy)
        self._known[key] = accuracy(network, self._scored)
        return network

    def longer(self, network: QatNetwork, recipe: Recipe) -> float:
        """Train a network that `trained` returned further, in place; returns its new score.

        Raises:
            DataError: if training diverges.
        """
        self._train(network, recipe)
        return accuracy(network, self._scored)

    def _train(self, network: QatNetwork, recipe: Recipe) -> None:
        def on_epoch(number: int, loss: float) -> None:
            if not math.isfinite(loss):
                raise _diverged(f"loss {loss} in epoch {number}", recipe)
            if self._on_epoch is not None:
                self._on_epoch(number, loss)

        before, _ = mean_loss(network, self._judged)
        train(
            network,
            self._examples,
            recipe,
            seed=self._seed,
            augment=self._augment,
            on_epoch=on_epoch,
        )
        after, classes = mean_loss(network, self._judged)
        if not math.isfinite(after):
            raise _diverged("weights or answers are not finite", recipe)
        chance = math.log(classes)
        if after > max(chance, before) + _FAR:
            raise _diverged(
                f"loss {after:.2f}, {before:.2f} before, {chance:.2f} by chance", recipe
            )
        if after > chance and not self._warned:
            self._warned = True
            _LOGGER.warning(
                "training of a policy ended with loss %.2f, above the %.2f of chance: it has too "
                "few bits, or --qat-learning-rate is too high",
                after,
                chance,
            )


def _diverged(what: str, recipe: Recipe) -> DataError:
    """Say how training diverged, and which rate to try."""
    lower = min(0.001, recipe.learning_rate / 10)
    return DataError(
        f"training diverges ({what}): give a smaller --qat-learning-rate, such as {lower:g}"
    )


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A policy after both phases.

    Args:
        model: policy, trained weights, scales and ranges, ready to be exported.
        first: accuracy after phase 1, on what the oracle scores on.
        second: accuracy after phase 2, on the same.
    """

    model: TunedModel
    first: float
    second: float


def fine_tune(
    oracle: QatOracle, policies: Sequence[Policy], *, keep: int, recipe: Recipe = PHASE_2
) -> tuple[FineTuned, ...]:
    """Train all candidates briefly, and the best of them at length from where they stand.

    What the oracle scored before is ranked by that score. Scores are kept, networks are not: such a
    candidate repeats phase 1 only if it is among the best.

    Args:
        oracle: of phase 1; its recipe is what each candidate gets.
        policies: the candidates; those given twice are trained once.
        keep: how many go on to phase 2; among equals, those given first.
        recipe: of phase 2.

    Returns:
        The best `keep`, best accuracy after phase 2 first.

    Raises:
        DataError: if there is no candidate, `keep` is not positive or training diverges.
        PolicyError: if a policy does not fit the network.
    """
    if keep < 1 or not policies:
        raise DataError("fine-tuning needs at least one candidate, and keeps at least one")
    distinct: dict[tuple[str, ...], Policy] = {}
    for policy in policies:
        distinct.setdefault(policy_key(oracle.exporter.network, policy), policy)
    best: list[tuple[float, Policy, QatNetwork | None]] = []
    for policy in distinct.values():
        trained = None if oracle.knows(policy) else oracle.trained(policy)
        best.append((oracle.score(policy), policy, trained))
        best.sort(key=lambda entry: -entry[0])  # stable: earlier candidates stay in front
        del best[keep:]
    found = []
    for first, policy, trained in best:
        network = trained or oracle.trained(policy)
        second = oracle.longer(network, recipe)
        found.append(FineTuned(freeze(network), first, second))
    return tuple(sorted(found, key=lambda entry: -entry.second))
