"""The tables and devices that are shipped: readable, described, possible, and made as they say."""

import re
from pathlib import Path

import numpy as np
import pytest

from costmodels.calibrated.backend import Calibrated
from costmodels.calibrated.device_model import DeviceModel, groups_of
from costmodels.calibrated.fitting import Rows, fit_part
from costmodels.calibrated.samples import Overhead
from costmodels.calibrated.textbook import Textbook
from costmodels.calibrated.validating import totals
from costmodels.prediction_error import PredictionError
from costmodels.pricing import total
from costmodels.table import CostTable
from costmodels.units import Metric
from hil.device_readings import read_readings
from quantization.bits import FLOAT32, BitWidths
from quantization.policy import Policy, PolicyBatch
from tests.networks import Subject

FOLDER = Path(__file__).parents[1] / "calibration_data"
TABLES = sorted(FOLDER.glob("*.csv"))
DEVICES = sorted(FOLDER.glob("*.json"))
RAW = sorted(FOLDER.glob("*.json.gz"))


def test_there_are_tables_and_each_is_described() -> None:
    described = re.findall(
        r"`([\w.-]+\.(?:csv|json|json\.gz))`", (FOLDER / "README.md").read_text()
    )
    shipped = {path.name for path in (*TABLES, *DEVICES, *RAW)}
    assert shipped <= set(described)
    assert len(TABLES) >= 1
    assert len(DEVICES) == len(RAW) >= 1


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


@pytest.mark.parametrize("path", DEVICES, ids=lambda path: path.name)
def test_a_shipped_device_prices_the_shipped_network(path: Path, digits: Subject) -> None:
    model, network = DeviceModel.read(path), digits.network
    policies = [Policy.uniform(network, bits) for bits in (FLOAT32, BitWidths(8, 8))]
    batch = PolicyBatch.of(network, policies)
    floats, integers = Calibrated(model).total(network, batch, Metric.LATENCY)
    assert 1e-5 < integers < floats < 1e-2
    assert f"{model.threads}-thread" in path.name
    assert model.validation["networks"] >= 20
    assert model.validation["total"]["mean_absolute"] < 0.15
    assert {"created_s", "measured_s", "runtime", "fitted_networks"} <= set(model.source)


@pytest.mark.parametrize("path", DEVICES, ids=lambda path: path.name)
def test_a_shipped_device_is_what_its_raw_readings_give(path: Path) -> None:
    """All but the trees, which take a minute: one group of them stands for all."""
    model = DeviceModel.read(path)
    readings = read_readings(path.with_suffix(".json.gz"))
    assert readings.measured.seconds == model.source["measured_s"]
    fitted, apart = readings.measured.fitted, readings.measured.apart
    assert len({sample.network for sample in fitted}) == model.source["fitted_networks"]
    assert len({sample.network for sample in apart}) == model.validation["networks"]
    assert Textbook.of(fitted).alpha == pytest.approx(model.textbook.alpha, rel=1e-6)
    overhead = Overhead.of(fitted)
    assert overhead.constant_s == pytest.approx(model.constant_s, rel=1e-3)
    measured = np.array([sample.total_s for sample in apart])
    error = PredictionError.of(totals(model, apart), measured).mean_absolute
    assert error == pytest.approx(model.validation["total"]["mean_absolute"], rel=1e-3)
    rows = Rows.of(fitted, overhead)
    limits = readings.limits.raised_by(rows.items, rows.integer, rows.seconds)
    assert limits.bandwidth == model.limits.bandwidth
    assert limits.float_peak == pytest.approx(model.limits.float_peak, rel=1e-3)
    assert limits.integer_peak == pytest.approx(model.limits.integer_peak, rel=1e-3)
    part = fit_part(rows, "conversions", limits, int(model.source["seed"]))
    shipped, ratios = model.parts["conversions"], []
    for sample in apart[:40]:
        here = groups_of(sample.items, sample.integer) == "conversions"
        items, integer = sample.items.at(here), sample.integer[here]
        columns = part.columns(items, integer, limits)
        one, other = (p.seconds(columns, items, integer, limits) for p in (part, shipped))
        ratios.append(one / other)
    # Between splits that explain as much, the last digit of a sum decides, and with it the machine.
    off = np.abs(np.concatenate(ratios) - 1)
    assert len(off) > 100
    assert np.median(off) < 1e-3
    assert np.quantile(off, 0.9) < 0.05
