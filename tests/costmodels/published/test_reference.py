"""The published tables themselves, where they are: they are no part of the project."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from benchmarks.networks import NETWORKS
from costmodels.errors import TableError
from costmodels.pricing import total
from costmodels.published.binding import read_table
from costmodels.published.content import Stated
from costmodels.table import CostTable, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import parse_choices
from quantization.network import Network
from quantization.policy import PolicyBatch
from quantization.reading import read_network
from quantization.torch_export import export_module
from search.exact import Solution, solve
from search.problem import Problem
from tests.networks import uniform

FOLDER = Path(__file__).parents[4] / "shared" / "reference"
HAQ = FOLDER / "haq_mobilenetv2_cycles.npy"

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the published tables are not beside the project"
)

LIMITS = {"resnet18": (0.198416, 4.2201e-3), "resnet50": (0.051811, 9.7589e-3)}
"""Objective and latency of the exact optimum halfway between all-INT4 and all-INT8."""


def uniform_cost(table: CostTable, network: Network, bits: str) -> float:
    [cost] = total(table, network, PolicyBatch.of(network, [uniform(network, bits)]))
    return float(cost)


@pytest.fixture(scope="module")
def mobilenet_v2(mobilenet_model: onnx.ModelProto) -> Network:
    return read_network(mobilenet_model)


@pytest.fixture(scope="module")
def cycles(mobilenet_v2: Network) -> CostTable:
    stated = Stated(batch=16, device="accelerator simulator")
    return read_table("haq", HAQ, mobilenet_v2, stated)


def test_the_table_is_of_the_53_layers_of_mobilenet_v2(
    cycles: CostTable, mobilenet_v2: Network
) -> None:
    assert len(mobilenet_v2.layers) == 53
    assert cycles.unary.value.shape == (53, 49)
    assert cycles.unit is Unit.CYCLES
    assert set(cycles.unary.provenance.ravel()) == {Provenance.ANALYTICAL.value}


def test_uniform_8_bits_cost_39_62_million_cycles(cycles: CostTable, mobilenet_v2: Network) -> None:
    assert round(uniform_cost(cycles, mobilenet_v2, "w8a8") / 1e6, 2) == 39.62


@pytest.mark.parametrize(
    ("bits", "share"), [("w6a6", 0.673), ("w5a5", 0.528), ("w4a4", 0.397), ("w2a2", 0.178)]
)
def test_fewer_bits_cost_the_published_share(
    cycles: CostTable, mobilenet_v2: Network, bits: str, share: float
) -> None:
    eight = uniform_cost(cycles, mobilenet_v2, "w8a8")
    assert round(uniform_cost(cycles, mobilenet_v2, bits) / eight, 3) == share


def test_weights_and_activations_are_not_exchanged(
    cycles: CostTable, mobilenet_v2: Network
) -> None:
    array = np.load(HAQ)
    assert uniform_cost(cycles, mobilenet_v2, "w4a8") == array[:, 3, 7].sum()
    assert uniform_cost(cycles, mobilenet_v2, "w8a4") == array[:, 7, 3].sum()
    assert array[:, 3, 7].sum() != array[:, 7, 3].sum()


def test_a_network_of_other_layers_is_refused(resnets: dict[str, Network]) -> None:
    with pytest.raises(TableError, match="53 layers in the file, 21 in the network"):
        read_table("haq", HAQ, resnets["resnet18"])


def _paper_variant(module: torch.nn.Module) -> torch.nn.Module:
    """Move the strides of a ResNet-50 to the first 1x1 convolutions, as in the first paper."""
    for block in module.modules():
        layers = [part for part in block.children() if isinstance(part, torch.nn.Sequential)]
        if type(block).__name__ != "Shortcut":
            continue
        convolutions = [p for p in layers[0].modules() if isinstance(p, torch.nn.Conv2d)]
        convolutions[0].stride, convolutions[1].stride = (
            convolutions[1].stride,
            convolutions[0].stride,
        )
    return module


def _export(module: torch.nn.Module) -> Network:
    return read_network(export_module(module.eval(), torch.zeros(1, 3, 224, 224)))


@pytest.fixture(scope="module")
def resnets() -> dict[str, Network]:
    """ResNet-18, and ResNet-50 as HAWQ's authors measured it."""
    torch.manual_seed(0)
    return {
        "resnet18": _export(NETWORKS["resnet18"]()),
        "resnet50": _export(_paper_variant(NETWORKS["resnet50"]())),
    }


def published(name: str) -> Any:
    return json.loads((FOLDER / f"hawq_{name}_t4.json").read_text())


