"""Channel groups: their text, policies that hold them, and what is simulated and exported."""

import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.ort import Runner
from quantization.bits import FLOAT32, BitWidths, formats_of, parse_choices
from quantization.channel_groups import ChannelGroups, parse_bits
from quantization.deployment import ExportOptions, not_deployable
from quantization.errors import BitWidthError, PolicyError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.quantizer import quantize_weight
from quantization.reading import read_network
from quantization.simulation import Simulation
from tests.networks import INPUT, Subject, uniform
from tests.quantization.graphs import make_model, node, normal

MIXED = ChannelGroups(8, {4: [0, 2, 3], 2: [1, 4]})


@st.composite
def channel_groups(draw: st.DrawFn, most: int = 40) -> ChannelGroups:
    widths = draw(st.lists(st.sampled_from([2, 3, 4, 5, 6, 7, 8]), min_size=2, unique=True))
    order = draw(st.permutations(range(draw(st.integers(len(widths), most)))))
    cuts = sorted(draw(st.permutations(range(1, len(order))))[: len(widths) - 1])
    parts = np.split(np.array(order), cuts)
    return ChannelGroups(8, {w: p.tolist() for w, p in zip(widths, parts, strict=True)})


def grouped(network: Network, seed: int, widths: tuple[int, ...] = (2, 4, 8)) -> Policy:
    """Every layer that may has channel groups, by lot."""
    draw = np.random.default_rng(seed)
    layers: dict[str, BitWidths] = {}
    for layer in network.layers:
        layers[layer.name] = BitWidths(8, 8)
        if layer.has_weights and layer.out_channels >= len(widths):
            width_of = draw.choice(widths, layer.out_channels)
            width_of[: len(widths)] = widths
            channels = {w: np.flatnonzero(width_of == w).tolist() for w in widths}
            layers[layer.name] = ChannelGroups(8, channels)
    return Policy(layers)


@given(channel_groups())
def test_channel_groups_survive_their_text_a_policy_file_and_pickling(bits: ChannelGroups) -> None:
    policy = Policy({"layer": bits, "other": BitWidths(8, 8)})
    for again in (
        parse_bits(str(bits)),
        Policy.from_json(policy.to_json())["layer"],
        pickle.loads(pickle.dumps(bits)),
    ):
        assert again == bits
        assert hash(again) == hash(bits)
        assert again.weight_widths == bits.weight_widths
    assert Policy.from_json(policy.to_json()) == policy


def test_the_order_in_which_groups_and_channels_are_given_does_not_matter() -> None:
    assert ChannelGroups(8, {2: [4, 1], 4: [3, 2, 0]}) == MIXED
    assert ChannelGroups(8, {4: [0, 2, 4], 2: [1, 3]}) != MIXED
    assert ChannelGroups(4, {4: [0, 2, 3], 2: [1, 4]}) != MIXED


def test_bits_sort_with_and_without_groups() -> None:
    plain = [BitWidths(2, 8), BitWidths(4, 8), FLOAT32]
    assert sorted([FLOAT32, MIXED, BitWidths(4, 8), BitWidths(2, 8)]) == [
        *plain[:2],
        MIXED,
        FLOAT32,
    ]
    assert BitWidths(4, 8) != MIXED


def test_all_groups_read_and_write_what_one_width_would() -> None:
    assert (MIXED.reads, MIXED.writes) == (BitWidths(4, 8).reads, BitWidths(4, 8).writes)
    assert formats_of([MIXED]) == formats_of([BitWidths(4, 8)])
    assert not MIXED.is_float


def test_there_is_no_one_weight_width_to_be_misread() -> None:
    expected = (
        'a layer of 5 channels has channel groups of 2 and 4 bits; give that layer one .*"w4a8"'
    )
    with pytest.raises(BitWidthError, match=expected):
        _ = MIXED.weights


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({}, "at least two widths"),
        ({"w4a8": "0-3"}, "at least two widths"),
        ({"w4a8": "0-3", "w2a8": ""}, "'' lists no channels"),
        ({"w4a8": "0-3", "w2a8": "3-1"}, "with a channel each"),
        (
            {"w4a8": "0-3", "w2a8": "3"},
            "every channel from 0 on once, and channel 3 is there twice",
        ),
        ({"w4a8": "0-1", "w2a8": "3"}, "channel 2 is in none"),
        ({"w4a8": "1", "w2a8": "2"}, "channel 0 is in none"),
        ({"w4a8": "0", "w2a4": "1"}, "read the same activations"),
        ({"w4a8": "0", "w04a8": "1"}, "channel groups are written as"),
        ({"w4a8": "0", "fp16": "1"}, "same activations"),
        ({"w4a32": "0", "w32a32": "1"}, "channel groups are written as"),
        ({"w4a8": "0", "w9a8": "1"}, "no such bit-width"),
        ({"w4a8": "-1", "w2a8": "0"}, "lists no channels"),
        ({"w4a8": [0], "w2a8": [1]}, "channel groups are written as"),
        ("w2a8[1]+w4a8[0]", "is no bit-width.*channel groups are written as"),
    ],
)
def test_what_is_no_grouping_is_one_line_that_names_the_layer(layer: object, message: str) -> None:
    text = json.dumps({"version": 2, "layers": {"fine": "w8a8", "stem": layer}})
    with pytest.raises(PolicyError, match=f"layer 'stem': .*{message}") as caught:
        Policy.from_json(text)
    told = str(caught.value)
    assert "\n" not in told
    example = told.partition("channel groups are written as ")[2]
    if example:  # it is JSON that a policy file may hold
        again = json.dumps({"version": 2, "layers": {"stem": json.loads(example)}})
        assert Policy.from_json(again)["stem"].weight_widths == (2, 4)


