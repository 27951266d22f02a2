"""Which policies to time when one network is calibrated, and which to judge the result by.

Each layer runs either float or integer; stored widths do not change the kernel. A design is a
stream of such patterns in a fixed order of kinds, so that any time budget gets a balanced share:
half long runs, a third independent layers, the rest single swaps against a uniform pattern. The
mixture that judges is drawn apart from it: independent layers, long runs, and near-uniform ones.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Pattern = npt.NDArray[np.bool_]
MIXTURE = ("independent", "runs", "near-uniform")
_KINDS = ("runs", "independent", "runs", "independent", "runs", "single")
_SHARES = (0.15, 0.85)


def patterns(free: Pattern, seed: int) -> Iterator[Pattern]:
    """Yield patterns of integer layers to fit, without end.

    Args:
        free: (L,) layers that can run as integers; the others stay float in every pattern.
        seed: of the draw.
    """
    return _stream(free, np.random.default_rng(seed), _KINDS)


def mixture(free: Pattern, seed: int) -> Iterator[Pattern]:
    """Yield patterns to judge by, without end: the kinds of `MIXTURE` in turn.

    Another seed gives another sample of the same mixture. None shares its draws with `patterns`.

    Args:
        free: as for `patterns`.
        seed: of the draw.
    """
    return _stream(free, np.random.default_rng([seed, 1]), MIXTURE)


def _stream(free: Pattern, draw: np.random.Generator, kinds: tuple[str, ...]) -> Iterator[Pattern]:
    singles = np.flatnonzero(free)
    while True:
        for kind in kinds:
            if kind == "runs":
                pattern = _runs(len(free), draw)
            elif kind == "independent":
                pattern = draw.random(len(free)) < draw.uniform(*_SHARES)
            else:
                pattern = np.full(len(free), bool(draw.integers(2)))
                most = 1 if kind == "single" else max(1, len(singles) // 8) + 1
                swapped = min(int(draw.integers(1, most + 1)), len(singles))
                pattern[draw.choice(singles, swapped, replace=False)] ^= True
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
