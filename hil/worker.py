"""A worker process that outlives its jobs, and jobs that may crash, hang or eat all memory.

What a job can do to the process that it runs in (a segmentation fault in a runtime, an endless
loop, a kill for want of memory) becomes a `Failure` with its text, and the next job gets a fresh
process. Anything else leaves the process as it is: starting one costs seconds.

The process is not made by `multiprocessing`, which imports the main module of the user again.
"""

import contextlib
import fcntl
import logging
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from hil.cuda import timing_environment
from hil.oom import oom_kills
from hil.records import Failure, FailureKind
from hil.worker_process import ANSWER, MEMORY, NO_MEMORY, USER_ERROR, Reply, one_line
from quantization.errors import QuantmeterError

_LOGGER = logging.getLogger(__name__)
_PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; from hil.worker_process import serve; "
    "serve(int(sys.argv[1]), int(sys.argv[2]))"
)
_GRACE_S = 2.0
"""How long a process that closed its connection may take to be gone."""
_FRAME = re.compile(r'^  File "(?:.*/)?([^"/]+)", line (\d+) in (.+)$', re.MULTILINE)
_LONGEST_WORDS = 300
_READ_BYTES = 1 << 16


class WorkerError(QuantmeterError):
    """A job gave no answer.

    Args:
        failure: why.
        starting: whether no job had begun yet: nothing is known about the job then.
    """

    def __init__(self, failure: Failure, starting: bool = False) -> None:
        super().__init__(failure, starting)
        self.failure = failure
        self.starting = starting

    def __str__(self) -> str:
        when = "could not start" if self.starting else "gave no answer"
        return f"the worker {when} ({self.failure.kind}): {self.failure.text}"