def test_the_version_without_channel_groups_does_not_hold_any() -> None:
    content = {"version": 1, "layers": {"fine": "w8a8", "stem": MIXED.texts}}
    with pytest.raises(PolicyError, match=r"layer 'stem' has channel groups.*\"version\": 2"):
        Policy.from_json(json.dumps(content))
    assert Policy.from_json(json.dumps({**content, "version": 2}))["stem"] == MIXED


@pytest.mark.parametrize("text", ["w2a8[0]w4a8[1]", "w2a8[0]+", "[0]+w4a8[1]", "w2a8[0]+w2a8[1]"])
def test_a_text_that_is_none_says_how_groups_are_written(text: str) -> None:
    with pytest.raises(BitWidthError, match="channel groups are written as"):
        parse_bits(text)


def test_only_a_policy_with_groups_is_a_file_of_the_newer_version() -> None:
    assert json.loads(Policy({"a": BitWidths(4, 8)}).to_json())["version"] == 1
    content = json.loads(Policy({"a": MIXED}).to_json())
    assert content == {
        "version": 2,
        "layers": {"a": {"w2a8": "1,4", "w4a8": "0,2-3"}},
        "options": {},
    }


def test_a_policy_whose_groups_are_of_other_channels_names_the_layer(small: Subject) -> None:
    with pytest.raises(PolicyError, match=r"'stem': .*5 channels, but it has 16: name every"):
        Policy({"stem": MIXED}).check(small.network)


def test_a_product_of_two_activations_has_no_groups(attention: Subject) -> None:
    name = next(layer.name for layer in attention.network.layers if not layer.has_weights)
    with pytest.raises(PolicyError, match="product of two activations has no channel groups"):
        Policy({name: MIXED}).check(attention.network)


def test_tied_layers_need_the_same_groups(small: Subject) -> None:
    tied = small.network.tied([("b0.expand", "b0.depthwise")])
    channels = small.network.layer("b0.expand").out_channels
    one = ChannelGroups(8, {2: [0], 4: range(1, channels)})
    other = ChannelGroups(8, {2: [1], 4: [0, *range(2, channels)]})
    Policy({"b0.expand": one, "b0.depthwise": one}).check(tied)
    with pytest.raises(PolicyError, match="equal bits"):
        Policy({"b0.expand": one, "b0.depthwise": other}).check(tied)


def test_a_batch_gives_groups_back(small: Subject) -> None:
    policies = [grouped(small.network, 0), uniform(small.network, "w8a8")]
    batch = PolicyBatch.of(small.network, policies)
    for position, policy in enumerate(policies):
        assert all(batch[position][n] == policy[n] for n in small.network.layer_names)


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_each_channel_is_quantized_at_its_own_width(kind: str) -> None:
    shapes = {"Conv": (5, 3, 2, 2), "Gemm": (3, 5), "MatMul": (3, 5)}
    x = (1, 3, 4, 4) if kind == "Conv" else (2, 3)
    weight, axis = normal(*shapes[kind]), 0 if kind == "Conv" else 1
    model = make_model([node(kind, "x w", "y", "layer")], {"w": weight}, {"x": x}, {"y": None})
    network = read_network(model)
    images = np.random.default_rng(0).standard_normal((8, *x[1:])).astype(np.float32)
    exporter = Subject(network, images, images).exporter
    found = exporter.parameters.quantized("layer", MIXED)
    assert found.axis == axis
    for width, channels in MIXED.groups:
        alone = quantize_weight(weight, width, axis)
        for channel in channels:
            expected = np.take(alone.dequantize(), channel, axis)
            np.testing.assert_array_equal(np.take(found.dequantize(), channel, axis), expected)


