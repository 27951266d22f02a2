"""Do channel groups buy accuracy at equal size? The digits, on images that nothing was chosen by.

    python benchmarks/channel_groups.py            # five sizes, about two minutes on one core
    python benchmarks/channel_groups.py --quick    # one size, few images, for the test

For each size of the exported file: the uniform policy, if it has that size, and refined by channel
groups (`search.channel_groups`); the exact layer-wise optimum of the proxy (KL sensitivities), the
same refined, and refined with channels taken as they are numbered, which tells what their order is
worth beyond finer steps of size. The last row may use as many bytes of weights as the layer-wise
policy, and telling channels apart costs it none: what storage takes from groups.

Ranges, corrections and sensitivities come from training images, accuracies from the 897 unseen
ones, with corrected statistics as in the exported file. Differences are of the same images, with
95 % intervals (D. G. Bonett and R. M. Price, J. Educ. Behav. Stat. 2012).
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.registry import backend
from costmodels.size import ExportedSize
from costmodels.table import BoolArray, CostTable
from costmodels.units import Metric
from quantization.bits import BitWidths, parse_choices
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.quantizer import Float32Array
from quantization.ranges import collect_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task
from search.channel_groups import ChannelCosts, Refined, channel_costs, refine
from search.exact import solve
from search.oracle import Interval, Labels
from search.problem import Problem
from search.sensitivity import as_loss, measure_sensitivity

CHOICES = parse_choices("w2a8,w3a8,w4a8,w5a8,w6a8,w8a8")
LAYERWISE = "layer by layer, proven"
SIZES = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Sizes of the file: from uniform w2a8 (0) to uniform w3a8 (1), in these steps; 2 is w4a8."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One policy on the unseen images.

    Args:
        name: what it is.
        size_bytes: of its file.
        layers: that have channel groups.
        right: (N,) which images were classified right.
    """

    name: str
    size_bytes: int
    layers: int
    right: BoolArray

    def line(self, reference: "Scored | None") -> str:
        """Return a row of the table; differences are from `reference`."""
        share = Interval.wilson(int(self.right.sum()), len(self.right))
        interval = f"{share.share:7.1%} [{share.low:.1%} {share.high:.1%}]"
        row = f"  {self.name:40s} {self.size_bytes:8,d} {self.layers:6d}  {interval}"
        if reference is None:
            return row
        low, high = paired_interval(self.right, reference.right)
        more = self.right.mean() - reference.right.mean()
        return f"{row}  {100 * more:+5.1f} [{100 * low:+.1f} {100 * high:+.1f}]"


def paired_interval(right: BoolArray, other: BoolArray) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares of the same images.

    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions
    based on paired data", JEBS 2012: a half is added to each count of images that differ.
    """
    count = len(right)
    more = (int((right & ~other).sum()) + 1) / (count + 2)
    less = (int((other & ~right).sum()) + 1) / (count + 2)
    half = 1.959963984540054 * float(np.sqrt((more + less - (more - less) ** 2) / (count + 2)))
    return more - less - half, more - less + half


@dataclass(frozen=True, eq=False)
class Bench:
    """The network with all that policies are chosen and scored by."""

    network: Network
    simulation: Simulation
    loss: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]"
    costs: ChannelCosts
    size: ExportedSize
    unseen: Float32Array
    labels: Labels

    def tables(self, choices: Sequence[BitWidths]) -> Mapping[Metric, CostTable]:
        """Price choices by the bytes of the exported file."""
        return {Metric.SIZE: self.size.table(self.network, choices, Metric.SIZE)}

    def weights(self, choices: Sequence[BitWidths]) -> Mapping[Metric, CostTable]:
        """Price choices by the bytes of weights alone, as if telling channels apart cost none."""
        model = backend("analytical:haq", BackendContext())
        return {Metric.SIZE: model.table(self.network, choices, Metric.SIZE)}

    def refined(self, name: str, found: Refined) -> Scored:
        """Score a refined policy; its name tells what became of the proxy loss."""
        before, after = found.losses
        said = f"{name}, loss {after / before - 1:+.0%}" if before else name
        return self.scored(said, found.policy, found.grouped)

    def bytes_of(self, policy: Policy) -> int:
        """Return the size of a policy's file."""
        batch = PolicyBatch.of(self.network, [policy])
        return int(self.size.total(self.network, batch, Metric.SIZE)[0])

    def scored(self, name: str, policy: Policy, layers: int = 0) -> Scored:
        """Score a policy on the unseen images."""
        corrections = self.simulation.correct(policy)
        logits = self.simulation.logits(policy, self.unseen, corrections)
        return Scored(name, self.bytes_of(policy), layers, logits.argmax(1) == self.labels)


