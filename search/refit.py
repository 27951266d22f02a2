"""Refit the proxy to policies that were evaluated in full."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costmodels.table import FloatArray
from quantization.errors import PolicyError
from quantization.policy import IndexArray

DEVIATIONS = (0.0, 0.1, 0.3, 1.0)
"""How far, relative to what was measured, a loss may deviate: what is tried; 0 only scales."""

FEWEST = 10
"""Below so many policies there is nothing to choose a deviation by."""

FOLDS = 5
_SURE = 2.0
"""Standard errors by which a deviation must predict better than scaling."""


@dataclass(frozen=True, eq=False)
class _Cells:
    """The losses that are fitted, as one vector of increments.

    Args:
        where: (L, K) whether a cell is fitted: finite, and more than 0.
        position: (L, K) its place in the vector of losses; -1 elsewhere.
        sums: (C, C) losses from increments: within a layer each loss adds to the next smaller one.
        prior: (C,) what was measured.
        root: (C, C) whitens deviations from it: ``|root (x - prior)|^2`` is expected to be C.
    """

    where: npt.NDArray[np.bool_]
    position: npt.NDArray[np.intp]
    sums: FloatArray
    prior: FloatArray
    root: FloatArray


def refit(loss: FloatArray, index: IndexArray, scores: FloatArray) -> FloatArray:
    """Fit the losses of single layers to the scores of whole policies.

    ``score = c - sum over layers of x[layer, choice]``, by least squares, with a ridge towards
    ``s * loss``: x deviates from it by factors of each cell, of each layer and of each choice, all
    as large as cross-validation over the policies says. It says 0 unless another deviation predicts
    better by two standard errors; then the losses are only scaled, and rank policies as before.
    Losses stay at least 0, and within a layer in the order that was measured.

    Args:
        loss: (L, K) losses of single layers, at least 0; what is not finite is not allowed.
        index: (P, L) the policies.
        scores: (P,) what an oracle answered; higher is better. Not finite ones are left out.

    Returns:
        (L, K) losses in the unit of the scores; infinite where `loss` is not finite. Those of
        `loss` itself where fewer than 10 policies, or equal scores, or scores that rise with the
        loss leave nothing to fit.

    Raises:
        PolicyError: if the shapes do not fit.
    """
    loss, scores = np.asarray(loss, np.float64), np.asarray(scores, np.float64)
    if loss.ndim != 2 or index.shape != (len(scores), len(loss)):
        raise PolicyError(
            f"losses {loss.shape}, policies {index.shape} and scores {scores.shape} do not fit"
        )
    chosen = loss[np.arange(len(loss)), index]
    known = np.isfinite(scores) & np.isfinite(chosen).all(1)
    index, drop = index[known], -scores[known]
    proxy = chosen[known].sum(1)
    if len(drop) < FEWEST or np.ptp(drop) == 0 or np.ptp(proxy) == 0:
        return loss
    scale = float(np.cov(proxy, drop)[0, 1] / np.var(proxy, ddof=1))
    if scale <= 0:
        return loss
    prior = np.where(np.isfinite(loss), loss * scale, np.inf)
    design = _design(prior, index)
    noise = max(float(np.std(drop - scale * proxy)), 1e-3 * float(np.std(drop)))
    errors = [_validated(prior, design, drop, noise, deviation) for deviation in DEVIATIONS]
    best = _simplest(errors)
    fitted = np.where(np.isfinite(prior), 0.0, np.inf)
    cells = _cells(prior, DEVIATIONS[best])
    fitted[cells.where] = _fit(cells, design, drop, noise, DEVIATIONS[best])
    return fitted


def _design(prior: FloatArray, index: IndexArray) -> FloatArray:
    """Which of the fitted cells each policy chooses, (P, C)."""
    where = np.isfinite(prior) & (prior > 0)
    picked = np.zeros((len(index), *prior.shape))
    np.put_along_axis(picked, index[:, :, None].astype(np.intp), 1.0, 2)
    return picked[:, where]


def _simplest(errors: Sequence[FloatArray]) -> int:
    """The first deviation, unless the best one's squared errors are surely smaller."""
    best = int(np.argmin([each.mean() for each in errors]))
    gain = errors[0] - errors[best]
    return best if gain.mean() > _SURE * gain.std() / np.sqrt(len(gain)) else 0


def _validated(
    prior: FloatArray, design: FloatArray, drop: FloatArray, noise: float, deviation: float
) -> FloatArray:
    """Squared errors, (P,), of predictions for policies that were left out of the fit."""
    cells = _cells(prior, deviation)
    errors = np.empty(len(drop))
    fold = np.random.default_rng(0).permutation(len(drop)) % FOLDS
    for each in range(FOLDS):
        inside = fold != each
        fitted = _fit(cells, design[inside], drop[inside], noise, deviation)
        offset = float((drop[inside] - design[inside] @ fitted).mean())
        errors[~inside] = np.square(drop[~inside] - design[~inside] @ fitted - offset)
    return errors


def _cells(prior: FloatArray, deviation: float) -> _Cells:
    where = np.isfinite(prior) & (prior > 0)
    layer, choice = np.nonzero(where)
    values = prior[where]
    position = np.full(prior.shape, -1)
    position[where] = np.arange(len(values))
    same_layer, same_choice = layer[:, None] == layer, choice[:, None] == choice
    sums = (same_layer & (values[:, None] >= values)).astype(np.float64)
    root = np.zeros((0, len(values)))
    if deviation:
        # What was measured near 0 is as uncertain as a hundredth of the mean.
        size = np.maximum(values, 0.01 * values.mean()) * deviation
        shared = (same_layer + same_choice.astype(float) + np.eye(len(values))) / 3
        covariance = size[:, None] * shared * size + 1e-6 * np.diag(np.square(size))
        root = np.linalg.inv(np.linalg.cholesky(covariance))
    return _Cells(where, position, sums, values, root)


def _fit(
    cells: _Cells, design: FloatArray, drop: FloatArray, noise: float, deviation: float
) -> FloatArray:
    """The losses, (C,), least squares over non-negative increments."""
    if not deviation:
        return cells.prior
    from scipy.optimize import lsq_linear

    centred = design - design.mean(0)  # so that the constant need not be fitted
    rows = np.concatenate([centred / noise, cells.root]) @ cells.sums
    target = np.concatenate([(drop - drop.mean()) / noise, cells.root @ cells.prior])
    found = lsq_linear(rows, target, bounds=(0.0, np.inf), method="trf", tol=1e-8)
    return np.asarray(cells.sums @ found.x)
