"""Regression with a prior of its own on every coefficient."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from hil.regression import FloatArray, Prior, _negative_log_likelihood, fit, ordinary


class Sample(NamedTuple):
    features: FloatArray
    target: FloatArray
    truth: FloatArray


BLOCKS = np.array([0] * 6 + [1] * 6)
PLAIN = Prior.apart(np.zeros(12), np.ones(12), BLOCKS)


def _sample(count: int, noise: float = 0.01, seed: int = 0, *, useful: bool = True) -> Sample:
    """Two blocks of six coefficients; without `useful`, those of the second are 0."""
    draw = np.random.default_rng(seed)
    truth = draw.normal(0, 0.5, 12)
    truth[6:] *= useful
    features = draw.integers(0, 2, (count, 12)).astype(float)
    return Sample(features, features @ truth + draw.normal(0, noise, count), truth)


def test_known_coefficients_are_recovered() -> None:
    features, target, truth = _sample(120)
    found = fit(features, target, PLAIN)
    np.testing.assert_allclose(found.coefficients, truth, atol=0.01)
    np.testing.assert_allclose(found.predict(features), target, atol=0.05)


def test_the_noise_is_recovered() -> None:
    features, target, _ = _sample(200, noise=0.03)
    assert fit(features, target, PLAIN).noise == pytest.approx(0.03, rel=0.2)


def test_a_block_that_explains_nothing_shrinks_to_its_prior() -> None:
    features, target, truth = _sample(100, useful=False)
    found = fit(features, target, PLAIN)
    assert found.scales[1] < 0.05 * found.scales[0]
    np.testing.assert_allclose(found.coefficients[6:], 0, atol=3e-3)
    np.testing.assert_allclose(found.coefficients[:6], truth[:6], atol=0.02)


def test_without_information_the_prior_stays() -> None:
    prior = np.linspace(-1, 1, 12)
    features, spread = np.zeros((30, 12)), np.full(12, 0.5)
    target = np.random.default_rng(0).normal(0, 0.1, 30)
    found = fit(features, target, Prior.apart(prior, spread, BLOCKS))
    np.testing.assert_allclose(found.coefficients, prior)
    np.testing.assert_allclose(found.deviations, spread * found.scales[BLOCKS])


def test_a_good_prior_helps_where_data_are_few() -> None:
    features, target, truth = _sample(8)
    blind = fit(features, target, PLAIN)
    near = fit(features, target, replace(PLAIN, mean=truth + 0.01))
    assert np.abs(near.coefficients - truth).max() < np.abs(blind.coefficients - truth).max()


def test_posterior_deviations_shrink_with_data_and_tell_the_error() -> None:
    few, many = (
        fit(s.features, s.target, PLAIN) for s in (_sample(20, noise=0.1), _sample(200, noise=0.1))
    )
    assert (many.deviations < few.deviations).all()
    assert (many.deviations > 0).all()
    error = np.abs(many.coefficients - _sample(200, noise=0.1).truth)
    assert (error < 4 * many.deviations).all()


def test_scales_and_noise_of_an_earlier_fit_are_taken_over() -> None:
    features, target, _ = _sample(60)
    first = fit(features, target, PLAIN)
    again = fit(features[:30], target[:30], PLAIN, start=first)
    np.testing.assert_array_equal(again.scales, first.scales)
    assert again.noise == first.noise


def test_a_block_without_features_does_no_harm() -> None:
    features, target, truth = _sample(100)
    skipping = np.where(BLOCKS == 1, 2, 0)  # block 1 has no column
    found = fit(features, target, replace(PLAIN, blocks=skipping))
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


def _class_of(members: int, seen: int) -> tuple[FloatArray, FloatArray, Prior]:
    """Twelve coefficients of 0.5 and a bit; the first `seen` occur, the first `members` share."""
    draw = np.random.default_rng(3)
    truth = 0.5 + draw.normal(0, 0.03, 12)
    features = draw.integers(0, 2, (80, 12)).astype(float)
    features[:, seen:] = 0
    target = features @ truth + draw.normal(0, 0.01, 80)
    shared = np.zeros((12, 1))
    shared[:members] = 1
    return features, target, Prior(np.zeros(12), np.ones(12), np.zeros(12, np.intp), shared)


def test_what_was_seen_of_some_members_of_a_class_moves_the_unseen_ones() -> None:
    features, target, prior = _class_of(members=10, seen=6)
    found = fit(features, target, prior)
    np.testing.assert_allclose(found.coefficients[:6], 0.5, atol=0.12)
    np.testing.assert_allclose(found.coefficients[6:10], 0.5, atol=0.05)
    np.testing.assert_allclose(found.coefficients[10:], 0.0, atol=1e-12)  # of no class
    assert (found.deviations[6:10] < 0.2).all()
    alone = fit(features, target, replace(prior, shared=np.zeros((12, 0))))
    np.testing.assert_allclose(alone.coefficients[6:], 0.0, atol=1e-12)
    assert (alone.deviations[6:] > found.deviations[6:10].max()).all()


def test_a_class_whose_members_have_nothing_in_common_shrinks_away() -> None:
    features, target, _ = _sample(120)
    signs = np.array([1.0, -1.0] * 6)
    found = fit(features, target, replace(PLAIN, shared=np.full((12, 1), 1.0)))
    alone = fit(features, target, PLAIN)
    np.testing.assert_allclose(found.coefficients, alone.coefficients, atol=0.005)
    assert len(found.scales) == 3
    odd = fit(features, features @ signs, replace(PLAIN, shared=np.full((12, 1), 1.0)))
    assert odd.scales[2] < 0.2 * odd.scales[:2].min()


def _by_the_book(
    features: FloatArray, target: FloatArray, prior: Prior, loud: FloatArray, scales: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Posterior mean and deviations from precision matrices instead of covariances."""
    *scales_of_parts, noise = scales
    covariance = sum(
        s**2 * part @ part.T for s, part in zip(scales_of_parts, prior.parts, strict=True)
    )
    inverse = np.linalg.inv(covariance)
    rows = features / loud[:, None] / noise
    posterior = np.linalg.inv(inverse + rows.T @ rows)
    mean = posterior @ (inverse @ prior.mean + rows.T @ (target / loud / noise))
    return mean, np.sqrt(np.diagonal(posterior))


