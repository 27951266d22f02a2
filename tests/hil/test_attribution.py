"""Times of the optimized graph's operators become those of layers, glue and conversions."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.sketch import Sketch, example_network
from costmodels.spread import INTEGER
from hil.attribution import Attribution, attribute, relative_to_float
from hil.ort import optimized_graph
from quantization.bits import FLOAT32, Format
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import made_up_ranges

OPTIONS = ExportOptions(weight_method="minmax", pack=False)


def _attributed(network: Network, policy: Policy) -> tuple[Attribution, list[float]]:
    exporter = Exporter(network, made_up_ranges(network), OPTIONS)
    graph = optimized_graph(exporter.build(policy))
    durations = [float(2**i % 97 + 1) for i in range(len(graph.node))]
    return attribute(network, policy, graph, durations), durations


def _mixed(network: Network, seed: int) -> Policy:
    chosen = np.random.default_rng(seed).random(len(network.layers)) < 0.5
    pairs = zip(network.layer_names, chosen, strict=True)
    return Policy({name: INTEGER if integer else FLOAT32 for name, integer in pairs})


@pytest.mark.parametrize("seed", range(6))
def test_no_time_is_lost_and_none_is_added(seed: int) -> None:
    network = example_network()
    found, durations = _attributed(network, _mixed(network, seed))
    parts = (found.layers.sum(), found.glue.sum(), sum(found.conversions.values()))
    assert sum(parts) == pytest.approx(sum(durations))


@pytest.mark.parametrize("seed", range(6))
def test_conversions_are_those_of_the_policy_and_each_is_executed(seed: int) -> None:
    network = example_network()
    policy = _mixed(network, seed)
    found, _ = _attributed(network, policy)
    expected = {(tensor, target) for tensor, _, target in formats(network, policy).conversions}
    assert found.conversions.keys() == expected
    executed = [key for key, count in found.conversion_nodes.items() if count]
    assert len(executed) >= 0.8 * len(expected)


def test_every_layer_has_an_operator_of_its_own() -> None:
    network = example_network()
    for policy in (Policy({}), Policy.uniform(network, INTEGER), _mixed(network, 1)):
        found, _ = _attributed(network, policy)
        assert (found.layer_nodes >= 1).all()
        assert (found.layers > 0).all()


def test_an_activation_that_a_convolution_takes_over_has_neither_time_nor_operators() -> None:
    sketch = Sketch()
    x = sketch.input((1, 16, 8, 8))
    network = sketch.network(sketch.node("Relu", sketch.conv(x, 16, kernel=3)))
    found, _ = _attributed(network, Policy({}))
    assert found.glue.tolist() == [0.0]
    assert found.glue_nodes.tolist() == [0]


def test_a_change_of_layout_in_a_float_network_is_of_whoever_needs_it() -> None:
    sketch = Sketch()
    x = sketch.input((1, 16, 8, 8))
    network = sketch.network(sketch.conv(x, 16, kernel=3, name="only"))
    found, durations = _attributed(network, Policy({}))
    assert len(durations) > 1  # the layout is changed before and behind
    assert found.layers.tolist() == [sum(durations)]
    assert found.layer_nodes.tolist() == [len(durations)]


def _chain() -> tuple[Network, Policy]:
    """A convolution as integers before an activation that only a float one takes over."""
    sketch = Sketch()
    first = sketch.conv(sketch.input((1, 16, 8, 8)), 16, kernel=3, name="first")
    smooth = sketch.node("HardSwish", first, name="smooth")
    network = sketch.network(sketch.conv(smooth, 16, kernel=3, name="second"))
    return network, Policy({"first": INTEGER})


def test_what_an_integer_neighbour_adds_to_float_glue_is_part_of_the_conversion() -> None:
    network, policy = _chain()
    (tensor,) = network.glue[0].inputs
    floats, _ = _attributed(network, Policy({}))
    mixed, durations = _attributed(network, policy)
    assert floats.glue[0] == 0  # taken over
    assert mixed.glue[0] > 0  # by itself
    found = relative_to_float(network, policy, mixed, floats)
    key = tensor, Format.FLOAT32
    assert found.glue.tolist() == [0.0]
    assert found.glue_nodes.tolist() == [0]
    assert found.conversions[key] == pytest.approx(mixed.conversions[key] + mixed.glue[0])
    assert found.conversion_nodes[key] == mixed.conversion_nodes[key] + mixed.glue_nodes[0]
    total = found.layers.sum() + found.glue.sum() + sum(found.conversions.values())
    assert total == pytest.approx(sum(durations))


def test_what_no_operator_can_have_added_is_noise_and_stays_with_the_glue() -> None:
    network, policy = _chain()
    (tensor,) = network.glue[0].inputs
    key = tensor, Format.FLOAT32
    mixed, _ = _attributed(network, policy)
    merged = replace(mixed, conversions={key: 0.0}, conversion_nodes={key: 0})
    quicker = replace(mixed, glue=mixed.glue / 2)
    found = relative_to_float(network, policy, merged, quicker)
    np.testing.assert_array_equal(found.glue, mixed.glue)
    assert found.conversions == {key: 0.0}
    assert found.conversion_nodes == {key: 0}


def test_float_glue_that_took_no_longer_keeps_its_time() -> None:
    network, policy = _chain()
    floats, _ = _attributed(network, Policy({}))
    mixed, _ = _attributed(network, policy)
    slow = Attribution(floats.layers, mixed.glue + 1, {}, floats.layer_nodes, mixed.glue_nodes, {})
    found = relative_to_float(network, policy, mixed, slow)
    np.testing.assert_array_equal(found.glue, mixed.glue)
    assert found.conversions == mixed.conversions
