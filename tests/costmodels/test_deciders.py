"""The split of a table over the deciders of its network, against a sum over the cells."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.deciders import Terms, split
from costmodels.table import FloatArray
from costmodels.testing import reference_total
from quantization.bits import parse_choices
from quantization.policy import PolicyBatch
from tests.costmodels.random_networks import random_network, random_table

CHOICES = parse_choices("w4a4,w8a8,w16a16,fp16,w32a32")


def added_up(
    terms: Terms, decisions: "np.ndarray[tuple[int, int], np.dtype[np.intp]]"
) -> FloatArray:
    """Add up what every decider and every conversion costs; (P, M) for decisions (G, P)."""
    states = dict(enumerate(decisions))
    for merge in terms.merges:
        state = merge.state(states).astype(np.intp)
        states[merge.decider] = np.broadcast_to(state, decisions.shape[1:])
    costs = np.tile(terms.constant, (decisions.shape[1], 1))
    for decider, alone in enumerate(terms.states):
        costs += alone[states[decider]]
    for conversion in terms.conversions:
        costs += conversion.costs(states)
    for charge in terms.charges:
        costs[:, charge.table] += charge.value * charge.due(states)
    return costs


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(0, 20), tied=st.booleans())
def test_the_split_of_two_tables_adds_up_to_the_sums_over_their_cells(
    seed: int, steps: int, tied: bool
) -> None:
    network = random_network(seed, steps)
    tables = [random_table(network, CHOICES, seed + i, unsupported=0.1 * i) for i in range(2)]
    random, layers = np.random.default_rng(seed), len(network.layers)
    groups = 1 + layers // 3 if tied else layers
    decision_of = random.permutation(np.arange(layers) % groups)
    decisions = random.integers(0, len(CHOICES), (groups, 20))
    index = np.ascontiguousarray(decisions[decision_of].T, np.uint8)
    batch = PolicyBatch(network.layer_names, CHOICES, index)
    expected = [[reference_total(t, network, batch[i]) for t in tables] for i in range(20)]
    found = added_up(split(network, CHOICES, decision_of, tables), decisions)
    np.testing.assert_array_equal(found, expected)


def test_a_merge_is_a_decider_behind_those_that_it_joins() -> None:
    for seed in range(20):
        network = random_network(seed, 20)
        decision_of = np.arange(len(network.layers))
        terms = split(network, CHOICES, decision_of, [random_table(network, CHOICES, seed)])
        assert len(terms.states) == terms.decisions + len(terms.merges)
        for merge in terms.merges:
            assert len(merge.inputs) > 1
            assert max(merge.inputs) < merge.decider
