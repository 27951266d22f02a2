"""Latency and energy of layers on an accelerator: by hand, and what never crosses."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from costmodels.accelerator import Accelerator, Array, Memory, Widths
from costmodels.accelerator_files import find, shipped
from costmodels.analytical import Analytical
from costmodels.errors import BackendError
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind
from costmodels.roofline import energy_breakdown, moved_bits, price, roofline
from costmodels.sketch import Sketch, example_network
from costmodels.table import Provenance
from costmodels.tiling import Extents
from costmodels.units import Metric
from costmodels.width_rules import Rule, WidthRule
from quantization.bits import INTEGER_WIDTHS, BitWidths, parse_choices
from quantization.network import Layer

SAID = Source("a test", "here", SourceKind.PUBLISHED)
INTEGERS = tuple(sorted(INTEGER_WIDTHS))
EVERY = tuple(BitWidths(w, a) for w in INTEGERS for a in INTEGERS)
ACCELERATORS = tuple(name for name in shipped() if isinstance(find(name), Accelerator))

BITS = CoefficientUnit.BITS_PER_SECOND
GEMM = Layer("g", "Gemm", 100, 10, (), (), 1, (4,), (4,), 1, ("x",), "y")
"""4 x 100 by 100 x 10: 4000 multiply-accumulates, 400 inputs, 1000 weights, 40 outputs."""


def number(value: float, unit: CoefficientUnit) -> Quantity:
    return Quantity(value, unit, SAID)


def machine(bandwidth: float = 1e9, capacity: float = 1e9) -> Accelerator:
    """10^9 products of 8 bits a second, 1 pJ each; DRAM 20 pJ a bit, a buffer 1 pJ."""
    return Accelerator(
        "test",
        "a machine",
        Widths(INTEGERS, INTEGERS),
        (
            Memory(
                "DRAM",
                bandwidth=number(bandwidth, CoefficientUnit.BITS_PER_SECOND),
                energy=number(20e-12, CoefficientUnit.JOULES_PER_BIT),
            ),
            Memory(
                "buffer",
                capacity=number(capacity, CoefficientUnit.BITS),
                energy=number(1e-12, CoefficientUnit.JOULES_PER_BIT),
            ),
        ),
        WidthRule(Rule.PRODUCT, {8: number(1e9, CoefficientUnit.MACS_PER_SECOND)}),
        WidthRule(Rule.PRODUCT, {8: number(1e-12, CoefficientUnit.JOULES_PER_MAC)}),
    )


def cost(
    accelerator: Accelerator, text: str, metric: Metric, layers: Sequence[Layer] = (GEMM,)
) -> float:
    value, _ = price(accelerator, layers, [BitWidths.parse(text)], metric)
    return float(value.sum())


def test_a_layer_that_computes_longer_than_it_reads_takes_the_time_of_computing() -> None:
    assert cost(machine(1e12), "w8a8", Metric.LATENCY) == pytest.approx(4000e-9)
    assert cost(machine(1e12), "w4a2", Metric.LATENCY) == pytest.approx(4000e-9 * 8 / 64)


def test_a_layer_that_reads_longer_than_it_computes_takes_the_time_of_reading() -> None:
    bits = 400 * 4 + 1000 * 2 + 40 * 8
    assert cost(machine(1e6), "w2a4", Metric.LATENCY) == pytest.approx(bits / 1e6)


def test_reads_and_writes_with_channels_of_their_own_do_not_wait_for_each_other() -> None:
    shared = machine(1e6)
    dram = replace(shared.memories[0], separate_writes=True)
    apart = replace(shared, memories=(dram, shared.memories[1]))
    assert cost(apart, "w2a4", Metric.LATENCY) == pytest.approx((400 * 4 + 1000 * 2) / 1e6)


def test_energy_is_that_of_products_and_of_every_operand_at_its_own_width() -> None:
    bits = 400 * 4 + 1000 * 2 + 40 * 8  # an integer layer writes 8 bits
    expected = 4000 * 1e-12 * 8 / 64 + bits * (20e-12 + 1e-12)
    assert cost(machine(), "w2a4", Metric.ENERGY) == pytest.approx(expected)
    wide = (400 * 16 + 1000 * 4 + 40 * 16) * 21e-12 + 4000e-12
    assert cost(machine(), "w4a16", Metric.ENERGY) == pytest.approx(wide)


def test_the_size_is_that_of_the_weights_in_bytes() -> None:
    assert cost(machine(), "w2a8", Metric.SIZE) == 1000 * 2 / 8


def test_a_smaller_buffer_moves_more_of_dram_and_what_is_read_again_passes_the_buffer() -> None:
    large = Layer("g", "Gemm", 1000, 1000, (), (), 1, (1000,), (1000,), 1, ("x",), "y")
    e, choices = Extents.of([large]), parse_choices("w8a8")
    plenty, little = (moved_bits(machine(capacity=c), e, choices) for c in (1e9, 1e5))
    assert plenty[0].total.item() == 3 * 8e6, "reuse is counted once"
    assert little[0].total.item() > 3 * plenty[0].total.item()
    assert little[1] == little[0], "without an array the units take what the buffer got"
    assert plenty[1] == plenty[0]


@pytest.mark.parametrize("name", ACCELERATORS)
def test_no_level_moves_less_than_the_one_outside_it(name: str) -> None:
    accelerator = find(name)
    assert isinstance(accelerator, Accelerator)
    n = 4096
    large = Layer("m", "MatMul", n, n, (), (), 1, (n,), (n,), 1, ("x",), "y")
    levels = moved_bits(accelerator, Extents.of([*example_network().layers, large]), EVERY)
    for outer, inner in pairwise(levels):
        assert (inner.inputs >= outer.inputs).all()
        assert (inner.weights >= outer.weights).all()
        assert (inner.outputs >= outer.outputs).all()


def test_what_the_cache_of_the_t4_reads_again_reaches_its_units() -> None:
    n = 4096
    layer = Layer("m", "MatMul", n, n, (), (), 1, (n,), (n,), 1, ("x",), "y")
    accelerator = find("gpu-t4")
    assert isinstance(accelerator, Accelerator)
    gddr, cache = moved_bits(accelerator, Extents.of([layer]), parse_choices("w8a8"))
    assert gddr.inputs.item() == 8 * n * n * 8, "eight tiles of columns"
    assert cache.inputs.item() == gddr.inputs.item()


def test_a_product_of_two_activations_moves_both_at_the_width_of_activations() -> None:
    layer = example_network().layer("product")
    assert layer.factor_counts is not None
    [dram, _] = moved_bits(machine(), Extents.of([layer]), parse_choices("w2a8"))
    assert (dram.inputs + dram.weights).item() == 8 * sum(layer.factor_counts)
    narrow, wide = (cost(machine(1e12), t, Metric.LATENCY, [layer]) for t in ("w2a8", "w8a8"))
    assert narrow == wide, "there is no weight whose bits would count"


@pytest.mark.parametrize("name", ACCELERATORS)
@pytest.mark.parametrize("metric", [Metric.LATENCY, Metric.ENERGY])
def test_wider_weights_or_activations_never_cost_less(name: str, metric: Metric) -> None:
    accelerator = find(name)
    assert isinstance(accelerator, Accelerator)
    value, _ = price(accelerator, example_network().layers, EVERY, metric)
    cube = value.reshape(len(value), len(INTEGERS), len(INTEGERS))
    for axis in (1, 2):
        low, high = np.delete(cube, -1, axis), np.delete(cube, 0, axis)
        both = np.isfinite(low) & np.isfinite(high)
        assert both.any() == (name != "gpu-t4"), "a T4 wants equal bits"
        assert (high[both] >= low[both] * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", ACCELERATORS)
def test_widths_that_a_preset_lacks_are_masked_in_every_metric(name: str) -> None:
    accelerator = find(name)
    assert isinstance(accelerator, Accelerator)
    choices = (*EVERY, *parse_choices("fp16,w8a32,w32a32"))
    expected = [accelerator.widths.supports(c) for c in choices]
    for metric in accelerator.metrics:
        table = Analytical(accelerator).table(example_network(), choices, metric)
        assert (table.supported == expected).all()
        absent = table.unary.provenance == Provenance.ABSENT.value
        np.testing.assert_array_equal(absent, ~table.supported)


@pytest.mark.parametrize(
    ("name", "runs", "masked"),
    [
        ("gpu-t4", "w4a4,w8a8,fp16,w32a32", "w2a2,w4a8,w16a16,w8a32"),
        ("systolic-int8", "w8a8,w8a16,w16a16", "w4a8,w4a4,w32a32,fp16"),
        ("bit-serial-edge", "w2a2,w3a7,w8a8,w16a16", "w32a32,fp16,w8a32"),
        ("server-cpu", "w2a8,w8a8,w16a16,w32a32", "w8a4,fp16,w8a32"),
        ("fpga", "w2a2,w5a3,w8a8", "w32a32,fp16"),
    ],
)
def test_the_widths_of_a_preset_are_those_of_its_hardware(
    name: str, runs: str, masked: str
) -> None:
    supports = find(name).supports
    assert all(supports(c) for c in parse_choices(runs))
    assert not any(supports(c) for c in parse_choices(masked))


def test_the_t4_computes_at_its_published_peaks() -> None:
    """A product so large that memory never bounds it."""
    accelerator = find("gpu-t4")
    assert isinstance(accelerator, Accelerator)
    n = 16384
    layer = Layer("m", "MatMul", n, n, (), (), 1, (n,), (n,), 1, ("x",), "y")
    choices = parse_choices("w4a4,w8a8,fp16,w32a32")
    seconds, _ = price(accelerator, [layer], choices, Metric.LATENCY)
    operations = 2 * n**3 / seconds[0] / 1e12
    np.testing.assert_allclose(operations, [260, 130, 65, 8.1], rtol=1e-9)


def test_the_fused_array_computes_5_to_8_bits_alike_so_that_it_cannot_fit_a_bit_serial_table() -> (
    None
):
    """Its own formula: 1 product of 8 bits, 4 of 4 and 16 of 2 a unit and cycle (ISCA 2018)."""
    accelerator = find("bit-fusion")
    assert isinstance(accelerator, Accelerator)
    n = 4096
    layer = Layer("m", "MatMul", n, n, (), (), 1, (n,), (n,), 1, ("x",), "y")
    choices = parse_choices("w8a8,w7a6,w5a5,w4a4,w3a3,w2a8,w2a2")
    plenty = replace(accelerator, memories=(Memory("DRAM", bandwidth=number(1e15, BITS)),))
    seconds, _ = price(plenty, [layer], choices, Metric.LATENCY)
    products = n**3 / seconds[0] / (512 * 500e6)
    np.testing.assert_allclose(products, [1, 1, 1, 4, 4, 4, 16], rtol=1e-9)


def test_ten_thousand_layers_at_64_choices_are_priced_at_once() -> None:
    """One call, one array; how long it takes is `benchmarks/query.py`'s."""
    sketch = Sketch()
    network = sketch.network(sketch.conv(sketch.input((1, 8, 16, 16)), 16, kernel=3, name="c"))
    layers = network.layers * 10_000
    accelerator = find("bit-serial-cloud")
    assert isinstance(accelerator, Accelerator)
    for metric in (Metric.LATENCY, Metric.ENERGY):
        value, assumed = price(accelerator, layers, EVERY, metric)
        assert value.shape == (10_000, 64)
        assert assumed.shape == (64,)
        assert (value == value[0]).all(), "equal layers cost the same"
        assert np.isfinite(value).all()


