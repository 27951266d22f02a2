"""Which policies to time when one network is calibrated.

Each layer runs either float or integer; stored widths do not change the kernel. A design is a
stream of such patterns in a fixed order of kinds, so that any time budget gets a balanced share:
half long runs, a third independent layers, the rest single swaps against a uniform pattern.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Pattern = npt.NDArray[np.bool_]
_KINDS = ("runs", "independent", "runs", "independent", "runs", "single")
_SHARES = (0.15, 0.85)


def patterns(free: Pattern, seed: int) -> Iterator[Pattern]:
    """Yield patterns of integer layers, without end.

    Args:
        free: (L,) layers that can run as integers; the others stay float in every pattern.
        seed: of the draw.
    """
    draw = np.random.default_rng(seed)
    singles = np.flatnonzero(free)
    while True:
        for kind in _KINDS:
            if kind == "runs":
                pattern = _runs(len(free), draw)
            elif kind == "independent":
                pattern = draw.random(len(free)) < draw.uniform(*_SHARES)
            else:
                pattern = np.full(len(free), bool(draw.integers(2)))
                pattern[draw.choice(singles)] ^= True
            yield pattern & free


def _runs(length: int, draw: np.random.Generator) -> Pattern:
    """Alternate between float and integer, with runs of geometric length."""
    mean = draw.uniform(2, max(length / 2, 3))
    pattern = np.empty(length, np.bool_)
    state, position = bool(draw.integers(2)), 0
    while position < length:
        step = int(draw.geometric(1 / mean))
        pattern[position : position + step] = state
        state, position = not state, position + step
    return pattern
