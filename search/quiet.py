"""Keep a compiled library from printing."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_STDOUT = 1


@contextmanager
def discarded_output() -> Iterator[None]:
    """Discard what C code writes to the standard output while the block runs.

    HiGHS 1.12, as scipy 1.17 has it, prints a line whenever it repairs a solution, whatever it is
    told (jump-dev/HiGHS.jl, issue 312); that would stand amid the JSON of ``--json``. What Python
    wrote before is kept; what other threads write to the same descriptor meanwhile is lost.
    """
    libc = ctypes.CDLL(None)
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # closed: nothing can be printed
        yield
        return
    try:
        libc.fflush(None)  # what C code wrote before is not to be lost
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, _STDOUT)
        os.close(nowhere)
        try:
            yield
        finally:
            libc.fflush(None)
            os.dup2(kept, _STDOUT)
    finally:
        os.close(kept)
