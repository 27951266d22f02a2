"""Search methods against each other: same start, same repair, same counted evaluations.

    python benchmarks/rivals.py --cache runs/rivals                       # everything: hours
    python benchmarks/rivals.py --cache runs/rivals --task fashion-mobilenet --objective size
    python benchmarks/rivals.py --quick                                   # digits, for the test

A policy is scored once, whichever method and seed asks for it: scores, and finished searches, are
kept in --cache, so that a run that was ended goes on, and parts of it can be run one by one. Each
search still counts every distinct policy that it asks for.

Methods that iterate start from what greedy search finds; warm-started evolution is the control for
any claim. Accuracies are medians over seeds on images that no search saw, with the least and the
most of any seed. Exact and greedy look at cross-entropy sensitivities, zero-shot at Fisher
information, for which no quantized network is run. `REINFORCE less this` is the paired difference
over seeds (see `contest.comparison`), in points, with its 95 % interval.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contest.comparison import compare
from benchmarks.contest.memory import Memory
from benchmarks.contest.tasks import OBJECTIVES, TASKS, Objective, Task, digits
from costmodels.table import BoolArray, FloatArray
from costmodels.units import format_quantity
from quantization.bits import FLOAT32
from quantization.errors import BudgetError, QuantmeterError
from quantization.policy import IndexArray, Policy
from search.greedy import greedy_policy
from search.methods import METHODS, MethodSettings, make_searcher
from search.problem import Problem

OURS = "reinforce"
SOURCE = Path(__file__).resolve().parent.parent / "search"
ZERO_SHOT = "fisher"
"""The proxy of zero-shot: gradients of the float network; no quantized network runs."""


@dataclass(frozen=True, eq=False)
class Contest:
    """One task under one budget.

    Args:
        task: network and images.
        objective: what is limited.
        problem: with its budget.
        memory: what is known.
        label: of objective and budget.
        share: the budget as a fraction of the float network, if it is one.
    """

    task: Task
    objective: Objective
    problem: Problem
    memory: Memory
    label: str
    share: float | None = None

    def evaluate(self, index: IndexArray) -> FloatArray:
        """Return accuracies (P,) on the search part; -inf above the budget as measured."""
        return np.array([self._score(row) for row in index])

    def _score(self, row: IndexArray) -> float:
        policy = self.task.batch(self.problem, row[None])[0]
        if self.whole_limit is not None and self._measured(policy) > self.whole_limit:
            return -np.inf
        key = f"search {self.task.identity} {_text(self.problem, row)}"
        oracle = self.task.oracles["search"]
        return float(self.memory.recall(key, lambda: oracle.score(policy)))

    def _measured(self, policy: Policy) -> float:
        key = f"measured {self.task.identity} {self.objective.cost} {policy.to_json()}"
        measure = partial(self.task.measured, self.objective, policy)
        return float(self.memory.recall(key, measure))

    @cached_property
    def whole_limit(self) -> float | None:
        """The most that a policy may cost as a whole; None where none is measured so.

        The same share of the float network as the budget, both measured.
        """
        if not self.objective.whole or self.share is None:
            return None
        return self.share * self._measured(Policy.uniform(self.task.bench.network, FLOAT32))

    def search(self, method: str, seed: int, evaluations: int, start: IndexArray) -> dict[str, Any]:
        """Return the policy that a method finds, its score, and how many it scored."""
        proxy = None
        if method == "zero-shot":
            proxy = self.task.loss(self.problem.choices, ZERO_SHOT)
        settings = MethodSettings(start=start, proxy=proxy)

        def run() -> dict[str, Any]:
            searcher = make_searcher(method, settings)
            found = searcher.search(self.problem, self.evaluate, evaluations=evaluations, seed=seed)
            best = None if found.best is None else found.best.tolist()
            return {"best": best, "evaluations": found.evaluations}

        limits = [float(limit) for limit in self.problem.budgets.values()]
        choices = ",".join(map(str, self.problem.choices))
        what = f"{self.task.identity} {self.label} {limits} {choices} {start.tolist()}"
        key = f"run {method} {seed} {evaluations} {what} {_source_digest()}"
        result: dict[str, Any] = self.memory.recall(key, run)
        return result

    def right(self, row: IndexArray) -> BoolArray:
        """Return which unseen images a policy, (L,), classifies right, (N,)."""
        key = f"unseen {self.task.identity} {_text(self.problem, row)}"

        def find() -> str:
            return np.packbits(self.task.right(self.problem, row)).tobytes().hex()

        bits = np.frombuffer(bytes.fromhex(self.memory.recall(key, find)), np.uint8)
        return np.unpackbits(bits)[: self.task.oracles["test"].count].astype(bool)


def _text(problem: Problem, row: IndexArray) -> str:
    return ",".join(str(problem.choices[choice]) for choice in row)


def _source_digest() -> str:
    """Digest of the search's own code: searches by other code are not taken from the cache."""
    content = hashlib.sha256()
    for path in sorted(SOURCE.glob("*.py")):
        content.update(path.read_bytes())
    return content.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Row:
    """What one method found under one budget, by seed."""

    evaluations: list[int]
    scores: list[float]
    right: BoolArray


