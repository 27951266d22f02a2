"""A tracker and a board of Apache TVM's RPC on loopback, in processes of their own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from tvm import rpc

KEY = "board"
_STARTED_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A module of TVM's, with its children; killed at the end of the context."""

    def __init__(self, module: str, *arguments: str) -> None:
        command = [sys.executable, "-m", module, "--host", "127.0.0.1", *arguments]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet, process_group=0)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def board(tracker: int) -> Process:
    port = free_port()
    where = ("--port", str(port), "--port-end", str(port + 1))
    return Process("tvm.exec.rpc_server", *where, "--tracker", f"127.0.0.1:{tracker}", "--key", KEY)


@contextlib.contextmanager
def tracker() -> Iterator[int]:
    """A tracker that answers; yields its port."""
    port = free_port()
    where = ("--port", str(port), "--port-end", str(port + 1))
    with Process("tvm.exec.rpc_tracker", *where):
        wait_for(lambda: _answers(port))
        yield port


def boards_of(port: int) -> int:
    """How many boards wait for work."""
    queue = rpc.TrackerSession(("127.0.0.1", port)).summary()["queue_info"]
    free: int = queue.get(KEY, {"free": 0})["free"]
    return free


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + _STARTED_S
    while not condition():
        assert time.monotonic() < deadline, "it did not start"
        time.sleep(0.1)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True
