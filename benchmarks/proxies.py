"""How well each sensitivity ranks policies, before and after a refit; racing; and ranges.

    python benchmarks/proxies.py                     # minutes: the shipped digits network
    python benchmarks/proxies.py --network mobilenet # on Fashion-MNIST, if that is installed
    python benchmarks/proxies.py --quick             # few images and widths, for the test

Policies are *random* (each layer's width drawn), or *sensible*: the least sum of KL sensitivities,
multiplied by log-normal numbers of deviation 1, and weight bits, at a price that is drawn. So a
sensible policy is what a search looks at. Each is scored with its statistics corrected.

- Spearman's correlation of the summed sensitivity with the accuracy that a policy loses, on the
  images that sensitivities are measured on, and on held-out ones.
- The same on policies that no refit saw, before and after a refit to others.
- The share of images that racing runs, and whether the best are found in order.
- Uniform policies under each way to choose ranges: accuracy on held-out images, and divergence.
"""

# threads are fixed before numpy and torch start theirs
import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fashion.tasks import fashion_bench
from costmodels.table import BoolArray, FloatArray
from quantization.best_ranges import best_ranges
from quantization.bits import BitWidths, parse_choices
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import IndexArray, Policy, PolicyBatch
from quantization.quantizer import Float32Array
from quantization.range_choices import chosen_ranges
from quantization.ranges import RANGE_METHODS, collect_ranges
from quantization.simulation import Simulation
from quantmeter.data import Data
from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task
from quantmeter.workbench import open_workbench
from search.oracle import Labels, Positions, PostTrainingOracle, policy_key
from search.racing import RacingOracle
from search.refit import refit
from search.sensitivity import SENSITIVITIES, Setting, as_loss, kl, measure

SPLITS = 5
RANDOM, SENSIBLE = "random", "sensible"


@dataclass(frozen=True, eq=False)
class Task:
    """A network and its images; each part (images, labels)."""

    network: Network
    ranges: tuple[Float32Array, Labels]
    search: tuple[Float32Array, Labels]
    held_out: tuple[Float32Array, Labels]

    def few(self, count: int) -> "Task":
        """Return the same with `count` images in each part."""
        parts = ((x[:count], y[:count]) for x, y in (self.ranges, self.search, self.held_out))
        return Task(self.network, *parts)


def load(name: str) -> Task:
    """Return the task called `name`."""
    if name == "digits":
        task = load_digits_task()
        bench = open_workbench(SHIPPED_MODEL, Data(task.unseen_images, task.unseen_labels))
    else:
        bench = fashion_bench(name)
    parts = []
    for part in ("ranges", "search", "test"):
        images, labels = bench.part(part)
        assert labels is not None
        parts.append((images, labels))
    return Task(bench.network, *parts)


@dataclass(frozen=True, eq=False)
class Scored:
    """Policies, and which images each gets right.

    Args:
        index: (P, L) the policies.
        kind: (P,) how they were drawn.
        search: (P, N) on the search part.
        held_out: (P,) accuracy on the held-out part.
    """

    index: IndexArray
    kind: "np.ndarray[tuple[int], np.dtype[np.str_]]"
    search: BoolArray
    held_out: FloatArray

    def of(self, kinds: Sequence[str]) -> "Scored":
        """Return those that were drawn in one of these ways."""
        return self.take(np.flatnonzero(np.isin(self.kind, kinds)))

    def take(self, where: Positions) -> "Scored":
        """Return those at `where`."""
        return Scored(self.index[where], self.kind[where], self.search[where], self.held_out[where])


def draw(loss: FloatArray, network: Network, choices: Sequence[BitWidths], count: int) -> Scored:
    """Draw `count` policies of each kind, not yet scored."""
    rng = np.random.default_rng(0)
    shape = len(network.layers), len(choices)
    made = [rng.integers(0, len(choices), (count, len(network.layers)))]
    weights = np.array([layer.weight_count for layer in network.layers])
    stored = np.array([c.weights + 0.05 * c.activations for c in choices])
    size = stored * (weights / weights.mean())[:, None]
    for _ in range(count):
        price = np.exp(rng.uniform(np.log(1e-5), np.log(3e-3)))
        noisy = (loss + 1e-6) * np.exp(rng.standard_normal(shape))
        made.append((noisy + price * size).argmin(1)[None])
    index = np.concatenate(made).astype(np.uint8)
    kind = np.repeat([RANDOM, SENSIBLE], count)
    return Scored(index, kind, np.zeros((len(index), 0), bool), np.zeros(len(index)))