def compete(
    contest: Contest, methods: Sequence[str], seeds: int, evaluations: int
) -> dict[str, Row]:
    """Run every method with every seed; those that find nothing with some seed are left out.

    Raises:
        BudgetError: if no policy meets the budget.
    """
    found = greedy_policy(contest.problem)
    if found is None:
        make_searcher("exact").search(
            contest.problem, lambda i: np.zeros(len(i)), evaluations=1, seed=0
        )
        raise BudgetError("greedy search finds no start")
    rows = {}
    for method in methods:
        runs = []
        for seed in range(seeds if METHODS[method].iterative else 1):
            runs.append(contest.search(method, seed, evaluations, found[0]))
        best = [run["best"] for run in runs]
        if any(row is None for row in best):
            above = ", all above the budget as a whole" if contest.whole_limit is not None else ""
            print(f"  {method}: nothing found{above}")
            continue
        repeat = seeds // len(runs)  # without randomness each seed gives the same
        index = np.array(best * repeat, np.uint8)
        rows[method] = Row(
            [run["evaluations"] for run in runs] * repeat,
            list(contest.evaluate(index)),
            np.array([contest.right(row) for row in index]),
        )
    return rows


def table(rows: Mapping[str, Row]) -> str:
    """Return the lines of one budget."""
    lines = [
        f"  {'method':<15}{'scored':>7}{'search %':>10}{'unseen %':>10}{'  least..most':<16}"
        f"{'REINFORCE less this':>22}{'p':>8}"
    ]
    for name, row in rows.items():
        share = 100 * row.right.mean(1)
        spread = f"  {share.min():.2f}..{share.max():.2f}"
        line = (
            f"  {name:<15}{np.median(row.evaluations):>7.0f}{100 * np.median(row.scores):>10.2f}"
            f"{np.median(share):>10.2f}{spread:<16}"
        )
        if OURS in rows and name != OURS:
            d = compare(rows[OURS].right, row.right)
            interval = f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"
            line += f"{interval:>22}{d.p:>8.3f} {d.verdict} (over {d.over})"
        lines.append(line)
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
            value = task.limit(objective, free, limit)
            unit = free.tables[objective.metric].unit
            label = f"{name} {limit.name}"
            print(f"\n{task.name}, {label}: at most {format_quantity(value, unit)}", flush=True)
            problem = replace(free, budgets={objective.metric: value})
            contest = Contest(task, objective, problem, memory, label, limit.share)
            if (whole := contest.whole_limit) is not None:
                print(f"  as a whole, measured: at most {format_quantity(whole, unit)}")
            try:
                rows = compete(contest, options.methods, options.seeds, options.evaluations)
            except BudgetError as error_:
                print(f"  unreachable: {error_}")
                continue
            if rows:
                print(table(rows), flush=True)


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
    parser.add_argument("--methods", type=_names, default=[*METHODS], help="comma-separated")
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
    chosen = {name: OBJECTIVES[name] for name in options.objective or ("size", "energy", "latency")}
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
