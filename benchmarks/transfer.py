"""How many evaluations an agent saves that was trained on other networks, one or several.

The reward is the proxy loss under one budget, halfway between the cheapest and the dearest policy.
A cold agent searches the target; the level to reach is the best policy of the worst of its seeds,
which all of them reached. Agents that were trained on another network, and on several, continue on
the target until they reach it too. Policies are counted once, as everywhere; training on the
sources is not counted. HAWQ's two ResNets have published sensitivities and latencies of a T4
(skipped where the files are absent); the others have the analytical costs of an accelerator and
drawn sensitivities: the networks differ, the law that sensitivities shrink fourfold a bit does not.

What repair alone reaches is printed: the policy of the least loss, repaired once, no search. An
agent can pass on that much by asking for 8 bits everywhere, so the comparison runs a second time
with `mask`, where the agent itself has to keep the budget.

    python -m benchmarks.transfer [--quick] [--seeds 5] [--evaluations 300] [--constraint mask]
"""

# threads are fixed before numpy and torch start theirs
import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from benchmarks.episodes import residual_chain
from benchmarks.hawq import FOLDER, hawq_problem
from benchmarks.networks import NETWORKS
from costmodels.analytical import create
from costmodels.model import BackendContext
from costmodels.units import Metric
from quantization.bits import parse_choices
from quantization.network import Network
from quantization.reading import read_network
from quantization.torch_export import export_module
from search.problem import Problem
from search.reinforce import Reinforce, ReinforceConfig
from search.repair import repair
from search.searcher import SearchResult
from search.transfer import SavedAgent

CHOICES = parse_choices("w2a8,w4a8,w6a8,w8a8")
ACCELERATOR = "bit-serial-edge"
TARGET = "mobilenet_v2"
SOURCES = ("mobilenet_v1", "mnasnet_b1", "resnet18")
CONSTRAINTS = ("repair", "mask")
MOST = 0.5
"""Share of the cold agent's evaluations that an inherited agent may need, in every comparison."""
IMAGE = 64
"""Height and width of the images: enough for relative costs, quick to export."""


def analytical_problem(network: Network, seed: int) -> Problem:
    """Return a problem of analytical latency and drawn sensitivities, halfway in latency."""
    table = create(ACCELERATOR, BackendContext()).table(network, CHOICES, Metric.LATENCY)
    rng = np.random.default_rng(seed)
    bits = np.array([choice.weights for choice in CHOICES])
    loss = rng.lognormal(0.0, 1.5, (len(network.layers), 1)) * 0.25**bits
    free = Problem(network, CHOICES, {Metric.LATENCY: table}, {}, loss)
    ends = [np.full((1, len(network.layers)), choice, np.uint8) for choice in (0, len(bits) - 1)]
    limit = float(np.mean([free.costs(index)[Metric.LATENCY][0] for index in ends]))
    return Problem(network, CHOICES, free.tables, {Metric.LATENCY: limit}, loss)


def published_network(name: str) -> Network:
    """Return a network of `benchmarks.networks` with random weights."""
    torch.manual_seed(0)
    module = NETWORKS[name]().eval()
    return read_network(export_module(module, torch.zeros(1, 3, IMAGE, IMAGE)))


def run(
    problem: Problem,
    config: ReinforceConfig,
    seed: int,
    evaluations: int,
    inherited: Sequence[SavedAgent] = (),
) -> tuple[SearchResult, SavedAgent]:
    """Search once; return what was found and the trained agent."""
    kept: list[SavedAgent] = []
    agent = Reinforce(config, inherited=tuple(inherited), trained=kept.append)
    result = agent.search(
        problem, lambda index: -problem.proxy_loss(index), evaluations=evaluations, seed=seed
    )
    return result, kept[0]


def reached(result: SearchResult, level: float) -> float:
    """Return how many evaluations reached `level`, from 1; infinite if none did."""
    met = np.flatnonzero([trial.score >= level for trial in result.trials])
    return float(met[0] + 1) if met.size else np.inf


