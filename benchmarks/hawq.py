"""The problems that HAWQ-V3 published figures of: two ResNets on an NVIDIA T4, 4 or 8 bits a layer.

Sensitivities and latencies are read from `../shared/reference`, beside the project. The objective
is HAWQ's: the sum over the 4-bit layers of Hessian trace x (squared weight error at 4 bits less
that at 8); tied layers get equal bits, and the first and last layer, which have no figures, 8.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.networks import NETWORKS, SIZE
from costmodels.published.binding import read_table
from costmodels.table import Cells
from costmodels.units import Metric
from quantization.network import Network
from quantization.policy import IndexArray
from quantization.reading import read_network
from quantization.torch_export import export_module
from search.problem import Problem

FOLDER = Path(__file__).parents[2] / "shared" / "reference"

OPTIMUM = {"resnet18": (0.198416, 4.2201e-3), "resnet50": (0.051811, 9.7589e-3)}
"""Published objective and latency, in seconds, of the exact optimum at half the span."""


def hawq_problem(name: str, span: float = 0.5, folder: Path = FOLDER) -> Problem:
    """Return the published problem of a network.

    Args:
        name: ``resnet18`` or ``resnet50``.
        span: latency limit, from all 4 bits (0) to all 8 bits (1).
        folder: where the published files are.
    """
    path = folder / f"hawq_{name}_t4.json"
    given = json.loads(path.read_text())
    network = _network(name)
    ends = [network.layer_names[0], network.layer_names[-1]]
    table = read_table("hawq", path, network, without=ends)
    errors = given["weight_error_squared"]
    loss = np.zeros((len(network.layers), 2))
    loss[1:-1, 0] = given["hutchinson_trace"] * (np.array(errors["4"]) - np.array(errors["8"]))
    tied = network.tied(table.source["ties"])
    unary = table.unary.value.copy()
    unary[[0, -1], 0] = np.inf
    table = replace(table, unary=Cells.of(unary, table.unary.provenance))
    free = Problem(tied, table.choices, {Metric.LATENCY: table}, {}, loss)
    four, eight = (free.costs(_all(free, choice))[Metric.LATENCY][0] for choice in (0, 1))
    limit = float(four + span * (eight - four))
    return Problem(tied, table.choices, free.tables, {Metric.LATENCY: limit}, loss)


def _network(name: str) -> Network:
    """Return the network as HAWQ's authors measured it, with random weights."""
    torch.manual_seed(0)
    module = NETWORKS[name]()
    if name == "resnet50":
        _stride_first(module)
    return read_network(export_module(module.eval(), torch.zeros(1, 3, SIZE, SIZE)))


def _stride_first(module: nn.Module) -> None:
    """Move the strides of a ResNet-50 to the first 1x1 convolutions, as in the first paper."""
    for block in module.modules():
        paths = [part for part in block.children() if isinstance(part, nn.Sequential)]
        if type(block).__name__ != "Shortcut":
            continue
        first, second, *_ = (part for part in paths[0].modules() if isinstance(part, nn.Conv2d))
        first.stride, second.stride = second.stride, first.stride


def _all(problem: Problem, choice: int) -> IndexArray:
    decisions = np.full((1, len(problem.groups)), choice, np.uint8)
    allowed = problem.allowed_decisions
    decisions[0] = np.where(allowed[:, choice], choice, allowed.argmax(1))
    return problem.expand(decisions)