def score(drawn: Scored, task: Task, simulation: Simulation, batch: PolicyBatch) -> Scored:
    """Run the policies on both parts."""
    search, held_out = (
        PostTrainingOracle(simulation, *part) for part in (task.search, task.held_out)
    )
    right = [search.right(batch[i], np.arange(search.count)) for i in range(len(batch))]
    return replace(drawn, search=np.array(right), held_out=held_out.accuracy(batch))


def ranks(loss: FloatArray, index: IndexArray, accuracy: FloatArray) -> float:
    """Return Spearman's correlation of the summed loss with the accuracy that is lost."""
    return float(spearmanr(loss[np.arange(len(loss)), index].sum(1), -accuracy).statistic)


def tell_correlations(losses: Mapping[str, FloatArray], scored: Scored) -> None:
    """Print how each sensitivity ranks the policies of each kind."""
    print(f"Spearman, search / held-out images ({scored.search.shape[1]} search images)")
    for name, loss in losses.items():
        cells = []
        for kinds in ((RANDOM,), (SENSIBLE,), (RANDOM, SENSIBLE)):
            some = scored.of(kinds)
            search = ranks(loss, some.index, some.search.mean(1))
            cells.append(f"{search:6.3f} / {ranks(loss, some.index, some.held_out):6.3f}")
        print(f"  {name:14}  random {cells[0]}   sensible {cells[1]}   both {cells[2]}")
    for kinds in ((RANDOM,), (SENSIBLE,)):
        some = scored.of(kinds)
        both = float(spearmanr(some.search.mean(1), some.held_out).statistic)
        drop = np.std(some.search.mean(1))
        print(f"  {kinds[0]}: accuracy varies by {drop:.2%}; its own two parts: {both:.3f}")


def tell_refits(losses: Mapping[str, FloatArray], scored: Scored, counts: Sequence[int]) -> None:
    """Print how policies that no refit saw are ranked, before and after refits to others."""
    print("Refit to some policies, held-out images of all others: before > after (worst change)")
    for name, loss in losses.items():
        cells = []
        for kinds in ((RANDOM,), (RANDOM, SENSIBLE)):
            some = scored.of(kinds)
            for count in (c for c in counts if c < len(some.index)):
                found = []
                for seed in range(SPLITS):
                    order = np.random.default_rng(seed).permutation(len(some.index))
                    seen, rest = some.take(order[:count]), some.take(order[count:])
                    fitted = refit(loss, seen.index, seen.search.mean(1))
                    found.append([ranks(x, rest.index, rest.held_out) for x in (loss, fitted)])
                before, after = np.array(found).T
                worst = (after - before).min()
                text = f"{before.mean():.3f} > {after.mean():.3f} ({worst:+.3f})"
                cells.append(f"{kinds[0] if len(kinds) == 1 else 'both'} {count}: {text}")
        print(f"  {name:14}  " + "   ".join(cells))


class Remembered:
    """An oracle that answers from what was run before, and counts what it would have run."""

    def __init__(self, network: Network, batch: PolicyBatch, right: BoolArray) -> None:
        self.network = network
        self.count = right.shape[1]
        self.images_run = self.evaluations = 0
        self._right = {policy_key(network, batch[i]): row for i, row in enumerate(right)}

    def right(self, policy: Policy, where: Positions) -> BoolArray:
        """See `search.oracle.ImageOracle.right`."""
        self.images_run += len(where)
        found: BoolArray = self._right[policy_key(self.network, policy)][where]
        return found

    def accuracy(self, policies: PolicyBatch) -> FloatArray:
        """See `search.oracle.AccuracyOracle.accuracy`."""
        every = np.arange(self.count)
        return np.array([self.right(policies[i], every).mean() for i in range(len(policies))])


