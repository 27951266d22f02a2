"""A device as a file: the same predictions, or one error that says what to do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.calibrated.device_model import GROUPS, DeviceModel, groups_of
from costmodels.calibrated.items import Items, Row
from costmodels.errors import CostError, TableError
from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES
from tests.costmodels.calibrated.world import World


@pytest.fixture(scope="module")
def text(world: World) -> str:
    return world.model.to_json()


def test_a_model_that_was_read_back_predicts_the_same(world: World, text: str) -> None:
    again = DeviceModel.from_json(text)
    for sample in world.unseen[:8]:
        found = again.seconds(sample.items, sample.integer)
        expected = world.model.seconds(sample.items, sample.integer)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-9)
        np.testing.assert_array_equal(
            again.spread(sample.items, sample.integer),
            world.model.spread(sample.items, sample.integer),
        )


def test_what_was_read_back_is_written_as_the_same_text(text: str) -> None:
    assert DeviceModel.from_json(text).to_json() == text


def test_a_model_that_was_read_back_knows_who_measured_and_how_well(
    world: World, text: str
) -> None:
    again = DeviceModel.from_json(text)
    assert again.device == world.model.device
    assert (again.threads, again.constant_s) == (1, world.model.constant_s)
    assert again.limits == world.model.limits
    assert again.textbook == world.model.textbook
    assert again.validation == world.model.validation
    assert again.source == world.model.source
    assert again.domain.extents == world.model.domain.extents


@pytest.fixture(scope="module")
def small(text: str) -> str:
    """A device with two trees a group: quick to read, as sound as any."""
    values = json.loads(text)
    arrays = ("feature", "threshold", "left", "right", "value")
    for forest in (*(p["forest"] for p in values["parts"].values()), values["executed"]["glue"]):
        forest |= {name: forest[name][:2] for name in arrays}
    return DeviceModel.from_json(json.dumps(values)).to_json()


def _changed(text: str, **changed: Any) -> str:
    return json.dumps({**json.loads(text), **changed})


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_an_error_that_says_to_calibrate_anew(small: str, version: Any) -> None:
    with pytest.raises(TableError, match="version 1; calibrate anew"):
        DeviceModel.from_json(_changed(small, version=version))


@pytest.mark.parametrize("what", ["", "{", "[]", "3", "null", "{}", '"device"'])
def test_a_text_that_is_no_device_is_an_error_that_says_how_to_make_one(what: str) -> None:
    with pytest.raises(TableError, match="quantmeter calibrate"):
        DeviceModel.from_json(what)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_text_is_an_error(small: str, share: float) -> None:
    with pytest.raises(TableError, match="no calibrated device"):
        DeviceModel.from_json(small[: int(share * len(small))])


def test_a_cost_table_is_no_device() -> None:
    table = backend("analytical:haq").table(example_network(), DEFAULT_CHOICES, Metric.LATENCY)
    with pytest.raises(TableError, match="calibrated device"):
        DeviceModel.from_json(table.to_json())


KEYS = (
    *("version", "what", "device", "threads", "limits", "parts", "executed", "constant_s"),
    *("half_widths", "domain", "textbook", "validation", "source"),
)


@pytest.mark.parametrize("key", KEYS)
def test_a_field_that_is_missing_is_an_error(small: str, key: str) -> None:
    values = json.loads(small)
    del values[key]
    with pytest.raises(TableError):
        DeviceModel.from_json(json.dumps(values))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [None, "text", [1]])
def test_a_field_of_another_type_is_an_error(small: str, key: str, value: Any) -> None:
    with pytest.raises(TableError):
        DeviceModel.from_json(_changed(small, **{key: value}))


@pytest.mark.parametrize("key", ["near", "kind"])
@pytest.mark.parametrize("value", [None, "text", {"Relu, float": "often"}])
def test_shares_that_are_no_numbers_are_an_error(small: str, key: str, value: Any) -> None:
    executed = {**json.loads(small)["executed"], key: value}
    with pytest.raises(TableError):
        DeviceModel.from_json(_changed(small, executed=executed))


def test_limits_that_no_device_has_are_an_error(small: str) -> None:
    limits = {**json.loads(small)["limits"], "float_peak": -1}
    with pytest.raises(TableError):
        DeviceModel.from_json(_changed(small, limits=limits))


def test_a_damaged_tree_is_an_error(small: str) -> None:
    parts = json.loads(small)["parts"]
    parts[GROUPS[0]]["forest"]["left"][0][0] = 10**6
    with pytest.raises(TableError):
        DeviceModel.from_json(_changed(small, parts=parts))


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"cannot read .*none\.json"):
        DeviceModel.read(tmp_path / "none.json")


def test_a_file_that_holds_something_else_is_an_error_that_names_it(tmp_path: Path) -> None:
    for name, content in (("a.json", b"{}"), ("b.json", b"\xff\xfe\x00")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(TableError, match=name):
            DeviceModel.read(path)


def test_a_file_is_read_back(world: World, text: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(text)
    assert DeviceModel.read(path).source == world.model.source


def test_rows_belong_to_the_group_of_their_kind_and_format() -> None:
    kinds = ("Conv depthwise", "Gemm", "MatMul of activations", "Add", "quantize", "dequantize")
    items = Items.of([Row(kind, "Conv", "Conv", kind, {}) for kind in kinds])
    floats, integer = (groups_of(items, np.full(len(kinds), v)) for v in (False, True))
    assert floats.tolist() == [GROUPS[0]] * 3 + [GROUPS[2]] + [GROUPS[3]] * 2
    assert integer.tolist() == [GROUPS[1]] * 3 + [GROUPS[2]] + [GROUPS[3]] * 2


def test_a_model_without_trees_for_a_group_is_an_error(world: World) -> None:
    parts = {name: part for name, part in world.model.parts.items() if name != GROUPS[3]}
    with pytest.raises(CostError, match=GROUPS[3]):
        replace(world.model, parts=parts)


def test_a_scale_multiplies_the_rows_of_its_group_only(world: World) -> None:
    glue = world.model.parts[GROUPS[2]]
    parts = {**world.model.parts, GROUPS[2]: replace(glue, scale=3.0)}
    slower = replace(world.model, parts=parts)
    sample = world.unseen[0]
    here = groups_of(sample.items, sample.integer) == GROUPS[2]
    ratio = slower.seconds(sample.items, sample.integer)
    before = world.model.seconds(sample.items, sample.integer)
    np.testing.assert_allclose(ratio, before * np.where(here, 3.0, 1.0))


def test_a_neighbourhood_that_was_never_seen_takes_the_share_of_its_kind(world: World) -> None:
    rows = [Row("Relu", "Conv", "Conv", near, {}) for near in ("Relu behind Nothing", "known")]
    items = Items.of([*rows, Row("Other", "Conv", "Conv", "Other behind Conv", {})])
    executed = replace(world.model.executed, near={"known, float": 0.25}, kind={"Relu, float": 0.5})
    assert executed.listed(items, np.zeros(3, np.bool_)).tolist() == [0.5, 0.25, 1.0]
    assert executed.listed(items, np.ones(3, np.bool_)).tolist() == [1.0, 1.0, 1.0]


def test_trees_that_see_other_columns_are_refused(small: str) -> None:
    columns = json.loads(small)["columns"]
    with pytest.raises(TableError, match="other columns than this version"):
        DeviceModel.from_json(_changed(small, columns=columns[::-1]))
