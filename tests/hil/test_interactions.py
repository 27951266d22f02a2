"""Which layers may change each other's cost."""

import itertools

import numpy as np
import pytest

from costmodels.context import Context
from costmodels.sketch import Sketch, example_network
from hil import interactions
from hil.interactions import Interactions, neighbours
from quantization.bits import FLOAT32, BitWidths
from quantization.network import Network


def _chain(*channels: int) -> Network:
    """Convolutions one after the other, with glue between them."""
    sketch = Sketch()
    x = sketch.input((1, 4, 4, 4))
    for i, count in enumerate(channels):
        x = sketch.conv(sketch.node("Relu", x) if i else x, count, name=f"conv-{i}")
    return sketch.network(x)


def _residual() -> Network:
    """A sum of a convolution's output and its input, which a third convolution reads."""
    sketch = Sketch()
    stem = sketch.conv(sketch.input((1, 4, 4, 4)), 4, name="stem")
    branch = sketch.conv(sketch.node("Relu", stem), 4, name="branch")
    return sketch.network(sketch.conv(sketch.node("Add", stem, branch), 4, name="last"))


def _concatenation(width: int) -> Network:
    """Every layer but the first reads all those before it."""
    sketch = Sketch()
    made = [sketch.conv(sketch.input((1, 4, 4, 4)), 4)]
    for _ in range(width - 1):
        x = made[0] if len(made) == 1 else sketch.concat(*made)
        made.append(sketch.conv(x, 4))
    return sketch.network(made[-1])


def _groups(found: Interactions, block: int) -> set[tuple[int, ...]]:
    chosen = found.groups[found.blocks == block]
    return {tuple(int(i) for i in group if i >= 0) for group in chosen}


def _of(network: Network) -> Interactions:
    return Interactions.of(network, np.ones(len(network.layers)))


def test_layers_of_a_chain_neighbour_the_next_one_whatever_glue_is_between() -> None:
    assert neighbours(_chain(4, 4, 4, 4)) == [(0, 1), (1, 2), (2, 3)]


def test_a_residual_makes_the_layer_before_the_branch_a_neighbour_of_the_one_behind() -> None:
    network = _residual()
    assert network.layer_names == ("stem", "branch", "last")
    assert neighbours(network) == [(0, 1), (0, 2), (1, 2)]


def test_all_layers_of_a_concatenation_neighbour_the_one_that_reads_it() -> None:
    assert neighbours(_concatenation(4)) == list(itertools.combinations(range(4), 2))


def test_neighbours_in_a_network_of_every_wiring_are_those_that_one_sees() -> None:
    network = example_network()
    pairs = {tuple(network.layer_names[i] for i in pair) for pair in neighbours(network)}
    assert pairs == {
        ("stem", "depthwise"),
        ("depthwise", "point"),
        ("stem", "smooth"),
        ("stem", "mix"),  # through the sum
        ("point", "mix"),
        ("smooth", "mix"),
        ("mix", "product"),
        ("product", "head"),
        ("stem", "side"),
    }


def test_the_groups_of_a_chain_are_its_layers_pairs_pairs_apart_and_threes() -> None:
    found = _of(_chain(4, 4, 4, 4))
    assert _groups(found, 0) == {()}
    assert _groups(found, 1) == {(0,), (1,), (2,), (3,)}
    assert _groups(found, 2) == {(0, 1), (1, 2), (2, 3)}
    assert _groups(found, 3) == {(0, 2), (1, 3)}
    assert _groups(found, 4) == {(0, 1, 2), (1, 2, 3)}
    assert len(found.groups) == len(found.spread) == len(found.blocks) == 1 + 4 + 3 + 2 + 2


def test_a_pair_that_is_both_next_to_each_other_and_apart_is_listed_once() -> None:
    found = _of(_residual())
    assert _groups(found, 2) == {(0, 1), (0, 2), (1, 2)}
    assert 3 not in [
        block for block, group in zip(found.blocks, found.groups, strict=True) if group[2] < 0
    ]
    assert (0, 1, 2) in {tuple(group) for group in found.groups.tolist()}


def test_a_network_of_one_layer_has_the_constant_and_the_layer() -> None:
    found = _of(_chain(4))
    assert neighbours(_chain(4)) == []
    assert found.groups.tolist() == [[-1, -1, -1], [0, -1, -1]]
    assert (found.spread > 0).all()
    np.testing.assert_array_equal(np.unique(found.blocks), [0, 1])


def test_boundaries_of_larger_tensors_are_believed_to_matter_more() -> None:
    found = _of(_chain(4, 64, 4, 4))
    spread = {tuple(g): s for g, s in zip(found.groups.tolist(), found.spread, strict=True)}
    assert spread[1, 2, -1] == pytest.approx(4 * spread[0, 1, -1])  # 16 times as many elements
    assert spread[0, 1, -1] == pytest.approx(spread[2, 3, -1])
    assert (found.spread > 0).all()


def test_dearer_layers_are_believed_to_matter_more() -> None:
    found = Interactions.of(_chain(4, 4), np.array([0.9, 0.1]))
    spread = {tuple(g): s for g, s in zip(found.groups.tolist(), found.spread, strict=True)}
    assert spread[0, -1, -1] == pytest.approx(3 * spread[1, -1, -1])


def test_of_a_densely_connected_network_the_groups_of_large_tensors_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = _concatenation(9)
    whole = _of(network)
    pairs, threes = 9 * 8 // 2, 9 * 8 * 7 // 6
    assert (len(_groups(whole, 2)), len(_groups(whole, 3))) == (pairs, threes)  # none are apart
    monkeypatch.setattr(interactions, "_MOST_GROUPS", 20)
    few = _of(network)
    for block in (2, 3):
        assert _groups(few, block) < _groups(whole, block)
        assert (few.blocks == block).sum() == 20
        kept, all_of_it = few.spread[few.blocks == block], whole.spread[whole.blocks == block]
        np.testing.assert_array_equal(kept, np.sort(all_of_it)[::-1][:20])


def test_features_are_what_a_context_adds_up() -> None:
    network = example_network()
    found, draw = _of(network), np.random.default_rng(0)
    integer = draw.random((50, len(network.layers))) < 0.5
    values = draw.normal(0, 1, len(found.groups))
    corrected = Context(found.groups, values).correction(
        integer.astype(np.uint8), (FLOAT32, BitWidths(8, 8))
    )
    np.testing.assert_allclose(found.features(integer) @ values, corrected, atol=1e-12)
    assert set(np.unique(found.features(integer))) == {-1.0, 1.0}


def test_the_prior_expects_nothing() -> None:
    found = _of(example_network())
    np.testing.assert_array_equal(found.prior.mean, 0.0)
    np.testing.assert_array_equal(found.prior.spread, found.spread)
    np.testing.assert_array_equal(found.prior.blocks, found.blocks)
    assert found.prior.shared.shape == (len(found.spread), 0)
