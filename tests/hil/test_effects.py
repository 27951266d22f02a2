"""What makes a policy differ from the float network, and what is believed of it beforehand."""

from functools import lru_cache

import numpy as np
import pytest

from costmodels.sketch import example_network
from hil.effects import Effects, shares_of_nodes
from quantization.bits import BitWidths, Format
from quantization.network import Network
from quantization.policy import Policy


@lru_cache
def _network() -> Network:
    return example_network()


def test_a_row_counts_integer_layers_glue_and_paid_conversions() -> None:
    effects = Effects(_network())
    np.testing.assert_array_equal(effects.row(Policy({})), np.zeros(effects.count))
    row = effects.row(Policy({"stem": BitWidths(8, 8)}))
    layers = row[: len(effects.layers)]
    assert layers[effects.layers.index("stem")] == 1
    assert layers.sum() == 1
    columns = effects.conversions
    paid = row[len(effects.layers) + len(effects.glue) :]
    stem = _network().layer("stem")
    assert any(paid[i] for i, (name, _) in enumerate(columns) if name == stem.inputs[0])
    assert effects.blocks.shape == row.shape
    assert set(effects.blocks) == {0, 1, 2, 3}


def test_stored_widths_do_not_change_a_row() -> None:
    effects = Effects(_network())
    rows = [effects.row(Policy.uniform(_network(), BitWidths(b, 8))) for b in (2, 5, 8)]
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_the_prior_is_the_difference_of_profiles() -> None:
    effects = Effects(_network())
    prior = effects.prior({"stem": 0.5, "mix": 0.5}, {"stem": 0.25, "mix": 0.75}, 0.4)
    mean = prior.mean
    stem, mix = effects.layers.index("stem"), effects.layers.index("mix")
    assert mean[stem] == pytest.approx(0.25 * 0.4 - 0.5)
    assert mean[mix] == pytest.approx(0.75 * 0.4 - 0.5)
    assert (prior.spread > 0).all()
    np.testing.assert_array_equal(prior.blocks, effects.blocks)


def test_the_prior_expects_no_conversion_to_cost_anything_but_large_ones_to_differ_more() -> None:
    effects = Effects(_network())
    first = len(effects.layers) + len(effects.glue)
    prior = effects.prior({"stem": 1.0}, {"stem": 1.0}, 0.5)
    spread = prior.spread
    np.testing.assert_array_equal(prior.mean[first:], 0.0)
    counts = [_network().tensor_by_name[name].count for name, _ in effects.conversions]
    order = np.argsort(counts)
    assert (np.diff(spread[first:][order]) >= 0).all()
    assert spread[first:].max() > 2 * spread[first:].min()


def test_layers_and_glue_of_a_kind_are_a_class_in_proportion_to_their_cost() -> None:
    effects, network = Effects(_network()), _network()
    shares = {"stem": 0.4, "depthwise": 0.1, "mix": 0.2, "product": 0.3}
    shared = effects.prior(shares, shares, 0.5).shared
    row = {name: i for i, name in enumerate(effects.layers)}
    columns = {tuple(np.flatnonzero(column)): column for column in shared.T if column.any()}
    together = columns[row["stem"], row["mix"]]
    assert together[row["stem"]] == pytest.approx(0.6)
    assert together[row["mix"]] == pytest.approx(0.3)
    assert (row["depthwise"],) in columns  # its kernel is another
    assert (row["product"],) in columns
    kinds = {f"{layer.kind} {layer.is_depthwise}" for layer in network.layers}
    kinds |= {glue.kind for glue in network.glue if glue.integer}
    assert shared.shape == (effects.count, len(kinds) + 4)


def test_conversions_in_a_direction_share_a_price_per_element_and_one_per_operator() -> None:
    effects = Effects(_network())
    shared = effects.prior({}, {}, 0.5).shared
    first = len(effects.layers) + len(effects.glue)
    assert not shared[:first, -4:].any()
    counts = np.array([_network().tensor_by_name[name].count for name, _ in effects.conversions])
    to_integer = np.array([target is Format.INT8 for _, target in effects.conversions])
    for members, each, constant in (
        (to_integer, shared[first:, -4], shared[first:, -3]),
        (~to_integer, shared[first:, -2], shared[first:, -1]),
    ):
        np.testing.assert_allclose(
            each[members] / counts[members], each.sum() / counts[members].sum()
        )
        assert len(set(constant[members])) == 1
        assert constant[members].all()
        assert not each[~members].any()
        assert not constant[~members].any()


def test_a_layer_costs_at_least_a_fiftieth_of_its_float_cost_whatever_was_fitted() -> None:
    effects = Effects(_network())
    shares = shares_of_nodes(_network(), {"stem": 0.5, "mix": 0.5})
    coefficients = np.full(effects.count, -0.4)
    stem, side = effects.layers.index("stem"), effects.layers.index("side")
    kept = effects.plausible(coefficients, shares)
    assert kept[stem] == -0.4  # less than the half that it takes
    assert kept[side] == pytest.approx(-0.98 * shares[side])
    layers = len(effects.layers)
    np.testing.assert_array_equal(kept[layers:], -0.4)
    np.testing.assert_array_equal(coefficients, -0.4)  # what was given stays


def test_shares_of_nodes_add_up_to_one_and_no_layer_has_none() -> None:
    network = _network()
    shares = shares_of_nodes(network, {"stem": 2.0, "mix": 1.0})
    names = [*network.layer_names, *(glue.name for glue in network.glue)]
    assert shares.shape == (len(names),)
    assert shares.sum() == pytest.approx(1.0, rel=1e-12)
    assert (shares[: len(network.layers)] > 0).all()
    assert shares[names.index("stem")] == pytest.approx(2 * shares[names.index("mix")])
    assert not shares[len(network.layers) :].any()


def test_what_was_paid_is_what_any_row_has() -> None:
    effects = Effects(_network())
    rows = np.zeros((3, effects.count))
    rows[1, 2] = rows[2, 5] = 1
    np.testing.assert_array_equal(np.flatnonzero(effects.paid(rows)), [2, 5])
