"""Tables check themselves at birth and survive every file format."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.context import Context
from costmodels.errors import TableError, UnsupportedChoiceError
from costmodels.pricing import total
from costmodels.sketch import Sketch, example_network
from costmodels.table import Cells, CostTable, Once, Provenance
from costmodels.units import Metric, Unit
from quantization.bits import FLOAT32, parse_choices
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from tests.costmodels.random_networks import random_network, random_table

CHOICES = parse_choices("w4a4,w8a8,fp16,w32a32")


def without_glue() -> Network:
    sketch = Sketch()
    return sketch.network(sketch.conv(sketch.input((1, 3, 4, 4)), 4, name="only"))


def awkward_table(network: Network, seed: int = 0) -> CostTable:
    """Masked cells, partly known uncertainties, kernels, awkward floats, measurements."""
    table = random_table(network, CHOICES, seed, unsupported=0.2)
    random = np.random.default_rng(seed)
    value = table.unary.value * random.uniform(0.1, 1, table.unary.value.shape) / 3
    spread = np.where(random.random(value.shape) < 0.5, np.nan, 0.1 + 0.2)
    kernels = random.choice(["QLinearConv", "Conv, fused", 'a "quoted" one', ""], value.shape)
    return replace(
        table,
        unary=Cells.of(value, Provenance.MEASURED, kernel=kernels, uncertainty=spread),
        constant=0.1 + 0.2,
        source={"device": "a CPU", "threads": 1, "options": {"accuracy_level": 4}},
        measurements=({"cell": ["only", "w8a8"], "samples_s": [1e-6, 2e-6]},),
    )


def assert_same(one: CostTable, two: CostTable) -> None:
    for name in ("metric", "unit", "statistic", "network", "layers", "choices", "glue_names"):
        assert getattr(one, name) == getattr(two, name)
    assert one.tensors == two.tensors
    assert one.constant == two.constant
    assert dict(one.source) == dict(two.source)
    assert (one.once is None) == (two.once is None)
    if one.once is not None and two.once is not None:
        assert one.once.value == two.once.value
        np.testing.assert_array_equal(one.once.cells, two.once.cells)
    for name in ("unary", "glue", "conversion"):
        left, right = getattr(one, name), getattr(two, name)
        np.testing.assert_array_equal(left.value, right.value)
        np.testing.assert_array_equal(left.kernel, right.kernel)
        np.testing.assert_array_equal(left.provenance, right.provenance)
        np.testing.assert_equal(left.uncertainty, right.uncertainty)


ROUND_TRIPS: dict[str, Callable[[CostTable], CostTable]] = {
    "json": lambda table: CostTable.from_json(table.to_json()),
    "frame": lambda table: CostTable.from_frame(table.to_frame()),
    "csv": lambda table: CostTable.from_csv(table.to_csv()),
    "shuffled frame": lambda table: CostTable.from_frame(
        table.to_frame().sort_values("value", kind="stable").pipe(_grouped_by_first_seen(table))
    ),
}


def _grouped_by_first_seen(table: CostTable) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Rows in any order, but each name and choice first seen in its place."""

    def arranged(frame: pd.DataFrame) -> pd.DataFrame:
        first = table.to_frame().drop_duplicates(["block", "name"])
        given = table.to_frame().query("block == 'unary'").drop_duplicates(["given"])
        rest = frame.drop(index=first.index.union(given.index))
        parts = pd.concat([given, first.drop(index=first.index.intersection(given.index)), rest])
        parts.attrs = frame.attrs
        return parts

    return arranged


@pytest.mark.parametrize("way", ROUND_TRIPS)
@pytest.mark.parametrize("network", [example_network(), without_glue()], ids=["glue", "no glue"])
def test_a_table_survives(way: str, network: Network) -> None:
    for seed in range(3):
        table = awkward_table(network, seed)
        assert_same(ROUND_TRIPS[way](table), table)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(0, 8))
def test_tables_of_random_networks_survive_json_and_csv(seed: int, steps: int) -> None:
    table = awkward_table(random_network(seed, steps), seed)
    assert_same(CostTable.from_json(table.to_json()), table)
    assert_same(CostTable.from_csv(table.to_csv()), table)