def imported(name: str, network: Network) -> CostTable:
    """HAWQ has no rows for the first and the last layer, which stay at 8 bits."""
    ends = [network.layer_names[0], network.layer_names[-1]]
    return read_table("hawq", FOLDER / f"hawq_{name}_t4.json", network, without=ends)


@pytest.mark.parametrize("name", LIMITS)
def test_weights_and_multiply_accumulates_are_those_of_the_network(
    name: str, resnets: dict[str, Network]
) -> None:
    table = imported(name, resnets[name])
    assert len(table.source["checked"]) == 3
    assert (table.unit, table.source["device"]) == (Unit.SECONDS, "nvidia_t4")
    assert table.choices == parse_choices("w4a4,w8a8")


@pytest.mark.parametrize("name", LIMITS)
def test_the_layers_without_rows_are_found_by_counts(
    name: str, resnets: dict[str, Network]
) -> None:
    network = resnets[name]
    rows = len(network.layers) - 2
    ends = f"--without {network.layer_names[0]},{network.layer_names[-1]}"
    message = f"{rows} layers in the file, {rows + 2} in the network.*{ends}$"
    with pytest.raises(TableError, match=message):
        read_table("hawq", FOLDER / f"hawq_{name}_t4.json", network)


def test_the_usual_resnet_50_has_other_layers_and_that_is_said() -> None:
    network = _export(NETWORKS["resnet50"]())
    with pytest.raises(
        TableError, match=r"multiply-accumulates differ at 3 of 52 layers: .*102,760,448"
    ):
        imported("resnet50", network)


@pytest.mark.parametrize("name", LIMITS)
def test_the_published_latency_lies_between_all_int4_and_all_int8(
    name: str, resnets: dict[str, Network]
) -> None:
    network = resnets[name]
    table = imported(name, network)
    four, eight = (uniform_cost(table, network, bits) for bits in ("w4a4", "w8a8"))
    columns = published(name)["latency_ms_nvidia_t4"]
    assert four == pytest.approx(1e-3 * sum(columns["4"]), rel=1e-12)
    assert eight == pytest.approx(1e-3 * sum(columns["8"]), rel=1e-12)
    assert four < LIMITS[name][1] <= (four + eight) / 2 < eight


def optimum(table: CostTable, network: Network, given: Any) -> Solution:
    """Minimise HAWQ's objective halfway between all-INT4 and all-INT8."""
    errors = given["weight_error_squared"]
    gain = np.array(given["hutchinson_trace"]) * (np.array(errors["4"]) - np.array(errors["8"]))
    loss = np.zeros((len(network.layers), 2))
    loss[1:-1, 0] = gain
    halfway = sum(uniform_cost(table, network, bits) for bits in ("w4a4", "w8a8")) / 2
    tied = network.tied(table.source["ties"])
    found = solve(
        Problem(tied, table.choices, {Metric.LATENCY: table}, {Metric.LATENCY: halfway}, loss)
    )
    assert found.proven
    return found


@pytest.mark.parametrize("name", LIMITS)
def test_the_exact_optimum_under_the_imported_latency_is_the_published_one(
    name: str, resnets: dict[str, Network]
) -> None:
    found = optimum(imported(name, resnets[name]), resnets[name], published(name))
    objective, latency = LIMITS[name]
    assert round(found.loss, 6) == objective
    assert found.costs[Metric.LATENCY] == pytest.approx(latency, abs=5e-8)


@pytest.mark.parametrize(("activations", "same"), [(4, True), (8, False)])
@pytest.mark.parametrize(("name", "giga_bits"), [("resnet18", 65.03), ("resnet50", 145.71)])
def test_published_bit_operations_say_that_int4_is_of_both_operands(
    name: str,
    giga_bits: float,
    activations: int,
    same: bool,
    resnets: dict[str, Network],
    tmp_path: Path,
) -> None:
    """MACs x w x a / 1024 of the published optimum; with 8-bit activations it would be another."""
    network, given = resnets[name], published(name)
    columns = {"4": 4 * activations, "8": 8 * 8}
    macs = {b: [m * bits / 1024 for m in given["macs_millions"]] for b, bits in columns.items()}
    (tmp_path / "bits.json").write_text(json.dumps({**given, "latency_ms_nvidia_t4": macs}))
    ends = [network.layer_names[0], network.layer_names[-1]]
    table = read_table("hawq", tmp_path / "bits.json", network, without=ends)
    cost = optimum(table, network, given).costs[Metric.LATENCY]
    assert (round(1e3 * cost, 2) == giga_bits) is same