def test_an_array_of_another_shape_leaves_other_units_idle() -> None:
    one = number(1.0, CoefficientUnit.RATIO)
    wide = Array(one, number(16.0, CoefficientUnit.RATIO), number(128.0, CoefficientUnit.RATIO))
    given = replace(machine(1e12), array=wide)
    assert cost(given, "w8a8", Metric.LATENCY) == pytest.approx(4 * 16 * 128 * 1e-9)


def test_the_breakdown_says_where_every_joule_of_a_layer_goes() -> None:
    found = energy_breakdown(machine(), [GEMM], parse_choices("w2a4"))
    assert found.macs.item() == pytest.approx(4000e-12 * 8 / 64)
    assert list(found.levels) == ["DRAM", "buffer"], "the outermost first"
    for moved, a_bit in zip(found.levels.values(), (20e-12, 1e-12), strict=True):
        assert moved.inputs.item() == pytest.approx(400 * 4 * a_bit)
        assert moved.weights.item() == pytest.approx(1000 * 2 * a_bit)
        assert moved.outputs.item() == pytest.approx(40 * 8 * a_bit)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_the_breakdown_of_every_preset_adds_up_to_the_energy_of_its_table(name: str) -> None:
    accelerator = find(name)
    assert isinstance(accelerator, Accelerator)
    runs = [c for c in (*EVERY, *parse_choices("fp16,w32a32")) if accelerator.supports(c)]
    network = example_network()
    table = Analytical(accelerator).table(network, runs, Metric.ENERGY)
    found = energy_breakdown(accelerator, network.layers, runs)
    np.testing.assert_allclose(found.total, table.unary.value, rtol=1e-9)
    parts = [m for each in found.levels.values() for m in (each.inputs, each.weights, each.outputs)]
    assert all((part > 0).all() for part in [found.macs, *parts]), "nothing is free by accident"


