"""The proxy is refitted to policies that were evaluated, and ranks others better, never worse."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import spearmanr

from costmodels.table import FloatArray
from quantization.errors import PolicyError
from quantization.policy import IndexArray
from search.refit import refit

LAYERS, CHOICES = 12, 5
COLUMNS = np.array([1.0, 0.3, 0.1, 0.01, 0.0])
"""From 2 bits to float32."""


@dataclass(frozen=True, eq=False)
class World:
    """Single-layer losses, the true ones of policies, and policies with their scores."""

    loss: FloatArray
    truth: FloatArray
    index: IndexArray
    scores: FloatArray

    def ranks(self, loss: FloatArray) -> float:
        """Spearman correlation of the proxy with the truth on policies that no fit saw."""
        unseen = self.index[100:]
        proxy, true = (each[np.arange(LAYERS), unseen].sum(1) for each in (loss, self.truth))
        return float(spearmanr(proxy, true).statistic)


def world(seed: int, deviation: float, noise: float = 0.1) -> World:
    """Draw losses of whole policies that deviate from those of single layers by `deviation`."""
    rng = np.random.default_rng(seed)
    shape = LAYERS, CHOICES
    loss = rng.lognormal(0, 1, (LAYERS, 1)) * COLUMNS * rng.uniform(0.8, 1.2, shape)
    factors = rng.normal(0, 1, (LAYERS, 1)) + 0.5 * rng.normal(0, 1, (1, CHOICES))
    truth = loss * np.exp(deviation * factors)
    index = rng.integers(0, CHOICES, (400, LAYERS)).astype(np.uint8)
    drop = truth[np.arange(LAYERS), index].sum(1)
    # per cent of accuracy, while the losses are in nats: units need not agree
    return World(loss, truth, index, 90 - 3 * (drop + rng.normal(0, noise * drop.std(), 400)))


@pytest.mark.parametrize("count", [20, 50])
def test_a_refitted_proxy_ranks_unseen_policies_better(count: int) -> None:
    gains = []
    for seed in range(6):
        made = world(seed, 0.8)
        fitted = refit(made.loss, made.index[:count], made.scores[:count])
        gains.append(made.ranks(fitted) - made.ranks(made.loss))
    assert np.mean(gains) > 0.03
    assert min(gains) > -0.01


def test_a_proxy_that_is_right_is_not_made_worse() -> None:
    for seed in range(6):
        for noise in (0.05, 0.5):
            made = world(seed, 0.0, noise)
            fitted = refit(made.loss, made.index[:30], made.scores[:30])
            assert made.ranks(fitted) > made.ranks(made.loss) - 0.02


def test_scores_that_tell_nothing_change_no_ranks() -> None:
    for seed in range(5):
        made = world(seed, 0.0)
        drawn = np.random.default_rng(seed).normal(size=400)
        fitted = refit(made.loss, made.index[:30], drawn[:30])
        assert made.ranks(fitted) > made.ranks(made.loss) - 0.03


def test_losses_are_in_the_unit_of_the_scores() -> None:
    made = world(0, 0.0, 0.01)
    fitted = refit(made.loss, made.index[:50], made.scores[:50])
    np.testing.assert_allclose(fitted, 3 * made.loss, rtol=0.1)


def test_losses_stay_at_least_zero_and_in_the_measured_order() -> None:
    for seed in range(3):
        made = world(seed, 1.5, 0.5)
        fitted = refit(made.loss, made.index[:30], made.scores[:30])
        assert (fitted >= 0).all()
        assert not fitted[:, -1].any()
        ordered = np.take_along_axis(fitted, made.loss.argsort(1), 1)
        assert (np.diff(ordered, axis=1) >= -1e-9).all()


def test_what_is_not_allowed_stays_so() -> None:
    made = world(1, 0.8)
    loss = made.loss.copy()
    loss[2, 0] = loss[5, 3] = np.inf
    allowed = np.isfinite(loss[np.arange(LAYERS), made.index]).all(1)
    fitted = refit(loss, made.index[allowed], made.scores[allowed])
    np.testing.assert_array_equal(np.isinf(fitted), np.isinf(loss))
    # policies that choose it, and scores of rejected ones, are left out
    scores = np.where(allowed, made.scores, -np.inf)
    np.testing.assert_array_equal(refit(loss, made.index, made.scores), fitted)
    np.testing.assert_array_equal(refit(loss, made.index, scores), fitted)


def test_where_there_is_nothing_to_fit_the_losses_are_returned() -> None:
    made = world(0, 0.8)
    for index, scores in (
        (made.index[:9], made.scores[:9]),
        (made.index[:0], made.scores[:0]),
        (made.index[:30], np.full(30, 0.9)),
        (made.index[:30], np.full(30, -np.inf)),
        (made.index[:30], -made.scores[:30]),
        (np.repeat(made.index[:1], 30, axis=0), made.scores[:30]),
    ):
        np.testing.assert_array_equal(refit(made.loss, index, scores), made.loss)


def test_shapes_that_do_not_fit_are_an_error() -> None:
    made = world(0, 0.8)
    with pytest.raises(PolicyError, match=r"\(12, 5\).*\(30, 12\).*\(29,\)"):
        refit(made.loss, made.index[:30], made.scores[:29])
    with pytest.raises(PolicyError):
        refit(made.loss, made.index[:30, 1:], made.scores[:30])
