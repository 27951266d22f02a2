"""Ranges chosen by what measures best, per layer, tensor and width, and carried by policies."""

import numpy as np
import pytest

from quantization import best_ranges as module
from quantization.best_ranges import best_ranges
from quantization.bits import BitWidths, parse_choices
from quantization.deployment import check_options, range_method
from quantization.errors import DataError, PolicyError
from quantization.export import Exporter
from quantization.network import Network
from quantization.passes import initializer_arrays
from quantization.policy import Policy
from quantization.quantizer import Float32Array, quantize_weight
from quantization.range_choices import RangeChoices, chosen_ranges
from quantization.ranges import collect_ranges
from quantization.reading import read_network
from quantization.simulation import Simulation
from tests.networks import Subject
from tests.quantization.graphs import make_model, node, normal
from tests.quantization.test_simulation import assert_file_and_simulation_agree

CHOICES = parse_choices("w2a8,w4a8,w4a4,w32a32")


def outlying(count: int = 200) -> tuple[Network, Float32Array]:
    """Classifies by activations of which one that does not matter sticks out far."""
    weight = normal(6, 8)
    weight[:, 0] = 0
    model = make_model(
        [
            node("Gemm", "x w", "t", "first", transB=1),
            node("Relu", "t", "r", "act"),
            node("Gemm", "r v", "y", "last", transB=1),
        ],
        {"w": weight, "v": normal(5, 6)},
        {"x": (1, 8)},
        {"y": None},
    )
    images = normal(count, 8)
    images[0, 0] = 30
    return read_network(model), images


def choices_for(network: Network) -> RangeChoices:
    """Choices that differ from the defaults in every way."""
    tensors = [t.name for t in network.tensors if t.name not in network.inner_tensors]
    layers = [layer.name for layer in network.layers if layer.has_weights]
    return RangeChoices(
        {8: dict.fromkeys(tensors[::2], "percentile"), 4: dict.fromkeys(tensors[1::2], "mse")},
        {4: dict.fromkeys(layers[::2], "minmax"), 2: {layers[-1]: "minmax"}},
    )


@pytest.mark.parametrize("name", ["small", "branching", "attention"])
@pytest.mark.parametrize("bits", ["w4a8", "w2a8"])
def test_the_file_computes_what_the_simulation_does_with_chosen_ranges(
    name: str, bits: str, request: pytest.FixtureRequest
) -> None:
    plain: Subject = request.getfixturevalue(name)
    network = plain.network
    ranges = chosen_ranges(network, plain.calibration, choices_for(network))
    given = Subject(network, plain.calibration, plain.images[:60])
    given.__dict__["exporter"] = Exporter(
        network, ranges
    )  # in place of the one with default ranges
    layers = network.layer_names
    mixed = {n: BitWidths.parse(bits if i % 3 else "w32a32") for i, n in enumerate(layers)}
    for policy in (Policy.uniform(network, BitWidths.parse(bits)), Policy(mixed)):
        for corrections in (None, given.simulation.correct(policy)):
            assert_file_and_simulation_agree(given, policy, corrections)
    uniform = Policy.uniform(network, BitWidths.parse(bits))
    assert given.exporter.build(uniform) != plain.exporter.build(uniform)
    assert given.exporter.size_bytes(uniform) == plain.exporter.size_bytes(uniform)


def test_a_method_chosen_for_a_width_holds_at_that_width_only(small: Subject) -> None:
    network, few = small.network, small.calibration
    name = network.layer("b0.project").inputs[0]
    weights = RangeChoices({4: {name: "mse"}}, {4: {"head": "minmax"}})
    ranges = chosen_ranges(network, few, weights)
    plain = collect_ranges(network, few)
    assert ranges.grid(name, 8) == plain.grid(name, 8)
    assert ranges.grid(name, 4) == collect_ranges(network, few, "mse", 4).grid(name, 4)
    assert ranges.grid(name, 4).scale < plain.grid(name, 4).scale
    changed, kept = Exporter(network, ranges).parameters, small.exporter.parameters
    for bits, layer, same in ((4, "head", False), (2, "head", True), (4, "stem", True)):
        scales = changed.weight(layer, bits).scale, kept.weight(layer, bits).scale
        assert np.array_equal(*scales) == same
    stored = next(n for n in network.model.graph.node if n.name == "head").input[1]
    exact = initializer_arrays(network.model.graph)[stored]
    expected = quantize_weight(exact, 4, 0, "minmax").scale
    np.testing.assert_allclose(changed.weight("head", 4).scale, expected)


