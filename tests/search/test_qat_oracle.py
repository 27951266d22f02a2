"""Accuracy after training, one policy at a time, and the two phases."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch

from quantization.bits import parse_choices
from quantization.errors import DataError
from quantization.policy import Policy, PolicyBatch
from quantization.qat.network import QatNetwork
from quantization.qat.training import Recipe
from quantization.simulation import Simulation
from quantization.task import Augment, Examples
from search.oracle import AccuracyOracle, PostTrainingOracle
from search.qat_oracle import QatOracle, fine_tune
from tests.networks import Subject, small_mobilenet, subject

RECIPE = Recipe(epochs=3, learning_rate=0.02, step_learning_rate=0.01, batch=16)
CHOICES = parse_choices("w2a8,w4a8,w8a8")


def examples(given: Subject) -> Examples:
    """Two classes of the ten: dark images and bright ones."""
    ranks = given.images.mean((1, 2, 3)).argsort().argsort()
    return Examples(given.images, (ranks * 2 // len(ranks)).astype(np.int64))


def oracle(given: Subject, recipe: Recipe = RECIPE, augment: Augment | None = None) -> QatOracle:
    shown = examples(given)
    learned = Examples(shown.images[:48], shown.labels[:48])
    calibration = given.calibration
    return QatOracle(given.exporter, calibration, learned, shown, recipe, augment=augment)


class Scripted(QatOracle):
    """Training is brief; scores are told, by the bits of the stem."""

    first = MappingProxyType({"w2a8": 0.2, "w4a8": 0.9, "w8a8": 0.6})
    second = MappingProxyType({"w2a8": 1.0, "w4a8": 0.7, "w8a8": 0.8})

    def score(self, policy: Policy) -> float:
        return self.first[str(policy["stem"])]

    def longer(self, network: QatNetwork, recipe: Recipe) -> float:  # noqa: ARG002 - a script
        return self.second[str(network.policy["stem"])]


def batch(given: Subject, *rows: int) -> PolicyBatch:
    """Uniform policies by the position of their choice."""
    index = np.repeat(np.array(rows, np.uint8)[:, None], len(given.network.layers), axis=1)
    return PolicyBatch(given.network.layer_names, CHOICES, index)


def test_policies_are_trained_once_and_training_helps_two_bits() -> None:
    given = subject(small_mobilenet(), 64)
    updates: list[int] = []

    def counted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        updates.append(len(x))
        return x

    trained = oracle(given, augment=counted)
    scored: AccuracyOracle = trained
    found = scored.accuracy(batch(given, 0, 2, 0))
    assert found.shape == (3,)
    assert found[0] == found[2]
    assert len(updates) == 2 * 9  # two policies, three epochs of three batches
    assert scored.evaluations == 2
    assert scored.count == 64
    shown = examples(given)
    before = PostTrainingOracle(given.simulation, shown.images, shown.labels)
    assert found[0] > before.accuracy(batch(given, 0))[0] + 0.1


def test_only_the_best_go_on_and_what_they_computed_is_exported() -> None:
    given = subject(small_mobilenet(), 48)
    short = oracle(given, replace(RECIPE, epochs=1))
    policies = batch(given, 0, 2, 1, 2)
    listed = [policies[i] for i in range(4)]
    scores = short.accuracy(policies)
    [best] = fine_tune(short, listed, keep=1, recipe=RECIPE)
    assert best.first == scores.max()
    assert best.model.policy == listed[int(scores.argmax())]
    shown = examples(given)
    logits = Simulation(best.model.exporter, given.calibration).logits(
        best.model.policy, shown.images
    )
    assert abs((logits.argmax(1) == shown.labels).mean() - best.second) <= 1 / 48


def test_the_best_of_phase_1_go_on_and_the_best_of_phase_2_comes_first() -> None:
    given = subject(small_mobilenet(), 16)
    shown = examples(given)
    brief = replace(RECIPE, epochs=1)
    scripted = Scripted(given.exporter, given.calibration, shown, shown, brief)
    policies = batch(given, 0, 1, 2, 1)
    found = fine_tune(scripted, [policies[i] for i in range(4)], keep=2)
    assert [str(entry.model.policy["stem"]) for entry in found] == ["w8a8", "w4a8"]
    assert [(entry.first, entry.second) for entry in found] == [(0.6, 0.8), (0.9, 0.7)]


def test_candidates_given_again_keep_their_place_among_equals() -> None:
    given = subject(small_mobilenet(), 16)
    equal = Scripted(given.exporter, given.calibration, *2 * [examples(given)], RECIPE)
    equal.first = equal.second = dict.fromkeys(Scripted.first, 0.5)
    policies = batch(given, 0, 1, 0)
    found = fine_tune(equal, [policies[i] for i in range(3)], keep=2)
    assert [str(entry.model.policy["stem"]) for entry in found] == ["w2a8", "w4a8"]


def test_what_was_scored_before_is_trained_again_only_if_it_goes_on() -> None:
    given = subject(small_mobilenet(), 16)
    passes: list[int] = []

    def counted(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        passes.append(len(x))
        return x

    short = oracle(given, replace(RECIPE, epochs=1, batch=48), augment=counted)
    policies = batch(given, 0, 1, 2)
    scores = short.accuracy(policies)
    assert len(passes) == 3
    [best] = fine_tune(short, [policies[i] for i in range(3)], keep=1, recipe=RECIPE)
    assert best.first == scores.max()
    assert len(passes) == 3 + 1 + RECIPE.epochs * 1


def test_every_epoch_of_both_phases_is_told() -> None:
    given = subject(small_mobilenet(), 16)
    shown = examples(given)
    told: list[int] = []
    short = QatOracle(
        given.exporter,
        given.calibration,
        shown,
        shown,
        replace(RECIPE, epochs=2),
        on_epoch=lambda number, _loss: told.append(number),
    )
    fine_tune(short, [batch(given, 2)[0]], keep=1, recipe=RECIPE)
    assert told == [1, 2, 1, 2, 3]


def test_fine_tuning_nothing_is_refused() -> None:
    given = subject(small_mobilenet(), 16)
    with pytest.raises(DataError, match="at least one candidate"):
        fine_tune(oracle(given), [], keep=1)
    with pytest.raises(DataError, match="keeps at least one"):
        fine_tune(oracle(given), [Policy({})], keep=0)


def losses(patch: pytest.MonkeyPatch, *told: float) -> None:
    """Let the losses of ten classes before and after training be what is told, in this order."""
    each = iter(told)
    patch.setattr("search.qat_oracle.mean_loss", lambda *_: (next(each), 10))


@pytest.mark.parametrize("after", [4.31, np.nan, np.inf])
def test_training_that_ends_two_nats_above_chance_is_no_score(
    after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses(monkeypatch, 0.1, after)
    given = subject(small_mobilenet(), 16)
    brief = oracle(given, replace(RECIPE, epochs=1, learning_rate=1e-4))
    with pytest.raises(DataError, match=r"^training diverges \(.*-rate, such as 1e-05$"):
        brief.accuracy(batch(given, 0))
    assert brief.evaluations == 0


def test_training_that_ends_above_chance_is_scored_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Too few bits are no divergence; nor is a bad start that so few images cannot mend."""
    given = subject(small_mobilenet(), 16)
    losses(monkeypatch, 0.1, 2.2, 0.1, 4.29, 6.0, 7.9)
    brief = oracle(given, replace(RECIPE, epochs=1))
    brief.accuracy(batch(given, 2))
    assert not caplog.messages
    brief.accuracy(batch(given, 0, 1))
    assert brief.evaluations == 3
    assert caplog.messages == [
        "training of a policy ended with loss 4.29, above the 2.30 of chance: it has too few bits, "
        "or --qat-learning-rate is too high"
    ]
