"""Measures what a device can do at most: multiply-accumulates and bytes a second."""

import threading
import time
from collections.abc import Callable

import numpy as np

from costmodels.calibrated.limits import Limits
from costmodels.measurement import Measurement
from costmodels.sketch import Sketch
from costmodels.spread import INTEGER
from hil.ort import Runner, one_feed, random_inputs
from hil.records import Record
from quantization.bits import FLOAT32
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.policy import Policy
from quantization.ranges import made_up_ranges

REVISION = 1
_WORKING_SETS = tuple(2**power for power in range(14, 29, 2))
"""From 16 KiB, within any first-level cache, to 256 MiB, beyond most last-level ones."""
_ROWS, _WIDTH = 256, 1024
_READINGS = 20
_PASSED_BYTES = 1 << 24
_FLOAT_BYTES, _STREAMS = 4, 3
_PRODUCTS = {"float product": FLOAT32, "integer product": INTEGER}


def time_limits(threads: int) -> Record:
    """Time what `limits_of` reads; takes about a second.

    Large matrix products through the runtime, and ``maximum`` over rows that one working set holds:
    each element is read, with one of the result, which is written.

    Args:
        threads: of the runtime; so many threads share a working set.
    """
    runs: dict[str, tuple[Callable[[], object], int]] = {
        name: _product(name, threads) for name in _PRODUCTS
    }
    runs |= {f"stream {size}": _stream(size, threads) for size in _WORKING_SETS}
    taken, work = {}, {}
    started = time.perf_counter()
    for name, (run, amount) in runs.items():
        run()
        samples = tuple(_seconds(run) for _ in range(_READINGS))
        taken[name], work[name] = Measurement(name, samples), amount
    return Record(taken, facts={"work": work, "wall_s": time.perf_counter() - started})


def limits_of(record: Record) -> Limits:
    """Return the roofline that a record of `time_limits` tells: the best of each reading."""

    def rate(name: str) -> float:
        return float(record.facts["work"][name] / min(record.measurements[name].samples_s))

    bandwidth = tuple((float(size), rate(f"stream {size}")) for size in _WORKING_SETS)
    return Limits(rate("float product"), rate("integer product"), bandwidth)


def _product(name: str, threads: int) -> tuple[Callable[[], object], int]:
    """What runs a matrix product, and its multiply-accumulates."""
    sketch = Sketch(drawn=1 << 13)
    made = sketch.gemm(sketch.input((_ROWS, _WIDTH)), _WIDTH, _WIDTH, name="product")
    network = sketch.network(made)
    options = ExportOptions(weight_method="minmax", pack=False)
    exporter = Exporter(network, made_up_ranges(network), options)
    model = exporter.build(Policy({"product": _PRODUCTS[name]}))
    feed = one_feed(network, random_inputs(network, _ROWS))
    return Runner(model, threads, feed), network.macs


def _stream(working_set: int, threads: int) -> tuple[Callable[[], object], int]:
    """What passes over a working set again and again, and the bytes that are read and written."""
    length = max(working_set // threads // 2 // _FLOAT_BYTES, 64)
    moved = threads * length * _FLOAT_BYTES * _STREAMS
    repeats = max(1, _PASSED_BYTES // moved)
    sources = [np.ones(length, np.float32) for _ in range(threads)]
    results = [np.zeros(length, np.float32) for _ in range(threads)]

    def pass_over(part: int) -> None:
        rows = np.broadcast_to(sources[part], (repeats, length))
        np.maximum.reduce(rows, axis=0, out=results[part])

    def run() -> None:
        others = [threading.Thread(target=pass_over, args=(i,)) for i in range(1, threads)]
        for thread in others:
            thread.start()
        pass_over(0)
        for thread in others:
            thread.join()

    return run, moved * repeats


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
