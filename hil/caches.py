"""Emptying the processor's caches of what was run before."""

from pathlib import Path

import numpy as np

UNKNOWN_BYTES = 64 * 2**20
"""Taken as the last-level cache where the system does not tell: at least that of most processors
that a process of its own share runs on; larger ones are not emptied wholly."""
_LINE_BYTES = 64
_TIMES = 2
"""Replacement is not strictly by age: one sweep of the cache's own size leaves old lines."""
_FACTORS = {"K": 2**10, "M": 2**20, "G": 2**30}


def parse_size(text: str) -> int | None:
    """Return bytes from a text such as ``32768K``; None if it is none.

    >>> parse_size("32768K") == 32 * 2**20
    True
    """
    digits = text.strip().rstrip("KMG")
    if not digits.isdecimal():
        return None
    return int(digits) * _FACTORS.get(text.strip()[-1], 1)


def last_level_bytes(root: Path = Path("/")) -> int | None:
    """Return the size of the largest cache of the first processor; None if the system is silent.

    Args:
        root: where ``sys`` lies; for tests.
    """
    sizes = [0]
    for path in (root / "sys/devices/system/cpu").glob("cpu0/cache/index*/size"):
        try:
            sizes.append(parse_size(path.read_text(encoding="utf-8", errors="replace")) or 0)
        except OSError:
            continue
    return max(sizes) or None


class Eviction:
    """Reads a buffer of twice the last-level cache when called.

    It only reads: lines that were written would have to be stored during the run that follows.

    Args:
        cache_bytes: size of the last-level cache; `UNKNOWN_BYTES` if it is not known.
    """

    def __init__(self, cache_bytes: int | None) -> None:
        self.bytes = _TIMES * (cache_bytes or UNKNOWN_BYTES)
        # Ones, not zeros: all pages of fresh zeros are one page of memory.
        self._lines = np.ones(self.bytes // 8, np.uint64)[:: _LINE_BYTES // 8]

    def __call__(self) -> int:
        """Sweep; the sum is of no interest but keeps the reads."""
        return int(self._lines.sum())
