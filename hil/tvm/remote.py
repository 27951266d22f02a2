"""A board behind Apache TVM's RPC tracker.

The protocol has no authentication: whoever reaches a tracker or a server runs code there. Bind both
to loopback, or to a network of your own. A server that ends while something is timed is waited for,
and the job done anew; what was timed before is in the store of whoever asked.
"""

import random
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import rpc

from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from hil.timing import TimingOptions
from hil.tvm.address import Address
from hil.tvm.boards import Run

_SESSION_S = 600
"""Seconds that a session lasts at most; the next job begins another."""
_POLL_S = 0.5
_ANSWER_S = 5.0


@dataclass(frozen=True)
class Patience:
    """How long to wait for a board.

    Args:
        wait_s: seconds that a board may be away.
        retries: how often a job is done anew after its board was lost.
    """

    wait_s: float = 60.0
    retries: int = 3


class RemoteBoard:
    """A session with some board that a tracker has.

    Args:
        address: of the tracker, and the key of its boards.
        patience: how long to wait.

    Raises:
        BackendError: if no tracker answers, which is not waited for, or it has no board in time.
    """

    def __init__(self, address: Address, patience: Patience | None = None) -> None:
        self._address, self._patience = address, patience or Patience()
        self._count = 0
        self._require_tracker()
        self._session: Any = self._connected()

    @property
    def device(self) -> Any:
        """See `Board.device`."""
        return self._session.cpu(0)

    def processor(self) -> tuple[str, str]:
        """Return the board's processor and triple as its LLVM names them; "" without LLVM."""
        try:
            mcpu, mtriple = (
                str(self._session.get_function(f"target.llvm_get_system_{what}")())
                for what in ("cpu", "triple")
            )
        except AttributeError:
            return "", ""
        return mcpu, mtriple

    def load(self, compiled: Any) -> Any:
        """See `Board.load`: the objects are sent, and linked there."""
        self._count += 1
        name = f"kernels{self._count}.tar"
        with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
            path = Path(folder) / name
            compiled.export_library(str(path))
            self._session.upload(str(path))
        return self._session.load_module(name)

    def time(self, runs: Mapping[str, Run], options: TimingOptions) -> dict[str, Measurement]:
        """See `Board.time`: the board itself repeats and times, so that no call crosses the net."""
        order = random.Random(options.seed)
        samples: dict[str, list[float]] = {name: [] for name in runs}
        loops, blocks = dict[str, int](), dict[str, list[int]]()
        warm_ups = dict[str, tuple[float, ...]]()
        for name, run in runs.items():
            first = self._timed(run, 1, 3)
            warm_ups[name], blocks[name] = tuple(first), []
            loops[name] = max(1, round(options.turn_s / options.samples / max(min(first), 1e-7)))
        for block in range(options.blocks):
            for name in order.sample(list(runs), len(runs)):
                found = self._timed(runs[name], loops[name], options.samples)
                samples[name] += found
                blocks[name] += [block] * len(found)
        context = {"board": str(self._address), "interleaved": list(runs)}
        return {
            name: Measurement(
                name,
                tuple(samples[name]),
                warm_ups[name],
                loops[name],
                tuple(blocks[name]),
                dict(context),
            )
            for name in runs
        }

    def is_lost(self) -> bool:
        """Whether the session has ended."""
        try:
            tvm.runtime.empty((1,), "uint8", self.device).numpy()
        except RuntimeError:
            return True
        return False

    def connect_again(self) -> None:
        """Wait for a board, and use that from now on.

        Raises:
            BackendError: if none comes.
        """
        self._session = self._connected()

    def _timed(self, run: Run, loops: int, samples: int) -> list[float]:
        evaluate = run.module.time_evaluator("main", self.device, number=loops, repeat=samples)
        return [max(float(each), 1e-12) for each in evaluate(*run.arguments).results]

    def _require_tracker(self) -> None:
        host, port = self._address.host, self._address.port
        try:
            socket.create_connection((host, port), _ANSWER_S).close()
        except OSError as error:
            raise BackendError(
                f"no tracker answers at {host}:{port} ({error}); start python -m "
                "tvm.exec.rpc_tracker --host 127.0.0.1"
            ) from error

    def _connected(self) -> Any:
        address, deadline = self._address, time.monotonic() + self._patience.wait_s
        while True:
            try:
                socket.create_connection((address.host, address.port), _POLL_S).close()
                tracker = rpc.TrackerSession((address.host, address.port))
                waiting = tracker.summary()["queue_info"].get(address.key, {"free": 0})
                problem = f"the tracker at {address.host}:{address.port} has no {address.key}"
                if waiting["free"]:
                    return tracker.request(address.key, session_timeout=_SESSION_S, max_retry=1)
            except (OSError, RuntimeError) as error:
                text = " ".join(str(error).split())
                problem = f"no board answers at {address} ({text[:100]})"
            if time.monotonic() > deadline:
                raise BackendError(
                    f"{problem} within {self._patience.wait_s:g} s; start python -m "
                    "tvm.exec.rpc_tracker --host 127.0.0.1, and on the board rpc_server --host "
                    "127.0.0.1 --tracker HOST:PORT --key KEY. What was measured is in the store"
                )
            time.sleep(_POLL_S)


class BoardReader:
    """Tells what a board is; made for a worker process, since a tracker may never answer.

    Args:
        address: of the board.
    """

    def __init__(self, address: Address) -> None:
        self._address = address

    def __call__(self, patience: Patience) -> tuple[str, str]:
        """Return the board's processor and triple, see `RemoteBoard.processor`."""
        return RemoteBoard(self._address, patience).processor()
