"""Pricing against a sum over the cells, policy by policy."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.pricing import PricedNetwork, total, uniform_totals
from costmodels.sketch import Sketch, example_network
from costmodels.table import Cells, CostTable, FloatArray, Once, Provenance
from costmodels.testing import reference_total
from quantization.bits import BitWidths, parse_choices
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from tests.costmodels.random_networks import random_network, random_table

SEEDS = st.integers(0, 2**32 - 1)
CHOICE_SETS = st.sampled_from(
    [
        parse_choices("w8a8,w32a32"),
        parse_choices("w2a8,w3a8,w4a8,w6a8,w8a8,w32a32"),
        parse_choices("w4a4,w8a8,w16a16,fp16,w32a32"),
        parse_choices("w2a2,w3a3,w4a4,w5a5,w6a6,w7a7,w8a8,w16a16,w8a32,fp16,w32a32"),
    ]
)


def random_batch(
    network: Network, choices: Sequence[BitWidths], seed: int, count: int = 40
) -> PolicyBatch:
    index = np.random.default_rng(seed).integers(0, len(choices), (count, len(network.layers)))
    return PolicyBatch(network.layer_names, tuple(choices), index.astype(np.uint8))


def by_hand(table: CostTable, network: Network, batch: PolicyBatch) -> FloatArray:
    return np.array([reference_total(table, network, batch[i]) for i in range(len(batch))])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, steps=st.integers(0, 25), choices=CHOICE_SETS)
def test_the_total_of_random_policies_of_random_networks_is_the_sum_over_their_cells(
    seed: int, steps: int, choices: tuple[BitWidths, ...]
) -> None:
    network = random_network(seed, steps)
    table = random_table(network, choices, seed)
    batch = random_batch(network, choices, seed)
    np.testing.assert_array_equal(total(table, network, batch), by_hand(table, network, batch))


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, steps=st.integers(0, 20), choices=CHOICE_SETS, share=st.floats(0.01, 0.4))
def test_a_policy_is_infinite_exactly_if_one_of_its_cells_is_not_supported(
    seed: int, steps: int, choices: tuple[BitWidths, ...], share: float
) -> None:
    network = random_network(seed, steps)
    table = random_table(network, choices, seed, unsupported=share)
    batch = random_batch(network, choices, seed)
    costs = PricedNetwork(table, network).price(batch.index)
    expected = by_hand(table, network, batch)
    np.testing.assert_array_equal(costs, expected)
    if np.isfinite(expected).all():
        total(table, network, batch)
        return
    first = int(np.flatnonzero(np.isinf(expected))[0])
    with pytest.raises(UnsupportedChoiceError, match=f"policy {first} is not supported"):
        total(table, network, batch)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, steps=st.integers(0, 25), choices=CHOICE_SETS)
def test_each_layer_glue_operator_and_conversion_is_counted_exactly_once(
    seed: int, steps: int, choices: tuple[BitWidths, ...]
) -> None:
    """With prices 1, 1000 and 1,000,000 the total reads off how often each block was counted."""
    network = random_network(seed, steps)
    table = random_table(network, choices, seed)
    off_diagonal = 1.0 - np.eye(len(table.formats))
    ones = replace(
        table,
        unary=Cells.of(np.ones_like(table.unary.value), Provenance.ASSUMED),
        glue=Cells.of(np.full_like(table.glue.value, 1e3), Provenance.ASSUMED),
        conversion=Cells.of(
            np.broadcast_to(1e6 * off_diagonal, table.conversion.value.shape), Provenance.ASSUMED
        ),
        constant=0.0,
        once=None,
    )
    batch = random_batch(network, choices, seed, count=10)
    expected = [
        len(network.layers)
        + 1e3 * len(network.glue)
        + 1e6 * len(formats(network, batch[i]).conversions)
        for i in range(len(batch))
    ]
    np.testing.assert_array_equal(total(ones, network, batch), expected)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, steps=st.integers(0, 15), choices=CHOICE_SETS)
def test_one_cell_changes_exactly_the_policies_that_use_it(
    seed: int, steps: int, choices: tuple[BitWidths, ...]
) -> None:
    network = random_network(seed, steps)
    table = random_table(network, choices, seed)
    batch = random_batch(network, choices, seed)
    layer, choice = seed % len(network.layers), seed % len(choices)
    value = table.unary.value.copy()
    value[layer, choice] += 7.0
    dearer = replace(table, unary=Cells.of(value, Provenance.ASSUMED))
    change = total(dearer, network, batch) - total(table, network, batch)
    np.testing.assert_array_equal(change, 7.0 * (batch.index[:, layer] == choice))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, steps=st.integers(0, 20), choices=CHOICE_SETS, share=st.floats(0.0, 1.0))
def test_what_is_paid_once_is_paid_once_by_exactly_the_policies_that_use_one_of_its_cells(
    seed: int, steps: int, choices: tuple[BitWidths, ...], share: float
) -> None:
    network = random_network(seed, steps)
    table = replace(random_table(network, choices, seed), once=None)
    cells = np.random.default_rng(seed).random(table.unary.value.shape) < share
    cells[seed % len(cells), seed % len(choices)] = True
    charged = replace(table, once=Once(7.0, cells))
    batch = random_batch(network, choices, seed)
    uses = [any(cells[layer, k] for layer, k in enumerate(row)) for row in batch.index]
    change = total(charged, network, batch) - total(table, network, batch)
    np.testing.assert_array_equal(change, 7.0 * np.array(uses))
    np.testing.assert_array_equal(Once(7.0, cells).due(batch.index), uses)


def test_a_table_with_more_choices_prices_a_batch_with_fewer_in_any_order() -> None:
    network = example_network()
    table = random_table(network, parse_choices("w4a4,w8a8,w16a16,fp16,w32a32"), seed=1)
    for text in ("w8a8,w4a4", "w4a4,w8a8", "w32a32", "fp16,w32a32,w4a4"):
        batch = random_batch(network, parse_choices(text), seed=2)
        np.testing.assert_array_equal(total(table, network, batch), by_hand(table, network, batch))


def test_a_batch_longer_than_a_block_is_priced_like_its_parts() -> None:
    network = example_network()
    table = random_table(network, parse_choices("w4a4,w8a8,w32a32"), seed=1)
    batch = random_batch(network, table.choices, seed=3, count=20_001)
    whole = total(table, network, batch)
    parts = [
        total(table, network, PolicyBatch(batch.layers, batch.choices, batch.index[i : i + 777]))
        for i in range(0, len(batch), 777)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_no_policies_cost_an_empty_array() -> None:
    network = example_network()
    table = random_table(network, parse_choices("w8a8,w32a32"), seed=1)
    assert total(table, network, random_batch(network, table.choices, 0, count=0)).shape == (0,)


def test_a_tensor_read_in_the_same_format_by_many_is_converted_once() -> None:
    sketch = Sketch()
    stem = sketch.conv(sketch.input((1, 4, 4, 4)), 4, name="stem")
    network = sketch.network(*(sketch.conv(stem, 4, name=f"reader{i}") for i in range(4)))
    table = random_table(network, parse_choices("w8a8,w32a32"), seed=5)
    float_stem = dict(Policy.uniform(network, BitWidths(8, 8)).layers) | {"stem": BitWidths(32, 32)}
    batch = PolicyBatch.of(network, [Policy(float_stem)], table.choices)
    assert sum(name == stem for name, _, _ in formats(network, batch[0]).conversions) == 1
    np.testing.assert_array_equal(total(table, network, batch), by_hand(table, network, batch))


def test_the_error_names_the_layer_and_its_bits() -> None:
    network = example_network()
    table = random_table(network, parse_choices("w8a8,w32a32"), seed=1)
    value = table.unary.value.copy()
    value[table.layers.index("point"), 0] = math.inf
    masked = replace(table, unary=Cells.of(value, Provenance.MEASURED))
    policies = [Policy.uniform(network, bits) for bits in table.choices[::-1]]
    batch = PolicyBatch.of(network, policies, table.choices)
    with pytest.raises(UnsupportedChoiceError, match=r"policy 1 .* layer 'point' at w8a8"):
        total(masked, network, batch)


def test_the_error_says_so_if_a_conversion_is_what_is_missing() -> None:
    network = example_network()
    table = random_table(network, parse_choices("w8a8,w32a32"), seed=1)
    value = table.conversion.value.copy()
    value[0, 1, 0] = math.inf  # the input of the network, float32 to int8
    masked = replace(table, conversion=Cells.of(value, Provenance.MEASURED))
    batch = PolicyBatch.of(network, [Policy.uniform(network, BitWidths(8, 8))], table.choices)
    with pytest.raises(UnsupportedChoiceError, match="conversion"):
        total(masked, network, batch)


def test_a_choice_that_the_table_does_not_hold_is_named() -> None:
    network = example_network()
    table = random_table(network, parse_choices("w8a8,w32a32"), seed=1)
    batch = random_batch(network, parse_choices("w8a8,w3a8"), seed=0)
    with pytest.raises(UnsupportedChoiceError, match="no w3a8; it has w8a8, w32a32"):
        total(table, network, batch)


def test_policies_of_other_layers_are_never_priced_by_position() -> None:
    network = example_network()
    table = random_table(network, parse_choices("w8a8,w32a32"), seed=1)
    batch = random_batch(network, table.choices, seed=0)
    turned = PolicyBatch(batch.layers[::-1], batch.choices, batch.index)
    with pytest.raises(TableError, match="not of the layers"):
        total(table, network, turned)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, steps=st.integers(0, 15), choices=CHOICE_SETS)
def test_uniform_totals_are_those_of_uniform_policies(
    seed: int, steps: int, choices: tuple[BitWidths, ...]
) -> None:
    network = random_network(seed, steps)
    table = random_table(network, choices, seed, unsupported=0.05)
    for bits, found in zip(choices, uniform_totals(table, network).tolist(), strict=True):
        try:
            [expected] = total(
                table, network, PolicyBatch.of(network, [Policy.uniform(network, bits)])
            )
        except UnsupportedChoiceError:
            expected = math.inf
        assert found == expected
