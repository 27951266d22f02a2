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
    start: Fit | None = None,
) -> Fit:
    """Fit the regression.

    Args:
        features: (N, D).
        target: (N,).
        prior: (D,) prior means.
        spread: (D,) relative prior deviations within a block, positive.
        blocks: (D,) block number of each coefficient, 0..K-1.
        start: take scales and noise from this fit instead of choosing them.
    """
    residual = target - features @ prior
    if start is None:
        scales, noise = _choose_scales(features * spread, residual, blocks)
    else:
        scales, noise = start.scales, start.noise
    deviation = spread * scales[blocks]
    weighted = features * deviation
    covariance = weighted @ weighted.T + noise**2 * np.eye(len(target))
    factor = cho_factor(covariance, lower=True)
    update = deviation * (weighted.T @ cho_solve(factor, residual))
    explained = np.einsum("nd,nd->d", weighted, cho_solve(factor, weighted))
    posterior = deviation * np.sqrt(np.clip(1.0 - explained, 0.0, 1.0))
    return Fit(prior + update, posterior, noise, scales)


def _choose_scales(
    weighted: FloatArray, residual: FloatArray, blocks: npt.NDArray[np.intp]
) -> tuple[FloatArray, float]:
    count = int(blocks.max()) + 1
    parts = [weighted[:, blocks == k] for k in range(count)]
    grams = [part @ part.T for part in parts]
    first = np.log(np.array([0.5] * count + [max(float(residual.std()), 1e-6)]))
    found = minimize(
        _negative_log_likelihood,
        first,
        args=(grams, residual),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-8.0, 3.0)] * count + [(-9.0, 2.0)],
        options={"maxiter": 40},
    )
    return np.exp(found.x[:-1]), float(np.exp(found.x[-1]))


def _negative_log_likelihood(
    logs: FloatArray, grams: Sequence[FloatArray], residual: FloatArray
) -> tuple[float, FloatArray]:
    """Negative log marginal likelihood and its gradient in the logarithms of scales and noise."""
    n = len(residual)
    covariance = np.exp(2 * logs[-1]) * np.eye(n)
    for log, gram in zip(logs[:-1], grams, strict=True):
        covariance += np.exp(2 * log) * gram
    factor = cho_factor(covariance, lower=True)
    solved = cho_solve(factor, residual)
    value = 0.5 * residual @ solved + np.log(np.diagonal(factor[0])).sum()
    # d/dlog s_k = tr((C^-1 - a a^T) s_k^2 G_k) with a = C^-1 r
    weight = cho_solve(factor, np.eye(n)) - np.outer(solved, solved)
    slopes = [
        np.exp(2 * log) * np.vdot(weight, gram) for log, gram in zip(logs[:-1], grams, strict=True)
    ]
    slopes.append(np.exp(2 * logs[-1]) * np.trace(weight))
    return float(value), np.array(slopes)