def tell_races(scored: Scored, network: Network, choices: Sequence[BitWidths]) -> None:
    """Print what racing saves in images, and whether it keeps the ranking."""
    print(f"Racing, mean over {SPLITS} orders of policies and images")
    for kinds in ((RANDOM,), (SENSIBLE,), (RANDOM, SENSIBLE)):
        some = scored.of(kinds)
        for keep in (1, 8):
            rows = []
            for seed in range(SPLITS):
                policies = some.take(np.random.default_rng(seed).permutation(len(some.index)))
                batch = PolicyBatch(network.layer_names, tuple(choices), policies.index)
                oracle = Remembered(network, batch, policies.search)
                race = RacingOracle(oracle, keep=keep, seed=seed)
                found, exact = race.accuracy(batch), policies.search.mean(1)
                same = np.array_equal(np.sort(found)[-keep:], np.sort(exact)[-keep:])
                correlation = float(spearmanr(found, exact).statistic)
                share = oracle.images_run / (len(batch) * oracle.count)
                rows.append([share, race.abandoned / len(batch), same, correlation])
            share, abandoned, kept, correlation = np.mean(rows, 0)
            print(
                f"  {' and '.join(kinds):20} best {keep}: {share:.0%} of the images, "
                f"{abandoned:.0%} abandoned; the best kept in {kept:.0%} of the orders; "
                f"all scores rank as the exact ones: {correlation:.3f}"
            )


def tell_ranges(task: Task, choices: Sequence[BitWidths]) -> None:
    """Print uniform policies under each way to choose ranges."""
    network, inputs = task.network, task.ranges[0]
    start = Exporter(network, collect_ranges(network, inputs))
    table = best_ranges(start, inputs, choices)
    every = {method: collect_ranges(network, inputs, method) for method in RANGE_METHODS}
    options = start.options
    tried: dict[str, Exporter] = {m: Exporter(network, ranges) for m, ranges in every.items()}
    tried["minmax, weights too"] = Exporter(
        network, start.ranges, replace(options, weight_method="minmax")
    )
    tried["best"] = Exporter(network, chosen_ranges(network, inputs, table))
    print("Ranges: accuracy on held-out images / divergence in nats")
    for name, exporter in tried.items():
        simulation = Simulation(exporter, inputs)
        images, labels = task.held_out
        reference, cells = simulation.logits(Policy({}), images), []
        for bits in choices:
            policy = Policy.uniform(network, bits)
            logits = simulation.logits(policy, images, simulation.correct(policy))
            share = float((logits.argmax(1) == labels).mean())
            cells.append(f"{bits} {share:.2%} / {kl(reference, logits, labels):.4f}")
        print(f"  {name:20} " + "   ".join(cells))
    for part, by_width in table.to_json().items():
        counts = {
            width: {m: list(methods.values()).count(m) for m in sorted(set(methods.values()))}
            for width, methods in by_width.items()
        }
        print(f"  best, {part} other than the default, by width: {counts}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="digits", choices=("digits", "mobilenet", "resnet"))
    parser.add_argument("--policies", type=int, default=50, help="of each kind (50)")
    parser.add_argument("--keep", type=Path, help="folder of sensitivities; measured once")
    parser.add_argument("--quick", action="store_true", help="few images and widths")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = load(given.network)
    choices = parse_choices("w2a8,w3a8,w4a8,w8a8,w4a4")
    names, count, counts = SENSITIVITIES, given.policies, [20, 30]
    if given.quick:
        task, choices, count, counts = task.few(24), parse_choices("w2a8,w4a4"), 8, [12]
        names = ("kl", "output-mse", "fisher")
    network, inputs = task.network, task.ranges[0]
    simulation = Simulation(Exporter(network, collect_ranges(network, inputs)), inputs)
    measured = measure(names, Setting(simulation, choices, *task.search), given.keep)
    losses = {name: as_loss(values) for name, values in measured.items()}
    drawn = draw(losses["kl"], network, choices, count)
    batch = PolicyBatch(network.layer_names, tuple(choices), drawn.index)
    scored = score(drawn, task, simulation, batch)
    tell_correlations(losses, scored)
    tell_refits(losses, scored, counts)
    tell_races(scored, network, choices)
    if not given.quick:
        tell_ranges(task, choices)
    return 0


if __name__ == "__main__":
    sys.exit(main())
