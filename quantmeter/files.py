"""Whether a result can be written is asked before the work, not after it."""

import os
from pathlib import Path

from quantization.errors import QuantmeterError


def require_folder(path: Path) -> None:
    """Make the folder `path`, if need be, and raise unless files can be written into it.

    Raises:
        QuantmeterError: names the path and what is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise QuantmeterError(
            f"cannot write to {path}: {error.strerror}; give another folder"
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise QuantmeterError(f"cannot write to {path}: no permission; give another folder")


def require_file(path: Path, *inputs: str | Path | None) -> None:
    """Make the folder of the file `path` and raise unless the file can be written.

    Args:
        path: the file.
        inputs: what is read, and must not be overwritten.

    Raises:
        QuantmeterError: names the path and what is in the way.
    """
    if any(given is not None and path.resolve() == Path(given).resolve() for given in inputs):
        raise QuantmeterError(f"{path} is read and would be overwritten; name another file")
    if path.is_dir():
        raise QuantmeterError(f"cannot write to {path}: it is a folder; name a file")
    require_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise QuantmeterError(f"cannot write to {path}: no permission; give another")


def write(path: Path, content: str | bytes) -> None:
    """Write a file.

    Raises:
        QuantmeterError: names the path and what is in the way.
    """
    try:
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise QuantmeterError(f"cannot write to {path}: {error.strerror}") from None
