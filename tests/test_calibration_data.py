"""The tables that are shipped: readable, of the network that they name, and possible."""

import re
from pathlib import Path

import numpy as np
import pytest

from costmodels.pricing import total
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import FLOAT32, BitWidths
from quantization.policy import Policy, PolicyBatch
from tests.networks import Subject

FOLDER = Path(__file__).parents[1] / "calibration_data"
TABLES = sorted(FOLDER.glob("*.csv"))


def test_there_are_tables_and_each_is_described() -> None:
    described = re.findall(r"`([\w.-]+\.csv)`", (FOLDER / "README.md").read_text())
    assert sorted(set(described)) == [path.name for path in TABLES] != []


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_a_shipped_table_prices_the_shipped_network(path: Path, digits: Subject) -> None:
    table, network = CostTable.read(path), digits.network
    assert table.metric is Metric.LATENCY
    policies = [Policy.uniform(network, bits) for bits in (FLOAT32, BitWidths(8, 8))]
    floats, integers = total(table, network, PolicyBatch.of(network, policies))
    assert 1e-5 < integers < floats < 1e-2
    assert {"device", "runtime", "policies", "validation"} <= set(table.source)
    validation = table.source["validation"]
    assert validation["policies"] >= 30
    assert validation["total"]["mean_absolute"] < 0.1
    assert 0 < validation["half_width"] < 0.2
    assert np.isfinite(table.unary.value[table.supported]).all()
