"""The bit-serial presets against cycles that HAQ's authors simulated, where those are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import spearmanr

from benchmarks.query import mobilenet_v2
from costmodels.accelerator import Accelerator, Array
from costmodels.accelerator_files import find
from costmodels.cells import FloatArray
from costmodels.quantity import CoefficientUnit, Quantity, Source, SourceKind
from costmodels.roofline import price
from costmodels.units import Metric
from costmodels.width_rules import Rule, WidthRule
from quantization.bits import BitWidths
from quantization.network import Layer

FOLDER = Path(__file__).parents[3] / "shared" / "reference"
BATCH, CLOCK = 16, 200e6
"""Images, and the clock in Hz that the cloud preset assumes."""
WIDTHS = range(2, 9)
CHOICES = [BitWidths(w, a) for w in WIDTHS for a in WIDTHS]
FITTED, HELD_OUT = slice(0, None, 2), slice(1, None, 2)
"""Every second layer: parameters are fitted to the first half, and judged on the other."""
SHARES = {6: 0.673, 5: 0.528, 4: 0.397, 2: 0.178}
"""Of the cycles at 8/8 bits; they follow from the published table."""
GUESS = Source("a test", "a point of the grid", SourceKind.ASSUMED)

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the published tables are not beside the project"
)


@pytest.fixture(scope="module")
def cycles() -> FloatArray:
    """(53, 49) cycles at 2 to 8 bits of weights x activations."""
    table: npt.NDArray[np.int64] = np.load(FOLDER / "haq_mobilenetv2_cycles.npy")
    return table[:, 1:, 1:].reshape(len(table), -1).astype(np.float64)


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    return [replace(layer, batch=BATCH) for layer in mobilenet_v2(224).layers]


def preset(name: str) -> Accelerator:
    found = find(name)
    assert isinstance(found, Accelerator)
    return found


def seconds(accelerator: Accelerator, layers: list[Layer]) -> FloatArray:
    return price(accelerator, layers, CHOICES, Metric.LATENCY)[0]


def share_of_eight(costs: FloatArray, bits: int) -> float:
    """Cost of all layers at `bits` over that at 8 bits."""
    total = costs.sum(0)
    return float(total[CHOICES.index(BitWidths(bits, bits))] / total[-1])


@pytest.mark.parametrize("name", ["bit-serial-edge", "bit-serial-cloud"])
@pytest.mark.parametrize("half", [slice(None), HELD_OUT], ids=["all", "held out"])
def test_layers_and_widths_are_ranked_as_in_the_published_table(
    name: str, half: slice, cycles: FloatArray, layers: list[Layer]
) -> None:
    found = seconds(preset(name), layers)[half]
    assert spearmanr(found.ravel(), cycles[half].ravel()).statistic > 0.98


@pytest.mark.parametrize("bits", SHARES)
def test_uniform_widths_cost_the_published_share_of_8_bits(
    bits: int, cycles: FloatArray, layers: list[Layer]
) -> None:
    assert share_of_eight(cycles, bits) == pytest.approx(SHARES[bits], abs=5e-4)
    found = share_of_eight(seconds(preset("bit-serial-cloud"), layers), bits)
    assert found == pytest.approx(SHARES[bits], rel=0.15)


def test_nothing_but_sources_gives_the_edge_preset_those_shares_too_while_reads_bound_it(
    layers: list[Layer],
) -> None:
    """None of its numbers is fitted. At 2 bits its outputs, written at 8 bits, fill the one bus."""
    edge = preset("bit-serial-edge")
    found = {bits: share_of_eight(seconds(edge, layers), bits) for bits in SHARES}
    assert [found[b] for b in (6, 5, 4)] == pytest.approx([SHARES[b] for b in (6, 5, 4)], rel=0.05)
    assert found[2] / SHARES[2] > 1.15, "the table seems not to count outputs at 8 bits"
    dram = replace(edge.memories[0], separate_writes=True)
    apart = replace(edge, memories=(dram, *edge.memories[1:]))
    assert share_of_eight(seconds(apart, layers), 2) == pytest.approx(SHARES[2], rel=0.15)


@pytest.mark.parametrize("bits", SHARES)
def test_the_held_out_layers_cost_their_own_share_of_8_bits(
    bits: int, cycles: FloatArray, layers: list[Layer]
) -> None:
    found = share_of_eight(seconds(preset("bit-serial-cloud"), layers)[HELD_OUT], bits)
    assert found == pytest.approx(share_of_eight(cycles[HELD_OUT], bits), rel=0.15)


def test_the_array_and_bandwidth_of_the_cloud_preset_are_those_that_fit_half_of_the_layers(
    cycles: FloatArray, layers: list[Layer]
) -> None:
    shipped = preset("bit-serial-cloud")
    errors = {
        (side, dot, bits): _error(shipped, (side, dot, bits), cycles[FITTED], layers[FITTED])
        for side in (4, 8, 16, 32)
        for dot in (64, 128, 256, 512)
        for bits in (64, 128, 256, 512)
    }
    best = min(errors, key=lambda point: errors[point])
    assert shipped.array is not None
    bandwidth = shipped.memories[0].bandwidth
    assert bandwidth is not None
    assert best == (
        shipped.array.rows.value,
        shipped.array.dot_length.value,
        bandwidth.value / CLOCK,
    )
    assert shipped.array.columns.value == shipped.array.rows.value
    assert _error(shipped, best, cycles[HELD_OUT], layers[HELD_OUT]) < 0.16, "of the natural log"


def _error(
    shipped: Accelerator, point: tuple[int, int, int], cycles: FloatArray, layers: list[Layer]
) -> float:
    """Mean absolute logarithm of predicted over published cycles."""
    side, dot, bits = point
    rows, depth = (Quantity(float(n), CoefficientUnit.RATIO, GUESS) for n in (side, dot))
    rate = Quantity(side**2 * dot * CLOCK, CoefficientUnit.MACS_PER_SECOND, GUESS)
    bandwidth = Quantity(bits * CLOCK, CoefficientUnit.BITS_PER_SECOND, GUESS)
    dram = replace(shipped.memories[0], bandwidth=bandwidth)
    accelerator = replace(
        shipped,
        array=Array(rows, rows, depth),
        throughput=WidthRule(Rule.PRODUCT, {1: rate}),
        memories=(dram, *shipped.memories[1:]),
    )
    return float(np.abs(np.log(seconds(accelerator, layers) * CLOCK / cycles)).mean())


def test_a_plain_roofline_without_an_array_would_not_rank_them(
    cycles: FloatArray, layers: list[Layer]
) -> None:
    """Why the preset knows its array, and that convolutions are lowered."""
    plain = replace(preset("bit-serial-cloud"), array=None, lowered=False)
    assert spearmanr(seconds(plain, layers).ravel(), cycles.ravel()).statistic < 0.8


def test_the_fused_array_prices_5_to_8_bits_alike_which_that_table_does_not(
    cycles: FloatArray, layers: list[Layer]
) -> None:
    fused = seconds(preset("bit-fusion"), layers)
    assert share_of_eight(fused, 5) > 0.95
    assert share_of_eight(cycles, 5) < 0.55
