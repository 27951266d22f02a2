"""What the tests let workers do; imports little, so that these start quickly."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantization.errors import ModelError, QuantmeterError

Job = tuple[object, ...]
ABORTS, RAISES = 9, 99


class ParticularError(QuantmeterError):
    """An error that cannot be made from its text."""

    def __init__(self, *, number: int) -> None:
        super().__init__(f"particular {number}")


class CrampedError(QuantmeterError):
    """An error of ours about the memory of others."""


def handler(argument: object) -> Callable[[Job], object]:
    """Jobs are a name and its arguments; what is kept between jobs shows whether it lives on."""
    kept: list[object] = [argument]

    def handle(job: Job) -> object:
        name, *given = job
        if name == "remember":
            kept.extend(given)
            return kept
        return JOBS[str(name)](*given)

    return handle


def failing(argument: object) -> Callable[[Job], object]:
    """Makes no handler, in the way that `argument` names."""
    JOBS[str(argument)]()
    raise AssertionError("unreachable")


def once(path: str) -> Callable[[Job], object]:
    """Fails unless a file lies at `path`."""
    if not Path(path).exists():
        raise RuntimeError("nothing there yet")
    return handler(path)


def breakable_timer(setup: Any) -> Callable[[Any], object]:
    """A timer of policies that is killed or raises where a job's seed says so."""
    from hil.policy_timer import PolicyTimer

    timer = PolicyTimer(setup)

    def handle(job: Any) -> object:
        if job.seed == ABORTS:
            os.abort()
        if job.seed == RAISES:
            raise ZeroDivisionError("by nobody")
        return timer(job)

    return handle


def _fault() -> None:
    ctypes.string_at(0)


def _kill(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def _hang(seconds: float = 600) -> None:
    time.sleep(seconds)


def _hang_locked() -> None:
    """Hold the interpreter's lock, as an extension module may."""
    ctypes.PyDLL(None).usleep(600_000_000)


def _raise() -> None:
    raise ValueError("not this\n  one")


def _refuse() -> None:
    raise ModelError("cannot read 'a.onnx'")


def _particular() -> None:
    raise ParticularError(number=3)


def _cramped() -> None:
    raise CrampedError("cannot load the model: std::bad_alloc")


def _exit(hard: bool) -> None:
    if hard:
        os.close(2)
        os._exit(3)
    sys.exit("enough")


def _write(text: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.write(text)
        stream.flush()


def _abort(text: str = "") -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
    os.abort()


def _with_child() -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid


def _rise_and_kill(path: str) -> None:
    """Be killed as by the kernel, which counts it."""
    Path(path).write_text("oom_kill 3\n", encoding="utf-8")
    _kill()


def _surroundings() -> tuple[list[str], dict[str, str], str]:
    return sys.path, dict(os.environ), str(Path.cwd())


def _echo(value: object) -> object:
    return value


def _allocate(count: int) -> int:
    return len(bytearray(count))


def _unpicklable() -> object:
    return lambda: None


JOBS: dict[str, Callable[..., object]] = {
    "process": os.getpid,
    "surroundings": _surroundings,
    "echo": _echo,
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
    "allocate": _allocate,
    "unpicklable": _unpicklable,
}