def test_measurements_survive_json_and_the_json_is_strict() -> None:
    table = awkward_table(example_network())
    text = table.to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert list(CostTable.from_json(text).measurements) == list(table.measurements)


def test_a_layer_whose_name_looks_like_a_number_or_like_nothing_survives_csv() -> None:
    sketch = Sketch()
    x = sketch.input((1, 4, 4, 4))
    for name in ("1e5", "NA", "None", "007", 'comma, "quote"'):
        x = sketch.conv(x, 4, name=name)
    table = awkward_table(sketch.network(x))
    assert CostTable.from_csv(table.to_csv()).layers == table.layers


def test_the_frame_has_one_row_per_cell_and_knows_its_units() -> None:
    table = awkward_table(example_network())
    frame = table.to_frame()
    cells = [table.unary.value.size, table.glue.value.size, table.conversion.value.size]
    assert table.once is None
    assert len(frame) == 1 + sum(cells)
    assert frame.attrs["unit"] == Unit.CYCLES.value
    assert frame[frame["block"] == "unary"]["given"].unique().tolist() == [str(c) for c in CHOICES]


def test_restricting_keeps_the_cells_of_the_choices_in_their_order() -> None:
    table = awkward_table(example_network())
    few = parse_choices("w32a32,w8a8")
    small = table.restrict(few)
    assert small.choices == few
    np.testing.assert_array_equal(small.unary.value, table.unary.value[:, [3, 1]])
    kept = [table.formats.index(f) for f in small.formats]
    np.testing.assert_array_equal(small.glue.value, table.glue.value[:, kept])
    np.testing.assert_array_equal(
        small.conversion.value, table.conversion.value[:, kept][:, :, kept]
    )
    assert table.restrict(table.choices) is table


def test_restricting_to_a_choice_that_is_not_held_names_it() -> None:
    with pytest.raises(UnsupportedChoiceError, match=r"holds no w3a8; it holds w4a4, w8a8"):
        awkward_table(example_network()).restrict(parse_choices("w3a8"))


def test_a_table_of_another_network_is_refused() -> None:
    table = awkward_table(example_network())
    with pytest.raises(TableError, match="another network"):
        table.check(without_glue())


def test_a_table_whose_names_were_shuffled_is_refused() -> None:
    network = example_network()
    table = awkward_table(network)
    with pytest.raises(TableError, match="names"):
        replace(table, layers=table.layers[::-1]).check(network)


FAULTS: dict[str, Callable[[CostTable], dict[str, Any]]] = {
    "energy is not measured in cycles": lambda _: {"metric": Metric.ENERGY},
    "at least one choice": lambda _: {"choices": ()},
    "each once": lambda t: {"choices": (*t.choices[:3], t.choices[0])},
    "unary has shape": lambda t: {"layers": t.layers[1:]},
    "glue has shape": lambda t: {"glue_names": (*t.glue_names, "more")},
    "conversion has shape": lambda t: {"tensors": t.tensors[1:]},
    "layer is negative": lambda t: {"unary": Cells.of(t.unary.value - 1e6, Provenance.ASSUMED)},
    "to itself": lambda t: {
        "conversion": Cells.of(np.ones_like(t.conversion.value), Provenance.ASSUMED)
    },
    "once has shape": lambda t: {"once": Once(1.0, np.ones((len(t.layers), 1), bool))},
    "constant is not finite": lambda _: {"constant": float("nan")},
}


@pytest.mark.parametrize("message", FAULTS)
def test_an_inconsistent_table_cannot_be_built(message: str) -> None:
    table = awkward_table(example_network())
    with pytest.raises(TableError, match=message):
        replace(table, **FAULTS[message](table))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_is_paid_once_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(TableError, match="once is negative or not finite"):
        Once(value, np.ones((2, 2), bool))


def test_what_is_paid_once_needs_a_cell() -> None:
    with pytest.raises(TableError, match="no cell"):
        Once(1.0, np.zeros((2, 2), bool))


