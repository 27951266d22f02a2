"""Regression with a prior of its own on every coefficient."""

from typing import NamedTuple

import numpy as np
import pytest

from hil.regression import FloatArray, _negative_log_likelihood, fit


class Sample(NamedTuple):
    features: FloatArray
    target: FloatArray
    truth: FloatArray


BLOCKS = np.array([0] * 6 + [1] * 6)


def _sample(count: int, noise: float = 0.01, seed: int = 0, *, useful: bool = True) -> Sample:
    """Two blocks of six coefficients; without `useful`, those of the second are 0."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(0, 0.5, 12)
    truth[6:] *= useful
    features = draw.integers(0, 2, (count, 12)).astype(float)
    return Sample(features, features @ truth + draw.normal(0, noise, count), truth)


def test_known_coefficients_are_recovered() -> None:
    features, target, truth = _sample(120)
    found = fit(features, target, np.zeros(12), np.ones(12), BLOCKS)
    np.testing.assert_allclose(found.coefficients, truth, atol=0.01)
    np.testing.assert_allclose(found.predict(features), target, atol=0.05)


def test_the_noise_is_recovered() -> None:
    features, target, _ = _sample(200, noise=0.03)
    assert fit(features, target, np.zeros(12), np.ones(12), BLOCKS).noise == pytest.approx(
        0.03, rel=0.2
    )


def test_a_block_that_explains_nothing_shrinks_to_its_prior() -> None:
    features, target, truth = _sample(100, useful=False)
    found = fit(features, target, np.zeros(12), np.ones(12), BLOCKS)
    assert found.scales[1] < 0.05 * found.scales[0]
    np.testing.assert_allclose(found.coefficients[6:], 0, atol=3e-3)
    np.testing.assert_allclose(found.coefficients[:6], truth[:6], atol=0.02)


def test_without_information_the_prior_stays() -> None:
    prior = np.linspace(-1, 1, 12)
    features, spread = np.zeros((30, 12)), np.full(12, 0.5)
    target = np.random.default_rng(0).normal(0, 0.1, 30)
    found = fit(features, target, prior, spread, BLOCKS)
    np.testing.assert_allclose(found.coefficients, prior)
    np.testing.assert_allclose(found.deviations, spread * found.scales[BLOCKS])


def test_a_good_prior_helps_where_data_are_few() -> None:
    features, target, truth = _sample(8)
    blind = fit(features, target, np.zeros(12), np.ones(12), BLOCKS)
    near = fit(features, target, truth + 0.01, np.ones(12), BLOCKS)
    assert np.abs(near.coefficients - truth).max() < np.abs(blind.coefficients - truth).max()


def test_posterior_deviations_shrink_with_data_and_tell_the_error() -> None:
    few, many = (
        fit(s.features, s.target, np.zeros(12), np.ones(12), BLOCKS)
        for s in (_sample(20, noise=0.1), _sample(200, noise=0.1))
    )
    assert (many.deviations < few.deviations).all()
    assert (many.deviations > 0).all()
    error = np.abs(many.coefficients - _sample(200, noise=0.1).truth)
    assert (error < 4 * many.deviations).all()


def test_scales_and_noise_of_an_earlier_fit_are_taken_over() -> None:
    features, target, _ = _sample(60)
    first = fit(features, target, np.zeros(12), np.ones(12), BLOCKS)
    again = fit(features[:30], target[:30], np.zeros(12), np.ones(12), BLOCKS, start=first)
    np.testing.assert_array_equal(again.scales, first.scales)
    assert again.noise == first.noise


def test_a_block_without_features_does_no_harm() -> None:
    features, target, truth = _sample(100)
    skipping = np.where(BLOCKS == 1, 2, 0)  # block 1 has no column
    found = fit(features, target, np.zeros(12), np.ones(12), skipping)
    np.testing.assert_allclose(found.coefficients, truth, atol=0.02)


def test_the_gradient_of_the_likelihood_equals_finite_differences() -> None:
    features, target, _ = _sample(25, noise=0.1)
    grams = [features[:, k == BLOCKS] @ features[:, k == BLOCKS].T for k in (0, 1)]
    at, step = np.log(np.array([0.4, 0.1, 0.2])), 1e-5
    _, slopes = _negative_log_likelihood(at, grams, target)
    for position in range(3):
        move = step * np.eye(3)[position]
        above, below = (_negative_log_likelihood(at + s * move, grams, target)[0] for s in (1, -1))
        assert slopes[position] == pytest.approx((above - below) / (2 * step), rel=1e-5)
