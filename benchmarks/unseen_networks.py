"""How well one calibration of a device prices networks that it never saw.

    python benchmarks/unseen_networks.py                         # calibrates for 5 minutes first
    python benchmarks/unseen_networks.py resnet50 vgg11 --time 2m
    python benchmarks/unseen_networks.py --raw READINGS.json.gz  # of an earlier calibration
    python benchmarks/unseen_networks.py --quick                 # a small network, for the test

The calibration knows random networks only (`hil.probes`). Then published architectures at 224x224
are timed under float, uniform INT8 and ten random mixed policies each, paired with float, and every
predictor is compared with all of these times. None has seen a timing of any of the networks.

Rows: the *calibrated* device (table and constant); the *nearest shape*: each operator at the time
of the measured operator of its kind and format that is nearest in the logarithms of its extents, in
proportion to its work; the *closed formula* alpha b/8 P + beta MAC f(b), fitted to the same
measurements; the *roofline* of the device; *MACs x bits*. The last two also get, as a kindness, the
one factor that fits the calibration's random networks best.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from benchmarks import networks
from costmodels.calibrated.backend import Calibrated
from costmodels.calibrated.device_model import DeviceModel
from costmodels.calibrated.fitting import Rows
from costmodels.calibrated.items import Items, is_layer
from costmodels.calibrated.samples import Overhead, Sample
from costmodels.cells import BoolArray, FloatArray
from costmodels.model import BackendContext
from costmodels.prediction_error import PredictionError
from costmodels.spread import INTEGER
from costmodels.units import Metric, parse_duration
from hil.calibration import as_policy
from hil.design import mixture
from hil.device_bench import DeviceReadings, fit_readings, measure_device
from hil.device_readings import read_readings
from hil.live import OrtLive
from hil.probe_timer import paid_items
from quantization.bits import parse_choices
from quantization.deployment import not_deployable
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.reading import read_network

DEFAULT = tuple(sorted(networks.NETWORKS))
CHOICES = parse_choices("w2a8,w4a8,w6a8,w8a8,w32a32")

MOST_ERROR, LEAST_NEAR, LEAST_RANK = 0.10, 0.75, 0.97
COVERAGE, MOST_PRICING_S, LAYERS = (0.85, 0.97), 0.02, 53
"""The targets, over all networks; the last two for a network of so many layers or fewer."""

_PRICED = 5
_EXTENTS = ("macs", "inputs", "outputs", "weights", "depth", "window", "stride", "groups")


@dataclass(frozen=True, eq=False)
class Timed:
    """One network and what was timed of it.

    Args:
        name: its name.
        network: the network.
        policies: float, all integer, then mixed ones.
        seconds: (P,) measured.
        pricing_s: seconds that its table took after loading, the median of a few.
    """

    name: str
    network: Network
    policies: Sequence[Policy]
    seconds: FloatArray
    pricing_s: float


def main() -> int:
    """Calibrate, time published networks, print a row per predictor; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names of benchmarks/networks.py or ONNX files")
    parser.add_argument("--time", default="5m", help="of the calibration")
    parser.add_argument("--raw", type=Path, help="readings of an earlier calibration")
    parser.add_argument("--mixed", type=int, default=10, help="mixed policies a network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="the demo's network, 40 s")
    arguments = parser.parse_args()
    models, mixed = arguments.models or DEFAULT, arguments.mixed
    seconds = parse_duration(arguments.time)
    if arguments.quick:
        models, mixed, seconds = ["quantmeter/data/digits.onnx"], 2, 40.0
    readings = (
        measure_device(BackendContext(seconds=seconds, seed=arguments.seed))
        if arguments.raw is None
        else read_readings(arguments.raw)
    )
    model = fit_readings(readings)
    print(
        f"calibrated for {readings.measured.seconds:.0f} s: "
        f"{model.source['fitted_networks']} random networks fitted, {model.source['fitted_rows']} "
        f"operators; {model.validation['networks']} more judge"
    )
    timed = [timings(name, model, mixed, arguments.seed) for name in models]
    found = predictions(model, readings, timed)
    return report(model, timed, found, arguments.out, arguments.quick)


def timings(name: str, model: DeviceModel, mixed: int, seed: int) -> Timed:
    """Price one network, and time it under float, uniform INT8 and mixed policies."""
    source = Path(name) if name.endswith(".onnx") else networks.build(name)
    network = read_network(source)
    free = np.array([not not_deployable(layer, INTEGER) for layer in network.layers])
    patterns = [np.zeros_like(free), free, *islice(mixture(free, seed + 7), mixed)]
    policies = [as_policy(network, pattern) for pattern in patterns]
    pricing_s = float(np.median([_pricing_s(read_network(source), model) for _ in range(_PRICED)]))
    live = OrtLive(BackendContext(seed=seed))
    seconds = live.total(network, PolicyBatch.of(network, policies), Metric.LATENCY)
    return Timed(Path(name).stem, network, policies, seconds, pricing_s)


def _pricing_s(network: Network, model: DeviceModel) -> float:
    """Seconds that the table of a network takes that was only just read."""
    backend = Calibrated(model)
    started = time.perf_counter()
    backend.table(network, CHOICES, Metric.LATENCY)
    return time.perf_counter() - started


def predictions(
    model: DeviceModel, readings: DeviceReadings, timed: Sequence[Timed]
) -> dict[str, list[FloatArray]]:
    """Return for each predictor the seconds of every policy of every network."""
    fitted, limits = readings.measured.fitted, model.limits
    nearest = Nearest(Rows.of(fitted, Overhead.of(fitted)))
    rivals: Mapping[str, Callable[[Items, BoolArray], float]] = {
        "nearest shape": lambda items, integer: float(nearest.seconds(items, integer).sum()),
        "roofline": lambda items, integer: float(limits.bound_s(items, integer).sum()),
        "MACs x bits": macs_bits,
    }
    scale = {name: scale_of(rivals[name], fitted) for name in ("roofline", "MACs x bits")}
    found: dict[str, list[FloatArray]] = {}
    for each in timed:
        batch = PolicyBatch.of(each.network, each.policies)
        samples = [as_sample(each.network, policy) for policy in each.policies]
        rows = {
            "calibrated": Calibrated(model).total(each.network, batch, Metric.LATENCY),
            "closed formula": model.textbook.seconds(samples),
            **{
                name: np.array([of(sample.items, sample.integer) for sample in samples])
                for name, of in rivals.items()
            },
        }
        rows["roofline, scaled"] = rows["roofline"] * scale["roofline"]
        rows["MACs x bits"] = rows["MACs x bits"] * scale["MACs x bits"]
        for name, values in rows.items():
            found.setdefault(name, []).append(values)
    return found


def as_sample(network: Network, policy: Policy) -> Sample:
    """Return the rows of a network under a policy, as if its times were not known."""
    items, integer = paid_items(network, policy)
    none = np.zeros(len(items))
    return Sample("", "", items, integer, none, none.astype(np.int64), 1.0)


def macs_bits(items: Items, integer: BoolArray) -> float:
    """Return the sum over layers of MACs times weight bits times activation bits."""
    bits = np.where(integer, 8.0 * 8.0, 32.0 * 32.0)
    return float((items.column("macs") * bits)[is_layer(items.kind)].sum())


def scale_of(of: Callable[[Items, BoolArray], float], fitted: Sequence[Sample]) -> float:
    """Return the factor, the median in logarithms, that brings numbers to measured seconds."""
    ratios = [s.total_s / of(s.items, s.integer) for s in fitted]
    return float(np.exp(np.median(np.log(ratios))))


class Nearest:
    """Looks up the measured operator that is most alike.

    Args:
        rows: what was measured.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._trees: dict[tuple[str, bool], tuple[cKDTree, np.ndarray]] = {}
        for kind in np.unique(rows.items.kind):
            for integer in (False, True):
                here = np.flatnonzero(
                    (rows.items.kind == kind) & (rows.integer == integer) & rows.executed
                )
                if len(here):
                    tree = cKDTree(_extents(rows.items.at(here)))
                    self._trees[str(kind), integer] = tree, here

    def seconds(self, items: Items, integer: BoolArray) -> FloatArray:
        """Return the seconds of each row, (N,); 0 for a kind that was never measured."""
        found = np.zeros(len(items))
        for (kind, reads), (tree, here) in self._trees.items():
            wanted = np.flatnonzero((items.kind == kind) & (integer == reads))
            if len(wanted):
                _, nearest = tree.query(_extents(items.at(wanted)))
                alike = here[nearest]
                share = _work(items.at(wanted)) / _work(self._rows.items.at(alike))
                found[wanted] = self._rows.seconds[alike] * share
        return found


def _extents(items: Items) -> FloatArray:
    return np.log2(1 + np.stack([items.column(name) for name in _EXTENTS], axis=1))


def _work(items: Items) -> FloatArray:
    macs = items.column("macs")
    return np.where(macs > 0, macs, items.column("inputs") + items.column("outputs") + 1)


def report(
    model: DeviceModel,
    timed: Sequence[Timed],
    found: Mapping[str, Sequence[FloatArray]],
    out: Path | None,
    quick: bool,
) -> int:
    """Print all figures; returns the exit status."""
    print(f"{'':20s} {'float':>9s} {'INT8':>9s}  {'error':>6s} {'bias':>6s}  {'<10 %':>5s}  rank")
    for each, values in zip(timed, found["calibrated"], strict=True):
        error = PredictionError.of(values, each.seconds)
        bias = float(np.median(values / each.seconds - 1))
        rank = "-" if error.rank_correlation is None else f"{error.rank_correlation:.3f}"
        print(
            f"{each.name:20s} {each.seconds[0] * 1e3:6.2f} ms {each.seconds[1] * 1e3:6.2f} ms  "
            f"{error.mean_absolute:6.1%} {bias:+6.1%}  {error.near:5.0%}  {rank}"
        )
    measured = np.concatenate([each.seconds for each in timed])
    errors = {
        name: PredictionError.of(np.concatenate(values), measured) for name, values in found.items()
    }
    for name, error in errors.items():
        print(
            f"{name:18s} error {error.mean_absolute:7.1%}   within 10 % {error.near:6.1%}   "
            f"rank correlation {error.rank_correlation:.3f}"
        )
    small = [each.pricing_s for each in timed if len(each.network.layers) <= LAYERS]
    pricing = max(small, default=0.0)
    print(f"pricing {len(CHOICES)} widths, at most {LAYERS} layers: {pricing * 1e3:.1f} ms at most")
    total = errors["calibrated"]
    met = (
        total.mean_absolute <= MOST_ERROR
        and total.near >= LEAST_NEAR
        and (total.rank_correlation or 0.0) >= LEAST_RANK
        and pricing <= MOST_PRICING_S
    )
    covered, width = None, None
    if model.interval is not None:
        predicted = np.concatenate(list(found["calibrated"]))
        covered = float(np.mean(model.interval.covers(predicted, measured)))
        width = float(np.median(model.interval.half_width(predicted)))
        print(
            f"90 % intervals: +-{width:.1%} in the median, cover {covered:.1%} of "
            f"{len(measured)} policies"
        )
    met = met and covered is not None and COVERAGE[0] <= covered <= COVERAGE[1]
    if out is not None:
        content = {
            "errors": {name: asdict(error) for name, error in errors.items()},
            "half_width": width,
            "covered": covered,
            "pricing_s": pricing,
            "networks": {
                each.name: {
                    "measured_s": each.seconds.tolist(),
                    **{name: values[i].tolist() for name, values in found.items()},
                }
                for i, each in enumerate(timed)
            },
        }
        out.write_text(json.dumps(content, indent=1))
    print("targets met" if met else "TARGETS MISSED")
    return 0 if met or quick else 1


if __name__ == "__main__":
    sys.exit(main())
