"""Which score of a policy, on the images of a search, foretells its accuracy on images unseen.

    python benchmarks/rewards.py                  # both Fashion-MNIST networks: ten minutes
    python benchmarks/rewards.py --quick          # digits, few policies, for the test

Policies are random changes of what greedy search finds, within a size budget and close to it, such
as a search has to choose from. For each score Spearman's correlation with accuracy on the unseen
images, over all policies and over the half that is most accurate there. A loss counts with its sign
turned.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import stats

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.contest.tasks import OBJECTIVES, TASKS, Task, digits
from costmodels.table import FloatArray
from quantization.policy import IndexArray, Policy
from search.greedy import greedy_policy
from search.mutation import mutants
from search.problem import Problem
from search.sensitivity import OF_LOGITS

CLOSE = 0.93
"""Policies take at least this share of the budget."""
CHANGED = (0.1, 0.25)
"""Shares of the decisions that are drawn anew, one half of the policies each."""


def policies(problem: Problem, start: IndexArray, count: int, seed: int) -> IndexArray:
    """Return distinct policies, (count, L), around `start`, (L,), within the budget."""
    rng, kept = np.random.default_rng(seed), dict[bytes, IndexArray]()
    [budget], [metric] = problem.budgets.values(), problem.budgets
    for _ in range(1000):
        if len(kept) >= count:
            break
        tried = np.concatenate([mutants(problem, start, 50, rng, rate) for rate in CHANGED])
        shares = problem.costs(tried)[metric] / budget
        for row in tried[problem.feasible(tried) & (shares >= CLOSE)]:
            kept.setdefault(row.tobytes(), row)
    if len(kept) < count:
        raise SystemExit(f"only {len(kept)} policies lie so close to the start: ask for fewer")
    return np.array([*kept.values()][:count])


def compare(task: Task, count: int, seed: int) -> Mapping[str, tuple[float, float]]:
    """Return by score its correlation over all policies, and over the better half."""
    objective = OBJECTIVES["size"]
    free = task.problem(objective)
    value = task.limit(objective, free, objective.limits[0])
    problem = replace(free, budgets={objective.metric: value})
    start = greedy_policy(problem)
    assert start is not None
    simulation, (images, labels) = task.bench.simulation, task.bench.part("search")
    assert labels is not None
    reference = simulation.logits(Policy({}), images)
    tried = policies(problem, start[0], count, seed)
    scores: dict[str, list[float]] = {name: [] for name in OF_LOGITS}
    unseen: list[float] = []
    for policy in map(task.batch(problem, tried).__getitem__, range(count)):
        logits = simulation.logits(policy, images, simulation.correct(policy))
        for name, loss in OF_LOGITS.items():
            scores[name].append(-loss(reference, logits, labels))
        unseen.append(task.oracles["test"].score(policy))
    scores["proxy loss"] = (-problem.proxy_loss(tried)).tolist()
    truth = np.array(unseen)
    better = np.argsort(-truth, kind="stable")[: count // 2]
    print(
        f"{task.name}: {count} policies, unseen accuracy {100 * truth.min():.2f} to "
        f"{100 * truth.max():.2f} %, median {100 * np.median(truth):.2f} %"
    )
    return {
        name: (_spearman(np.array(s), truth), _spearman(np.array(s)[better], truth[better]))
        for name, s in scores.items()
    }


def _spearman(scores: FloatArray, truth: FloatArray) -> float:
    return float(stats.spearmanr(scores, truth).statistic)


def main() -> int:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--policies", type=int, default=150, help="at least 6")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="folder where sensitivities are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made: Mapping[str, Callable[[Path | None], Task]] = (
        {"digits": lambda folder: digits(folder, images=120)}
        if options.quick
        else {name: TASKS[name] for name in ("fashion-mobilenet", "fashion-resnet")}
    )
    for make in made.values():
        found = compare(make(options.cache), 8 if options.quick else options.policies, options.seed)
        print(f"  {'':<15}{'all':>8}{'better half':>13}")
        for name, (whole, half) in found.items():
            print(f"  {name:<15}{whole:>8.2f}{half:>13.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
