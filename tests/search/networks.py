"""Small networks, random tables and problems for the tests of the search."""

import itertools
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from costmodels.table import Cells, CostTable, FloatArray, Once, Provenance
from costmodels.units import SI_UNIT, Metric
from quantization.bits import BitWidths, formats_of, parse_choices
from quantization.network import Network
from quantization.policy import IndexArray
from quantization.reading import read_network
from search.agent import AnyEnvironment
from search.environment import Rollouts
from search.problem import Problem
from search.staged import StagedRollouts


class Graph:
    """An ONNX graph under construction; every tensor has 8 channels of 4x4."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def conv(self, x: str, name: str, kernel: int = 1, groups: int = 1, inputs: int = 8) -> str:
        shape = (8, inputs // groups, kernel, kernel)
        weights = np.full(shape, 0.01 * (1 + len(self._weights)), np.float32)
        self._weights.append(numpy_helper.from_array(weights, f"{name}.w"))
        pads = [kernel // 2] * 4
        self._nodes.append(
            helper.make_node("Conv", [x, f"{name}.w"], [name], name, group=groups, pads=pads)
        )
        return name

    def glue(self, kind: str, inputs: Sequence[str], name: str, **attributes: int) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def network(self, *outputs: str) -> Network:
        graph = helper.make_graph(
            self._nodes,
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self._weights,
        )
        return read_network(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


@lru_cache
def chain() -> Network:
    """Four convolutions with activations, no joins."""
    g = Graph()
    x = g.glue("Relu", [g.conv("x", "a")], "a.relu")
    x = g.glue("Sigmoid", [g.conv(x, "b", 3, 8)], "b.act")
    x = g.conv(x, "c")
    return g.network(g.conv(x, "d"))


@lru_cache
def residual() -> Network:
    """Two residual additions in a row: a join of a join, and tensors with three readers."""
    g = Graph()
    a = g.conv("x", "a")
    b = g.glue("Relu", [g.conv(a, "b")], "b.relu")
    first = g.glue("Add", [a, b], "add1")
    c = g.conv(first, "c", 3, 8)
    second = g.glue("Add", [first, c], "add2")
    d, e = g.conv(second, "d"), g.conv(second, "e")
    return g.network(g.glue("Add", [d, e], "add3"))


@lru_cache
def branches() -> Network:
    """A concatenation of three branches, one in float, and a reader of the network's input."""
    g = Graph()
    a = g.conv("x", "a")
    b = g.glue("Relu", [g.conv(a, "b")], "b.relu")
    c = g.glue("HardSwish", [g.conv(a, "c")], "c.swish")
    d = g.conv("x", "d")
    joined = g.glue("Concat", [b, d, a], "concat", axis=1)
    wide = g.conv(joined, "e", inputs=24)
    mixed = g.glue("Add", [c, wide], "add")
    return g.network(g.glue("HardSwish", [mixed], "swish"), d)


@lru_cache
def gated() -> Network:
    """Squeeze-and-excite like: a float-only operator between two joins."""
    g = Graph()
    a = g.conv("x", "a")
    gate = g.glue("HardSigmoid", [g.conv(g.glue("GlobalAveragePool", [a], "pool"), "b")], "gate")
    scaled = g.glue("Mul", [a, gate], "mul")
    c = g.conv(scaled, "c", 3, 8)
    swish = g.glue("HardSwish", [g.glue("Add", [c, a], "add")], "swish")
    return g.network(g.conv(swish, "d"))


@lru_cache
def deep() -> Network:
    """Fourteen convolutions, every third behind a residual addition."""
    g = Graph()
    x = "x"
    for i in range(14):
        y = g.glue("Relu", [g.conv(x, f"conv{i}")], f"relu{i}")
        x = g.glue("Add", [x, y], f"add{i}") if i % 3 == 2 else y
    return g.network(x)


NETWORKS = (chain, residual, branches, gated)
CHOICES = parse_choices("w4a8,w8a8,w32a32")
RICH_CHOICES = parse_choices("w4a4,w8a8,fp16,w32a32")


