"""Policies: files, checks against a network, and batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.sketch import example_network
from quantization.bits import FLOAT32, BitWidths, parse_choices
from quantization.errors import PolicyError
from quantization.policy import Policy, PolicyBatch

NETWORK = example_network()
CHOICES = parse_choices("w2a2,w4a8,w8a8,w16a16,fp16,w32a32,w8a32")
LAYERS = st.dictionaries(st.text(max_size=20), st.sampled_from(CHOICES), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(LAYERS, st.dictionaries(st.text(max_size=10), JSON_VALUES, max_size=3))
def test_a_policy_survives_json(layers: dict[str, BitWidths], options: dict[str, Any]) -> None:
    policy = Policy(layers, options)
    again = Policy.from_json(policy.to_json())
    assert again == policy
    assert list(again.layers) == list(layers)


@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(CHOICES) for name in NETWORK.layer_names}
        ),
        max_size=6,
    )
)
def test_a_batch_gives_back_each_policy_with_its_unnamed_layers_in_float(
    drawn: list[dict[str, BitWidths]],
) -> None:
    batch = PolicyBatch.of(NETWORK, [Policy(layers) for layers in drawn])
    assert batch.index.shape == (len(drawn), len(NETWORK.layers))
    for position, layers in enumerate(drawn):
        for name in NETWORK.layer_names:
            assert batch[position][name] == layers.get(name, FLOAT32)


def test_a_layer_that_is_not_named_stays_float() -> None:
    assert Policy({})["anything"] == FLOAT32


def test_an_unknown_layer_names_close_matches() -> None:
    with pytest.raises(PolicyError, match=r"no layer 'stemm'.*did you mean 'stem'"):
        Policy({"stemm": BitWidths(8, 8)}).check(NETWORK)


def test_a_glue_operator_is_no_layer() -> None:
    with pytest.raises(PolicyError, match="no layer"):
        Policy({NETWORK.glue[0].name: BitWidths(8, 8)}).check(NETWORK)


def test_tied_layers_must_get_equal_bits_and_unnamed_ones_count_as_float() -> None:
    tied = NETWORK.tied([("stem", "point")])
    Policy({"stem": BitWidths(8, 8), "point": BitWidths(8, 8)}).check(tied)
    Policy({"mix": BitWidths(8, 8)}).check(tied)
    with pytest.raises(PolicyError, match="equal bits: stem=w8a8, point=w32a32"):
        Policy({"stem": BitWidths(8, 8)}).check(tied)
    with pytest.raises(PolicyError, match="equal bits"):
        PolicyBatch.of(tied, [Policy({"stem": BitWidths(8, 8)})])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is JSON; this is not"),
        ("{", "is JSON; this is not"),
        ("[]", "a policy file holds"),
        ('{"version": 1}', "a policy file holds"),
        ('{"layers": {}}', "version None is not known"),
        ('{"version": 3, "layers": {}}', "version 3 is not known; expected 1, or 2 with channel"),
        ('{"version": true, "layers": {}}', "version True is not known; expected 1"),
        ('{"version": 1, "layers": {}, "extra": 1}', "unknown keys in the policy: extra"),
        ('{"version": 1, "layers": []}', "are JSON objects"),
        ('{"version": 1, "layers": {}, "options": 3}', "are JSON objects"),
        ('{"version": 1, "layers": {"a": "w9a9"}}', "no such bit-width"),
        ('{"version": 1, "layers": {"a": 8}}', "'8' is no bit-width"),
        ('{"version": 1, "layers": {"a": ["w8a8"]}}', "is no bit-width"),
        ('{"version": 1, "layers": {"a": "w8a8", "a": "w4a8"}}', "given twice: a"),
    ],
)
def test_what_is_no_policy_is_one_line_that_says_why(text: str, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as caught:
        Policy.from_json(text)
    assert "\n" not in str(caught.value)


def test_reading_names_the_file_in_every_error(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    with pytest.raises(PolicyError, match=r"policy\.json: No such file"):
        Policy.read(path)
    path.write_bytes(b"\xff\x00")
    with pytest.raises(PolicyError, match=r"policy\.json: not a text file"):
        Policy.read(path)
    path.write_text('{"version": 1, "layers": {"a": "w7a9"}}')
    with pytest.raises(PolicyError, match=r"policy\.json: layer 'a': no such bit-width"):
        Policy.read(path)
    path.write_text(Policy({"a": BitWidths(8, 8)}, {"accuracy_level": 4}).to_json())
    assert Policy.read(path) == Policy({"a": BitWidths(8, 8)}, {"accuracy_level": 4})


def test_the_file_is_as_the_documentation_shows_it() -> None:
    content = json.loads(Policy({"stem": BitWidths(4, 8)}, {"accuracy_level": 4}).to_json())
    assert content == {
        "version": 1,
        "layers": {"stem": "w4a8"},
        "options": {"accuracy_level": 4},
    }


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (np.zeros((2, 2), np.uint8), r"expected \(P, 3\)"),
        (np.zeros(3, np.uint8), r"expected \(P, 3\)"),
        (np.full((1, 3), 2), r"outside 0\.\.1"),
        (np.full((1, 3), -1), r"outside 0\.\.1"),
        (np.full((1, 3), 256), r"outside 0\.\.1"),
        (np.full((1, 3), 0.5), "whole numbers"),
        (np.full((1, 3), np.nan), "whole numbers"),
    ],
)
def test_a_batch_with_bad_indices_cannot_be_built(index: Any, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        PolicyBatch(("a", "b", "c"), parse_choices("w8a8,w32a32"), index)


def test_a_batch_holds_its_indices_as_contiguous_bytes() -> None:
    index = np.asfortranarray(np.ones((4, 3), np.int64))
    batch = PolicyBatch(("a", "b", "c"), parse_choices("w8a8,w32a32"), index)  # type: ignore[arg-type]
    assert batch.index.dtype == np.uint8
    assert batch.index.flags.c_contiguous
    assert len(batch) == 4


def test_a_batch_of_other_choices_names_what_is_missing() -> None:
    policy = Policy.uniform(NETWORK, BitWidths(3, 8))
    with pytest.raises(PolicyError, match="w3a8 is not among the choices w8a8, w32a32"):
        PolicyBatch.of(NETWORK, [policy], parse_choices("w8a8,w32a32"))


def test_a_uniform_policy_names_every_layer() -> None:
    policy = Policy.uniform(NETWORK, BitWidths(4, 8))
    assert tuple(policy.layers) == NETWORK.layer_names
    assert set(policy.layers.values()) == {BitWidths(4, 8)}
