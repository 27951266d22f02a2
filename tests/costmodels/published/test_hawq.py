"""The JSON of HAWQ-V3: milliseconds at equal widths of weights and activations."""

import json
from typing import Any

import numpy as np
import pytest

from costmodels.errors import CostError, TableError
from costmodels.published import hawq
from costmodels.published.content import Published, Stated
from costmodels.table import Provenance
from costmodels.units import Unit
from quantization.bits import parse_choices

KEY = "latency_ms_nvidia_t4"


def content(**changes: Any) -> dict[str, Any]:
    """Return a file of three layers; None takes an entry away."""
    given = {
        "network": "tiny",
        "tied_layers": [[0, 2]],
        "parameters_millions": [0.25, 0.5, 1.0],
        "macs_millions": [4.0, 2.0, 1.0],
        KEY: {"4": [0.1, 0.2, 0.3], "8": [0.4, 0.5, 0.6]},
        **changes,
    }
    return {key: value for key, value in given.items() if value is not None}


def read(given: Any, **stated: Any) -> Published:
    return hawq.read(json.dumps(given).encode(), Stated(**stated))


def test_widths_are_of_weights_and_of_activations_and_milliseconds_become_seconds() -> None:
    found = read(content())
    assert found.choices == parse_choices("w4a4,w8a8")
    assert found.unit is Unit.SECONDS
    np.testing.assert_allclose(found.value, [[1e-4, 4e-4], [2e-4, 5e-4], [3e-4, 6e-4]])


def test_the_unit_and_the_device_are_those_of_the_entrys_name() -> None:
    given = content(**{KEY: None}, latency_us_some_chip={"8": [1.0, 2.0, 3.0]})
    found = read(given)
    np.testing.assert_allclose(found.value, [[1e-6], [2e-6], [3e-6]])
    assert found.source["unit_in_file"] == "us"
    assert found.source["device"] == "some_chip"
    assert read(given, device="Some Chip, rev. 2").source["device"] == "Some Chip, rev. 2"


def test_what_others_measured_is_measured_and_its_statistic_is_not_made_up() -> None:
    found = read(content())
    assert found.provenance is Provenance.MEASURED
    assert found.statistic == "not stated"
    assert read(content(), statistic="mean").statistic == "mean"


def test_counts_and_ties_are_read_where_they_are() -> None:
    found = read(content())
    assert [count.what for count in found.counts] == ["weights", "multiply-accumulates"]
    assert found.ties == ((0, 2),)
    bare = read({KEY: content()[KEY]})
    assert (bare.counts, bare.ties) == ((), ())


def test_a_width_that_is_no_choice_is_left_out_and_said() -> None:
    found = read(content(**{KEY: {"1": [1, 1, 1], "8": [1, 1, 1]}}))
    assert found.choices == parse_choices("w8a8")
    assert found.source["left_out"] == ["w1a1"]


def test_a_stated_unit_may_repeat_the_files_but_not_contradict_it() -> None:
    assert read(content(), unit="ms").unit is Unit.SECONDS
    for unit in ("us", "cycles"):
        with pytest.raises(TableError, match=f"is in ms, not in {unit}"):
            read(content(), unit=unit)


BAD = {
    "no entry": (content(**{KEY: None}), "there is none"),
    "two devices": (content(latency_ms_cpu={"8": [1, 1, 1]}), "there is .*t4, latency_ms_cpu"),
    "cycles": (content(**{KEY: None}, latency_cycles_x={"8": [1, 1, 1]}), "not in seconds"),
    "a list": ([content()], "no object"),
    "no widths": (content(**{KEY: [1, 2, 3]}), "does not map widths"),
    "widths that are none": (content(**{KEY: {"w8": [1, 2, 3]}}), "does not map widths"),
    "only odd widths": (content(**{KEY: {"9": [1, 2, 3]}}), "no width of 2 to 8"),
    "unequal columns": (
        content(**{KEY: {"4": [1, 2], "8": [1, 2, 3]}}),
        "unequally many layers: 2 at 4, 3 at 8",
    ),
    "no layers": (content(**{KEY: {"8": []}}), "no costs"),
    "texts": (content(**{KEY: {"8": [1, "2", 3]}}), "nvidia_t4.8: '2' is no number"),
    "a gap": (content(**{KEY: {"8": [1, None, 3]}}), "None is no number"),
    "truth": (content(**{KEY: {"8": [1, True, 3]}}), "True is no number"),
    "not a number": (content(**{KEY: {"8": [1, np.nan, 3]}}), "row 1 costs nan at w8a8"),
    "infinity": (content(**{KEY: {"8": [1, np.inf, 3]}}), "row 1 costs inf"),
    "a negative cost": (content(**{KEY: {"8": [1, -2, 3]}}), "row 1 costs -0.002"),
    "a number too large": (content(**{KEY: {"8": [1, 10**400, 3]}}), "too large"),
    "one column": (content(**{KEY: {"8": 4}}), "no list of numbers"),
    "counts of other layers": (content(macs_millions=[1.0]), "3 layers with costs, and multipl"),
    "counts that are none": (content(macs_millions="many"), "no list of numbers"),
    "a tie with no layer": (content(tied_layers=[[0, 3]]), "ties a layer that is none of its 3"),
    "a tie from the end": (content(tied_layers=[[0, -1]]), "ties a layer that is none of its 3"),
    "ties that are none": (content(tied_layers=[0, 1]), "no list of lists"),
    "ties of names": (content(tied_layers=[["a", "b"]]), "no list of lists"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_one_clear_line(name: str) -> None:
    given, message = BAD[name]
    with pytest.raises(TableError, match=message) as caught:
        read(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damaged", [b"", b"\x93NUMPY", b"layer,choice\n", json.dumps(content()).encode()[:-5]]
)
def test_what_is_no_json_is_an_error(damaged: bytes) -> None:
    with pytest.raises(TableError, match="no JSON"):
        hawq.read(damaged, Stated())


def test_json_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(CostError, match="no JSON"):
        hawq.read(b"[" * 200_000, Stated())