@pytest.mark.parametrize("name", ACCELERATORS)
def test_no_layer_is_above_the_roof_of_its_width_or_of_the_outermost_memory(name: str) -> None:
    accelerator = find(name)
    assert isinstance(accelerator, Accelerator)
    layers = example_network().layers
    runs = [c for c in (*EVERY, *parse_choices("fp16,w32a32")) if accelerator.supports(c)]
    for shift in range(len(runs)):
        bits = [runs[(i + shift) % len(runs)] for i in range(len(layers))]
        found = roofline(accelerator, layers, bits)
        seconds = [
            price(accelerator, [layer], [b], Metric.LATENCY)[0].item()
            for layer, b in zip(layers, bits, strict=True)
        ]
        macs = np.array([layer.macs for layer in layers])
        np.testing.assert_allclose(found.achieved, macs / seconds, rtol=1e-9)
        peaks = np.array([found.peaks[b] for b in found.computed])
        assert (found.achieved <= peaks * (1 + 1e-9)).all()
        bandwidth = found.bandwidths[accelerator.memories[0].name]
        assert (found.achieved <= found.intensity * bandwidth * (1 + 1e-9)).all()


def test_a_layer_that_memory_bounds_is_on_the_slope_and_one_that_it_does_not_on_the_peak() -> None:
    moved = (400 * 4 + 1000 * 2 + 40 * 8) / 8  # bytes
    for bandwidth, expected in ((1e6, 4000 / moved * 1e6 / 8), (1e12, 1e9 * 64 / 8)):
        found = roofline(machine(bandwidth), [GEMM], parse_choices("w2a4"))
        assert found.intensity.item() == pytest.approx(4000 / moved)
        assert found.achieved.item() == pytest.approx(expected)
        assert found.bandwidths == {"DRAM": bandwidth / 8}, "the buffer bounds nothing"


def test_a_product_of_two_activations_is_under_the_roof_of_their_widths() -> None:
    [bits] = roofline(machine(), [example_network().layer("product")], [BitWidths(2, 8)]).computed
    assert bits == BitWidths(8, 8)


def test_what_has_no_time_or_no_energy_has_no_roofline_or_breakdown() -> None:
    timeless, free = replace(machine(), throughput=None), replace(machine(), mac_energy=None)
    with pytest.raises(BackendError, match="test does not price latency"):
        roofline(timeless, [GEMM], parse_choices("w8a8"))
    with pytest.raises(BackendError, match="test does not price energy"):
        energy_breakdown(free, [GEMM], parse_choices("w8a8"))
