"""Accuracy after training, one policy at a time, and the two phases."""

from dataclasses import replace

import numpy as np
import pytest

from quantization.bits import parse_choices
from quantization.errors import DataError
from quantization.policy import Policy, PolicyBatch
from quantization.qat.training import Recipe
from quantization.simulation import Simulation
from quantization.task import Examples
from search.oracle import AccuracyOracle, PostTrainingOracle
from search.qat_oracle import QatOracle, fine_tune
from tests.networks import Subject, small_mobilenet, subject

RECIPE = Recipe(epochs=3, learning_rate=0.02, step_learning_rate=0.01, batch=16)
CHOICES = parse_choices("w2a8,w4a8,w8a8")


def examples(given: Subject) -> Examples:
    """Two classes of the ten: dark images and bright ones."""
    ranks = given.images.mean((1, 2, 3)).argsort().argsort()
    return Examples(given.images, (ranks * 2 // len(ranks)).astype(np.int64))


def oracle(given: Subject, recipe: Recipe = RECIPE) -> QatOracle:
    shown = examples(given)
    learned = Examples(shown.images[:48], shown.labels[:48])
    return QatOracle(given.exporter, given.calibration, learned, shown, recipe)


def batch(given: Subject, *rows: int) -> PolicyBatch:
    """Uniform policies by the position of their choice."""
    index = np.repeat(np.array(rows, np.uint8)[:, None], len(given.network.layers), axis=1)
    return PolicyBatch(given.network.layer_names, CHOICES, index)


def test_policies_are_trained_once_and_training_helps_two_bits() -> None:
    given = subject(small_mobilenet(), 64)
    scored: AccuracyOracle = oracle(given)
    found = scored.accuracy(batch(given, 0, 2, 0))
    assert found.shape == (3,)
    assert found[0] == found[2]
    assert scored.evaluations == 2
    assert scored.count == 64
    shown = examples(given)
    before = PostTrainingOracle(given.simulation, shown.images, shown.labels)
    assert found[0] > before.accuracy(batch(given, 0))[0] + 0.1
    assert scored.accuracy(batch(given, 0, 2, 0)).tolist() == found.tolist()
    assert scored.evaluations == 2


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


def test_the_best_after_phase_2_comes_first() -> None:
    given = subject(small_mobilenet(), 32)
    short = oracle(given, replace(RECIPE, epochs=1))
    policies = batch(given, 0, 1, 2)
    found = fine_tune(short, [policies[i] for i in range(3)], keep=3, recipe=RECIPE)
    assert len(found) == 3
    seconds = [entry.second for entry in found]
    assert seconds == sorted(seconds, reverse=True)


def test_fine_tuning_nothing_is_refused() -> None:
    given = subject(small_mobilenet(), 16)
    with pytest.raises(DataError, match="at least one candidate"):
        fine_tune(oracle(given), [], keep=1)
    with pytest.raises(DataError, match="keeps at least one"):
        fine_tune(oracle(given), [Policy({})], keep=0)
