"""What was computed once is not computed again: a file of JSON lines, one for each result."""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any


class Memory:
    """Values by key, kept in a file; several processes may append to one.

    Args:
        path: of the file; None remembers within the process only. Lines that are no JSON, as a
            killed process leaves them, are passed over.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        text = path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                continue
            self._known[key] = value
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")

    def recall(self, key: str, find: Callable[[], Any]) -> Any:
        """Return the value of `key`, from `find` if it is not known: a JSON value."""
        if key not in self._known:
            self._known[key] = find()
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps([key, self._known[key]]) + "\n")
        return self._known[key]


@cache
def code_digest(*places: Path) -> str:
    """Return a digest of Python files, and of all in folders and below, as they were first read.

    It belongs in the key of what they compute: results of other code are not taken for theirs.
    """
    content = hashlib.sha256()
    for place in places:
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            content.update(str(path.relative_to(place.parent)).encode())
            content.update(hashlib.sha256(path.read_bytes()).digest())
    return content.hexdigest()[:12]
