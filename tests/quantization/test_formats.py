"""The one rule for formats, against the same rule written down node by node."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.sketch import Sketch, example_network
from quantization.bits import BitWidths, Format, formats_of, parse_choices
from quantization.errors import PolicyError
from quantization.formats import format_codes, formats, wiring
from quantization.policy import Policy
from tests.costmodels.random_networks import random_network, rule

CHOICES = parse_choices("w2a2,w4a4,w8a8,w16a16,w8a32,fp16,w32a32")


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(0, 25))
def test_formats_of_random_networks_follow_the_rule(seed: int, steps: int) -> None:
    network = random_network(seed, steps)
    random = np.random.default_rng(seed)
    for _ in range(3):
        bits = {name: CHOICES[random.integers(len(CHOICES))] for name in network.layer_names}
        found, expected = formats(network, Policy(bits)), rule(network, bits)
        assert dict(found.reads) == expected.reads
        assert dict(found.writes) == expected.writes
        assert len(found.conversions) == len(set(found.conversions))
        assert set(found.conversions) == expected.conversions


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(0, 15))
def test_many_policies_at_once_get_the_formats_of_each(seed: int, steps: int) -> None:
    network = random_network(seed, steps)
    known = formats_of(CHOICES)
    random = np.random.default_rng(seed)
    index = random.integers(0, len(CHOICES), (len(network.layers), 5)).astype(np.uint8)
    reads, writes = format_codes(network, index, CHOICES, known)
    wires = wiring(network)
    for policy in range(index.shape[1]):
        bits = {n: CHOICES[index[i, policy]] for i, n in enumerate(network.layer_names)}
        single = formats(network, Policy(bits))
        for row, node in enumerate(network.execution_order, start=1):
            assert known[reads[row, policy]] == single.reads[node.name]
        for name, writer in zip(wires.tensor_names, wires.tensor_writers, strict=True):
            assert known[writes[writer, policy]] == single.writes[name]


def test_a_float_network_converts_nothing() -> None:
    network = example_network()
    found = formats(network, Policy({}))
    assert found.conversions == ()
    assert set(found.writes.values()) == {Format.FLOAT32}


def test_a_sum_runs_in_the_wider_format_of_its_inputs() -> None:
    sketch = Sketch()
    x = sketch.input((1, 4, 4, 4))
    one, two = sketch.conv(x, 4, name="one"), sketch.conv(x, 4, name="two")
    network = sketch.network(sketch.node("Add", one, two, name="sum"))
    mixed = formats(network, Policy({"one": BitWidths(8, 8), "two": BitWidths(32, 32)}))
    assert mixed.reads["sum"] is Format.FLOAT32
    assert (one, Format.INT8, Format.FLOAT32) in mixed.conversions
    both = formats(network, Policy.uniform(network, BitWidths(8, 8)))
    assert both.reads["sum"] is Format.INT8


def test_glue_without_an_integer_kernel_runs_in_float() -> None:
    sketch = Sketch()
    smooth = sketch.node(
        "HardSwish", sketch.conv(sketch.input((1, 4, 4, 4)), 4, name="c"), name="h"
    )
    network = sketch.network(smooth)
    assert formats(network, Policy({"c": BitWidths(8, 8)})).reads["h"] is Format.FLOAT32
    half = formats(network, Policy({"c": BitWidths(16, 16, half=True)}))
    assert half.reads["h"] is Format.FLOAT16


def test_the_narrowing_to_four_bits_is_a_conversion_of_the_stored_tensor() -> None:
    sketch = Sketch()
    stem = sketch.conv(sketch.input((1, 4, 4, 4)), 4, name="stem")
    network = sketch.network(sketch.conv(stem, 4, name="next"))
    found = formats(network, Policy({"stem": BitWidths(8, 8), "next": BitWidths(4, 4)}))
    assert (stem, Format.INT8, Format.INT4) in found.conversions


def test_a_policy_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(PolicyError, match="did you mean"):
        formats(example_network(), Policy({"stems": BitWidths(8, 8)}))
