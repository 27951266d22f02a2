"""Linear regression with a Gaussian prior on the coefficients, some of which move together.

    y = X beta + noise,   beta = mean + own + Z gamma
    own_d ~ N(0, (s_k spread_d)^2) for the coefficients of block k,   gamma_j ~ N(0, t_j^2)

A column of Z holds what a class of coefficients has in common (all depthwise convolutions, say), so
that what was seen of some tells something of the others. The scales s_k and t_j and the noise are
chosen by marginal likelihood: what explains nothing shrinks to the prior by itself. The noise of a
row may be known to be larger than that of others; that is its weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Prior:
    """What is believed of the coefficients before any row is seen.

    Args:
        mean: (D,) means.
        spread: (D,) relative deviations within a block, positive.
        blocks: (D,) block number of each coefficient, 0..K-1.
        shared: (D, S) what the coefficients of a class have in common, one class a column.
    """

    mean: FloatArray
    spread: FloatArray
    blocks: npt.NDArray[np.intp]
    shared: FloatArray

    @classmethod
    def apart(cls, mean: FloatArray, spread: FloatArray, blocks: npt.NDArray[np.intp]) -> "Prior":
        """Return a prior without classes."""
        return cls(mean, spread, blocks, np.zeros((len(mean), 0)))

    @property
    def parts(self) -> list[FloatArray]:
        """Factors of the covariance, (D, *) each, before they are scaled: blocks, then classes."""
        own = np.diag(self.spread)
        count = int(self.blocks.max()) + 1
        return [
            *(own[:, self.blocks == k] for k in range(count)),
            *(self.shared[:, [j]] for j in range(self.shared.shape[1])),
        ]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted regression.

    Args:
        coefficients: (D,) posterior means.
        deviations: (D,) posterior standard deviations.
        noise: standard deviation of the noise of a row of weight 1.
        scales: (K + S,) scales of the blocks, then of the classes.
        surprise: (N,) for each row its distance from what a fit without it predicts, over the
            standard deviation of that distance.
    """

    coefficients: FloatArray
    deviations: FloatArray
    noise: float
    scales: FloatArray
    surprise: FloatArray

    def predict(self, features: FloatArray) -> FloatArray:
        """Return predictions, (N,), for `features`, (N, D)."""
        predicted: FloatArray = features @ self.coefficients
        return predicted


def fit(
    features: FloatArray,
    target: FloatArray,
    prior: Prior,
    *,
    weights: FloatArray | None = None,
    start: Fit | None = None,
) -> Fit:
    """Fit the regression.

    Args:
        features: (N, D).
        target: (N,).
        prior: of the D coefficients.
        weights: (N,) by what factor the noise of each row is larger; None for 1.
        start: take scales and noise from this fit instead of choosing them.
    """
    loud = np.ones(len(target)) if weights is None else weights
    rows = features / loud[:, None]
    residual = target / loud - rows @ prior.mean
    parts = prior.parts
    if start is None:
        scales, noise = _choose_scales([rows @ part for part in parts], residual)
    else:
        scales, noise = start.scales, start.noise
    factor = np.concatenate([s * part for s, part in zip(scales, parts, strict=True)], axis=1)
    weighted = rows @ factor
    covariance = cho_factor(weighted @ weighted.T + noise**2 * np.eye(len(target)), lower=True)
    inverse = cho_solve(covariance, np.eye(len(target)))
    solved = inverse @ residual
    gain = factor @ weighted.T
    explained = np.einsum("dn,nd->d", gain, inverse @ gain.T)
    variance = np.square(factor).sum(axis=1) - explained
    return Fit(
        prior.mean + gain @ solved,
        np.sqrt(np.clip(variance, 0.0, None)),
        noise,
        scales,
        solved / np.sqrt(np.diagonal(inverse)),  # leave-one-out in closed form
    )


def ordinary(surprise: FloatArray, limit: float) -> npt.NDArray[np.bool_]:
    """Return which rows, (N,), surprise by less than `limit` robust standard deviations.

    A robust one is 1.4826 times the median absolute deviation: that of a Gaussian.
    """
    centred = np.abs(surprise - np.median(surprise))
    return np.asarray(centred <= limit * 1.4826 * np.median(centred), np.bool_)


def _choose_scales(
    weighted: Sequence[FloatArray], residual: FloatArray
) -> tuple[FloatArray, float]:
    grams = [part @ part.T for part in weighted]
    first = np.log(np.array([0.5] * len(grams) + [max(float(residual.std()), 1e-6)]))
    found = minimize(
        _negative_log_likelihood,
        first,
        args=(grams, residual),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-8.0, 3.0)] * len(grams) + [(-9.0, 2.0)],
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
