"""What runs in a worker process: it makes a handler, then answers jobs until its parent is gone.

Messages are pickles. The first one that comes is ``(factory, memory_bytes, pickled argument)``, all
others are jobs; to each goes one `Reply` back. `hil.worker` is the other end.
"""

import faulthandler
import fcntl
import importlib
import os
import pickle
import resource
import select
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from quantization.errors import QuantmeterError

ANSWER, USER_ERROR, EXCEPTION, MEMORY = "answer", "user error", "exception", "memory"
NO_MEMORY = ("std::bad_alloc", "Failed to allocate memory", "Cannot allocate memory")
"""What libraries say when they got no memory."""

_LONGEST = 400
Handler = Callable[[Any], object]


class Reply(NamedTuple):
    """What became of one message.

    Args:
        kind: `ANSWER`, `USER_ERROR`, `EXCEPTION` or `MEMORY`.
        content: the answer; the error that is to be raised again; else one line about it.
        trace: the traceback, for the log; empty without an exception.
    """

    kind: str
    content: Any
    trace: str = ""


def serve(descriptor: int, lifeline: int) -> None:
    """Answer messages until the parent is gone; never returns.

    Args:
        descriptor: a socket to the parent.
        lifeline: read end of a pipe whose other end only the parent holds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who ends this process
    die_with_holder(lifeline)
    faulthandler.enable()
    connection: Connection[bytes, bytes] = Connection(descriptor)
    try:
        handler, reply = _started(connection.recv_bytes())
        connection.send_bytes(reply)
        while handler is not None:
            connection.send_bytes(_answered(handler, connection.recv_bytes()))
    except (EOFError, OSError):  # the parent has closed its end
        pass
    os._exit(0)


def die_with_holder(lifeline: int) -> None:
    """Let the kernel kill this process group as soon as nobody holds the other end of a pipe.

    Not PR_SET_PDEATHSIG: that strikes when the *thread* that made this process ends, and spares
    this process's own children. And no thread that waits: it would not run while a job holds the
    interpreter's lock. A signal upon the end of the pipe needs nobody's help.

    Args:
        lifeline: read end of the pipe.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it had ended before the signal was set
        os._exit(0)


def one_line(error: BaseException) -> str:
    """Return the type and the text of `error` as one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_LONGEST] if text else type(error).__name__


def _started(message: bytes) -> tuple[Handler | None, bytes]:
    made: list[Handler] = []

    def make() -> None:
        factory, memory_bytes, argument = pickle.loads(message)
        if memory_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        module, _, name = factory.partition(":")
        made.append(getattr(importlib.import_module(module), name)(pickle.loads(argument)))

    reply = _reply(make)
    return (made[0] if made else None), reply


def _answered(handler: Handler, message: bytes) -> bytes:
    return _reply(lambda: handler(pickle.loads(message)))


def _reply(work: Callable[[], object]) -> bytes:
    """Do `work` and return the pickled `Reply`, whatever happens."""
    try:
        return pickle.dumps(Reply(ANSWER, work()))
    except BaseException as error:  # SystemExit too: a job does not end the worker
        return pickle.dumps(_told(error))


def _told(error: BaseException) -> Reply:
    trace = "".join(traceback.format_exception(error))
    if any(isinstance(e, MemoryError) or _names_memory(str(e)) for e in _chain(error)):
        return Reply(MEMORY, one_line(error), trace)
    if isinstance(error, QuantmeterError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # an error with arguments of its own; its text is worth more than nothing
            return Reply(EXCEPTION, one_line(error), trace)
        return Reply(USER_ERROR, error, trace)
    return Reply(EXCEPTION, one_line(error), trace)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _names_memory(text: str) -> bool:
    return any(words in text for words in NO_MEMORY)
