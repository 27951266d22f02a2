"""What layers with channel groups cost: the sum of layers that their groups would be."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from costmodels.accelerator import Accelerator
from costmodels.accelerator_files import find
from costmodels.analytical import Analytical
from costmodels.channel_groups import parts, price_parts
from costmodels.compare import macs_bits
from costmodels.context import Context
from costmodels.errors import UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.registry import backend
from costmodels.replay import TableReplay
from costmodels.roofline import price, roofline
from costmodels.size import ExportedSize
from costmodels.spread import spread_table
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import BitWidths, parse_choices
from quantization.channel_groups import ChannelGroups
from quantization.errors import BitWidthError
from quantization.export import Exporter
from quantization.network import Layer, Network
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import made_up_ranges
from tests.networks import Subject, small_mobilenet, uniform

CHANNELS = {"stem": 16, "b0.expand": 48, "b0.depthwise": 48, "classifier": 10}
"""Layers of the small network to their output channels."""


def split(layer: str, widths: tuple[int, int] = (2, 4), activations: int = 8) -> ChannelGroups:
    """Every third channel of a layer narrow."""
    narrow = range(0, CHANNELS[layer], 3)
    rest = sorted(set(range(CHANNELS[layer])) - set(narrow))
    return ChannelGroups(activations, {widths[0]: narrow, widths[1]: rest})


def conv(groups: int, outputs: int) -> Layer:
    size = (6, 6)
    return Layer(
        "c", "Conv", 12, outputs, (3, 3), (1, 1), groups, size, size, 1, ("x",), "y", outputs
    )


def policies(network: Network, given: Mapping[str, BitWidths]) -> PolicyBatch:
    """One policy: w4a8 where nothing is given."""
    layers = {**uniform(network, "w4a8").layers, **given}
    return PolicyBatch.of(network, [Policy(layers)])


@pytest.mark.parametrize("groups", [1, 2, 3, 12])
@pytest.mark.parametrize("seed", range(5))
def test_parts_add_up_to_the_layer(groups: int, seed: int) -> None:
    layer = conv(groups, 24)
    width_of = np.random.default_rng(seed).choice([2, 3, 8], 24)
    width_of[:3] = [2, 3, 8]
    channels = {w: np.flatnonzero(width_of == w).tolist() for w in (2, 3, 8)}
    found = parts(layer, ChannelGroups(8, channels))
    for count in ("macs", "weight_count", "output_count", "out_channels", "bias_count"):
        assert sum(getattr(part, count) for _, part in found) == getattr(layer, count), count
    for width in (2, 3, 8):
        own = [part.out_channels for bits, part in found if bits == BitWidths(width, 8)]
        assert sum(own) == len(channels[width])


def test_dense_groups_read_all_inputs_again_and_depthwise_ones_only_their_own() -> None:
    for groups, times in ((1, 2), (12, 1)):
        layer = conv(groups, 12)
        found = parts(layer, ChannelGroups(8, {2: range(5), 4: range(5, 12)}))
        assert sum(part.input_count for _, part in found) == times * layer.input_count


def test_a_cut_through_groups_of_a_convolution_becomes_layers_of_equal_groups() -> None:
    # 3 groups of 8 outputs; the narrow width takes 5, 5 and 2 of them
    narrow = [0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 16, 17]
    rest = sorted(set(range(24)) - set(narrow))
    found = parts(conv(3, 24), ChannelGroups(8, {2: narrow, 4: rest}))
    shapes = [(str(b), p.groups, p.in_channels, p.out_channels) for b, p in found]
    assert shapes == [
        ("w2a8", 1, 4, 2),
        ("w2a8", 2, 8, 10),
        ("w4a8", 2, 8, 6),
        ("w4a8", 1, 4, 6),
    ]


@pytest.mark.parametrize("metric", list(Metric))
def test_a_closed_formula_is_the_share_weighted_mean_of_its_widths(metric: Metric) -> None:
    network, layer = small_mobilenet(), "b0.expand"
    model = backend("analytical:haq", BackendContext())
    mixed = split(layer, (4, 8))
    choices = (*parse_choices("w4a8,w8a8"), mixed)
    table = model.table(network, choices, metric)
    row = network.layer_names.index(layer)
    narrow, wide, both = table.unary.value[row]
    assert both == pytest.approx((16 * narrow + 32 * wide) / 48, rel=1e-12)
    others = np.delete(table.supported[:, 2], row)
    channels = [network.layer(n).out_channels for n in np.delete(network.layer_names, row)]
    assert others.tolist() == [count == 48 for count in channels]


@pytest.mark.parametrize("name", ["bit-fusion", "bit-serial-edge", "server-cpu"])
def test_a_roofline_is_that_of_each_group_as_a_layer(name: str) -> None:
    network, layer, accelerator = small_mobilenet(), "b0.expand", find(name)
    assert isinstance(accelerator, Accelerator)
    mixed = split(layer) if accelerator.widths.supports(BitWidths(2, 8)) else split(layer, (8, 16))
    narrow, wide = (BitWidths(width, 8) for width in mixed.weight_widths)
    described, position = network.layer(layer), network.layer_names.index(layer)
    model = Analytical(accelerator)
    for metric in sorted(model.metrics):
        first, second = (
            price(accelerator, [replace(described, out_channels=count)], [bits], metric)[0][0, 0]
            for count, bits in ((16, narrow), (32, wide))
        )
        found = model.table(network, (mixed,), metric).unary.value[position, 0]
        assert found == first + second


def test_what_is_priced_beside_channel_groups_costs_what_it_costs_without() -> None:
    network = small_mobilenet()
    plain = parse_choices("w2a8,w4a8,w8a8,w32a32")
    model = backend("analytical:haq", BackendContext())
    alone = model.table(network, plain, Metric.ENERGY)
    beside = model.table(network, (*plain, split("stem"), split("classifier")), Metric.ENERGY)
    np.testing.assert_array_equal(beside.unary.value[:, :4], alone.unary.value)
    np.testing.assert_array_equal(beside.unary.provenance[:, :4], alone.unary.provenance)


def test_without_channel_groups_a_formula_is_asked_as_ever() -> None:
    asked = []

    def remember(layers: object, widths: object) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        asked.append((layers, widths))
        return np.ones((1, 2)), np.zeros(2, np.bool_)

    layers, choices = [conv(1, 24)], parse_choices("w4a8,w8a8")
    price_parts(remember, layers, choices)
    assert asked == [(layers, choices)]


def test_groups_at_a_guessed_width_are_told_to_be_assumed() -> None:
    def guess(layers: object, widths: object) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        assert isinstance(layers, list)
        assert isinstance(widths, list)
        known = np.array([bits.weights == 2 for bits in widths])
        return np.ones((len(layers), len(widths))), known

    mixed = [ChannelGroups(8, {w: range(12), 8: range(12, 24)}) for w in (2, 4)]
    value, assumed = price_parts(guess, [conv(1, 24)], [*mixed, BitWidths(4, 8)])
    assert assumed.tolist() == [True, False, False]
    assert value.tolist() == [[2.0, 2.0, 1.0]]


@pytest.mark.parametrize("name", ["systolic-int8", "gpu-t4"])
def test_a_width_that_does_not_run_is_told_with_layer_and_groups(name: str) -> None:
    network = small_mobilenet()
    model = backend(f"analytical:{name}", BackendContext())
    layers = {**uniform(network, "w8a8").layers, "stem": split("stem", (4, 8))}
    batch = PolicyBatch.of(network, [Policy(layers)])
    said = r"layer 'stem' has channel groups \(6 w4a8 \+ 10 w8a8\) without .* such as \"w8a8\""
    with pytest.raises(UnsupportedChoiceError, match=said) as caught:
        model.total(network, batch, Metric.LATENCY)
    assert "\n" not in str(caught.value)


def test_a_picture_with_one_width_a_layer_refuses_groups_in_one_line() -> None:
    network = small_mobilenet()
    bits = [split("stem"), *[BitWidths(4, 8)] * (len(network.layers) - 1)]
    with pytest.raises(BitWidthError, match=r"has channel groups.*give that layer one width"):
        roofline(find("bit-fusion"), network.layers, bits)  # type: ignore[arg-type]


def measured_table(network: Network, metric: Metric = Metric.ENERGY) -> CostTable:
    """A table as one that was measured here: all integer widths of a layer cost the same."""
    held = parse_choices("w8a8,w32a32")
    formula = backend("analytical:haq", BackendContext()).table(network, held, metric)
    told = replace(formula, source={"backend": "ort", "runtime": {"threads": 1}})
    return spread_table(told, network, parse_choices("w2a8,w4a8,w8a8,w32a32"))


def test_a_stored_table_that_was_measured_prices_groups_as_one_width() -> None:
    network = small_mobilenet()
    replay = TableReplay(measured_table(network))
    grouped = policies(network, {"stem": split("stem"), "b0.expand": split("b0.expand")})
    [cost] = replay.total(network, grouped, Metric.ENERGY)
    [plain] = replay.total(network, policies(network, {}), Metric.ENERGY)
    assert cost == pytest.approx(plain)
    choices = (split("stem"), BitWidths(2, 8))
    table = replay.table(network, choices, Metric.ENERGY)
    assert table.choices == choices
    row = network.layer_names.index("stem")
    np.testing.assert_array_equal(table.unary.value[row, 0], table.unary.value[row, 1])
    assert not table.supported[network.layer_names.index("b0.expand"), 0], "of other channels"


def test_what_a_stored_measured_table_adds_for_neighbours_holds_for_groups() -> None:
    network = small_mobilenet()
    context = Context(np.array([[0, 1, -1]]), np.array([0.25]))
    replay = TableReplay(replace(measured_table(network), context=context))
    alone = TableReplay(measured_table(network))
    grouped = policies(network, {"stem": split("stem")})
    [more], [cost] = (r.total(network, grouped, Metric.ENERGY) for r in (replay, alone))
    assert more - cost == pytest.approx(0.25)


def test_a_stored_table_of_others_has_no_price_for_groups_and_names_the_layer() -> None:
    network = small_mobilenet()
    choices = parse_choices("w2a8,w4a8,w8a8")
    stored = backend("analytical:haq", BackendContext()).table(network, choices, Metric.ENERGY)
    batch = policies(network, {"stem": split("stem")})
    said = (
        r"layer 'stem' has channel groups \(6 w2a8 \+ 10 w4a8\) without a price here; give it one"
    )
    with pytest.raises(UnsupportedChoiceError, match=said):
        TableReplay(stored).total(network, batch, Metric.ENERGY)
    with pytest.raises(UnsupportedChoiceError, match="holds no w4a8; it holds w2a8, w8a8"):
        TableReplay(stored.restrict(parse_choices("w2a8,w8a8"))).total(
            network, policies(network, {"stem": split("stem")}), Metric.ENERGY
        )


def test_a_formula_prices_the_groups_that_its_stored_table_does_not_hold() -> None:
    network = small_mobilenet()
    model = backend("analytical:haq", BackendContext())
    stored = model.table(network, parse_choices("w2a8,w4a8,w8a8"), Metric.ENERGY)
    batch = policies(network, {"stem": split("stem")})
    found = TableReplay(stored, "haq", model).total(network, batch, Metric.ENERGY)
    assert found == pytest.approx(model.total(network, batch, Metric.ENERGY))


def test_a_table_with_groups_survives_json_and_csv() -> None:
    network = small_mobilenet()
    choices = (*parse_choices("w4a8,w8a8"), split("stem", (4, 8)))
    table = backend("analytical:haq", BackendContext()).table(network, choices, Metric.ENERGY)
    for again in (CostTable.from_json(table.to_json()), CostTable.from_csv(table.to_csv())):
        assert again.choices == table.choices
        np.testing.assert_array_equal(again.unary.value, table.unary.value)


def test_measured_columns_hold_for_groups_because_the_kernel_is_the_same() -> None:
    network = small_mobilenet()
    held = parse_choices("w8a8,w32a32")
    measured = backend("analytical:haq", BackendContext()).table(network, held, Metric.ENERGY)
    mixed = split("stem")
    found = spread_table(measured, network, (BitWidths(8, 8), mixed))
    row = network.layer_names.index("stem")
    assert found.unary.value[row, 1] == measured.unary.value[row, 0]
    fits = [layer.out_channels == 16 for layer in network.layers]
    assert found.supported[:, 1].tolist() == fits


def test_the_size_with_groups_is_that_of_the_file(small: Subject) -> None:
    network = small.network
    given = {name: split(name) for name in CHANNELS}
    batch = policies(network, given)
    built = len(Exporter(network, made_up_ranges(network)).build(batch[0]))
    size = ExportedSize()
    assert size.total(network, batch, Metric.SIZE).tolist() == [built]
    table = size.table(network, batch.choices, Metric.SIZE)
    assert total(table, network, batch).tolist() == [built]


def test_groups_pay_for_the_function_that_unpacks_if_one_of_them_is_below_8_bits() -> None:
    network = small_mobilenet()
    integer = uniform(network, "w8a8")
    mixed = Policy({**integer.layers, "stem": split("stem", (4, 8))})
    batch = PolicyBatch.of(network, [integer, mixed])
    table = ExportedSize().table(network, batch.choices, Metric.SIZE)
    assert table.once is not None
    assert table.once.due(batch.index).tolist() == [False, True]


def test_macs_times_bits_counts_each_channel_at_its_width() -> None:
    network = small_mobilenet()
    narrow, wide, mixed = (
        macs_bits(network, policies(network, {"stem": bits}))[0]
        for bits in (BitWidths(2, 8), BitWidths(4, 8), split("stem"))
    )
    assert mixed == pytest.approx((6 * narrow + 10 * wide) / 16)
