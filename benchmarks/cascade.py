"""Whether choosing a policy per input pays: the cheap one first, the dear one where it is not sure.

    python benchmarks/cascade.py            # minutes; times files, so on a quiet machine
    python benchmarks/cascade.py --quick    # few images and widths, for the test

The policies are points of the exact front of proxy loss against energy on an accelerator, of the
shipped digits network. Pair and threshold are chosen on the search part; accuracies are those of
the exported files in ONNX Runtime on the test part. The control is the cheapest single policy under
the same rule. Of the three accelerators, 2-bit weights save most on the first, least on the last.

On this CPU all integer policies run the same kernels, so fewer bits cost no less time here, and
forwarding costs more. What times can show is another thing: whether the mean cost of a cascade run
whole is the predicted one, cheap + share forwarded * dear. So a cascade is timed with its dear
policy, and with the float network in that place.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from costmodels.model import BackendContext
from costmodels.table import FloatArray
from costmodels.units import Metric, Unit, format_quantity
from hil.sequential import signed_rank_interval
from quantization.bits import parse_choices
from quantization.policy import Policy
from quantization.quantizer import Float32Array
from quantization.reading import read_network
from quantmeter.cascading import LoadedPolicy, cheapest_single, load_policy
from quantmeter.costs import parse_costs
from quantmeter.data import Data, Labels
from quantmeter.preparing import Prepared, prepare
from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task
from quantmeter.workbench import open_workbench
from search.dynamic import (
    Cascade,
    CascadeReport,
    CascadeRun,
    Stage,
    choose_cascade,
    confidence,
    report_cascade,
    run_cascade,
)
from search.pareto import proxy_front

ACCELERATORS = ("haq", "bit-serial-edge", "bit-fusion")
FLOAT = "float"
TIMED_SHARE = 0.25
"""Share of the images that is forwarded where the times of a cascade are looked at."""


@dataclass(frozen=True, eq=False)
class Part:
    """Images of one part of the split, (1, ...) each, and their classes."""

    images: Sequence[Float32Array]
    labels: Labels


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="120 images, three widths, one front")
    parser.add_argument("--tolerance", type=float, default=0.0, help="accuracy that may be lost")
    parser.add_argument("--rounds", type=int, default=30, help="of timing; 0 times nothing")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    prepared = ready(arguments.quick, arguments.seed)
    parts = {name: part(prepared, name) for name in ("search", "test")}
    accelerators = ACCELERATORS[:1] if arguments.quick else ACCELERATORS
    for position, name in enumerate(accelerators):
        print(f"energy on {name}:")
        pair = judge(prepared, parts, name, 3 if arguments.quick else 6, arguments.tolerance)
        if not position and arguments.rounds:
            rounds = 6 if arguments.quick else arguments.rounds
            float_file = load_policy(prepared.bench, FLOAT, Policy({}))
            for dear in (pair[1], float_file):
                time_whole(pair[0], dear, parts, rounds, arguments.seed)
    return 0


def ready(quick: bool, seed: int) -> Prepared:
    """Return the digits task, its sensitivities measured."""
    task = load_digits_task()
    count = 120 if quick else len(task.unseen_images)
    data = Data(task.unseen_images[:count], task.unseen_labels[:count])
    bench = open_workbench(read_network(SHIPPED_MODEL), data, seed=seed)
    choices = parse_choices("w2a8,w3a8,w8a8" if quick else "w2a8,w3a8,w4a8,w6a8,w8a8")
    cost = f"energy=analytical:{ACCELERATORS[0]}"
    return prepare(bench, parse_costs([cost], BackendContext()), [], choices)


def part(prepared: Prepared, name: str) -> Part:
    """Return one part of the split."""
    images, labels = prepared.bench.part(name)
    assert labels is not None
    return Part([np.ascontiguousarray(image[None]) for image in images], labels)


def judge(
    prepared: Prepared, parts: dict[str, Part], accelerator: str, count: int, tolerance: float
) -> tuple[LoadedPolicy, LoadedPolicy]:
    """Choose a cascade for one accelerator and print what it does.

    Returns:
        The cheap and the dear file that are timed; the ends of the front if one policy is chosen.
    """
    costs = parse_costs([f"energy=analytical:{accelerator}"], BackendContext())
    problem = prepared.problem
    tables = costs.tables(prepared.bench.network, problem.choices)
    points = proxy_front(replace(problem, tables=tables), Metric.ENERGY, count)
    energies = [point.solution.costs[Metric.ENERGY] for point in points]
    files = [
        load_policy(prepared.bench, f"point {i}", prepared.policy(point.solution.index))
        for i, point in enumerate(points, start=1)
    ]
    stages = {
        name: [
            Stage(f.name, e, f.logits(given.images)) for f, e in zip(files, energies, strict=True)
        ]
        for name, given in parts.items()
    }
    labels = parts["search"].labels
    print("                        search    test")
    for seen, unseen in zip(stages["search"], stages["test"], strict=True):
        shares = seen.right(labels).mean(), unseen.right(parts["test"].labels).mean()
        print(f"  {seen.name:10s} {joules(seen.cost):>8s}  {shares[0]:7.2%} {shares[1]:7.2%}")
    chosen = choose_cascade(stages["search"], labels, tolerance=tolerance)
    single = cheapest_single(stages["search"], labels, tolerance)
    report = report_cascade(chosen, stages["test"], parts["test"].labels)
    [alone] = [stage for stage in stages["test"] if stage.name == single]
    print_report(report, alone, parts["test"].labels)
    by_name = {file.name: file for file in files}
    if chosen.threshold:
        return by_name[chosen.cheap], by_name[chosen.dear]
    return files[0], files[-1]


def print_report(report: CascadeReport, single: Stage, labels: Labels) -> None:
    """Print accuracy and mean energy on the test part, beside the cheapest single policy."""
    chosen = report.cascade
    sent = report.forwarded
    then = f", below a confidence of {chosen.threshold:.3f} {chosen.dear}"
    print(f"  chosen: {chosen.cheap}{then if chosen.threshold else ' alone'}")
    print(
        f"  on {len(labels)} test images, {sent.share:.1%} forwarded "
        f"[{sent.low:.1%}, {sent.high:.1%}]:"
    )
    share = report.accuracy
    print(
        f"    cascade          {share.share:7.2%} [{share.low:.2%}, {share.high:.2%}] "
        f"at a mean of {joules(report.cost)}"
    )
    right = float(single.right(labels).mean())
    print(f"    single {single.name:9s} {right:7.2%} at {joules(single.cost)}")
    if chosen.threshold:
        share = report.dear
        print(
            f"    dear alone       {share.share:7.2%} [{share.low:.2%}, {share.high:.2%}] "
            f"at {joules(report.dear_cost)}; only the cascade right {report.only_cascade}, "
            f"only the dear policy {report.only_dear}"
        )


def time_whole(
    cheap: LoadedPolicy, dear: LoadedPolicy, parts: dict[str, Part], rounds: int, seed: int
) -> None:
    """Time two files and their cascade in turns; print predicted and measured mean cost.

    The threshold forwards a set share of the search images, so that there is something to time.
    All test images are a turn, and the first round is discarded.
    """
    searched = [cheap(image) for image in parts["search"].images]
    threshold = float(np.quantile(confidence(np.concatenate(searched)), TIMED_SHARE))
    images = parts["test"].images

    def run(
        first: LoadedPolicy, second: LoadedPolicy, threshold: float
    ) -> Callable[[], CascadeRun]:
        cascade = Cascade(first.name, second.name, threshold)
        return lambda: run_cascade(cascade, first, second, images)

    # each alone is a cascade that forwards nothing: deciding takes time in all three
    turns = {
        "cheap": run(cheap, dear, 0.0),
        "dear": run(dear, cheap, 0.0),
        "whole": run(cheap, dear, threshold),
    }
    order = np.random.default_rng(seed)
    mean: dict[str, list[float]] = {name: [] for name in turns}
    for turn in range(rounds + 1):
        for name in map(str, order.permutation(list(turns))):
            found = turns[name]()
            if turn:
                mean[name].append(float(found.seconds.mean()))
            if name == "whole":
                share = float(found.forwarded.mean())
    cheap_s, dear_s, whole_s = (np.array(mean[name]) for name in turns)
    predicted: FloatArray = cheap_s + share * dear_s
    low, mid, high = np.exp(signed_rank_interval(np.log(whole_s / predicted), 0.05))
    print(
        f"  {cheap.name} ({seconds(cheap_s)}), then {dear.name} ({seconds(dear_s)}) for "
        f"{share:.1%}: mean predicted {seconds(predicted)}, measured whole {seconds(whole_s)}, "
        f"ratio {mid:.3f} [{low:.3f}, {high:.3f}]"
    )


def joules(value: float) -> str:
    """Return an energy as text."""
    return format_quantity(value, Unit.JOULES)


def seconds(values: FloatArray) -> str:
    """Return the median of some rounds as text."""
    return format_quantity(float(np.median(values)), Unit.SECONDS)


if __name__ == "__main__":
    sys.exit(main())
