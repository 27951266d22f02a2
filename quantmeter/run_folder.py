"""The folder of a search: what was asked, the tables, the trials; and going on where it ended."""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from costmodels.errors import TableError
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.errors import QuantmeterError
from quantization.quantizer import Float32Array
from quantmeter.data import Labels
from quantmeter.files import require_folder
from quantmeter.journal import Kept, read_trials
from quantmeter.run_files import candidates_of, files_of

POLICY, TRIALS, RESULT, REQUEST = "policy.json", "trials.jsonl", "result.json", "request.json"
"""The files of a run.

Besides, ``METRIC.table.json`` for each metric that is priced by a table, and what only some runs
write (`quantmeter.run_files`).
"""

_LOGGER = logging.getLogger(__name__)
_LIBRARIES = ("quantmeter", "numpy", "onnxruntime", "optuna", "scipy", "torch")
_VERSION = 1


def versions() -> dict[str, str]:
    """Return the versions of what decides the result of a search; of what is installed."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def data_digest(images: Float32Array, labels: Labels | None) -> str:
    """Return the SHA-256 of images and classes."""
    hashed = hashlib.sha256(repr((images.shape, labels is None)).encode())
    hashed.update(images.tobytes())
    if labels is not None:
        hashed.update(repr(labels.dtype.str).encode())
        hashed.update(labels.tobytes())
    return hashed.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def backend_identity(text: str, tables: Mapping[str, CostTable]) -> list[str]:
    """Return a ``--cost`` value with the SHA-256 of the file that it names, if it names one."""
    argument = text.partition(":")[2]
    if argument and Path(argument).is_file():
        return [text, file_digest(Path(argument))]
    if argument in tables:
        return [text, hashlib.sha256(tables[argument].to_json().encode()).hexdigest()]
    return [text]


@dataclass(frozen=True, eq=False)
class Earlier:
    """What an earlier run of the same request left, finished or not.

    Args:
        trials: in the order in which they were made.
        size: bytes of the file that they are.
        tables: what it searched with.
        limits: the most that whole policies could cost in it, by metric, in SI units; None if that
            was not written.
    """

    trials: Sequence[Kept]
    size: int
    tables: Mapping[Metric, CostTable]
    limits: Mapping[Metric, float] | None


class RunFolder:
    """The folder of one search, held by one process at a time.

    Args:
        path: the folder; made if it is missing.

    Raises:
        QuantmeterError: if it cannot be written to, or another search is running in it.
    """

    def __init__(self, path: Path) -> None:
        require_folder(path)
        self.path = path
        self._lock = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise QuantmeterError(
                f"another search is running in {path}; give another --out"
            ) from None
        except OSError:  # a file system without locks
            _LOGGER.debug("%s cannot be locked", path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._lock)

    def earlier(
        self, request: Mapping[str, Any], layers: Sequence[str], choices: Sequence[BitWidths]
    ) -> Earlier | None:
        """Return what an earlier run of `request` left; None if there is nothing to lose.

        Raises:
            QuantmeterError: if the folder holds a finished run, or trials, of another request, or
                files of those names without a request, or they cannot be read.
        """
        finished, trials = (self.path / RESULT).exists(), self.path / TRIALS
        if not (self.path / REQUEST).exists():
            found = [name for name in (POLICY, TRIALS, RESULT) if (self.path / name).exists()]
            if found:
                raise QuantmeterError(
                    f"{self.path} holds {' and '.join(found)} of something else: give another "
                    "--out, or replace them with --anew"
                )
            return None
        has_trials = trials.exists() and trials.stat().st_size > 0
        if not (finished or has_trials):
            return None
        held, limits = self._read_request()
        request = json.loads(json.dumps(request))  # as it is read back
        if differing := sorted(k for k in {*held, *request} if held.get(k) != request.get(k)):
            names = ", ".join(differing)
            if finished:
                raise QuantmeterError(
                    f"{self.path} holds a search that differs in {names}: give another --out, or "
                    "replace it with --anew"
                )
            raise QuantmeterError(
                f"{self.path} holds an unfinished search that differs in {names}: repeat its "
                "command to go on with it, give another --out, or discard it with --anew"
            )
        if not has_trials:
            return None
        kept, size = read_trials(trials, layers, choices)
        try:
            tables = {
                metric: CostTable.read(path)
                for metric in Metric
                if (path := self._table(metric)).exists()
            }
        except TableError as error:
            raise QuantmeterError(f"{error}; discard the run with --anew") from None
        return Earlier(kept, size, tables, limits)

    def begin(
        self,
        request: Mapping[str, Any],
        tables: Mapping[Metric, CostTable],
        limits: Mapping[Metric, float],
    ) -> None:
        """Remove what an earlier run left, and write what is asked, the tables and the limits.

        The folder may hold files of its user, under any name: only what the earlier request says
        that its run wrote is removed, and what this run writes itself.
        """
        # Trials first: without any, nothing is taken for unfinished. The request last: it tells.
        names = [TRIALS, *self._left_by_earlier(), *candidates_of(request), RESULT, POLICY, REQUEST]
        self.drop(names)  # two runs are never mixed
        for metric, table in tables.items():
            self._table(metric).write_text(table.to_json(), encoding="utf-8")
        content = {
            "version": _VERSION,
            "request": dict(request),
            "limits": {metric.value: limit for metric, limit in limits.items()},
        }
        self._replace(REQUEST, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def keep(self, files: Mapping[str, str | bytes]) -> None:
        """Write files by name, in this order, each as a whole."""
        for name, content in files.items():
            self._replace(name, content)

    def kept(self, name: str) -> bytes | None:
        """Return what `keep` wrote, in this process or before it was ended; None if nothing."""
        path = self.path / name
        return path.read_bytes() if path.exists() else None

    def drop(self, names: Iterable[str]) -> None:
        """Remove files by name; what is a folder, no run has made."""
        for name in names:
            path = self.path / name
            if not path.is_dir():
                path.unlink(missing_ok=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write, last of all, the result: then the run is finished."""
        self._replace(RESULT, json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def _left_by_earlier(self) -> list[str]:
        """The files that not every run writes, but that in this folder did; tables are of all."""
        try:
            held, _ = self._read_request()
        except QuantmeterError:  # there is none, or it is damaged
            held = {}
            if not (self.path / TRIALS).exists():
                return []
        return [*(self._table(metric).name for metric in Metric), *files_of(held)]

    def _table(self, metric: Metric) -> Path:
        return self.path / f"{metric.value}.table.json"

    def _replace(self, name: str, content: str | bytes) -> None:
        """Write a file that is there as a whole, or not at all."""
        half = self.path / f".{name}.half"
        with half.open("wb") as stream:
            stream.write(content.encode("utf-8") if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        half.replace(self.path / name)

    def _read_request(self) -> tuple[dict[str, Any], dict[Metric, float] | None]:
        path = self.path / REQUEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            held = content["request"] if content["version"] == _VERSION else None
            limits = content.get("limits")
            if limits is not None:
                limits = {Metric(name): float(limit) for name, limit in limits.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            held, limits = None, None
        if not isinstance(held, dict):
            raise QuantmeterError(f"{path} cannot be read; discard the run with --anew")
        return held, limits