def test_restricting_keeps_what_is_paid_once_where_a_cell_of_it_is_left() -> None:
    table = awkward_table(example_network())
    cells = np.zeros(table.unary.value.shape, bool)
    cells[2, 1] = cells[0, 0] = True
    table = replace(table, once=Once(3.0, cells))
    kept = table.restrict(parse_choices("w32a32,w8a8")).once
    assert kept is not None
    assert kept.value == 3.0
    assert np.argwhere(kept.cells).tolist() == [[2, 1]]
    assert table.restrict(parse_choices("w32a32,fp16")).once is None


def test_rows_that_disagree_on_what_is_paid_once_are_refused() -> None:
    table = awkward_table(example_network())
    table = replace(table, once=Once(3.0, np.ones(table.unary.value.shape, bool)))
    frame = table.to_frame()
    row = frame.index[frame["block"] == "once"][1]
    frame.loc[row, "value"] = 4.0
    with pytest.raises(TableError, match="one cost, the same in each of its rows"):
        CostTable.from_frame(frame)


ONE = np.ones((2, 2))
TEXT = np.full((2, 2), "measured")
BLANK = np.full((2, 2), "")


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("NaN", (ONE * np.nan, BLANK, TEXT)),
        ("minus infinity", (ONE * -np.inf, BLANK, TEXT)),
        ("absent exactly", (ONE * np.inf, BLANK, TEXT)),
        ("absent exactly", (ONE, BLANK, np.full((2, 2), "absent"))),
        ("unknown provenance", (ONE, BLANK, np.full((2, 2), "guessed"))),
        ("differ in shape", (ONE, BLANK[:1], TEXT)),
        ("another shape", (ONE, BLANK, TEXT, ONE[:1])),
        ("negative or infinite", (ONE, BLANK, TEXT, -ONE)),
        ("negative or infinite", (ONE, BLANK, TEXT, ONE * np.inf)),
    ],
)
def test_an_inconsistent_block_cannot_be_built(message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TableError, match=message):
        Cells(*arguments)


def test_a_block_cannot_be_written_to_and_does_not_follow_what_it_was_made_of() -> None:
    value = np.ones((2, 2))
    cells = Cells.of(value, Provenance.MEASURED, uncertainty=value)
    value[0, 0] = 5.0
    assert cells.value[0, 0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        cells.value[0, 0] = 5.0


def _edited(**changes: Any) -> str:
    content = json.loads(awkward_table(example_network()).to_json())
    return json.dumps({**content, **changes})


def _with_unary(value: object) -> str:
    content = json.loads(awkward_table(example_network()).to_json())
    content["unary"]["value"][0][-1] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this is not"),
        ("{", "this is not"),
        ("[]", "holds no cost table"),
        ('{"version": 1, "layers": {"a": "w8a8"}}', "holds no cost table"),
        (_edited(version=2), "version 2 is not known"),
        (_edited(choices=["w9a9"]), "damaged"),
        (_edited(choices=[8]), "damaged"),
        (_edited(metric="speed"), "damaged"),
        (_edited(unit="ms"), "damaged"),
        (_edited(formats=["int8"]), "damaged"),
        (_edited(layers=["a"]), "damaged"),
        (_edited(unary={"value": [[1]]}), "damaged"),
        (_edited(constant="much"), "damaged"),
        (_edited(constant=None), "the constant: None is no number"),
        (_edited(constant=True), "the constant: True is no number"),
        (_edited(constant=10**400), "the constant: a number is too large"),
        (_edited(constant=float("inf")), "the constant is not finite"),
        (_edited(constant=-1e9), r"with the constant -1e\+09 cycles .* less than nothing"),
        (_edited(statistic=3), "the statistic 3 is no text"),
        (_edited(statistic=""), "the statistic '' is no text"),
        (_edited(network=5), "the network 5 is no text"),
        (_edited(source={"notes": 5}), "source.notes is 5, not a list of texts"),
        (_edited(source={"notes": "one text"}), "source.notes is 'one text', not a list"),
        (_edited(source={"notes": [5]}), r"source.notes is \[5\], not a list of texts"),
        (_edited(source=["notes"]), r"the source \['notes'\] does not map"),
        (_with_unary(10**400), "unary.value: a number is too large"),
        (_with_unary("7"), "unary.value: '7' is no number"),
        (_with_unary([1, 2]), "unary.value"),
        (_with_unary(-3.0), "layer is negative"),
        ('{"unary": ' + "9" * 5000 + "}", "this is not"),
        ("[" * 100_000, "this is not"),
        (_edited(source=None), "damaged"),
        (_edited(once={"value": 1.0}), "it has no 'cells'"),
        (_edited(once={"value": -1.0, "cells": [["stem", "w8a8"]]}), "once is negative"),
        (_edited(once={"value": 1.0, "cells": [["nowhere", "w8a8"]]}), "damaged"),
        (_edited(once={"value": 1.0, "cells": []}), "no cell"),
        (_edited(once=7), "damaged"),
    ],
)
def test_a_damaged_json_is_one_line_that_says_so(text: str, message: str) -> None:
    with pytest.raises(TableError, match=message) as caught:
        CostTable.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    if "damaged" in str(caught.value):
        assert str(caught.value).endswith("; restore the file or make the table anew")


