"""The backend tvm: what it keeps, what it refuses, and how near sums are to whole networks."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="Apache TVM is not installed: pip install 'quantmeter[tvm]'")

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.registry import backend
from costmodels.sketch import Sketch
from costmodels.units import Metric
from hil.store import Store
from hil.tvm import backend as entry
from hil.tvm.arithmetic import INSTRUCTION_SETS
from hil.tvm.live import TvmLive
from hil.tvm.machine import Machine, parse_machine, this_machine
from hil.tvm.operations import Operation
from hil.tvm.shapes import Convolution
from hil.tvm.timer import InexactKernelError, Timer, TimerSetup
from quantization.bits import BitWidths, parse_choices
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch


def network() -> Network:
    sketch = Sketch()
    x = sketch.conv(sketch.input((1, 3, 12, 12)), 16, kernel=3, name="first")
    x = sketch.node("HardSwish", x)
    return sketch.network(sketch.conv(x, 24, name="second"))


def test_what_the_store_holds_is_not_timed_again(tmp_path: Path) -> None:
    store, choices = tmp_path / "store.sqlite", parse_choices("w4a8,w32a32")
    first = TvmLive(BackendContext(store=store))
    table = first.table(network(), choices, Metric.LATENCY)
    assert table.source["target"] == "TVM"
    assert table.source["kernels"] == len(table.measurements)
    assert table.source["instructions"] in {each.name for each in INSTRUCTION_SETS}
    kept = len(list(Store(store, first.device).entries()))

    again = TvmLive(BackendContext(store=store))
    same = again.table(network(), choices, Metric.LATENCY)
    np.testing.assert_array_equal(same.unary.value, table.unary.value)
    np.testing.assert_array_equal(same.conversion.value, table.conversion.value)
    assert len(list(Store(store, first.device).entries())) == kept

    anew = TvmLive(BackendContext(store=store, anew=True))
    other = anew.table(network(), choices, Metric.LATENCY)
    assert not np.array_equal(other.unary.value, table.unary.value)


def test_cold_caches_make_layers_dearer() -> None:
    costs = {}
    for name in ("tvm", "tvm:cold"):
        model = backend(name)
        assert model.name == name
        table = model.table(network(), parse_choices("w8a8"), Metric.LATENCY)
        assert table.source["caches"] == ("cold" if "cold" in name else "warm")
        costs[name] = table.unary.value.sum()
    assert costs["tvm:cold"] > costs["tvm"]


def test_policies_cost_the_steps_that_run(tmp_path: Path) -> None:
    """The hard-swish is a look-up at integers: it must not be priced as converted and float."""
    live = TvmLive(BackendContext(store=tmp_path / "store.sqlite"))
    given, choices = network(), parse_choices("w4a8,w32a32")
    table, prices = live.table(given, choices, Metric.LATENCY), live.prices(given)
    narrow, real = choices
    for first, second in ((narrow, narrow), (real, real), (real, narrow)):
        policy = Policy({"first": first, "second": second})
        steps = [prices.price(step, policy).seconds for step in prices.lowered(policy).steps]
        assert len(steps) > len(given.layers)
        [cost] = total(table, given, PolicyBatch.of(given, [policy]))
        np.testing.assert_allclose(cost, sum(steps), rtol=1e-9)


def test_an_inexact_kernel_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    import hil.tvm.timer

    exact = hil.tvm.timer.expected

    def off_by_one(kernel: object, given: object) -> object:
        found = exact(kernel, given)  # type: ignore[arg-type]
        found.flat[-1] ^= 1
        return found

    monkeypatch.setattr(hil.tvm.timer, "expected", off_by_one)
    with pytest.raises(InexactKernelError):
        Timer(TimerSetup(this_machine()))(Operation(Convolution(4, 4, 16, 16), 8, 8))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mcpu=nonsense", "no processor 'nonsense'"),
        ("cortex-a72", "describes no processor"),
        ("mtriple=aarch64-linux-gnu", "add mcpu=NAME"),
    ],
)
def test_what_is_no_processor_is_refused(text: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        backend(f"tvm:{text}")


def test_instructions_are_those_of_the_processor() -> None:
    assert parse_machine("mcpu=haswell").instructions.name == "avx2"
    assert parse_machine("mcpu=cascadelake").instructions.name == "avx512-vnni"
    assert Machine("cortex-a72", "aarch64-linux-gnu").instructions.name == "portable"


def test_several_threads_are_refused() -> None:
    with pytest.raises(BackendError, match="one thread"):
        backend("tvm", BackendContext(threads=2))


def test_bits_without_a_kernel_are_refused() -> None:
    live = backend("tvm")
    policy = Policy.uniform(network(), BitWidths.parse("w4a32"))
    with pytest.raises(UnsupportedChoiceError, match="w4a32"):
        live.total(network(), PolicyBatch.of(network(), [policy]), Metric.LATENCY)
    with pytest.raises(BackendError, match="no layer runs at fp16"):
        live.table(network(), parse_choices("fp16"), Metric.LATENCY)


def test_without_tvm_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "find_spec", lambda _name: None)
    with pytest.raises(BackendError, match=r"pip install 'quantmeter\[tvm\]'"):
        backend("tvm")
