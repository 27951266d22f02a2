"""Random changes of a policy."""

import numpy as np

from quantization.policy import IndexArray
from search.problem import Problem


def mutants(
    problem: Problem, parent: IndexArray, count: int, rng: np.random.Generator, rate: float
) -> IndexArray:
    """Return changed copies of one policy, (count, L).

    Each decision is drawn anew with probability `rate`, uniformly over the other choices that are
    allowed; where that would change none, one decision is. A decision with a single choice stays.

    Args:
        problem: what is chosen.
        parent: (L,).
        count: how many.
        rng: draws.
        rate: 0..1.
    """
    allowed = problem.allowed_decisions
    decisions = problem.decide(np.repeat(parent[None], count, axis=0))
    free = np.flatnonzero(allowed.sum(1) > 1)
    if not free.size:
        return problem.expand(decisions)
    changed = rng.random((count, len(free))) < rate
    one = rng.integers(len(free), size=count)
    changed[np.arange(count), one] |= ~changed.any(1)
    keys = rng.random((count, *allowed.shape))
    keys[:, ~allowed] = -1.0
    np.put_along_axis(keys, decisions[:, :, None].astype(np.intp), -1.0, axis=2)
    where = np.zeros(decisions.shape, bool)
    where[:, free] = changed
    return problem.expand(np.where(where, keys.argmax(2).astype(np.uint8), decisions))