def compare(
    title: str,
    target: Problem,
    sources: Sequence[Problem],
    config: ReinforceConfig,
    seeds: int,
    evaluations: int,
) -> dict[str, float]:
    """Print evaluations to the level, cold and inherited; return the ratio to cold of each way.

    The ways are agents of one run, and of several where there are several sources.
    """
    cold = [run(target, config, seed, evaluations)[0] for seed in range(seeds)]
    level = min(result.archive[0].score for result in cold)
    level -= 1e-9 * abs(level)
    print(f"{title}: proxy loss to reach {-level:.5g}, {seeds} seeds, {evaluations} evaluations")
    alone = repair(target, target.lowest_loss)
    loss = np.inf if alone.rejected[0] else float(target.proxy_loss(alone.index)[0])
    print(f"  one policy repaired, no search: {loss:.5g}, reached: {-loss >= level}")
    base = _row("cold", [reached(result, level) for result in cold])
    first = [[run(s, config, seed, evaluations)[1] for s in sources] for seed in range(seeds)]
    ways = {"one run": 1, **({f"{len(sources)} runs": len(sources)} if len(sources) > 1 else {})}
    ratios = {}
    for way, count in ways.items():
        counts = [
            reached(run(target, config, 100 + seed, evaluations, agents[:count])[0], level)
            for seed, agents in enumerate(first)
        ]
        ratios[f"{title}, from {way}"] = ratio = _row(f"from {way}", counts) / base
        print(f"  ratio {ratio:.2f}", flush=True)
    return ratios


def misses(ratios: Mapping[str, float]) -> list[str]:
    """Return which comparisons need more than `MOST` of the cold evaluations, in words.

    Args:
        ratios: of the median evaluations to those of the cold agent; infinite where the level was
            not reached.
    """
    return [
        f"{name}: {ratio:.2f} of the cold evaluations, at most {MOST:g} expected"
        for name, ratio in ratios.items()
        if not ratio <= MOST
    ]


def _row(name: str, counts: Sequence[float]) -> float:
    median = float(np.median(counts))
    each = " ".join("never" if np.isinf(c) else f"{c:.0f}" for c in counts)
    print(f"  {name:12} median {median:5.0f} evaluations ({each})", flush=True)
    return median


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparisons; a full run returns 1 unless each of them halves the evaluations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="made-up chains, a small agent")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=300, help="of each search")
    parser.add_argument("--constraint", choices=CONSTRAINTS, help="both by default")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.quick:
        chains = [analytical_problem(residual_chain(n), n) for n in (2, 3, 4)]
        compare("chains", chains[0], chains[1:], ReinforceConfig(hidden=16), 2, 40)
        return 0
    ratios: dict[str, float] = {}
    for constraint in [given.constraint] if given.constraint else CONSTRAINTS:
        config = ReinforceConfig(constraint=constraint)
        for title, (target, sources) in _comparisons().items():
            ratios |= compare(
                f"{constraint}: {title}", target, sources, config, given.seeds, given.evaluations
            )
    missed = misses(ratios)
    print("\n".join(missed) or "half or fewer in every comparison")
    return int(bool(missed))


@cache
def _comparisons() -> Mapping[str, tuple[Problem, Sequence[Problem]]]:
    """Return target and sources of each comparison."""
    found: dict[str, tuple[Problem, Sequence[Problem]]] = {}
    if Path(FOLDER).is_dir():
        large, small = (hawq_problem(name) for name in ("resnet50", "resnet18"))
        found["resnet50 from resnet18"] = large, [small]
    others = [analytical_problem(published_network(n), i) for i, n in enumerate(SOURCES)]
    target = analytical_problem(published_network(TARGET), 9)
    found[f"{TARGET} from {', '.join(SOURCES)}"] = target, others
    return found


if __name__ == "__main__":
    sys.exit(main())