def random_table(
    network: Network,
    metric: Metric,
    seed: int,
    *,
    choices: Sequence[BitWidths] = CHOICES,
    negative: bool = False,
    masked: float = 0.0,
    unsupported: float = 0.0,
    once: float = 0.0,
) -> CostTable:
    """Draw a table in which fewer bits tend to cost less.

    Args:
        network: its network.
        metric: what it prices.
        seed: of the values.
        choices: bit-widths.
        negative: whether half of the conversions gain something.
        masked: share of (layer, choice) cells without support; the last choice always has it.
        unsupported: share of conversion and integer glue cells without support.
        once: what half of the cells of all choices but the last bring about, paid once; in the
            unit of `constant`, 0.1.
    """
    rng = np.random.default_rng([seed, list(Metric).index(metric)])
    known = formats_of(choices)
    layers, glue, tensors = len(network.layers), len(network.glue), len(network.tensors)
    bits = np.array([c.weights for c in choices]) / 32
    unary = rng.uniform(0.5, 2.0, (layers, 1)) * (0.2 + bits) * rng.uniform(0.8, 1.2, 1)
    unary[:, :-1][rng.random((layers, len(choices) - 1)) < masked] = np.inf
    running = rng.uniform(0.05, 0.3, (glue, len(known)))
    running[:, :-1][rng.random((glue, len(known) - 1)) < unsupported] = np.inf
    crossing = rng.uniform(-0.3 if negative else 0.0, 0.3, (tensors, len(known), len(known)))
    crossing[rng.random(crossing.shape) < unsupported] = np.inf
    crossing[:, range(len(known)), range(len(known))] = 0.0
    marked = rng.random(unary.shape) < 0.5
    marked[:, -1] = False
    scale = {Metric.LATENCY: 1e-3, Metric.ENERGY: 1e-4, Metric.SIZE: 1e5}[metric]
    return CostTable(
        metric=metric,
        unit=SI_UNIT[metric],
        statistic="model",
        network=network.digest,
        layers=network.layer_names,
        choices=tuple(choices),
        glue_names=tuple(node.name for node in network.glue),
        tensors=tuple(tensor.name for tensor in network.tensors),
        unary=Cells.of(unary * scale, Provenance.ASSUMED),
        glue=Cells.of(running * scale, Provenance.ASSUMED),
        conversion=Cells.of(crossing * scale, Provenance.ASSUMED),
        constant=0.1 * scale,
        once=Once(once * scale, marked) if once else None,
    )


def random_loss(network: Network, seed: int, choices: Sequence[BitWidths] = CHOICES) -> FloatArray:
    """Draw losses (L, K) that shrink fourfold with each bit; float has none."""
    rng = np.random.default_rng([seed, 99])
    bits = np.array([c.weights for c in choices])
    loss = rng.lognormal(0.0, 1.0, (len(network.layers), 1)) * 0.25 ** bits.clip(max=16)
    loss = loss * rng.uniform(0.7, 1.3, loss.shape)
    return np.where([c.is_float for c in choices], 0.0, loss)


def problem(
    network: Network,
    seed: int,
    fractions: Mapping[Metric, float],
    *,
    choices: Sequence[BitWidths] = CHOICES,
    negative: bool = False,
    masked: float = 0.0,
    unsupported: float = 0.0,
    once: float = 0.0,
) -> Problem:
    """Draw a problem whose budgets are fractions of what the last choice costs everywhere."""
    tables = {
        metric: random_table(
            network,
            metric,
            seed,
            choices=choices,
            negative=negative,
            masked=masked,
            unsupported=unsupported,
            once=once,
        )
        for metric in fractions
    }
    loss = random_loss(network, seed, choices)
    free = Problem(network, tuple(choices), tables, {}, loss)
    widest = np.full((1, len(network.layers)), len(choices) - 1, np.uint8)
    totals = free.costs(widest)
    budgets = {m: float(f * totals[m][0]) for m, f in fractions.items()}
    budgets = {m: b if np.isfinite(b) else 1.0 for m, b in budgets.items()}
    return Problem(network, tuple(choices), tables, budgets, loss)


def replayed(environment: AnyEnvironment, actions: IndexArray) -> Rollouts | StagedRollouts:
    """Return the complete rollouts that take `actions`, (P, steps)."""
    rollouts = environment.begin(len(actions))
    for action in actions.T:
        rollouts.step(action.astype(np.intp))
    return rollouts


def every_policy(given: Problem) -> IndexArray:
    """Return all policies that respect the ties, (K^G, L)."""
    rows = itertools.product(range(len(given.choices)), repeat=len(given.groups))
    return given.expand(np.array(list(rows), np.uint8))
