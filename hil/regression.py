"""Linear regression with a Gaussian prior of its own on every coefficient.

    y = X beta + noise,   beta ~ N(prior, s_k^2 spread^2) for the coefficients of block k

The scales s_k of the blocks and the noise are chosen by marginal likelihood, so blocks that explain
nothing shrink to their prior by themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted regression.

    Args:
        coefficients: (D,) posterior means.
        deviations: (D,) posterior standard deviations.
        noise: standard deviation of the residual noise.
        scales: prior scale of each block.
    """

    coefficients: FloatArray
    deviations: FloatArray
    noise: float
    scales: FloatArray

    def predict(self, features: FloatArray) -> FloatArray:
        """Return predictions, (N,), for `features`, (N, D)."""
        predicted: FloatArray = features @ self.coefficients
        return predicted


def fit(
    features: FloatArray,
    target: FloatArray,
    prior: FloatArray,
    spread: FloatArray,
    blocks: npt.NDArray[np.intp],
) -> Fit:
    """Fit the regression.

    Args:
        features: (N, D).
        target: (N,).
        prior: (D,) prior means.
        spread: (D,) relative prior deviations within a block, positive.
        blocks: (D,) block number of each coefficient, 0..K-1.
    """
    residual = target - features @ prior
    count = int(blocks.max()) + 1
    grams = [_gram(features[:, blocks == k] * spread[blocks == k]) for k in range(count)]
    start = np.concatenate([np.full(count, np.log(0.5)), [np.log(max(residual.std(), 1e-6))]])
    found = minimize(
        _negative_log_likelihood,
        start,
        args=(grams, residual),
        method="L-BFGS-B",
        bounds=[(-8.0, 3.0)] * count + [(-9.0, 2.0)],
    )
    scales, noise = np.exp(found.x[:-1]), float(np.exp(found.x[-1]))
    deviation = spread * scales[blocks]
    weighted = features * deviation
    covariance = weighted @ weighted.T + noise**2 * np.eye(len(target))
    factor = cho_factor(covariance, lower=True)
    update = deviation * (weighted.T @ cho_solve(factor, residual))
    explained = np.einsum("nd,nd->d", weighted, cho_solve(factor, weighted))
    posterior = deviation * np.sqrt(np.clip(1.0 - explained, 0.0, 1.0))
    return Fit(prior + update, posterior, noise, scales)


def _gram(weighted: FloatArray) -> FloatArray:
    product: FloatArray = weighted @ weighted.T
    return product


def _negative_log_likelihood(
    logs: FloatArray, grams: Sequence[FloatArray], residual: FloatArray
) -> float:
    n = len(residual)
    covariance = np.exp(2 * logs[-1]) * np.eye(n)
    for log, gram in zip(logs[:-1], grams, strict=True):
        covariance += np.exp(2 * log) * gram
    try:
        factor = cho_factor(covariance, lower=True)
    except np.linalg.LinAlgError:
        return 1e12
    half_log_determinant = np.log(np.diagonal(factor[0])).sum()
    return float(0.5 * residual @ cho_solve(factor, residual) + half_log_determinant)
