"""How well predictors price mixed policies that nobody measured.

    python benchmarks/policy_error.py                    # the five networks, 60 s each
    python benchmarks/policy_error.py mobilenet_v2 my.onnx --time 30 --out errors.json
    python benchmarks/policy_error.py --quick            # a small network, for the test

Each network is calibrated as `quantmeter calibrate --cost ort` does, without a store. Then fresh
policies of three kinds (independent per layer, long runs, near-uniform; another seed than those
that calibration judged itself by) are timed twice, paired with float. An error is the mean absolute
error of the ratio to float over both rounds; the label noise is what two readings of one policy
differ by, over the square root of 2: what a perfect predictor's error would be.

Rows: *total* and *table* of the calibration; the *sum of isolated* timings, each layer alone in a
session, as search tools commonly add up; a fit of one term per layer (*unary*); scaled to the
fitted policies by a line as a kindness, *MACs x bits* and *size*; and, as a measure of the machine,
how well each round of readings predicts the other (*another reading*).
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from benchmarks import networks
from costmodels.compare import Prediction, rivals
from costmodels.model import BackendContext
from costmodels.prediction_error import PredictionError
from costmodels.table import FloatArray
from hil.calibration import (
    INTEGER,
    Calibration,
    as_policy,
    calibrate_network,
    loudness,
)
from hil.design import Pattern, mixture
from hil.live import OrtLive
from hil.ort import Runner, one_feed, random_inputs
from hil.regression import Prior, fit
from hil.timing import TimingOptions, time_interleaved
from hil.validation import ratios_covered
from quantization.deployment import ExportOptions, not_deployable
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import PolicyBatch
from quantization.ranges import made_up_ranges
from quantization.reading import read_network

DEFAULT = ("mobilenet_v2", "mobilenet_v3_small", "resnet18", "squeezenet1_1", "efficientnet_b0")
_FRESH_SEED = 1000
_ALONE = TimingOptions(blocks=5)

MOST_ERROR, NOISE_FACTOR, LEAST_NEAR = 0.03, 2.0, 0.97
POOLED_COVERAGE, LEAST_COVERAGE, MOST_HALF_WIDTH = (0.85, 0.97), 0.75, 0.06
"""The targets, for every network and over all of them."""


@dataclass(frozen=True)
class Result:
    """What one network gave.

    Args:
        network: its name.
        policies: timed by the calibration.
        fresh: timed afterwards, twice each.
        label_noise: mean absolute deviation of one reading from the truth.
        errors: by predictor.
        half_width: relative, of the 90 % interval.
        covered: share of the fresh readings inside it.
        float_s: p10 of the float network.
        seconds: of wall time for the calibration.
    """

    network: str
    policies: int
    fresh: int
    label_noise: float
    errors: dict[str, PredictionError]
    half_width: float | None
    covered: float | None
    float_s: float
    seconds: float

    @property
    def met(self) -> bool:
        """Whether error, share within 10 % and coverage are as they should be.

        Without an interval (too few policies judged) the target of coverage is missed.
        """
        total = self.errors["total"]
        return (
            total.mean_absolute <= max(MOST_ERROR, NOISE_FACTOR * self.label_noise)
            and total.near >= LEAST_NEAR
            and self.covered is not None
            and self.covered >= LEAST_COVERAGE
        )


def main() -> int:
    """Calibrate, time fresh policies, print a row per predictor; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names of benchmarks/networks.py or ONNX files")
    parser.add_argument("--time", type=float, default=60.0, help="seconds of calibration")
    parser.add_argument("--fresh", type=int, default=60, help="policies to judge by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="the demo's network, 6 s, 6 policies")
    arguments = parser.parse_args()
    models: Sequence[str] = arguments.models or DEFAULT
    seconds, fresh = arguments.time, arguments.fresh
    if arguments.quick:
        models, seconds, fresh = ["quantmeter/data/digits.onnx"], 6.0, 6
    results = []
    for model in models:
        network = read_network(Path(model) if model.endswith(".onnx") else networks.build(model))
        results.append(judge(Path(model).stem, network, seconds, fresh, arguments.seed))
        print(text_of(results[-1]), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([asdict(result) for result in results], indent=1))
    pooled = [r.covered for r in results if r.covered is not None]
    widths = [r.half_width for r in results if r.half_width is not None]
    met = all(result.met for result in results)
    if pooled:
        share, width = float(np.mean(pooled)), float(np.median(widths))
        print(f"90 % intervals: pooled coverage {share:.1%}, median half-width {width:.1%}")
        low, high = POOLED_COVERAGE
        met = met and low <= share <= high and width <= MOST_HALF_WIDTH
    print("targets met" if met else "TARGETS MISSED")
    return 0 if met or arguments.quick else 1


def judge(name: str, network: Network, seconds: float, fresh: int, seed: int) -> Result:
    """Calibrate `network` and compare all predictors on fresh policies."""
    live = OrtLive(BackendContext(seconds=seconds, seed=seed))
    measure = live.measure(network)
    began = time.perf_counter()
    found = calibrate_network(
        network,
        measure,
        live.profile(network),
        seconds=seconds,
        seed=seed,
        progress=lambda _share, _what: None,
    )
    took = time.perf_counter() - began
    free = np.array([not not_deployable(layer, INTEGER) for layer in network.layers])
    known = {t.pattern.tobytes() for t in found.timed}
    drawn = islice(mixture(free, seed + _FRESH_SEED), 50 * fresh)
    unseen = (pattern for pattern in drawn if pattern.tobytes() not in known)
    chosen = list(islice(unseen, fresh))
    # Seeds of the second round differ, or the in-memory store would answer it.
    rounds = [
        np.array([measure(pattern, first + i).ratio for i, pattern in enumerate(chosen)])
        for first in (10_000, 20_000)
    ]
    predicted = {
        "total": found.model.total(chosen),
        "table": found.model.table(chosen),
        "sum of isolated": isolated(network, chosen, found.float_s, seed),
        "unary fit": unary(found, chosen),
        **scaled(found, chosen),
    }
    measured = np.concatenate(rounds)
    errors = {k: PredictionError.of(np.tile(p, 2), measured) for k, p in predicted.items()}
    errors["another reading"] = PredictionError.of(np.concatenate(rounds[::-1]), measured)
    noise = float(np.abs(np.log(rounds[0] / rounds[1])).mean() / math.sqrt(2))
    width = found.validation.half_width if found.validation is not None else None
    covered = None
    if width is not None:
        covered = float(np.mean(ratios_covered(np.tile(predicted["total"], 2), measured, width)))
    return Result(name, len(found.timed), fresh, noise, errors, width, covered, found.float_s, took)


def unary(found: Calibration, chosen: Sequence[Pattern]) -> FloatArray:
    """Fit one term per layer, shrunk, to the calibration's policies; return (P,) ratios."""
    layers = len(chosen[0])
    prior = Prior.apart(np.zeros(layers), found.shares[:layers], np.zeros(layers, np.intp))
    rows = np.array([t.pattern for t in found.timed], float)
    ratios = np.array([t.ratio for t in found.timed])
    weights = loudness(np.array([t.reference.p10_s for t in found.timed]))
    fitted = fit(rows, ratios - 1, prior, weights=weights)
    return 1 + fitted.predict(np.array(chosen, float))


def scaled(found: Calibration, chosen: Sequence[Pattern]) -> dict[str, FloatArray]:
    """Return ratios by rival, (P,), on the line that fits its numbers to the timed policies."""
    network = found.model.effects.network

    def numbers(patterns: Sequence[Pattern]) -> tuple[Prediction, ...]:
        policies = [as_policy(network, pattern) for pattern in patterns]
        return rivals(network, PolicyBatch.of(network, policies))

    ratios, lines = [t.ratio for t in found.timed], {}
    timed = numbers([t.pattern for t in found.timed])
    for known, asked in zip(timed, numbers(chosen), strict=True):
        slope, start = np.polyfit(known.values, ratios, 1)
        lines[known.name] = np.asarray(start + slope * asked.values, np.float64)
    return lines


def isolated(network: Network, chosen: Sequence[Pattern], float_s: float, seed: int) -> FloatArray:
    """Return ratios, (P,): the sum of every layer's time alone, over the float network's time.

    Glue costs nothing in such sums, and neither do conversions.
    """
    alone = np.array([_alone(network, layer.name, seed) for layer in network.layers])
    index = np.array(chosen, np.intp)
    return np.asarray(alone[np.arange(len(alone)), index].sum(axis=1) / float_s, np.float64)


def _alone(network: Network, name: str, seed: int) -> tuple[float, float]:
    """Time one layer by itself, as float and as integer; p10 in seconds."""
    layer = network.layer(name)
    graph = network.model.graph
    node = next(node for node in graph.node if node.name == name)
    own = [tensor for tensor in graph.initializer if tensor.name in node.input]
    values = [
        helper.make_tensor_value_info(
            tensor, onnx.TensorProto.FLOAT, network.tensor_by_name[tensor].shape
        )
        for tensor in (*layer.inputs, layer.output)
    ]
    made = helper.make_graph([node], "alone", values[:-1], values[-1:], own)
    model = helper.make_model(made, opset_imports=network.model.opset_import)
    single = read_network(model)
    exporter = Exporter(single, made_up_ranges(single), ExportOptions(weight_method="minmax"))
    feed = one_feed(single, random_inputs(single, 1, seed))
    integer = np.array([not not_deployable(single.layers[0], INTEGER)])
    runs = {
        key: Runner(exporter.build(as_policy(single, pattern)), 1, feed)
        for key, pattern in (("float", [False]), ("integer", integer))
    }
    timed = time_interleaved(runs, _ALONE)
    return timed["float"].p10_s, timed["integer"].p10_s


def text_of(result: Result) -> str:
    """Return the rows of one network, for people."""
    head = (
        f"{result.network}: {result.policies} policies in {result.seconds:.0f} s, "
        f"float {result.float_s * 1e3:.2f} ms; {result.fresh} fresh policies twice, "
        f"label noise {result.label_noise:.1%}"
    )
    rows = [
        f"  {name:16s} error {e.mean_absolute:6.1%}   within 10 % {e.near:6.1%}   "
        f"rank correlation {'-' if e.rank_correlation is None else f'{e.rank_correlation:.3f}'}"
        for name, e in result.errors.items()
    ]
    interval = "  no interval: fewer than 30 policies judged"
    if result.half_width is not None and result.covered is not None:
        interval = f"  90 % interval +-{result.half_width:.1%}, covers {result.covered:.1%}"
    return "\n".join([head, *rows, interval])


if __name__ == "__main__":
    sys.exit(main())
