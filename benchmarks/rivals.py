"""Search methods against each other: same start, same repair, same counted evaluations.

    python benchmarks/rivals.py --cache runs/rivals     # Fashion-MNIST, every objective: hours
    python benchmarks/rivals.py --cache runs/rivals --task fashion-mobilenet --objective size
    python benchmarks/rivals.py --quick                                   # digits, for the test

A policy is scored once, whichever method and seed asks for it: scores, and finished searches, are
kept in --cache, so that a run that was ended goes on, and parts of it can be run one by one. Each
search still counts every distinct policy that it asks for.

Searches maximise the negative divergence from the float network on 2,000 images (--reward kl), or
accuracy on the same. Methods that iterate start from what greedy search finds; warm-started
evolution is the control for any claim. Accuracies are medians over seeds on images that no search
saw, with the least and the most of any seed; "mnats" are divergences in thousandths of a nat. Exact
and greedy look at sensitivities by divergence, zero-shot at Fisher information, for which no
quantized network is run. `REINFORCE less this` is the paired difference over seeds and images (see
`contest.comparison`), in points, with its 95 % interval.
`latency-whole` rejects policies that a brief timing of the whole network finds above the budget,
the start as well: greedy search then has to stay below a tighter budget, until its policy is
accepted. What the methods return is timed again at length.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contest.comparison import compare
from benchmarks.contest.contest import Contest
from benchmarks.contest.memory import Memory
from benchmarks.contest.tasks import OBJECTIVES, TASKS, Objective, Task, digits
from costmodels.table import BoolArray
from costmodels.units import Unit, format_quantity
from quantization.bits import FLOAT32
from quantization.errors import BudgetError, QuantmeterError
from quantization.policy import IndexArray, Policy
from search.methods import METHODS, make_searcher

OURS = "reinforce"


@dataclass(frozen=True, eq=False)
class Row:
    """What one method found under one budget, each by seed.

    Args:
        seeds: those that found something.
        index: (S, L) the policies.
        evaluations: how many policies each search scored.
        accuracies: of the policies on the search part.
        divergences: likewise, in nats.
        right: (S, N) which unseen images they classify right.
    """

    seeds: list[int]
    index: IndexArray
    evaluations: list[int]
    accuracies: list[float]
    divergences: list[float]
    right: BoolArray


def compete(
    contest: Contest, methods: Sequence[str], seeds: int, evaluations: int
) -> dict[str, Row]:
    """Run every method with every seed; those that find nothing with any seed are left out.

    A policy above the budget as measured is nothing found, also where a method measures none.

    Raises:
        BudgetError: if no policy meets the budget.
    """
    start = contest.start()
    if start is None:
        make_searcher("exact").search(
            contest.problem, lambda i: np.zeros(len(i)), evaluations=1, seed=0
        )
        raise BudgetError("greedy search finds no start")
    rows = {}
    for method in methods:
        count = seeds if METHODS[method].iterative else 1
        runs = [contest.search(method, seed, evaluations, start) for seed in range(count)]
        found = []
        for seed, run in enumerate(runs * (seeds // count)):  # without randomness all are the same
            if run["best"] is None:
                continue
            index = np.array(run["best"], np.uint8)
            if contest.evaluate(index[None])[0] > -np.inf:
                found.append((seed, index, run["evaluations"], *contest.searched(index)))
        if not found:
            above = ", all above the budget as a whole" if contest.whole_limit is not None else ""
            print(f"  {method}: nothing found{above}")
            continue
        of, policies, scored, *seen = (list(column) for column in zip(*found, strict=True))
        right = np.array([contest.right(policy) for policy in policies])
        rows[method] = Row(of, np.array(policies), scored, *seen, right)
    return rows


def table(rows: Mapping[str, Row], seeds: int) -> str:
    """Return the lines of one budget.

    Args:
        rows: by method; compared over the seeds with which both methods found something.
        seeds: how many were tried.
    """
    lines = [
        f"  {'method':<15}{'scored':>7}{'mnats':>8}{'search %':>10}{'unseen %':>10}"
        f"{'  least..most':<16}"
        f"{'REINFORCE less this':>22}{'p':>8}"
    ]
    for name, row in rows.items():
        share = 100 * row.right.mean(1)
        spread = f"  {share.min():.2f}..{share.max():.2f}"
        line = (
            f"  {name:<15}{np.median(row.evaluations):>7.0f}"
            f"{1e3 * np.median(row.divergences):>8.2f}{100 * np.median(row.accuracies):>10.2f}"
            f"{np.median(share):>10.2f}{spread:<16}"
        )
        if OURS in rows and name != OURS:
            line += _compared(rows[OURS], row, seeds)
        if len(row.seeds) < seeds:
            line += f"  found in {len(row.seeds)} of {seeds} seeds"
        lines.append(line)
    return "\n".join(lines)


def _compared(ours: Row, theirs: Row, seeds: int) -> str:
    both = sorted(set(ours.seeds) & set(theirs.seeds))
    if not both:
        return "  not compared: no seed with which both found something"
    right = [row.right[[row.seeds.index(seed) for seed in both]] for row in (ours, theirs)]
    d = compare(*right)
    interval = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
    some = f", {len(both)} of {seeds} seeds" if len(both) < seeds else ""
    return f"{interval:>22}{d.p:>8.3f} {d.verdict} (over {d.over}{some})"


def timed_again(contest: Contest, rows: Mapping[str, Row], share: float) -> str:
    """Time what was found once more, at length and from no memory; return a line for each method.

    The best of hundreds of brief timings is among those that erred in its favour.
    """
    network, lines = contest.task.bench.network, []

    def measured(policy: Policy) -> float:
        return contest.task.measured(contest.objective, policy, at_length=True)

    limit = share * measured(Policy.uniform(network, FLOAT32))
    for name, row in rows.items():
        costs = np.array([measured(contest.policy(index)) for index in row.index])
        least, most = (format_quantity(cost, Unit.SECONDS) for cost in (costs.min(), costs.max()))
        lines.append(
            f"  {name:<15} timed again at length: {least}..{most}, at most "
            f"{format_quantity(limit, Unit.SECONDS)}, met with {(costs <= limit).sum()} of "
            f"{len(costs)} seeds"
        )
    return "\n".join(lines)


def run_task(
    task: Task, objectives: Mapping[str, Objective], options: argparse.Namespace, memory: Memory
) -> None:
    """Print the table of every objective and budget."""
    oracle = task.oracles["test"]
    error = 100 * 0.5 / np.sqrt(oracle.count)
    print(
        f"{task.name}: {len(task.bench.network.layers)} layers, "
        f"{task.oracles['search'].count} search images, {oracle.count} unseen ones (standard "
        f"error of one accuracy at most {error:.1f} points); {options.evaluations} evaluations, "
        f"{options.seeds} seeds"
    )
    for name, objective in objectives.items():
        free = task.problem(objective)
        for limit in objective.limits:
            if options.limit and limit.name not in options.limit:
                continue
            value = task.limit(objective, free, limit)
            unit = free.tables[objective.metric].unit
            label = f"{name} {limit.name}"
            print(f"\n{task.name}, {label}: at most {format_quantity(value, unit)}", flush=True)
            problem = replace(free, budgets={objective.metric: value})
            contest = Contest(task, objective, problem, memory, label, limit.share, options.reward)
            if (whole := contest.whole_limit) is not None:
                print(f"  as a whole, measured: at most {format_quantity(whole, unit)}")
            try:
                rows = compete(contest, options.methods, options.seeds, options.evaluations)
            except BudgetError as error_:
                print(f"  unreachable: {error_}")
                continue
            if rows:
                print(table(rows, options.seeds), flush=True)
                if contest.whole_limit is not None and limit.share is not None:
                    print(timed_again(contest, rows, limit.share), flush=True)


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        make_searcher(name)  # says that there is none
    return names


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="digits, one budget, few evaluations")
    parser.add_argument("--cache", type=Path, help="folder of what is known; none by default")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="repeat for several")
    parser.add_argument("--objective", action="append", choices=list(OBJECTIVES))
    limits = dict.fromkeys(limit.name for each in OBJECTIVES.values() for limit in each.limits)
    parser.add_argument("--limit", action="append", choices=list(limits), help="all by default")
    parser.add_argument("--methods", type=_names, default=[*METHODS], help="comma-separated")
    parser.add_argument("--reward", choices=("kl", "accuracy"), default="kl")
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = None
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
        path = options.cache / "known.jsonl"
    memory = Memory(path)
    if options.quick:
        options.evaluations, options.seeds = 5, 2
        size = OBJECTIVES["size"]
        small = replace(size, choices="w2a8,w3a8,w8a8", limits=size.limits[:1])
        run_task(digits(options.cache, images=120), {"size": small}, options, memory)
        return 0
    chosen = {name: OBJECTIVES[name] for name in options.objective or OBJECTIVES}
    for name in options.task or ("fashion-mobilenet", "fashion-resnet"):
        try:
            task = TASKS[name](options.cache)
        except QuantmeterError as error:
            print(f"{name} is left out: {error}")
            continue
        run_task(task, chosen, options, memory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
