"""What neighbours add to a table: by definition, through files, and when it is damaged."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.context import Context
from costmodels.errors import TableError
from costmodels.pricing import priced_network, total
from costmodels.replay import TableReplay
from costmodels.sketch import Sketch
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric
from quantization.bits import parse_choices
from quantization.network import Network
from quantization.policy import PolicyBatch
from tests.costmodels.random_networks import random_network, random_table

CHOICES = parse_choices("w8a8,w32a32,w3a8")
GROUPS = [[-1, -1, -1], [0, -1, -1], [2, -1, -1], [0, 1, -1], [3, 1, -1], [0, 1, 2], [3, 2, 1]]
VALUES = [10.0, 1.0, -2.0, 4.0, -8.0, 16.0, 0.5]


def _chain(layers: int = 4) -> Network:
    sketch = Sketch()
    x = sketch.input((1, 4, 2, 2))
    for _ in range(layers):
        x = sketch.conv(x, 4)
    return sketch.network(x)


def _context() -> Context:
    return Context(np.array(GROUPS), np.array(VALUES))


def _table(context: Context | None = None) -> CostTable:
    return replace(random_table(_chain(), CHOICES, 3), context=context or _context())


def _all_policies(layers: int = 4) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    return np.array(list(itertools.product(range(len(CHOICES)), repeat=layers)), np.uint8)


def _by_definition(index: "np.ndarray[Any, np.dtype[np.uint8]]") -> FloatArray:
    """The sum over groups, written down with strings and loops."""
    corrections = []
    for row in index:
        integer = [str(CHOICES[i]) != "w32a32" for i in row]
        terms = [
            value * math.prod(1 if integer[layer] else -1 for layer in group if layer >= 0)
            for group, value in zip(GROUPS, VALUES, strict=True)
        ]
        corrections.append(sum(terms))
    return np.array(corrections)


def _read_json(change: Callable[[Any], None]) -> CostTable:
    content = json.loads(_table().to_json())
    change(content)
    return CostTable.from_json(json.dumps(content))


def _read_csv(change: Callable[[Any], None]) -> CostTable:
    first, rest = _table().to_csv().split("\n", 1)
    start = first.index("{")
    about = json.loads(first[start:])
    change(about)
    return CostTable.from_csv(f"{first[:start]}{json.dumps(about)}\n{rest}")


def test_the_correction_of_every_policy_is_that_of_its_definition() -> None:
    index = _all_policies()
    assert len(index) == 81
    found = _context().correction(index, CHOICES)
    np.testing.assert_array_equal(found, _by_definition(index))
    assert len(set(found)) > 4


def test_half_precision_is_the_other_format_of_a_device_that_has_no_integers() -> None:
    context, index = _context(), np.array(list(itertools.product(range(2), repeat=4)), np.uint8)
    half, integer = parse_choices("fp16,w32a32"), parse_choices("w8a8,w32a32")
    expected = context.correction(index, integer)
    np.testing.assert_array_equal(context.correction(index, half), expected)
    assert len(set(expected.tolist())) > 4


def test_an_empty_group_is_a_constant_and_no_group_is_nothing() -> None:
    index = _all_policies()
    constant = Context(np.array([[-1, -1, -1]]), np.array([7.0]))
    np.testing.assert_array_equal(constant.correction(index, CHOICES), np.full(81, 7.0))
    nothing = Context(np.zeros((0, 3), np.int16), np.zeros(0))
    np.testing.assert_array_equal(nothing.correction(index, CHOICES), np.zeros(81))


def test_the_order_of_a_groups_layers_and_the_place_of_its_padding_make_no_difference() -> None:
    index = _all_policies()
    one, *others = (
        Context(np.array([group]), np.array([3.0])).correction(index, CHOICES)
        for group in ([0, 2, -1], [2, 0, -1], [-1, 2, 0], [0, -1, 2])
    )
    assert set(one) == {-3.0, 3.0}
    for other in others:
        np.testing.assert_array_equal(other, one)


def test_the_last_layer_is_not_taken_for_the_padding() -> None:
    """Both would be found at position -1 of an array."""
    index = np.array([[0, 0, 0, 1], [0, 0, 0, 0]], np.uint8)  # the last one float, then integer
    padded = Context(np.array([[0, -1, -1]]), np.array([1.0]))
    np.testing.assert_array_equal(padded.correction(index, CHOICES), [1.0, 1.0])
    last = Context(np.array([[3, -1, -1]]), np.array([1.0]))
    np.testing.assert_array_equal(last.correction(index, CHOICES), [-1.0, 1.0])


def test_many_policies_are_corrected_as_each_one_is() -> None:
    index = np.random.default_rng(0).integers(0, 3, (2500, 4)).astype(np.uint8)
    found = _context().correction(index, CHOICES)
    np.testing.assert_array_equal(found, _by_definition(index))
    assert _context().correction(index[:0], CHOICES).shape == (0,)


def test_a_stored_table_answers_its_sum_plus_the_correction_in_any_order_of_choices() -> None:
    network, table = _chain(), _table()
    choices = (CHOICES[2], CHOICES[0], CHOICES[1])
    index = _all_policies()
    batch = PolicyBatch(network.layer_names, choices, index)
    found = TableReplay(table).total(network, batch, Metric.LATENCY)
    ours = np.array([2, 0, 1], np.uint8)[index]
    expected = total(table, network, batch) + _by_definition(ours)
    np.testing.assert_array_equal(found, expected)
    bare = TableReplay(replace(table, context=None)).total(network, batch, Metric.LATENCY)
    np.testing.assert_array_equal(found - bare, _by_definition(ours))


@pytest.mark.parametrize("seed", range(8))
def test_what_a_search_adds_up_does_not_know_the_context(seed: int) -> None:
    network = random_network(seed, 12)
    table, layers = random_table(network, CHOICES, seed), len(network.layer_names)
    random = np.random.default_rng(seed)
    groups = random.integers(-1, layers, (20, 3))
    known = replace(table, context=Context(groups, random.integers(-9, 9, 20).astype(float)))
    index = random.integers(0, 3, (50, layers)).astype(np.uint8)
    batch = PolicyBatch(network.layer_names, CHOICES, index)
    np.testing.assert_array_equal(total(known, network, batch), total(table, network, batch))
    priced = priced_network(known, network).price(index)
    np.testing.assert_array_equal(priced, total(table, network, batch))
    gap = TableReplay(known).total(network, batch, Metric.LATENCY) - priced
    assert known.context is not None
    np.testing.assert_array_equal(gap, known.context.correction(index, CHOICES))


@pytest.mark.parametrize("through", ["json", "csv", "frame", "restrict"])
def test_a_context_comes_through_files_and_restriction_as_it_was(through: str) -> None:
    values = [*VALUES[:-1], 0.1 + 0.2]  # a number that rounding would change
    table = _table(Context(np.array(GROUPS), np.array(values)))
    again = {
        "json": lambda: CostTable.from_json(table.to_json()),
        "csv": lambda: CostTable.from_csv(table.to_csv()),
        "frame": lambda: CostTable.from_frame(table.to_frame()),
        "restrict": lambda: table.restrict(CHOICES[1:]),
    }[through]()
    assert again.context is not None
    np.testing.assert_array_equal(again.context.groups, GROUPS)
    np.testing.assert_array_equal(again.context.values, values)


@pytest.mark.parametrize("read", [_read_json, _read_csv], ids=["json", "csv"])
def test_a_context_of_no_groups_and_none_at_all_come_through_files(
    read: Callable[[Callable[[Any], None]], CostTable],
) -> None:
    empty = read(lambda content: content.update(context={"groups": [], "values": []})).context
    assert empty is not None
    assert empty.groups.shape == (0, 3)
    assert read(lambda content: content.update(context=None)).context is None
    assert read(lambda content: content.pop("context")).context is None  # an older file


@pytest.mark.parametrize("read", [_read_json, _read_csv], ids=["json", "csv"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("groups", [[0, 4, -1]], "beyond the 4"),
        ("groups", [[0, 70_000, -1]], "not one from -1 to 32767"),
        ("groups", [[0, 10**30, -1]], "no whole number"),
        ("groups", [[0, 2**63, -1]], "position"),
        ("groups", [[0, -2, -1]], "not one from -1"),
        ("groups", [[0, 0.5, -1]], "no whole number"),
        ("groups", [[True, False, True]], "no whole number"),
        ("groups", [["0", "1", "2"]], "no whole number"),
        ("groups", [[0, None, -1]], "no whole number"),
        ("groups", [[0, 1]], "one value for each group of 3"),
        ("groups", [[0, 1, 2], [1]], "damaged"),
        ("groups", [0, 1, 2], "one value for each group of 3"),
        ("groups", [[[0, 1, 2]]], "one value for each group of 3"),
        ("groups", [[[0], [1], [2]]], "one value for each group of 3"),
        ("groups", [[0, 1, 2]] * 2, "one value for each group of 3"),
        ("groups", [], "one value for each group of 3"),
        ("groups", {"0": 1}, "one value for each group of 3"),
        ("values", [math.nan], "not finite"),
        ("values", [math.inf], "not finite"),
        ("values", ["1.5"], "no number"),
        ("values", [None], "no number"),
        ("values", [[1.5]], "no number"),
        ("values", [10**400], "too large"),
        ("values", [], "one value for each group of 3"),
        ("values", 1.5, "damaged"),
        ("values", None, "damaged"),
    ],
)
def test_a_damaged_context_is_an_error(
    read: Callable[[Callable[[Any], None]], CostTable], key: str, value: Any, message: str
) -> None:
    good = {"groups": [[0, 1, -1]], "values": [1.5]}
    with pytest.raises(TableError, match=message):
        read(lambda content: content.update(context={**good, key: value}))


@pytest.mark.parametrize("read", [_read_json, _read_csv], ids=["json", "csv"])
@pytest.mark.parametrize("content", [{"groups": []}, {"values": []}, [], 3, "context"])
def test_what_is_no_context_at_all_is_an_error(
    read: Callable[[Callable[[Any], None]], CostTable], content: Any
) -> None:
    with pytest.raises(TableError, match="damaged"):
        read(lambda found: found.update(context=content))


@pytest.mark.parametrize(
    ("groups", "values"),
    [
        (np.array([[0, 70_000, -1]]), np.ones(1)),  # as 16 bits it would be another layer
        (np.array([[0, 0.9, -1]]), np.ones(1)),
        (np.zeros((1, 3, 1), np.int16), np.ones(1)),
        (np.zeros((2, 3), np.int16), np.ones((2, 2))),
        (np.zeros((2, 3), np.int16), np.array(1.0)),
        (np.zeros((1, 3), np.int16), np.array([np.nan])),
    ],
)
def test_arrays_that_are_no_context_are_an_error(
    groups: "np.ndarray[Any, np.dtype[np.int16]]", values: FloatArray
) -> None:
    with pytest.raises(TableError):
        Context(groups, values)


def test_a_table_refuses_the_context_of_a_network_of_more_layers() -> None:
    with pytest.raises(TableError, match="beyond the 4 of the table"):
        _table(Context(np.array([[4, -1, -1]]), np.array([1.0])))
