"""The closed formulas, by hand and by their sources."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.accelerator_files import find, shipped
from costmodels.analytical import Analytical, create
from costmodels.errors import BackendError, CostError
from costmodels.model import BackendContext
from costmodels.presets import EnergyCoefficients, Preset
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind, WidthCurve
from costmodels.registry import backend
from costmodels.sketch import Sketch, example_network
from costmodels.table import CostTable, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import BitWidths, parse_choices
from quantization.network import Network


def closed_formula(name: str) -> Preset:
    preset = find(name)
    assert isinstance(preset, Preset)
    return preset


HAQ, HOROWITZ = closed_formula("haq"), closed_formula("horowitz")
MACS, PARAMS = 8 * 8 * 4 * 3 * 9, 4 * 3 * 9
"""Of the one layer below: 3x3, 3 -> 4 channels, on 8x8."""


def one_layer() -> Network:
    sketch = Sketch()
    network = sketch.network(sketch.conv(sketch.input((1, 3, 8, 8)), 4, kernel=3, name="only"))
    assert (network.macs, network.layers[0].weight_count) == (MACS, PARAMS)
    return network


def cell(preset: str, metric: Metric, choice: str) -> float:
    table = priced(preset, metric, choice)
    return float(table.unary.value[0, 0])


def priced(preset: str, metric: Metric, *choices: str) -> CostTable:
    return backend(f"analytical:{preset}").table(
        one_layer(), [BitWidths.parse(c) for c in choices], metric
    )


@pytest.mark.parametrize(
    ("choice", "picojoules"),
    [
        ("w8a8", PARAMS * 640 + MACS * 0.2),
        ("w4a4", PARAMS / 2 * 640 + MACS * 0.05),
        ("w2a2", PARAMS / 4 * 640 + MACS * 0.01),
        ("w4a8", PARAMS / 2 * 640 + MACS * 0.2),
        ("w8a4", PARAMS * 640 + MACS * 0.2),
        ("w16a16", PARAMS * 2 * 640 + MACS * 1.1),
        ("w4a16", PARAMS / 2 * 640 + MACS * 1.1),
        ("w8a32", PARAMS * 640 + MACS * 4.6),
        ("w32a32", PARAMS * 4 * 640 + MACS * 4.6),
    ],
)
def test_haq_energy_by_hand(choice: str, picojoules: float) -> None:
    assert cell("haq", Metric.ENERGY, choice) == pytest.approx(picojoules * 1e-12, rel=1e-12)


@pytest.mark.parametrize(
    ("choice", "picojoules"),
    [
        ("w8a8", PARAMS * 160 + MACS * 0.23),
        ("fp16", PARAMS * 2 * 160 + MACS * 1.5),
        ("w32a32", PARAMS * 4 * 160 + MACS * 4.6),
    ],
)
def test_horowitz_energy_by_hand(choice: str, picojoules: float) -> None:
    assert cell("horowitz", Metric.ENERGY, choice) == pytest.approx(picojoules * 1e-12, rel=1e-12)


@pytest.mark.parametrize(
    ("choice", "size"),
    [("w8a8", PARAMS), ("w3a8", PARAMS * 3 / 8), ("w8a32", PARAMS), ("w32a32", PARAMS * 4)],
)
def test_size_is_the_weights_at_their_own_bits(choice: str, size: float) -> None:
    assert cell("haq", Metric.SIZE, choice) == size
    assert priced("haq", Metric.SIZE, choice).unit is Unit.BYTES


def test_latency_is_alpha_times_bytes_plus_beta_times_macs_times_f() -> None:
    assert HAQ.latency is not None
    alpha, beta = HAQ.latency.alpha.value, HAQ.latency.beta.value
    eight = alpha * PARAMS + beta * MACS
    four = alpha * PARAMS / 2 + beta * MACS * 0.3
    assert cell("haq", Metric.LATENCY, "w8a8") == pytest.approx(eight, rel=1e-12)
    assert cell("haq", Metric.LATENCY, "w4a4") == pytest.approx(four, rel=1e-12)


def test_between_entries_the_logarithm_is_linear_in_the_width_and_the_cell_is_assumed() -> None:
    assert HAQ.energy is not None
    reading = HAQ.energy.e_mac.at(BitWidths(6, 6))
    assert reading is not None
    assert reading.value == pytest.approx(math.sqrt(0.05 * 0.2) * 1e-12, rel=1e-12)
    table = priced("haq", Metric.ENERGY, "w6a6", "w6a8", "w8a8")
    assert table.unary.provenance.tolist() == [
        [Provenance.ASSUMED.value, Provenance.ANALYTICAL.value, Provenance.ANALYTICAL.value]
    ]
    assert table.source["assumed"] == ["w6a6"]


def test_every_latency_of_haq_is_assumed_because_alpha_and_beta_are() -> None:
    table = priced("haq", Metric.LATENCY, "w4a4", "w8a8", "w32a32")
    assert set(table.unary.provenance.flat) == {Provenance.ASSUMED.value}


@pytest.mark.parametrize(
    ("preset", "choice"),
    [("haq", "fp16"), ("horowitz", "w2a2"), ("horowitz", "w7a7"), ("horowitz", "w4a4")],
)
def test_a_width_without_a_coefficient_is_masked(preset: str, choice: str) -> None:
    table = priced(preset, Metric.ENERGY, choice, "w8a8")
    assert table.supported.tolist() == [[False, True]]
    assert table.unary.provenance[0, 0] == Provenance.ABSENT.value


def test_the_width_that_decides_is_the_wider_operand() -> None:
    table = priced("horowitz", Metric.ENERGY, "w4a8", "w4a16", "w16a16")
    assert table.supported.all()
    assert table.source["assumed"] == ["w4a16", "w16a16"]


@pytest.mark.parametrize("metric", sorted(HAQ.metrics))
def test_glue_and_conversions_cost_nothing_because_the_formula_says_so(metric: Metric) -> None:
    table = backend("analytical:haq").table(
        example_network(), parse_choices("w4a4,w8a8,w32a32"), metric
    )
    for name, cells in (("glue", table.glue), ("conversion", table.conversion)):
        assert not cells.value.any()
        assert set(cells.provenance.flat) == {Provenance.ANALYTICAL.value}
        assert "no such term" in table.source[name]


def test_a_product_of_two_activations_pays_for_its_macs_only() -> None:
    network = example_network()
    table = backend("analytical:haq").table(network, parse_choices("w8a8"), Metric.ENERGY)
    product = network.layer("product")
    assert product.weight_count == 0
    row = table.layers.index("product")
    assert table.unary.value[row, 0] == pytest.approx(product.macs * 0.2e-12, rel=1e-12)


def test_haq_says_what_is_wrong_with_its_numbers() -> None:
    notes = " ".join(priced("haq", Metric.ENERGY, "w8a8").source["notes"])
    assert "four times the published" in notes
    assert "32-bit word" in notes
    assert "FP16 multiply" in notes


def test_the_notes_of_a_table_concern_its_metric_only() -> None:
    energy = " ".join(priced("haq", Metric.ENERGY, "w8a8").source["notes"])
    latency = " ".join(priced("haq", Metric.LATENCY, "w8a8").source["notes"])
    assert "e_mac" in energy
    assert "alpha" not in energy
    assert "alpha, beta" in latency
    assert "DRAM" not in latency
    assert priced("haq", Metric.SIZE, "w8a8").source["notes"] == []


def test_what_the_notes_of_haq_say_is_true_of_the_numbers() -> None:
    assert HAQ.energy is not None
    assert HOROWITZ.energy is not None
    assert HAQ.energy.e_mem.value == pytest.approx(4 * HOROWITZ.energy.e_mem.value)
    published_multiply, published_add = 1.1e-12, 0.4e-12
    assert HAQ.energy.e_mac.integer[16].value == pytest.approx(published_multiply)
    half = HOROWITZ.energy.e_mac.half
    assert half is not None
    assert half.value == pytest.approx(published_multiply + published_add)


def test_what_the_notes_of_horowitz_say_of_narrow_operands_is_true_of_the_numbers() -> None:
    [note] = [
        note for note in HOROWITZ.notes(Metric.ENERGY) if "both have fewer than 8 bits" in note
    ]
    assert "(w2a8 is priced as INT8)" in note
    choices = parse_choices("w2a8,w8a8,w4a4,w2a2,w7a7")
    table = Analytical(HOROWITZ).table(one_layer(), choices, Metric.ENERGY)
    assert table.supported.tolist() == [[True, True, False, False, False]]
    assert HOROWITZ.energy is not None
    weights = one_layer().layers[0].weight_count
    saved = weights * (8 - 2) / 8 * HOROWITZ.energy.e_mem.value
    narrow, wide = table.unary.value[0, :2]
    assert wide - narrow == pytest.approx(saved), "the multiply-accumulates cost the same"


@pytest.mark.parametrize("name", shipped())
def test_every_coefficient_of_a_preset_names_its_source_and_unit(name: str) -> None:
    model = create(name, BackendContext())
    for metric in model.metrics - {Metric.SIZE}:
        table = model.table(one_layer(), parse_choices("w8a8"), metric)
        coefficients = table.source["coefficients"]
        assert coefficients
        for entry in coefficients.values():
            assert entry["ref"]
            assert entry["locator"]
            assert entry["kind"] in {"published", "measured", "assumed"}
            assert entry["unit"] in {unit.value for unit in CoefficientUnit}


def test_horowitz_published_no_times() -> None:
    with pytest.raises(BackendError, match="does not price latency; it prices energy, size"):
        priced("horowitz", Metric.LATENCY, "w8a8")


@pytest.mark.parametrize(
    ("argument", "hint"), [("haqq", "did you mean 'haq'"), ("", "write analytical:haq or one of")]
)
def test_an_unknown_preset_names_what_there_is(argument: str, hint: str) -> None:
    with pytest.raises(BackendError, match=f"no analytical preset {argument!r}.*{hint}"):
        backend(f"analytical:{argument}")


def test_a_table_is_made_once_so_that_pricing_compiles_it_once() -> None:
    model, network = create("haq", BackendContext()), one_layer()
    choices = parse_choices("w8a8,w4a8")
    first = model.table(network, choices, Metric.ENERGY)
    assert model.table(network, list(choices), Metric.ENERGY) is first


SAID = Source("a test", "here", SourceKind.ASSUMED)


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        (640.0, CoefficientUnit.JOULES_PER_BYTE),  # picojoules given as joules
        (4.6e-6, CoefficientUnit.JOULES_PER_MAC),
        (1e-3, CoefficientUnit.SECONDS_PER_MAC),
        (0.0, CoefficientUnit.JOULES_PER_MAC),
        (-1e-12, CoefficientUnit.JOULES_PER_MAC),
        (math.nan, CoefficientUnit.RATIO),
        (math.inf, CoefficientUnit.RATIO),
    ],
)
def test_a_magnitude_that_no_hardware_has_cannot_be_built(
    value: float, unit: CoefficientUnit
) -> None:
    with pytest.raises(CostError, match="check prefix and unit"):
        Quantity(value, unit, SAID)


def curve(entries: Sequence[tuple[int, float]]) -> WidthCurve:
    return WidthCurve({b: Quantity(v, CoefficientUnit.RATIO, SAID) for b, v in entries})


@pytest.mark.parametrize("entries", [[], [(8, 1.0), (4, 0.3)], [(4, 1.0), (8, 0.3)]])
def test_a_curve_that_does_not_rise_cannot_be_built(entries: list[tuple[int, float]]) -> None:
    with pytest.raises(CostError, match="rise"):
        curve(entries)


def test_a_coefficient_in_the_wrong_unit_cannot_be_built() -> None:
    assert HAQ.latency is not None
    assert HAQ.energy is not None
    with pytest.raises(CostError, match="e_mem is given in s/B, expected J/B"):
        EnergyCoefficients(HAQ.latency.alpha, HAQ.energy.e_mac)
    with pytest.raises(CostError, match="differ in their units"):
        WidthCurve(dict(HAQ.energy.e_mac.integer), single=HAQ.latency.f.single)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]), min_size=2, max_size=8))
def test_energy_and_latency_of_haq_never_fall_when_bits_rise(widths: list[int]) -> None:
    ordered = sorted(set(widths))
    choices = [BitWidths(b, b) for b in ordered]
    for metric in HAQ.metrics:
        row = Analytical(HAQ).table(one_layer(), choices, metric).unary.value[0]
        assert (np.diff(row) > 0).all()