@pytest.mark.parametrize("name", ["small", "branching", "attention"])
def test_the_file_computes_what_is_simulated_and_has_the_predicted_size(
    name: str, request: pytest.FixtureRequest
) -> None:
    subject: Subject = request.getfixturevalue(name)
    policy = grouped(subject.network, 1)
    corrections = subject.simulation.correct(policy)
    model = subject.exporter.build(policy, corrections)
    assert len(model) == subject.exporter.size_bytes(policy)
    few = subject.images[:32]
    simulated = subject.simulation.logits(policy, few, corrections)
    runner, [feed] = Runner(model, 1, {}), subject.network.input_names
    executed = np.concatenate([runner.run({feed: few[i : i + 1]})[0] for i in range(len(few))])
    levels = np.abs(executed - simulated) / subject.output_step
    assert (levels > 0.5).mean() < 0.02
    whole = subject.simulation.logits(uniform(subject.network, "w8a8"), few)
    assert np.abs(simulated - whole).max() > subject.output_step


def test_groups_stored_without_planes_compute_the_same(small: Subject) -> None:
    policy = grouped(small.network, 2)
    plain = Exporter(small.network, small.exporter.ranges, ExportOptions(pack=False))
    [feed] = small.network.input_names
    given = {feed: small.images[:1]}
    packed, whole = (Runner(e.build(policy), 1, given) for e in (small.exporter, plain))
    np.testing.assert_array_equal(packed.run(given)[0], whole.run(given)[0])


def test_channels_beyond_the_range_of_a_byte_are_put_in_order() -> None:
    weight = normal(10, 300)
    model = make_model(
        [node("MatMul", "x w", "y", "m")], {"w": weight}, {INPUT: (2, 10)}, {"y": None}
    )
    network = read_network(model)
    images = np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)
    subject = Subject(network, images, images)
    policy = Policy({"m": ChannelGroups(8, {2: range(1, 300, 2), 8: range(0, 300, 2)})})
    executed = Runner(subject.exporter.build(policy), 1, {}).run({INPUT: images[:2]})[0]
    simulated = subject.simulation.logits(policy, images[:2])
    assert np.abs(executed - simulated).max() <= subject.output_step * 1.001
    assert (np.abs(executed - simulated) > subject.output_step / 2).mean() < 0.02


def test_a_narrower_group_makes_the_file_smaller(digits: Subject) -> None:
    name = "features.5.project"
    channels = digits.network.layer(name).out_channels
    sizes = []
    for narrow in (8, 48, 88):
        bits = ChannelGroups(8, {2: range(narrow), 4: range(narrow, channels)})
        policy = Policy({**uniform(digits.network, "w4a8").layers, name: bits})
        sizes.append(digits.exporter.size_bytes(policy))
    # 40 channels of 240 weights, 2 bits less each, and nothing else
    assert np.diff(sizes).tolist() == [-2400, -2400]


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (ChannelGroups(8, {2: [0], 16: range(1, 16)}), "no 16-bit kernels"),
        (ChannelGroups(4, {2: [0], 8: range(1, 16)}), "no kernels for activations below 8 bits"),
        (ChannelGroups(32, {2: [0], 8: range(1, 16)}), "runs as float"),
        (MIXED, "channel groups of 5 channels, but it has 16"),
    ],
)
def test_what_the_runtime_cannot_execute_is_told(
    small: Subject, bits: ChannelGroups, reason: str
) -> None:
    assert reason in not_deployable(small.network.layer("stem"), bits)
    with pytest.raises(PolicyError, match=r"layer 'stem'.*" + reason) as caught:
        small.exporter.build(Policy({"stem": bits}))
    assert "\n" not in str(caught.value)
    fits = bits.channel_count == 16
    assert not fits or small.simulation.logits(Policy({"stem": bits}), small.images[:2]).size


def test_a_list_of_choices_holds_no_groups() -> None:
    with pytest.raises(BitWidthError, match="is no bit-width"):
        parse_choices("w2a8[0]+w4a8[1],w8a8")


def test_two_groupings_of_one_layer_are_not_mixed_up(small: Subject) -> None:
    few = small.images[:4]
    one, other = (
        Policy({"stem": ChannelGroups(8, {2: narrow, 8: sorted(set(range(16)) - set(narrow))})})
        for narrow in (range(8), range(8, 16))
    )
    first, second, again = (small.simulation.logits(each, few) for each in (one, other, one))
    np.testing.assert_array_equal(first, again)
    anew = Simulation(small.exporter, small.calibration).logits(other, few)
    np.testing.assert_array_equal(second, anew)


def test_a_batch_of_more_choices_than_a_byte_tells_apart_says_so(small: Subject) -> None:
    policies = [
        Policy({"classifier": ChannelGroups(8, {2: each, 3: sorted(set(range(10)) - set(each))})})
        for size in (4, 5)
        for each in itertools.combinations(range(10), size)
    ]
    with pytest.raises(PolicyError, match="256 choices at most, not 463"):
        PolicyBatch.of(small.network, policies)
