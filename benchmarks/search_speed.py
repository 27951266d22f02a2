"""How long a search takes: by accuracy on images, and by policies that are timed as a whole.

    python benchmarks/search_speed.py             # minutes
    python benchmarks/search_speed.py --quick     # the demo's network, for the test

First, evaluations of the MobileNetV2-style Fashion-MNIST network on 2,000 images by REINFORCE, in
one process of two threads: with the agent's own time, and apart from it the sensitivities that come
before. Then, on the demo's network, episodes of which each policy's latency is measured.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

# Run as a script, Python puts benchmarks/ on the path, not the checkout it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fashion.tasks import fashion_bench
from costmodels.model import BackendContext
from quantization.bits import parse_choices
from quantmeter.costs import parse_costs
from quantmeter.data import Data
from quantmeter.method_run import run_method
from quantmeter.preparing import Prepared, prepare
from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task
from quantmeter.scoring import Scorer, open_totals
from quantmeter.workbench import Workbench, open_workbench
from search.budgets import parse_budgets
from search.greedy import greedy_policy

CHOICES = parse_choices("w2a8,w3a8,w4a8,w6a8,w8a8,w32a32")
TARGET_S = 120.0
"""Wall time of 300 evaluations on 2,000 images on 2 cores, the sensitivities included."""


def main() -> int:
    """Time both searches, print their figures; 1 if the target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2, help="of the accuracy simulation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few evaluations of few images")
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.quick else arguments.threads)
    evaluations = 10 if arguments.quick else arguments.evaluations
    digits = load_digits_task()
    few = Data(digits.unseen_images[:60], digits.unseen_labels[:60])
    prepared, prepared_s = _prepare(
        open_workbench(SHIPPED_MODEL, few) if arguments.quick else fashion_bench("mobilenet")
    )
    searched_s = _by_accuracy(prepared, evaluations, arguments.seed)
    count = prepared.oracle.count
    print(f"sensitivities    {prepared_s:.1f} s on {count:,} images")
    print(f"search           {searched_s:.1f} s for {evaluations} evaluations")
    print(f"an evaluation    {1e3 * searched_s / evaluations:.0f} ms, the agent's part included")
    rate, timed = _measured(few, evaluations, arguments.seed)
    print(f"measured         {rate:.0f} episodes a minute, {timed} of them timed")
    if arguments.quick:
        return 0
    met = prepared_s + searched_s <= TARGET_S
    print("target met" if met else f"TARGET MISSED: {TARGET_S:g} s")
    return 0 if met else 1


def _prepare(bench: Workbench) -> tuple[Prepared, float]:
    """Return what a search by accuracy stands on, and the seconds that sensitivities took."""
    assert bench.simulation  # built before the clock starts
    costs = parse_costs(["analytical:haq"], BackendContext())
    began = time.perf_counter()
    prepared = prepare(bench, costs, parse_budgets(["size=0.25x"]), CHOICES)
    return prepared, time.perf_counter() - began


def _by_accuracy(prepared: Prepared, evaluations: int, seed: int) -> float:
    """Return the seconds of a search that starts from what greedy search finds."""
    greedy = greedy_policy(prepared.problem)
    began = time.perf_counter()
    result = run_method(
        prepared,
        "reinforce",
        episodes=evaluations,
        seed=seed,
        start=None if greedy is None else greedy[0],
    )
    assert 0 < result.evaluations <= evaluations
    return (time.perf_counter() - began) * evaluations / result.evaluations


def _measured(data: Data, episodes: int, seed: int) -> tuple[float, int]:
    """Search the demo's network with its latency measured: episodes a minute, policies timed."""
    bench = open_workbench(SHIPPED_MODEL, data)
    requests = parse_budgets(["latency=0.8x"])
    with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
        context = BackendContext(
            seed=seed, inputs=bench.range_inputs, store=Path(folder) / "measurements.sqlite"
        )
        costs = parse_costs(["latency=analytical:haq"], context)
        prepared = prepare(bench, costs, requests, CHOICES)
        totals = open_totals("ort", context, requests, bench.network)  # starts the worker
        scorer = Scorer(prepared, "accuracy", totals)
        began = time.perf_counter()
        result = run_method(prepared, "random", scorer=scorer, episodes=episodes, seed=seed)
        minutes = (time.perf_counter() - began) / 60
    floats = [bits.is_float for bits in prepared.problem.choices]
    patterns = {tuple(floats[int(i)] for i in trial.index) for trial in result.trials}
    return result.evaluations / minutes, len(patterns)


if __name__ == "__main__":
    sys.exit(main())
