"""Kernels are timed on a board behind a tracker; a board that dies costs time, and nothing else."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install 'quantmeter[tvm]'")

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.sketch import Sketch
from costmodels.units import Metric
from hil.store import Store
from hil.tvm.address import Address
from hil.tvm.live import TvmLive
from hil.tvm.remote import Patience, RemoteBoard
from quantization.bits import BitWidths, Format, parse_choices
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from tests.hil.tvm.boards import KEY, board, boards_of, free_port, tracker, wait_for


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with tracker() as found:
        yield found


def network() -> Network:
    """Its hard-swish runs in TVM's virtual machine where it is float."""
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 3, 8, 8)), 16, kernel=3, name="first")
    return sketch.network(sketch.conv(sketch.node("HardSwish", x), 24, name="second"))


def test_a_board_that_is_killed_in_the_middle_loses_nothing(port: int, tmp_path: Path) -> None:
    address, store = f"127.0.0.1:{port}/{KEY}", tmp_path / "store.sqlite"
    first = board(port)
    wait_for(lambda: boards_of(port))
    killed: list[set[str]] = []
    later: list[threading.Timer] = []

    def kill() -> None:
        first.kill()
        time.sleep(2.0)  # nobody is there for a while
        boards.append(board(port))

    def kill_once(share: float, _what: str) -> None:
        """Kill it half a second after something of the second width began: in its middle."""
        if share > 0.4 and not killed:
            killed.append({entry.subject.key for entry in kept.entries()})
            later.append(threading.Timer(0.5, kill))
            later[0].start()

    boards = [first]
    context = BackendContext(store=store, remote=address, progress=kill_once)
    model = backend("tvm", context)
    assert isinstance(model, TvmLive)
    kept = Store(store, model.device)
    try:
        table = model.table(network(), parse_choices("w4a8,w8a8,w32a32"), Metric.LATENCY)
        policy = PolicyBatch.of(network(), [Policy.uniform(network(), BitWidths(8, 8))])
        [whole] = model.total(network(), policy, Metric.LATENCY)
    finally:
        for each in later:
            each.join()
        for each in boards:
            each.kill()
    assert killed[0], "it was killed before anything was measured"
    assert np.isfinite(table.unary.value).all()
    assert np.isfinite(table.glue.value[:, table.formats.index(Format.FLOAT32)]).all()
    assert 0 < whole < 1
    entries = list(kept.entries())
    assert killed[0] < {entry.subject.key for entry in entries}
    assert all(entry.record.failure is None for entry in entries)
    assert model.device.cpu.startswith(KEY)

    # No board is there any more: what was measured is priced all the same.
    again = TvmLive(BackendContext(store=store, remote=address), model.machine)
    same = again.table(network(), table.choices, Metric.LATENCY)
    np.testing.assert_array_equal(same.unary.value, table.unary.value)


def test_a_board_that_never_comes_is_an_error_that_says_how_to_start_one(port: int) -> None:
    address, patience = Address("127.0.0.1", port, "nobody"), Patience(wait_s=0.5)
    with pytest.raises(
        BackendError, match=r"has no nobody within 0\.5 s; start .*rpc_server --host 127"
    ):
        RemoteBoard(address, patience)


def test_no_tracker_is_an_error() -> None:
    address = Address("127.0.0.1", free_port(), KEY)
    with pytest.raises(BackendError, match=r"no tracker answers .*start python -m tvm"):
        RemoteBoard(address, Patience(wait_s=0.5))


@pytest.mark.parametrize(
    "text", ["", "host/key", "host:0/key", "host:99999/key", "host:9190", ":1/k"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match="write HOST:PORT/KEY"):
        Address.parse(text)


def test_only_tvm_measures_on_boards() -> None:
    from quantmeter.costs import parse_costs

    with pytest.raises(BackendError, match="only --cost tvm"):
        parse_costs(["analytical:haq"], BackendContext(remote="127.0.0.1:9190/board"))