def test_a_fitted_constant_may_be_negative_as_long_as_the_network_in_float_is_not() -> None:
    table = replace(awkward_table(example_network()), constant=0.0)
    column = table.choices.index(FLOAT32)
    table = replace(table, unary=Cells.of(np.ones_like(table.unary.value), Provenance.MEASURED))
    glue = table.glue.value[:, -1]
    layers = table.unary.value[:, column].sum()
    in_float = layers + glue[np.isfinite(glue)].sum()
    assert replace(table, constant=-in_float).constant == -in_float
    with pytest.raises(TableError, match="costs less than nothing"):
        replace(table, constant=-in_float - 1.0)


def test_a_table_without_float_is_refused_if_not_even_the_dearest_choices_cost_anything() -> None:
    table = awkward_table(example_network()).restrict(parse_choices("w8a8,w4a4"))
    with pytest.raises(TableError, match="costs less than nothing"):
        replace(table, constant=-1e9)
    assert replace(table, constant=-1e-9).constant == -1e-9


def test_a_key_that_is_missing_is_named() -> None:
    content = json.loads(awkward_table(example_network()).to_json())
    del content["tensors"]
    with pytest.raises(TableError, match="it has no 'tensors'"):
        CostTable.from_json(json.dumps(content))


def test_reading_a_file_names_it_in_every_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"missing\.json: No such file"):
        CostTable.read(tmp_path / "missing.json")
    with pytest.raises(TableError, match=f"{tmp_path.name}"):
        CostTable.read(tmp_path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TableError, match=r"binary\.json: not a text file"):
        CostTable.read(binary)
    cut = tmp_path / "cut.json"
    cut.write_text(awkward_table(example_network()).to_json()[:500])
    with pytest.raises(TableError, match=r"cut\.json: a cost table is JSON"):
        CostTable.read(cut)


def _without_row(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(index=5)


def _with_row_twice(frame: pd.DataFrame) -> pd.DataFrame:
    twice = pd.concat([frame, frame.iloc[[7]]])
    twice.attrs = frame.attrs
    return twice


def _changed(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        changed = frame.astype({column: object})
        changed.loc[3, column] = value
        changed.attrs = frame.attrs
        return changed

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_row, "exactly one row"),
        (_with_row_twice, "exactly one row"),
        (lambda frame: frame.drop(columns="kernel"), "columns missing: kernel"),
        (lambda frame: frame.drop(index=0), "exactly one row holds the constant"),
        (_changed("value", "much"), "damaged"),
        (_changed("value", 10**400), "damaged"),
        (_changed("provenance", "guessed"), "unknown provenance"),
        (_changed("given", "w9a9"), "damaged"),
        (_changed("value", float("nan")), "NaN"),
    ],
)
def test_a_damaged_frame_is_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    frame = awkward_table(example_network()).to_frame()
    with pytest.raises(TableError, match=message):
        CostTable.from_frame(change(frame), frame.attrs)