def test_ranges_that_nothing_was_chosen_for_are_the_default_ones(small: Subject) -> None:
    network, few = small.network, small.calibration
    ranges = chosen_ranges(network, few, RangeChoices())
    plain = collect_ranges(network, few)
    assert ranges.digest == plain.digest
    policy = Policy.uniform(network, BitWidths(4, 8))
    assert Exporter(network, ranges).build(policy) == small.exporter.build(policy)
    other = chosen_ranges(network, few, RangeChoices({}, {4: {"head": "minmax"}}))
    third = chosen_ranges(network, few, RangeChoices({8: {network.input_names[0]: "mse"}}))
    assert len({ranges.digest, other.digest, third.digest}) == 3


def test_what_only_moves_values_follows_what_it_moves(branching: Subject) -> None:
    network = branching.network
    moving = [glue for glue in network.glue if glue.moves_only]
    assert moving
    for glue in moving:
        chosen = RangeChoices({8: {glue.inputs[0]: "mse"}})
        ranges = chosen_ranges(network, branching.calibration[:4], chosen)
        assert ranges.grid(glue.outputs[0], 8) == ranges.grid(glue.inputs[0], 8)
        alone = RangeChoices({8: {glue.outputs[0]: "mse"}})
        ranges = chosen_ranges(network, branching.calibration[:4], alone)
        assert ranges.grid(glue.outputs[0], 8) == ranges.grid(glue.inputs[0], 8)


def test_the_best_method_is_the_one_of_the_least_divergence() -> None:
    network, images = outlying()
    exporter = Exporter(network, collect_ranges(network, images))
    found = best_ranges(exporter, images, CHOICES)
    # what sticks out is of no consequence, but covering it costs all else its resolution
    assert found.activations[4]["x"] == "mse"
    best = Exporter(network, chosen_ranges(network, images, found))
    policy = Policy.uniform(network, BitWidths(4, 4))
    errors = []
    for each in (exporter, best):
        simulation = Simulation(each, images)
        reference = simulation.logits(Policy({}), images)
        made = simulation.logits(policy, images, simulation.correct(policy))
        errors.append(float(np.abs(made - reference)[1:].mean()))
    assert errors[1] < 0.8 * errors[0]


def test_methods_other_than_the_default_are_surely_better() -> None:
    default = np.full(100, 1.0)
    rng = np.random.default_rng(0)
    for gain, expected in ((0.0, "mse"), (0.001, "mse"), (0.2, "minmax"), (-0.2, "mse")):
        other = default - gain + rng.normal(0, 0.3, 100)
        assert module._best(("mse", "minmax"), {"mse": default, "minmax": other}) == expected


def test_a_table_survives_a_policy_file() -> None:
    network, images = outlying()
    table = choices_for(network)
    policy = Policy({"first": BitWidths(4, 8)}, {"ranges": table.to_json()})
    read = Policy.from_json(policy.to_json())
    read.check(network)
    assert range_method(read.options) == table
    before, after = (chosen_ranges(network, images, t) for t in (table, range_method(read.options)))  # type: ignore[arg-type]
    assert before == after
    assert range_method({"ranges": RangeChoices().to_json()}) == RangeChoices()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("best", "choose minmax, percentile, mse"),
        ({"activations": {"8": {"x": "mes"}}}, "did you mean 'mse'"),
        ({"weights": {"4": {"first": "percentile"}}}, "choose mse, minmax"),
        ({"weights": {"four": {"first": "mse"}}}, "looks like"),
        ({"weights": {"4": "mse"}}, "looks like"),
        ({"weights": 4}, "looks like"),
        ({"layers": {}}, "looks like"),
    ],
)
def test_what_is_no_table_is_an_error(asked: object, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        check_options({"ranges": asked})


def test_a_table_of_another_network_is_an_error() -> None:
    network, images = outlying()
    with pytest.raises(DataError, match="tensor 'xx'"):
        chosen_ranges(network, images, RangeChoices({8: {"xx": "mse"}}))
    with pytest.raises(DataError, match=r"layer 'frist'.*did you mean 'first'"):
        chosen_ranges(network, images, RangeChoices({}, {8: {"frist": "minmax"}}))
