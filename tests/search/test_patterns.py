import itertools

import numpy as np
import pytest

from costmodels.sketch import example_network
from quantization.bits import DEFAULT_CHOICES, parse_choices
from quantization.errors import PolicyError
from quantization.policy import PolicyBatch
from quantization.reading import read_network
from quantmeter.reference_task import SHIPPED_MODEL
from search.patterns import layer_groups, measure_patterns
from tests.search.networks import chain


@pytest.fixture(scope="module")
def digits():
    return read_network(SHIPPED_MODEL)


def batch(network, index, choices=DEFAULT_CHOICES) -> PolicyBatch:
    return PolicyBatch(network.layer_names, tuple(choices), np.atleast_2d(index).astype(np.uint8))


def test_the_groups_of_the_reference_network_are_its_kinds_and_places(digits):
    groups = layer_groups(digits)
    count = {name: int(members.sum()) for name, members in groups.items()}
    assert count == {
        "first": 1,
        "last": 1,
        "depthwise": 6,
        "pointwise": 13,
        "other convolution": 1,
        "dense": 1,
        "early third": 7,
        "late third": 7,
    }
    kinds = [groups[k] for k in ("depthwise", "pointwise", "other convolution", "dense")]
    assert (np.sum(kinds, axis=0) == 1).all()
    assert groups["early third"][:7].all()
    assert groups["late third"][-7:].all()


def test_bits_that_follow_the_kind_of_a_layer_are_a_pattern(digits):
    depthwise = layer_groups(digits)["depthwise"]
    found = measure_patterns(digits, batch(digits, np.where(depthwise, 4, 1)))  # w8a8, else w3a8
    [group] = [g for g in found.weights if g.group == "depthwise"]
    assert group.mean == pytest.approx(8.0)
    assert found.weight_mean == pytest.approx((6 * 8 + 15 * 3) / 21)
    assert group.difference == pytest.approx(8.0 - found.weight_mean)
    assert group.pattern
    assert group.p < 0.001
    # the least p counts for as many groups as are looked at
    assert group.adjusted == pytest.approx(8 * group.p)
    places = [g for g in found.weights if g.group in ("early third", "late third", "first")]
    assert not any(g.pattern for g in places)


def test_equal_bits_everywhere_are_not_tested(digits):
    found = measure_patterns(digits, batch(digits, np.full(21, 2)))
    assert {g.p for g in (*found.weights, *found.activations)} == {None}
    assert {g.difference for g in found.weights} == {0.0}
    assert not any(g.pattern for g in found.weights)


def test_random_bits_show_a_pattern_no_more_often_than_said(digits):
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(60):
        found = measure_patterns(digits, batch(digits, rng.integers(0, 5, 21)))
        alarms += any(g.pattern for g in found.weights)
    assert alarms <= 7  # 5 % of 60 are 3; more than 7 would come up in 1 of 60 runs


def test_the_p_value_is_that_of_every_way_to_deal_the_bits_of_layers_with_weights():
    network = example_network()
    held = np.array([layer.has_weights for layer in network.layers])
    assert not held.all()
    rng = np.random.default_rng(1)
    index = rng.integers(0, 5, len(network.layers))
    groups = layer_groups(network)
    bits = np.array([c.weights for c in DEFAULT_CHOICES])[index][held].astype(float)
    found = {g.group: g for g in measure_patterns(network, batch(network, index)).weights}
    for name, everyone in groups.items():
        members = everyone[held]
        size = int(members.sum())
        seen = abs(bits[members].mean() - bits.mean())
        draws = [abs(np.mean(d) - bits.mean()) for d in itertools.combinations(bits, size)]
        exact = np.mean([draw >= seen - 1e-9 for draw in draws])
        assert found[name].p == pytest.approx(exact, abs=0.02)


def test_tied_layers_are_dealt_one_value_together():
    network = chain().tied([("a", "c"), ("b", "d")])
    found = measure_patterns(network, batch(network, [0, 4, 0, 4])).weights
    # two values can be dealt in two ways, and both are as far from the mean
    assert {g.p for g in found} == {1.0}
    loose = measure_patterns(chain(), batch(chain(), [0, 4, 0, 4])).weights
    [depthwise] = [g for g in loose if g.group == "depthwise"]
    assert depthwise.p == pytest.approx(1.0)
    mixed = chain().tied([("a", "b", "c")])
    index = [0, 0, 0, 4]
    [last] = [g for g in measure_patterns(mixed, batch(mixed, index)).weights if g.group == "last"]
    assert last.difference == pytest.approx(8 - 3.5)
    # the other way round, d has 2 bits and the mean is 6.5: as far
    assert last.p == 1.0
    [alone] = [
        g for g in measure_patterns(chain(), batch(chain(), index)).weights if g.group == "last"
    ]
    assert alone.p == pytest.approx(0.25, abs=0.02)


def test_policies_count_by_their_weight():
    network = chain()
    policies = batch(network, [[0, 0, 0, 0], [4, 4, 4, 4]])
    assert measure_patterns(network, policies).weight_mean == pytest.approx(5.0)
    heavy = measure_patterns(network, policies, [3.0, 1.0])
    assert heavy.weight_mean == pytest.approx(3.5)
    assert heavy.policies == 2


def test_activations_are_told_apart_from_weights():
    network = chain()
    choices = parse_choices("w4a8,w4a4")
    found = measure_patterns(network, batch(network, [0, 1, 1, 1], choices))
    assert found.weight_mean == 4.0
    assert found.activation_mean == pytest.approx(5.0)
    [first] = [g for g in found.activations if g.group == "first"]
    assert first.mean == 8.0
    assert first.p == pytest.approx(0.25, abs=0.02)  # one layer of four
    assert not first.pattern


def test_what_does_not_fit_is_an_error():
    network = chain()
    with pytest.raises(PolicyError, match="at least one policy"):
        measure_patterns(network, batch(network, np.empty((0, 4))))
    with pytest.raises(PolicyError, match="layers"):
        measure_patterns(network, PolicyBatch(("x",), DEFAULT_CHOICES, np.zeros((1, 1), np.uint8)))
    for weights in ([1.0], [-1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(PolicyError, match="weights"):
            measure_patterns(network, batch(network, np.zeros((2, 4))), weights)