class Worker:
    """A process that makes a handler once and then answers jobs, one after the other.

    It is started by the first call, kept alive between calls, and started again by the next call
    after a failure that ended it, or if it was killed between calls. It ends with this object's
    context, and by itself if this process dies. It has the import path of this process and its
    environment (`hil.cuda.timing_environment`); what it writes to its standard output and error
    goes to a temporary file. One call at a time.

    Args:
        factory: ``package.module:callable``; called with `argument` in the worker, it makes the
            handler, which is called with each job.
        argument: anything that can be pickled, like jobs and answers.
        limit_s: longest time that a job may take, in seconds.
        memory_bytes: address space that the process may use, libraries included; None for any.
        start_limit_s: longest time that starting may take, in seconds.
        root: where ``proc`` and ``sys`` lie; for tests.
    """

    def __init__(
        self,
        factory: str,
        argument: object,
        *,
        limit_s: float,
        memory_bytes: int | None = None,
        start_limit_s: float = 120.0,
        root: Path = Path("/"),
    ) -> None:
        self._factory, self._argument, self._memory_bytes = factory, argument, memory_bytes
        self._limit_s, self._start_limit_s, self._root = limit_s, start_limit_s, root
        self._process: _Process | None = None
        self._starts = 0

    @property
    def restarts(self) -> int:
        """How often the process had to be started anew."""
        return max(self._starts - 1, 0)

    def call(self, job: object, limit_s: float | None = None) -> object:
        """Return the handler's answer to `job`.

        Args:
            job: what the handler gets.
            limit_s: longest time for this job, if not the worker's.

        Raises:
            QuantmeterError: of the type that the handler raised: one clear line that the user can
                act upon is no failure of the job.
            WorkerError: if there is no answer; its `failure` tells why.
        """
        message = pickle.dumps(job)
        if self._process is not None and self._process.is_gone():
            self.close()  # it was killed meanwhile, which says nothing about this job
        process = self._process or self._start()
        return self._ask(process, message, self._limit_s if limit_s is None else limit_s)

    def close(self) -> None:
        """End the process, if there is one; the next call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> "_Process":
        start = pickle.dumps((self._factory, self._memory_bytes, pickle.dumps(self._argument)))
        self._starts += 1
        process = self._process = _Process(self._root)
        try:
            self._ask(process, start, self._start_limit_s)
        except WorkerError as error:
            self.close()
            raise WorkerError(error.failure, starting=True) from None
        except QuantmeterError:
            self.close()
            raise
        return process

    def _ask(self, process: "_Process", message: bytes, limit_s: float) -> object:
        try:
            answered = process.ask(message, limit_s)
        except BaseException:  # Ctrl-C too: the next job must not get this one's answer
            self.close()
            raise
        if not process.alive:  # the limit came just behind the answer
            self.close()
        try:
            reply = pickle.loads(answered)
        except Exception as error:
            text = f"the answer cannot be read: {one_line(error)}"
            raise WorkerError(Failure(FailureKind.EXCEPTION, text)) from None
        return self._content(reply)

    def _content(self, reply: Reply) -> object:
        if reply.kind == ANSWER:
            return reply.content
        _LOGGER.debug("in the worker:\n%s", reply.trace)
        if reply.kind == USER_ERROR:
            raise reply.content
        if reply.kind == MEMORY:
            self.close()  # what the job holds may never come back
            raise WorkerError(Failure(FailureKind.MEMORY, reply.content))
        raise WorkerError(Failure(FailureKind.EXCEPTION, reply.content))


class _Process:
    """One running process: messages there and back, and how it ended.

    Args:
        root: where ``proc`` and ``sys`` lie.

    Attributes:
        alive: false once a limit has struck.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.alive = True
        ours, theirs = socket.socketpair()
        watched, self._lifeline = os.pipe()
        self._notes = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        # Appending, so that the file can be emptied while the process has it open.
        fcntl.fcntl(self._notes, fcntl.F_SETFL, os.O_APPEND)
        command = [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(watched), *sys.path]
        try:
            # A group of its own: Ctrl-C does not reach it, and all its children can be killed.
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._notes,
                stderr=self._notes,
                env=timing_environment(os.environ),
                pass_fds=(theirs.fileno(), watched),
                process_group=0,
            )
        finally:
            theirs.close()
            os.close(watched)
        self._connection: Connection[bytes, bytes] = Connection(ours.detach())

    def is_gone(self) -> bool:
        """Whether the process has ended; it is not reaped, so that its id stays its."""
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, self._child.pid, flags) is not None

    def ask(self, message: bytes, limit_s: float) -> bytes:
        """Return the reply to `message`.

        Raises:
            WorkerError: if the process ended, or `limit_s` passed; it has ended then.
        """
        os.ftruncate(self._notes.fileno(), 0)
        kills = oom_kills(self._root)
        # A process that hangs may take no message and leave an answer half sent: no single wait
        # of this thread could be limited.
        limit = threading.Timer(limit_s, self._strike)
        limit.daemon = True
        limit.start()
        try:
            self._connection.send_bytes(message)
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            raise WorkerError(self._failure(limit_s, kills)) from None
        finally:
            limit.cancel()
            limit.join()

    def end(self) -> None:
        """Kill the process and its children; nothing that it does needs an end of its own."""
        self._kill()
        self._child.wait()
        self._connection.close()
        os.close(self._lifeline)
        self._notes.close()

    def _strike(self) -> None:
        self.alive = False
        self._kill()

    def _kill(self) -> None:
        if self._child.returncode is not None:
            return  # it was waited for: its number may be that of another process by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)

    def _failure(self, limit_s: float, kills: int) -> Failure:
        left = self._left_by_itself()
        self._kill()
        status = self._child.wait()
        words = os.pread(self._notes.fileno(), _READ_BYTES, 0).decode(errors="replace")
        if not self.alive and status == -signal.SIGKILL:
            return Failure(FailureKind.TIME, f"no answer within {limit_s:g} s")
        if not left:
            return Failure(FailureKind.KILLED, "it closed its connection" + _last_words(words))
        if status >= 0:
            text = f"it ended by itself with status {status}"
            return Failure(FailureKind.KILLED, text + _last_words(words))
        name = _signal_name(-status)
        killed = status == -signal.SIGKILL
        if killed and oom_kills(self._root) > kills:
            return Failure(FailureKind.MEMORY, f"{name} from the kernel, for want of memory")
        short = any(text in words for text in NO_MEMORY)
        kind = FailureKind.MEMORY if short else FailureKind.KILLED
        return Failure(kind, name + _last_words(words))

    def _left_by_itself(self) -> bool:
        """Whether the process is gone or goes now."""
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            if self.is_gone():
                return True
            time.sleep(0.002)
        return False


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have none
        return f"signal {number}"


def _last_words(text: str) -> str:
    """Return where the process was when it crashed, or the last line that it wrote, if any."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    frame = _FRAME.search(text)
    before = text[: text.find("Fatal Python error")].split("\n") if frame else lines
    written = next((line.strip() for line in reversed(before) if line.strip()), "")
    where = f" in {frame[3]} ({frame[1]}, line {frame[2]})" if frame else ""
    return where + (f": {written[-_LONGEST_WORDS:]}" if written else "")