def prepare(calibration: int, images: int, unseen: int) -> Bench:
    """Measure sensitivities of the shipped network.

    Args:
        calibration: training images for ranges and corrections.
        images: training images for sensitivities.
        unseen: images that policies are scored on.
    """
    task, network = load_digits_task(), read_network(SHIPPED_MODEL)
    first = task.train_images[:calibration]
    simulation = Simulation(Exporter(network, collect_ranges(network, first)), first)
    others = task.train_images[-images:]
    found = measure_sensitivity(simulation, CHOICES, others)
    costs = channel_costs(simulation, [bits.weights for bits in CHOICES], others)
    return Bench(
        network,
        simulation,
        as_loss(found.kl),
        costs,
        ExportedSize(),
        task.unseen_images[:unseen],
        task.unseen_labels[:unseen],
    )


def at_size(bench: Bench, budget: float, uniform: Mapping[str, Policy]) -> list[Scored]:
    """Score what each way of choosing bits makes of one size."""
    problem = Problem(
        bench.network, CHOICES, bench.tables(CHOICES), {Metric.SIZE: budget}, bench.loss
    )
    rows = []
    for name, policy in uniform.items():
        if bench.bytes_of(policy) == budget:
            rows.append(bench.scored(f"uniform {name}", policy))
            start = np.full(len(bench.loss), CHOICES.index(BitWidths.parse(name)), np.uint8)
            found = refine(problem, start, bench.costs, bench.tables)
            rows.append(bench.refined(f"uniform {name} in groups", found))
    best = solve(problem)
    names = bench.network.layer_names
    layerwise = Policy({n: CHOICES[int(k)] for n, k in zip(names, best.index, strict=True)})
    rows.append(bench.scored(LAYERWISE, layerwise))
    rows.append(bench.refined("in groups", refine(problem, best.index, bench.costs, bench.tables)))
    equal = {key: np.ones_like(each) for key, each in bench.costs.items()}
    rows.append(bench.refined("as numbered", refine(problem, best.index, equal, bench.tables)))
    weights = bench.weights(CHOICES)
    paid = total(weights[Metric.SIZE], bench.network, PolicyBatch.of(bench.network, [layerwise]))
    free = Problem(bench.network, CHOICES, weights, {Metric.SIZE: float(paid[0])}, bench.loss)
    found = refine(free, best.index, bench.costs, bench.weights)
    return [*rows, bench.refined("in groups, if stored for free", found)]


def main() -> int:
    """Print a table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one size and few images")
    quick = parser.parse_args().quick
    bench = prepare(16, 16, 50) if quick else prepare(256, 256, 897)
    names = ("w2a8", "w3a8", "w4a8")
    uniform = {n: Policy.uniform(bench.network, BitWidths.parse(n)) for n in names}
    first, second, third = (bench.bytes_of(policy) for policy in uniform.values())
    print(
        f"{len(bench.labels)} unseen images; {bench.scored('float', Policy({})).line(None).strip()}"
    )
    for step in (0.5,) if quick else SIZES:
        budget = first + step * (second - first) if step <= 1 else third
        print(
            f"\nat most {int(budget):,} bytes"
            + 18 * " "
            + "bytes layers  accuracy, and over layer by layer"
        )
        rows = at_size(bench, float(int(budget)), uniform)
        reference = next(row for row in rows if row.name == LAYERWISE)
        for row in rows:
            print(row.line(None if row is reference else reference))
        if rows[0] is not reference:
            low, high = paired_interval(rows[1].right, rows[0].right)
            more = rows[1].right.mean() - rows[0].right.mean()
            print(
                f"  uniform in groups over uniform: {100 * more:+.1f} "
                f"[{100 * low:+.1f} {100 * high:+.1f}]"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
