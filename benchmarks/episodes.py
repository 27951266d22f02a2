"""How many episodes a second REINFORCE runs on one core, against the bare torch passes.

The objective is a table: 53 layers, 6 choices, a latency and a size budget that no random policy
meets. A bare update samples the same LSTM for as many steps with as many trajectories, then runs
one teacher-forced pass, the loss, the backward pass and Adam: no states, masks, costs, repair or
bookkeeping. Updates and bare updates alternate; the ratio is the median over pairs.

    python -m benchmarks.episodes [--quick]
"""

# threads are fixed before numpy and torch start theirs
import os

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import argparse
import sys
from collections.abc import Callable
from time import perf_counter

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from costmodels.table import Cells, CostTable, FloatArray, Provenance
from costmodels.units import SI_UNIT, Metric
from quantization.bits import DEFAULT_CHOICES, formats_of
from quantization.network import Network
from quantization.policy import IndexArray
from quantization.reading import read_network
from search.agent import Agent, Stepper, mask_penalty
from search.environment import Environment
from search.problem import Problem
from search.reinforce import Reinforce, ReinforceConfig
from search.searcher import Trial

LIMIT = 1.5
"""An update may cost this many bare updates."""


def residual_chain(blocks: int = 17) -> Network:
    """Return a chain of inverted residual blocks: 2 + 3 * `blocks` layers, random weights."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def conv(x: str, name: str, inputs: int, outputs: int, kernel: int = 1, groups: int = 1) -> str:
        shape = (outputs, inputs // groups, kernel, kernel)
        value = rng.normal(size=shape).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"{name}.w"))
        pads = [kernel // 2] * 4
        nodes.append(
            helper.make_node("Conv", [x, f"{name}.w"], [name], name, group=groups, pads=pads)
        )
        return name

    def glue(kind: str, *inputs: str) -> str:
        name = f"{inputs[-1]}.{kind}"
        nodes.append(helper.make_node(kind, inputs, [name], name))
        return name

    x = glue("Relu", conv("x", "stem", 3, 16, 3))
    for block in range(blocks):
        hidden = 16 * (2 + block % 5)
        y = glue("Relu", conv(x, f"b{block}.expand", 16, hidden))
        y = glue("Relu", conv(y, f"b{block}.depthwise", hidden, hidden, 3, hidden))
        y = conv(y, f"b{block}.project", hidden, 16)
        x = glue("Add", x, y) if block % 3 else y
    conv(glue("GlobalAveragePool", x), "classifier", 16, 10)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("classifier", TensorProto.FLOAT, None)],
        weights,
    )
    return read_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def random_problem(network: Network, seed: int = 0) -> Problem:
    """Return a problem with random costs whose budgets few random policies meet."""
    rng = np.random.default_rng(seed)
    choices = DEFAULT_CHOICES
    known = formats_of(choices)
    layers, glue, tensors = len(network.layers), len(network.glue), len(network.tensors)
    bits = np.array([c.weights for c in choices])
    speed = np.where([c.is_float for c in choices], 1.0, 0.35)
    latency = rng.lognormal(0, 0.7, (layers, 1)) * (speed * rng.uniform(0.7, 1.5, (layers, 1)))
    size = rng.lognormal(0, 1, (layers, 1)) * bits
    loss = rng.lognormal(0, 1.5, (layers, 1)) * 0.25**bits * rng.uniform(0.7, 1.3, latency.shape)
    tables = {}
    for metric, unary, rest in ((Metric.LATENCY, latency, 0.15), (Metric.SIZE, size, 0.0)):
        conversion = rng.uniform(0, rest, (tensors, len(known), len(known)))
        conversion[:, range(len(known)), range(len(known))] = 0
        scale = 1e-4 if metric is Metric.LATENCY else 1e4
        tables[metric] = CostTable(
            metric=metric,
            unit=SI_UNIT[metric],
            statistic="model",
            network=network.digest,
            layers=network.layer_names,
            choices=choices,
            glue_names=tuple(node.name for node in network.glue),
            tensors=tuple(tensor.name for tensor in network.tensors),
            unary=Cells.of(unary * scale, Provenance.ASSUMED),
            glue=Cells.of(rng.uniform(0, rest, (glue, len(known))) * scale, Provenance.ASSUMED),
            conversion=Cells.of(conversion * scale, Provenance.ASSUMED),
        )
    free = Problem(network, choices, tables, {}, np.where(bits == 32, 0.0, loss))
    total = free.costs(np.full((1, layers), len(choices) - 1, np.uint8))
    budgets = {
        Metric.LATENCY: 0.6 * total[Metric.LATENCY][0],
        Metric.SIZE: 0.12 * total[Metric.SIZE][0],
    }
    return Problem(network, choices, tables, budgets, free.loss)


class BareUpdate:
    """An update of the same LSTM on the same shapes, and nothing else.

    Args:
        environment: its shapes are taken.
        rollouts: trajectories of an update.
        hidden: hidden units.
        fused: sample with the agent's own single steps instead of those of `torch.nn.LSTM`.
    """

    def __init__(
        self, environment: Environment, rollouts: int, hidden: int, *, fused: bool
    ) -> None:
        steps, choices = environment.mask.shape
        self._agent = Agent(environment.feature_count, choices, hidden)
        self._penalty = mask_penalty(environment.mask)[:, None]
        self._optimizer = torch.optim.Adam(self._agent.parameters(), lr=1e-6, fused=True)
        self._states = torch.randn(steps, rollouts, environment.feature_count)
        self._fused = fused

    def __call__(self) -> None:
        """Run one update."""
        with torch.no_grad():
            taken = self._fused_steps() if self._fused else self._steps()
        log_p = self._agent(self._states, self._penalty).gather(2, taken[:, :, None])
        self._optimizer.zero_grad()
        (-log_p.mean()).backward()
        self._optimizer.step()

    def _steps(self) -> torch.Tensor:
        agent, hidden, taken = self._agent, None, []
        for state in self._states:
            out, hidden = agent.lstm(state[None], hidden)
            weights = torch.softmax(agent.head(out[0]), dim=1)
            taken.append(torch.multinomial(weights, 1)[:, 0])
        return torch.stack(taken)

    def _fused_steps(self) -> torch.Tensor:
        stepper = Stepper(self._agent, self._states.shape[1])
        weights = [torch.softmax(stepper.step(state), dim=1) for state in self._states]
        return torch.stack([torch.multinomial(w, 1)[:, 0] for w in weights])


def alternate(problem: Problem, updates: int) -> dict[str, FloatArray]:
    """Return seconds of each update of the search, and of the bare updates run in between.

    The bare updates run when the first policy of an update was scored.
    """
    config = ReinforceConfig(episodes=10 * (updates + 1), rollouts=10)
    environment = Environment(problem)
    bare: dict[str, Callable[[], None]] = {
        "torch.nn.LSTM steps": BareUpdate(environment, 10, config.hidden, fused=False),
        "the agent's own steps": BareUpdate(environment, 10, config.hidden, fused=True),
    }
    seconds: dict[str, list[float]] = {"update": [], **{name: [] for name in bare}}
    resumed: list[float] = []
    origins: list[str] = []

    def score(index: IndexArray) -> FloatArray:
        return -problem.proxy_loss(index)

    def record(trial: Trial) -> None:
        if origins[-1:] == [trial.origin]:
            return
        if resumed:
            seconds["update"].append(perf_counter() - resumed[-1])
        for name, run in bare.items():
            start = perf_counter()
            run()
            seconds[name].append(perf_counter() - start)
        origins.append(trial.origin)
        resumed.append(perf_counter())

    log = Reinforce(config).search(problem, score, evaluations=10**9, seed=0, record=record).log
    print(
        f"{log['episodes']:.0f} episodes, {log['distinct_policies']:.0f} distinct policies, "
        f"{log['repaired_share']:.0%} repaired, {log['rejected_share']:.0%} rejected"
    )
    return {name: np.array(values) for name, values in seconds.items()}


def main() -> int:
    """Print the figures; return 1 if in a full run an update costs more than `LIMIT` bare ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 updates instead of 100")
    quick = parser.parse_args().quick
    updates = 5 if quick else 100
    torch.set_num_threads(1)
    problem = random_problem(residual_chain())
    seconds = alternate(problem, updates)
    update = seconds.pop("update")
    median = float(np.median(update))
    print(f"update            {1e3 * median:6.1f} ms, {10 / median:.0f} episodes a second")
    ratios = []
    for name, values in seconds.items():
        pairs = min(len(values), len(update))
        ratios.append(float(np.median(update[:pairs] / values[:pairs])))
        print(f"bare, {name:22s} {1e3 * np.median(values):6.1f} ms, ratio {ratios[-1]:.2f}")
    if quick:
        return 0  # too short to judge
    print(f"limit {LIMIT} of torch.nn.LSTM: {'met' if ratios[0] <= LIMIT else 'MISSED'}")
    return int(ratios[0] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
