"""The trials of a run on disk: a line each, there when it was made, and read back later."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.errors import QuantmeterError
from quantization.policy import IndexArray
from quantmeter.scoring import Score
from search.searcher import Trial

_LOGGER = logging.getLogger(__name__)
_SYNC_S = 0.1
"""A trial is on the disk after this at the latest; sooner would slow down what costs nothing."""


@dataclass(frozen=True, eq=False)
class Kept:
    """A trial as it was read back.

    Args:
        index: (L,) the policy.
        origin: what had proposed it.
        score: what had been found of it.
    """

    index: IndexArray
    origin: str
    score: Score


def encode(
    trial: Trial,
    score: Score,
    layers: Sequence[str],
    choices: Sequence[BitWidths],
    said: Mapping[str, str],
) -> str:
    """Return a trial as one line of JSON.

    Args:
        trial: what the search tried.
        score: what was found of it; a score of ``-inf`` becomes null, and the line says `rejected`.
        layers: names of the layers.
        choices: that the trial's indices point into.
        said: by metric, how its predicted cost came to be.
    """
    content: dict[str, Any] = {
        "origin": trial.origin,
        "score": None if trial.rejected else trial.score,
        "rejected": trial.rejected,
        "accuracy": score.accuracy,
        "proxy_loss": trial.loss,
        "costs": {metric.value: cost for metric, cost in trial.costs.items()},
        "costs_from": dict(said),
        "layers": {n: str(choices[int(i)]) for n, i in zip(layers, trial.index, strict=True)},
    }
    if score.divergence is not None:
        content["divergence"] = score.divergence
    if score.abandoned:
        content["abandoned"] = True
    if score.measured:
        content["measured"] = {metric.value: cost for metric, cost in score.measured.items()}
    return json.dumps(content, allow_nan=False)


def decode(line: str, layers: Sequence[str], choices: Sequence[BitWidths]) -> Kept:
    """Read what `encode` wrote.

    Raises:
        ValueError: if the line is no trial of these layers and choices.
        KeyError: if it lacks something.
        TypeError: if it holds something else.
    """
    content = json.loads(line)
    position = {str(bits): i for i, bits in enumerate(choices)}
    index = np.array([position[content["layers"][name]] for name in layers], np.uint8)
    value, accuracy = content["score"], content["accuracy"]
    if value is not None and not math.isfinite(value):
        raise ValueError("a score is a finite number, or null if the policy was rejected")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError("an accuracy is a share")
    score = Score(
        -math.inf if value is None else float(value),
        None if accuracy is None else float(accuracy),
        {Metric(name): float(cost) for name, cost in content.get("measured", {}).items()},
        bool(content.get("abandoned", False)),
        content.get("divergence"),
    )
    return Kept(index, str(content["origin"]), score)


def read_trials(
    path: Path, layers: Sequence[str], choices: Sequence[BitWidths]
) -> tuple[list[Kept], int]:
    """Read the trials of a run that may have been killed.

    A last line that was half written, or is damaged, is left out: that trial is made again, and a
    warning says so.

    Returns:
        The trials, and how many bytes of the file they are.

    Raises:
        QuantmeterError: if another line is no trial of these layers and choices.
    """
    if not path.exists():
        return [], 0
    *whole, half = path.read_bytes().split(b"\n")
    found: list[Kept] = []
    size = 0
    for number, line in enumerate(whole, start=1):
        try:
            found.append(decode(line.decode("utf-8"), layers, choices))
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(whole):
                break  # the disk kept its end, but not its beginning
            raise QuantmeterError(
                f"{path}: line {number} is no trial of this search; discard the run with --anew"
            ) from None
        size += len(line) + 1
    if half or len(found) < len(whole):
        _LOGGER.warning("%s: its last line is damaged; that trial is made again", path)
    return found, size


class Journal:
    """Appends trials to the file of a run; those that it holds already are only compared.

    A search that is resumed makes the same trials again, from the scores that were read back.

    Args:
        path: the file.
        kept: the trials that it holds.
        size: bytes that these are; what lies behind is cut off.
        line: turns a trial into a line, see `encode`.
        clock: seconds; for tests.
    """

    def __init__(
        self,
        path: Path,
        kept: Sequence[Kept],
        size: int,
        line: Callable[[Trial], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._kept, self._line, self._clock = path, kept, line, clock
        self._stream = path.open("ab")
        self._stream.truncate(size)
        self._count = 0
        self._synced = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self._stream.close()

    def record(self, trial: Trial) -> None:
        """Append one trial. A killed process has lost none, a machine without power 0.1 s of them.

        Raises:
            QuantmeterError: if the file holds another trial at this place.
        """
        self._count += 1
        if self._count <= len(self._kept):
            kept = self._kept[self._count - 1]
            if kept.origin != trial.origin or not np.array_equal(kept.index, trial.index):
                raise QuantmeterError(
                    f"{self._path}: this search does not repeat line {self._count}, though it is "
                    "the same request; discard the run with --anew"
                )
            return
        self._stream.write(self._line(trial).encode("utf-8") + b"\n")
        self._stream.flush()
        if self._clock() - self._synced >= _SYNC_S:
            self._sync()

    def _sync(self) -> None:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._synced = self._clock()