def test_a_frame_without_its_attributes_is_refused() -> None:
    frame = awkward_table(example_network()).to_frame()
    with pytest.raises(TableError, match="attributes missing: metric, unit"):
        CostTable.from_frame(frame, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("block,name\n", "first line"),
        ("# 3\n", "first line"),
        ("# {}\n", "no CSV"),
        ("# {}\nblock,name\n", "attributes|columns missing"),
    ],
)
def test_a_csv_without_its_first_line_or_content_is_refused(text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        CostTable.from_csv(text)


def test_a_csv_is_readable_by_anyone_who_skips_the_comment() -> None:
    table = awkward_table(example_network())
    frame = pd.read_csv(io.StringIO(table.to_csv()), comment="#")
    assert len(frame) == len(table.to_frame())


def test_the_absent_cells_are_the_action_mask() -> None:
    table = awkward_table(example_network())
    np.testing.assert_array_equal(
        table.supported, table.unary.provenance != Provenance.ABSENT.value
    )


def with_context(table: CostTable) -> CostTable:
    groups = np.array([[0, -1, -1], [0, 1, 2]], np.int16)
    return replace(table, context=Context(groups, np.array([1.5, -0.5])))


def assert_scaled(new: CostTable, old: CostTable, factor: float) -> None:
    """Every part of one table is that of the other times the factor; nothing else differs."""
    for name in ("unary", "glue", "conversion"):
        cells, scaled = getattr(old, name), getattr(new, name)
        np.testing.assert_allclose(scaled.value, cells.value * factor, rtol=1e-12)
        np.testing.assert_array_equal(scaled.kernel, cells.kernel)
        np.testing.assert_array_equal(scaled.provenance, cells.provenance)
        assert (scaled.uncertainty is None) == (cells.uncertainty is None)
        if cells.uncertainty is not None:
            np.testing.assert_allclose(scaled.uncertainty, cells.uncertainty * factor, rtol=1e-12)
    assert new.constant == pytest.approx(old.constant * factor)
    assert (new.once is None) == (old.once is None)
    if new.once is not None and old.once is not None:
        assert new.once.value == pytest.approx(old.once.value * factor)
        np.testing.assert_array_equal(new.once.cells, old.once.cells)
    assert (new.context is None) == (old.context is None)
    if new.context is not None and old.context is not None:
        np.testing.assert_allclose(new.context.values, old.context.values * factor, rtol=1e-12)
        np.testing.assert_array_equal(new.context.groups, old.context.groups)
    assert list(new.measurements) == list(old.measurements)
    about = dict(new.source)
    before = old.source.get("rescaled", 1.0)
    assert about.pop("rescaled") == pytest.approx(before * factor)
    assert about == {key: value for key, value in old.source.items() if key != "rescaled"}
    kept = ("metric", "unit", "statistic", "network", "layers", "choices", "glue_names", "tensors")
    assert all(getattr(new, name) == getattr(old, name) for name in kept)


@pytest.mark.parametrize("factor", [0.25, 1.0, 1.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_scaling_multiplies_every_part(seed: int, factor: float) -> None:
    table = awkward_table(example_network(), seed)
    assert (table.once is None) == (seed == 0)
    assert_scaled(table.scaled(factor), table, factor)
    table = with_context(table)
    assert_scaled(table.scaled(factor), table, factor)


def test_scaling_twice_is_scaling_by_the_product() -> None:
    table = with_context(awkward_table(example_network(), 1))
    assert_scaled(table.scaled(1.3).scaled(0.7), table, 1.3 * 0.7)
    assert table.scaled(1.3).scaled(1 / 1.3).source["rescaled"] == pytest.approx(1.0)


def test_a_scaled_table_survives_json_and_is_restricted_like_any() -> None:
    table = with_context(awkward_table(example_network(), 1))
    scaled = table.scaled(1.3)
    read = CostTable.from_json(scaled.to_json())
    assert_same(read, scaled)
    assert_scaled(read, table, 1.3)
    few = parse_choices("w32a32,w8a8")
    assert_same(scaled.restrict(few), table.restrict(few).scaled(1.3))


def test_totals_of_a_scaled_table_are_scaled() -> None:
    network = example_network()
    table = random_table(network, CHOICES, 1)
    policies = PolicyBatch.of(network, [Policy.uniform(network, bits) for bits in CHOICES])
    np.testing.assert_allclose(
        total(table.scaled(1.3), network, policies), 1.3 * total(table, network, policies)
    )


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("-inf"), float("nan")])
def test_a_table_is_scaled_by_a_positive_and_finite_factor(factor: float) -> None:
    with pytest.raises(TableError, match="scaled by a positive factor, not"):
        awkward_table(example_network()).scaled(factor)
