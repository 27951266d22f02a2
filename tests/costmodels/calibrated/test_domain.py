"""What was measured, and what lies outside of it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibrated.domain import Domain
from costmodels.calibrated.items import FEATURES, Items, Row

EXTENTS = {
    "macs": 1e6,
    "inputs": 1000.0,
    "outputs": 2000.0,
    "weights": 500.0,
    "depth": 90.0,
    "in_channels": 16.0,
    "out_channels": 32.0,
    "window": 9.0,
}


def _rows(*factors: float, kind: str = "Conv", names: tuple[str, ...] = tuple(EXTENTS)) -> Items:
    """Rows as large as `EXTENTS`, some of it times a factor."""
    numbers = [
        {name: value * (factor if name in names else 1.0) for name, value in EXTENTS.items()}
        for factor in factors
    ]
    return Items.of([Row(kind, "Conv", "Conv", kind, each) for each in numbers])


DOMAIN = Domain.of(_rows(1.0, 4.0))


def test_what_was_measured_and_what_lies_between_is_inside() -> None:
    assert not DOMAIN.outside(_rows(1.0, 2.0, 4.0)).any()


@pytest.mark.parametrize("name", EXTENTS)
def test_twice_as_large_or_half_as_small_is_outside_a_third_is_not(name: str) -> None:
    rows = _rows(8.0, 0.5, 4.0 * 4 / 3, 0.75, names=(name,))
    assert DOMAIN.outside(rows).tolist() == [True, True, False, False]


def test_numbers_that_the_roofline_scales_are_not_checked() -> None:
    far = _rows(1.0)
    features = far.features.copy()
    names = ("pixels", "readers", "groups")
    columns = [i for i, name in enumerate(FEATURES) if name in names]
    features[:, columns] = 1e9
    assert not DOMAIN.outside(Items(far.kind, far.maker, far.reader, far.near, features)).any()


@pytest.mark.parametrize("name", ["network", "passed", "work"])
def test_all_of_a_network_far_larger_than_any_is_outside(name: str) -> None:
    def rows(value: float) -> Items:
        features = _rows(1.0, 1.0).features.copy()
        features[:, FEATURES.index(name)] = value
        return replace(_rows(1.0, 1.0), features=features)

    domain = Domain.of(rows(100.0))
    assert not domain.outside(rows(149.0)).any()
    assert not domain.outside(rows(1.0)).any(), "small networks are parts of larger ones"
    assert domain.larger(rows(151.0))
    assert domain.outside(rows(151.0)).all()


def test_a_kind_that_was_never_measured_is_not_known_and_outside() -> None:
    rows = Items.joined([_rows(1.0), _rows(1.0, kind="ConvTranspose"), _rows(1.0)])
    assert DOMAIN.knows(rows).tolist() == [True, False, True]
    assert DOMAIN.outside(rows).tolist() == [False, True, False]


def test_each_kind_has_extents_of_its_own() -> None:
    both = Domain.of(Items.joined([_rows(1.0), _rows(100.0, kind="Gemm")]))
    rows = Items.joined([_rows(1.0, 100.0), _rows(1.0, 100.0, kind="Gemm")])
    assert both.outside(rows).tolist() == [False, True, True, False]


def test_a_number_that_was_always_zero_may_only_be_zero() -> None:
    rows = Items.of([Row("Add", "Conv", "Conv", "Add", {"inputs": 100.0})])
    weighted = Items.of([Row("Add", "Conv", "Conv", "Add", {"inputs": 100.0, "weights": 1.0})])
    assert Domain.of(rows).outside(Items.joined([rows, weighted])).tolist() == [False, True]


def test_a_domain_survives_json() -> None:
    again = Domain.from_dict(json.loads(json.dumps(DOMAIN.to_dict())))
    assert again.extents == DOMAIN.extents
    rows = _rows(8.0, 0.5, 5.0, 0.75)
    np.testing.assert_array_equal(again.outside(rows), DOMAIN.outside(rows))
