"""Measured policies and their file."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.errors import CostError
from costmodels.measured import MeasuredPolicies
from costmodels.sketch import Sketch, example_network
from quantization.bits import BitWidths
from quantization.policy import Policy

NETWORK = example_network()


def _measured() -> MeasuredPolicies:
    policies = {
        "float": Policy({}),
        "mine": Policy({"stem": BitWidths(4, 8)}, {"ranges": "mse"}),
    }
    return MeasuredPolicies(NETWORK.digest, policies, np.array([2e-3, 0.1 + 0.2]), {"seed": 3})


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    before = _measured()
    (tmp_path / "m.json").write_text(before.to_json())
    after = MeasuredPolicies.read(tmp_path / "m.json")
    assert (after.network, after.source) == (before.network, before.source)
    assert after.policies == before.policies
    assert list(after.policies) == ["float", "mine"]
    np.testing.assert_array_equal(after.seconds, before.seconds)


def test_policies_of_another_network_are_an_error() -> None:
    sketch = Sketch()
    other = sketch.network(sketch.conv(sketch.input((1, 3, 5, 5)), 4, name="only"))
    _measured().check(NETWORK)
    with pytest.raises(CostError, match="measured on another network"):
        _measured().check(other)


@pytest.mark.parametrize("seconds", [[1.0], [1.0, 0.0], [1.0, -1.0], [1.0, math.nan]])
def test_each_policy_has_one_positive_time(seconds: list[float]) -> None:
    with pytest.raises(CostError):
        MeasuredPolicies("0" * 64, {"a": Policy({}), "b": Policy({})}, np.array(seconds))


def _changed(change: Callable[[Any], object]) -> str:
    content = json.loads(_measured().to_json())
    change(content)
    return json.dumps(content)


BAD: dict[str, tuple[Callable[[Any], object], str]] = {
    "later version": (lambda c: c.update(version=2), "version 2"),
    "true as version": (lambda c: c.update(version=True), "version True"),
    "no source": (lambda c: c.pop("source"), "source"),
    "source that is a text": (lambda c: c.update(source="me"), "source a JSON object"),
    "no network": (lambda c: c.pop("network"), "network is a digest"),
    "no seconds": (lambda c: c["measured"][0].pop("seconds"), "holds name, seconds and policy"),
    "seconds as text": (lambda c: c["measured"][0].update(seconds="1"), "are a number"),
    "true seconds": (lambda c: c["measured"][0].update(seconds=True), "are a number"),
    "negative seconds": (lambda c: c["measured"][1].update(seconds=-1.0), "mine: -1.0 s"),
    "one name twice": (lambda c: c["measured"][1].update(name="float"), "name of its own"),
    "policy that is none": (lambda c: c["measured"][0].update(policy={}), "policy file holds"),
    "bits that are none": (
        lambda c: c["measured"][1]["policy"]["layers"].update(stem="w9a9"),
        "no such bit-width",
    ),
    "a list of numbers": (lambda c: c.update(measured=[1, 2]), "holds name, seconds and policy"),
    "a number": (lambda c: c.update(measured=1), "holds name, seconds and policy"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_was_changed_is_an_error_that_says_what_is_wrong(
    name: str, tmp_path: Path
) -> None:
    change, message = BAD[name]
    (tmp_path / "m.json").write_text(_changed(change))
    with pytest.raises(CostError, match=message) as caught:
        MeasuredPolicies.read(tmp_path / "m.json")
    assert str(caught.value).startswith(f"{tmp_path / 'm.json'}: ")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "layers": {}}', "[" * 100_000])
def test_a_file_that_is_something_else_is_an_error(text: str) -> None:
    with pytest.raises(CostError, match="measured policies"):
        MeasuredPolicies.from_json(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CostError, match=r"absent\.json: No such file"):
        MeasuredPolicies.read(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CostError, match=r"binary\.json: not a text file"):
        MeasuredPolicies.read(tmp_path / "binary.json")
