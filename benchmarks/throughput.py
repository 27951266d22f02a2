"""How many policies a minute are built, loaded, audited and timed, and where the time goes.

    python benchmarks/throughput.py                        # MobileNetV2, 60 s
    python benchmarks/throughput.py --model resnet18 --time 30
    python benchmarks/throughput.py --quick                # a small network, for the test

Policies are those that a calibration times, by the same worker and options, into an empty store.
Afterwards the first ones are timed again: what two readings of one policy differ by, over the
square root of 2, is the noise of a reading.
"""

import argparse
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks import networks
from costmodels.model import BackendContext
from costmodels.spread import INTEGER
from hil.calibration import Timed
from hil.design import patterns
from hil.live import OrtLive
from hil.store import Store
from quantization.deployment import not_deployable
from quantization.reading import read_network

LEAST_RATE, MOST_NOISE, MOST_BUILDING, LEAST_INFERENCE = 300.0, 0.02, 0.1, 0.5
"""Policies a minute for MobileNetV2 on one core; noise of a reading; building over timing;
inference over wall time."""

_REPEATED = 40


def main() -> int:
    """Time policies, print rate and shares; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="mobilenet_v2", help="of networks.py, or an ONNX file")
    parser.add_argument("--time", type=float, default=60.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the demo's network for 2 s")
    arguments = parser.parse_args()
    model, seconds = arguments.model, arguments.time
    if arguments.quick:
        model, seconds = "quantmeter/data/digits.onnx", 2.0
    network = read_network(Path(model) if model.endswith(".onnx") else networks.build(model))
    free = np.array([not not_deployable(layer, INTEGER) for layer in network.layers])
    with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
        path = Path(folder) / "measurements.sqlite"
        live = OrtLive(BackendContext(seed=arguments.seed, store=path))
        measure = live.measure(network)
        measure(free, 9_999)  # starts the worker
        timed: list[Timed] = []
        began = time.perf_counter()
        for position, pattern in enumerate(patterns(free, arguments.seed)):
            if time.perf_counter() - began > seconds:
                break
            timed.append(measure(pattern, position))
        wall_s = time.perf_counter() - began
        again = [
            measure(pattern, 10_000 + i)
            for i, pattern in enumerate(
                islice(patterns(free, arguments.seed), min(_REPEATED, len(timed)))
            )
        ]
        with Store(path, live.device) as store:
            records = {
                entry.subject.content["timing"]["seed"]: entry.record for entry in store.entries()
            }
    facts = [records[position].facts for position in range(len(timed))]
    spent = {
        name: sum(fact[name] for fact in facts)
        for name in ("build_s", "load_s", "timing_s", "inference_s")
    }
    differences = np.log([b.ratio / a.ratio for a, b in zip(timed, again, strict=False)])
    noise = float(np.sqrt(np.mean(np.square(differences)) / 2))
    typical = float(np.median(np.abs(differences)) * 1.4826 / np.sqrt(2))
    rate = 60 * len(timed) / wall_s
    building = spent["build_s"] / spent["timing_s"]
    inference = spent["inference_s"] / wall_s
    float_s = float(np.median([t.reference.p10_s for t in timed]))
    print(f"{Path(model).stem}, float p10 {float_s * 1e3:.2f} ms: {len(timed)} policies")
    print(f"rate             {rate:.0f} policies a minute")
    print(f"noise            {noise:.2%} of one reading ({typical:.2%} without outliers)")
    print(f"building         {building:.1%} of timing")
    print(f"inference        {inference:.1%} of wall time")
    for name, what in (("build_s", "build"), ("load_s", "load, audit"), ("timing_s", "timing")):
        print(f"  {what:14s} {spent[name] / wall_s:.1%} of wall time")
    if arguments.quick:
        return 0
    met = building <= MOST_BUILDING and inference >= LEAST_INFERENCE and noise <= MOST_NOISE
    if model == "mobilenet_v2":
        met = met and rate >= LEAST_RATE
    print("targets met" if met else "TARGETS MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
