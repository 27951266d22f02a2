"""What the tests let workers do."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from hil.audit import AuditError
from quantization.errors import QuantmeterError

Job = tuple[object, ...]


class Particular(QuantmeterError):
    """An error that cannot be made from its text."""

    def __init__(self, *, number: int) -> None:
        super().__init__(f"particular {number}")


class Cramped(QuantmeterError):
    """An error of ours about the memory of others."""


def handler(argument: object) -> Callable[[Job], object]:
    """Jobs are a name and its arguments; what is kept between jobs shows whether it lives on."""
    kept: list[object] = [argument]

    def handle(job: Job) -> object:
        name, *given = job
        return JOBS[str(name)](kept, *given)

    return handle


def failing(argument: object) -> Callable[[Job], object]:
    """Makes no handler, in the way that `argument` names."""
    JOBS[str(argument)]([])
    raise AssertionError("unreachable")


def once(path: str) -> Callable[[Job], object]:
    """Fails unless a file lies at `path`."""
    if not os.path.exists(path):  # noqa: PTH110
        raise RuntimeError("nothing there yet")
    return handler(path)


def _remember(kept: list[object], value: object) -> list[object]:
    kept.append(value)
    return kept


def _fault(kept: list[object]) -> None:
    ctypes.string_at(0)


def _kill(kept: list[object], number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def _hang(kept: list[object], seconds: float = 600) -> None:
    time.sleep(seconds)


def _hang_locked(kept: list[object]) -> None:
    """Hold the interpreter's lock, as an extension module may."""
    ctypes.PyDLL(None).usleep(600_000_000)


def _raise(kept: list[object]) -> None:
    raise ValueError("not this\n  one")


def _refuse(kept: list[object]) -> None:
    raise AuditError("audit failed: layer 'a'")


def _particular(kept: list[object]) -> None:
    raise Particular(number=3)


def _cramped(kept: list[object]) -> None:
    raise Cramped("cannot load the model: std::bad_alloc")


def _exit(kept: list[object], hard: bool) -> None:
    if hard:
        os.close(2)
        os._exit(3)
    sys.exit("enough")


def _write(kept: list[object], text: str) -> None:
    print(text, flush=True)
    print(text, file=sys.stderr, flush=True)


def _abort(kept: list[object], text: str = "") -> None:
    print(text, file=sys.stderr, flush=True)
    os.abort()


def _with_child(kept: list[object]) -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def _rise_and_kill(kept: list[object], path: str) -> None:
    """Be killed as by the kernel, which counts it."""
    with open(path, "w") as file:  # noqa: PTH123
        file.write("oom_kill 3\n")
    _kill(kept)


JOBS: dict[str, Callable[..., object]] = {
    "remember": _remember,
    "process": lambda kept: os.getpid(),
    "path": lambda kept: (sys.path, dict(os.environ), os.getcwd()),  # noqa: PTH109
    "echo": lambda kept, value: value,
    "fault": _fault,
    "kill": _kill,
    "hang": _hang,
    "hang locked": _hang_locked,
    "raise": _raise,
    "refuse": _refuse,
    "particular": _particular,
    "cramped": _cramped,
    "exit": _exit,
    "write": _write,
    "abort": _abort,
    "child": _with_child,
    "killed for memory": _rise_and_kill,
    "allocate": lambda kept, count: len(bytearray(count)),
    "lambda": lambda kept: lambda: None,
}
