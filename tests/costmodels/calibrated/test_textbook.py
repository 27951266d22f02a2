"""The closed formula: recovered where it holds, and the same number through its preset."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from costmodels.analytical import Analytical
from costmodels.calibrated.items import is_layer
from costmodels.calibrated.samples import Sample
from costmodels.calibrated.textbook import Textbook
from costmodels.pricing import total
from costmodels.sketch import example_network
from costmodels.units import Metric
from hil.probe_timer import ProbeJob, paid_items
from quantization.bits import FLOAT32, BitWidths
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from tests.costmodels.calibrated.world import World, law_sample
from tests.hil.device_world import drawn

TRUTH = Textbook(3e-10, 1.5e-11, 2.75)
INTEGER = BitWidths(8, 8)


def _obeying(samples: Sequence[Sample], formula: Textbook = TRUTH) -> list[Sample]:
    """The same samples, as long as the formula says, which is written out once more here."""
    found = []
    for sample in samples:
        layers = is_layer(sample.items.kind)
        macs, weights = sample.items.column("macs")[layers], sample.items.column("weights")[layers]
        integer = sample.integer[layers]
        each = np.where(
            integer,
            formula.alpha * weights + formula.beta * macs,
            formula.alpha * 4 * weights + formula.beta * formula.f_float * macs,
        )
        found.append(replace(sample, total_s=float(each.sum())))
    return found


def test_it_recovers_its_coefficients_where_the_formula_holds(world: World) -> None:
    found = Textbook.of(_obeying(world.fitted))
    assert found.alpha == pytest.approx(TRUTH.alpha, rel=1e-6)
    assert found.beta == pytest.approx(TRUTH.beta, rel=1e-6)
    assert found.f_float == pytest.approx(TRUTH.f_float, rel=1e-6)


def test_it_says_what_the_formula_says(world: World) -> None:
    samples = _obeying(world.fitted[:30])
    np.testing.assert_allclose(TRUTH.seconds(samples), [s.total_s for s in samples], rtol=1e-9)


def test_no_coefficient_is_negative_where_the_best_one_would_be(world: World) -> None:
    formula = Textbook(-2e-10, 1.5e-11, 2.75)
    samples = [s for s in _obeying(world.fitted, formula) if s.total_s > 0]
    found = Textbook.of(samples)
    assert 0 < found.alpha < 1e-13
    assert min(found.beta, found.f_float) > 0
    assert (found.seconds(samples) > 0).all()


def test_relative_errors_count_so_that_small_networks_do(world: World) -> None:
    """Were absolute errors to count, the largest network alone would decide."""
    samples = _obeying(world.fitted)
    largest = max(range(len(samples)), key=lambda i: samples[i].total_s)
    samples[largest] = replace(samples[largest], total_s=samples[largest].total_s * 1.5)
    found = Textbook.of(samples)
    assert found.beta == pytest.approx(TRUTH.beta, rel=0.1)
    assert found.f_float == pytest.approx(TRUTH.f_float, rel=0.1)


@pytest.mark.parametrize("network", [example_network(), drawn(1005), drawn(1008)])
@pytest.mark.parametrize("bits", [INTEGER, FLOAT32])
def test_its_preset_prices_a_network_as_the_formula_does(network: Network, bits: BitWidths) -> None:
    policy = Policy.uniform(network, bits)
    model = Analytical(TRUTH.preset("law.json", "a law"))
    table = model.table(network, (INTEGER, FLOAT32), Metric.LATENCY)
    [priced] = total(table, network, PolicyBatch.of(network, [policy]))
    sample = law_sample(ProbeJob(0), "uniform", *paid_items(network, policy))
    [expected] = TRUTH.seconds([sample])
    assert priced == pytest.approx(expected, rel=1e-9)
    assert (table.glue.value == 0).all()
    assert (table.conversion.value == 0).all()


def test_a_preset_is_called_by_its_file_and_says_that_it_was_measured() -> None:
    preset = TRUTH.preset("law.json", "a law")
    assert Analytical(preset).name == "analytical:law.json"
    assert preset.latency is not None
    assert preset.latency.alpha.source.ref == "a law"
    assert preset.latency.alpha.source.kind.value == "measured"
    assert Metric.ENERGY not in preset.metrics


def test_a_fit_that_wants_none_of_a_term_is_still_a_preset(world: World) -> None:
    formula = Textbook(-2e-10, 1.5e-11, 2.75)
    found = Textbook.of([s for s in _obeying(world.fitted, formula) if s.total_s > 0])
    assert found.preset("law.json", "a law").latency is not None


def test_coefficients_survive_json() -> None:
    assert Textbook.from_dict(TRUTH.to_dict()) == TRUTH