def test_coefficients_and_deviations_are_those_of_the_normal_equations() -> None:
    features, target, _ = _sample(40, noise=0.1)
    draw = np.random.default_rng(5)
    loud = draw.uniform(1, 4, 40)
    prior = Prior(
        draw.normal(0, 1, 12), draw.uniform(0.5, 2, 12), BLOCKS, draw.normal(0, 1, (12, 2))
    )
    found = fit(features, target, prior, weights=loud)
    mean, deviations = _by_the_book(
        features, target, prior, loud, np.append(found.scales, found.noise)
    )
    np.testing.assert_allclose(found.coefficients, mean, atol=1e-8)
    np.testing.assert_allclose(found.deviations, deviations, atol=1e-8)


def test_a_loud_row_counts_for_less() -> None:
    features, target, truth = _sample(60)
    target[:10] += np.random.default_rng(7).normal(0, 1, 10)
    loud = np.where(np.arange(60) < 10, 50.0, 1.0)
    alike, weighted, without = (
        fit(features, target, PLAIN),
        fit(features, target, PLAIN, weights=loud),
        fit(features[10:], target[10:], PLAIN),
    )
    far, near, least = (np.abs(f.coefficients - truth).max() for f in (alike, weighted, without))
    assert near < far / 5
    assert near < 2 * least
    assert weighted.noise == pytest.approx(0.01, rel=1.0)


def test_weights_of_one_change_nothing() -> None:
    features, target, _ = _sample(60)
    one, other = fit(features, target, PLAIN), fit(features, target, PLAIN, weights=np.ones(60))
    np.testing.assert_array_equal(one.coefficients, other.coefficients)
    np.testing.assert_array_equal(one.surprise, other.surprise)


def test_surprise_is_that_of_fits_without_the_row() -> None:
    features, target, _ = _sample(25, noise=0.1)
    loud = np.random.default_rng(1).uniform(1, 3, 25)
    prior = replace(PLAIN, shared=np.ones((12, 1)))
    found = fit(features, target, prior, weights=loud)
    for row in range(25):
        others = np.arange(25) != row
        apart = fit(features[others], target[others], prior, weights=loud[others], start=found)
        # Variance of the left-out row: of the coefficients, all of which move together, plus noise.
        parts = [s * part for s, part in zip(found.scales, prior.parts, strict=True)]
        factor = np.concatenate(parts, axis=1)
        rows = features[others] / loud[others, None]
        seen = rows @ factor
        noise = found.noise**2 * np.eye(24)
        new = features[row] @ factor
        explained = new @ seen.T @ np.linalg.solve(seen @ seen.T + noise, seen @ new)
        variance = new @ new - explained + (found.noise * loud[row]) ** 2
        distance = target[row] - apart.predict(features[[row]])[0]
        assert found.surprise[row] == pytest.approx(distance / np.sqrt(variance), abs=1e-7)


def test_rows_that_are_unlike_all_others_are_not_ordinary() -> None:
    features, target, truth = _sample(100)
    target[[3, 50]] += [0.4, -0.4]
    found = fit(features, target, PLAIN)
    kept = ordinary(found.surprise, 4.0)
    assert not kept[[3, 50]].any()
    assert kept.sum() >= 96
    again = fit(features[kept], target[kept], PLAIN)
    assert np.abs(again.coefficients - truth).max() < np.abs(found.coefficients - truth).max()
    assert again.noise < found.noise / 2


def test_rows_of_a_gaussian_are_nearly_all_ordinary_and_half_of_any_rows_always_is() -> None:
    draw = np.random.default_rng(0)
    kept = ordinary(draw.standard_normal(100_000), 3.0)
    assert 0.996 < kept.mean() < 0.9985  # 0.9973 within three deviations
    assert ordinary(draw.standard_cauchy(1001), 1.0).sum() >= 501
    assert ordinary(np.full(9, 0.25), 4.0).all()
