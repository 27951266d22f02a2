"""Whole networks compiled by Apache TVM beside ONNX Runtime, uniform and searched.

    OMP_NUM_THREADS=1 python benchmarks/tvm_network.py                  # 6 minutes
    OMP_NUM_THREADS=1 python benchmarks/tvm_network.py mobilenet_v2
    OMP_NUM_THREADS=1 python benchmarks/tvm_network.py --quick          # the demo's, for the test

Of each network: how long compiling takes from an empty store, the search for tiles included, and
with a warm one; uniform w8a8 of both, and TVM's own import of the float model, which is what its
users have today; then a policy of 2, 4, 6 and 8 bits that the exact search finds within a size and
a latency, the latter of measured kernels. Outputs are compared with those of the exported file on
several images. All times are of interleaved runs on one thread, paired with ONNX Runtime's INT8.

Weights are random (`networks.py`), so what is searched for is agreement with the float network.

Expected before it was first run: 1.3x for MobileNetV2, by its depthwise layers, and 1.05x for
ResNet-18, whose products are at the processor's limit in both; exact outputs, since all of both
networks runs on integers.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import networks
from costmodels.model import BackendContext
from costmodels.units import Metric
from hil.compare import CompareOptions, Comparison, compare_many, looks_until
from hil.ort import Runner, one_feed, random_inputs
from hil.timing import Run
from hil.tvm.compiling import CompiledNetwork
from hil.tvm.importing import ImportedNetwork
from hil.tvm.live import TvmLive
from quantization.bits import BitWidths, parse_choices
from quantization.deployment import TVM_TARGET
from quantization.network import Network
from quantization.policy import Policy
from quantization.reading import read_network
from quantmeter.compiled import agreement, compile_policy, kernels_of
from quantmeter.data import Data
from quantmeter.searching import search
from quantmeter.workbench import Workbench, open_workbench

NAMES = ("mobilenet_v2", "resnet18")
LEAST, AIM, MOST_COLD_S, MOST_WARM_S = 1.0, 1.3, 60.0, 5.0
"""ONNX Runtime's INT8 over ours; seconds that compiling MobileNetV2 takes at most."""
BUDGETS = ("latency=0.42x", "size=0.17x")
CHOICES = parse_choices("w2a8,w4a8,w6a8,w8a8")
_IMAGES = 40
_REFERENCE, _AGAIN = "onnxruntime w8a8", "onnxruntime w8a8, loaded again"
_QUICK = Path("quantmeter/data/digits.onnx")


@dataclass(frozen=True)
class Found:
    """What was measured of one network.

    Args:
        cold_s: of compiling from an empty store.
        warm_s: of compiling once more.
        exact: whether all outputs were equal to the exported files'.
        speedup: of uniform w8a8.
    """

    cold_s: float
    warm_s: float
    exact: bool
    speedup: float


def main() -> int:
    """Print what each network gives; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    quick, reached = arguments.quick, []
    for name in ("digits",) if quick else arguments.names:
        network = read_network(_QUICK) if quick else read_network(networks.build(name))
        print(f"\n{name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
            found = measured(network, Path(folder), quick=quick)
        print(f"  compiled from cold in {found.cold_s:.1f} s, warm in {found.warm_s:.1f} s")
        print(f"  w8a8 {found.speedup:.2f}x as fast as onnxruntime's (aim {AIM:g}x)")
        reached.append(found.exact and found.speedup >= LEAST)
        if name == "mobilenet_v2":
            reached.append(found.cold_s <= MOST_COLD_S and found.warm_s <= MOST_WARM_S)
    return 0 if quick or all(reached) else 1


def measured(network: Network, folder: Path, *, quick: bool) -> Found:
    """Compile, search and time one network."""
    data = Data(random_inputs(network, _IMAGES, seed=1), None)
    bench = open_workbench(network, data, target=TVM_TARGET)
    store = folder / "store.sqlite"
    uniform = Policy.uniform(network, BitWidths(8, 8))
    cold_s = _seconds(bench, uniform, store, folder / "uniform.so")
    warm_s = _seconds(bench, uniform, store, folder / "uniform.so")
    budgets = ("size=0.5x",) if quick else BUDGETS
    report = search(
        network,
        data,
        cost=["latency=tvm"],
        budgets=budgets,
        method="exact",
        choices=CHOICES,
        store=store,
    )
    live = TvmLive(BackendContext(store=store))
    program = compile_policy(bench, report.policy, live, folder / "searched.so")
    predicted = report.found.costs[Metric.LATENCY]
    exact = []
    for name, policy in (("uniform", uniform), ("searched", report.policy)):
        made = compile_policy(bench, policy, live, folder / f"{name}.so")
        agrees = agreement(bench, policy, folder / f"{name}.so", made)
        print(f"  {name}: outputs {agrees}, {agrees.images} images")
        exact.append(agrees.exact)
    print(f"  searched within {' '.join(budgets)}: {kernels_of(program)}")
    found = _timed(bench, folder, quick=quick)
    for name, compared in found.items():
        ratio = compared.ratio
        print(
            f"  {name:32s}{1e3 * compared.candidate.p10_s:9.3f} ms  "
            f"{1 / ratio.mid:.2f}x [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
        )
    print(f"  predicted for the searched one: {1e3 * predicted:.3f} ms", flush=True)
    return Found(cold_s, warm_s, all(exact), 1 / found["tvm w8a8"].ratio.mid)


def _seconds(bench: Workbench, policy: Policy, store: Path, path: Path) -> float:
    """Compile a policy with kernels that the store knows or that are timed now."""
    exporter, corrections = bench.parameters(policy)
    exporter.size_bytes(policy)  # quantizes the weights
    began = time.perf_counter()
    live = TvmLive(BackendContext(store=store))
    live.write(live.program(exporter, policy, corrections), path)
    CompiledNetwork.read(path)
    return time.perf_counter() - began


def _timed(bench: Workbench, folder: Path, *, quick: bool) -> dict[str, Comparison]:
    feed = one_feed(bench.network, bench.range_inputs)
    integers = bench.export(Policy.uniform(bench.network, BitWidths(8, 8)))
    runs: dict[str, Run] = {
        "tvm w8a8": CompiledNetwork.read(folder / "uniform.so").bound(feed),
        "tvm searched": CompiledNetwork.read(folder / "searched.so").bound(feed),
        "onnxruntime float": Runner(bench.export(Policy({})), 1, feed),
        _AGAIN: Runner(integers, 1, feed),
    }
    options = CompareOptions(looks_until(8 if quick else 30))
    found = compare_many(runs, Runner(integers, 1, feed), options, again=_AGAIN)
    imported = ImportedNetwork(bench.network)
    began = time.perf_counter()
    imported.run(feed)
    lasted = time.perf_counter() - began
    runs = {"tvm's own import of float": imported.bound(feed), _AGAIN: Runner(integers, 1, feed)}
    few = CompareOptions(looks_until(8))
    if lasted < 1.0:
        found |= compare_many(runs, Runner(integers, 1, feed), few, again=_AGAIN)
    else:
        print(f"  tvm's own import of float: {lasted:.1f} s for one run")
    return found


if __name__ == "__main__":
    sys.exit(main())
