"""Intervals of whole networks: the rank that split conformal prediction takes; how they shrink."""

from collections.abc import Sequence

import numpy as np
import pytest

from costmodels.calibrated.interval import NetworkInterval


def _width(factors: Sequence[float], networks: Sequence[str], level: float = 0.9) -> float | None:
    predicted = np.full(len(factors), 1e-3)
    found = NetworkInterval.of(predicted, predicted * np.array(factors), networks, level)
    return None if found is None else found.at_1ms


def _names(count: int) -> list[str]:
    return [f"n{i}" for i in range(count)]


@pytest.mark.parametrize(
    ("count", "level", "rank"),
    # ceil(level * (count + 1)), the rank of split conformal prediction
    [(19, 0.9, 18), (10, 0.9, 10), (20, 0.9, 19), (99, 0.9, 90), (19, 0.5, 10)],
)
def test_the_width_is_the_distance_of_exactly_that_rank(
    count: int, level: float, rank: int
) -> None:
    off = np.random.default_rng(0).permutation(count) + 1.0
    factors = [1 + x / 100 if i % 2 else 1 / (1 + x / 100) for i, x in enumerate(off)]
    assert _width(factors, _names(count), level) == pytest.approx(rank / 100)


def test_fewer_than_ten_networks_give_no_width() -> None:
    assert _width([1.1] * 9, _names(9)) is None
    assert _width([1.1] * 10, _names(10)) == pytest.approx(0.1)
    assert _width([1.1] * 40, [f"n{i % 9}" for i in range(40)]) is None
    assert _width([], []) is None


def test_a_level_that_so_few_networks_cannot_tell_gives_no_width() -> None:
    assert _width([1.1] * 12, _names(12), level=0.99) is None


def test_a_network_with_many_policies_does_not_count_more() -> None:
    # Network n0 is far off with 100 policies; the other 19 are off by 1 % to 19 %.
    alone = [2.0, *(1 + i / 100 for i in range(1, 20))]
    often = [2.0] * 99 + alone
    names = ["n0"] * 99 + _names(20)
    assert _width(alone, _names(20)) == pytest.approx(0.19)
    assert _width(often, names) == pytest.approx(0.19)


def test_a_network_whose_policies_differ_counts_each_for_its_share() -> None:
    # 11 networks at level 0.75: 9 of 11 must be inside. Nine are off by 1 to 9 %, of the last two
    # each has half of its policies at 5.5 %.
    factors = [1 + i / 100 for i in range(1, 10)] + [1.055, 1.5] * 2
    names = [*_names(9), "a", "a", "b", "b"]
    assert _width(factors, names, 0.75) == pytest.approx(0.08)


def _noisy(count: int, power: float) -> NetworkInterval:
    """Interval of networks from 0.1 ms to 100 ms whose errors fall with a power of the time."""
    draw = np.random.default_rng(0)
    predicted = np.exp(draw.uniform(np.log(1e-4), np.log(1e-1), count))
    off = draw.normal(0, 0.1, count) * (predicted / 1e-3) ** -power
    found = NetworkInterval.of(predicted, predicted * np.exp(off), _names(count))
    assert found is not None
    return found


def test_errors_that_fall_with_the_time_give_intervals_that_do() -> None:
    found = _noisy(400, 0.3)
    assert found.narrowing == pytest.approx(0.3, abs=0.1)
    # 1.645 standard deviations of 0.1
    assert np.log1p(found.at_1ms) == pytest.approx(0.1645, rel=0.2)
    widths = found.half_width(np.array([1e-3, 1e-2]))
    assert widths[0] == pytest.approx(found.at_1ms)
    assert np.log1p(widths[1]) / np.log1p(widths[0]) == pytest.approx(10**-found.narrowing)


def test_errors_that_do_not_depend_on_the_time_give_nearly_one_width() -> None:
    assert _noisy(400, 0.0).narrowing < 0.1


def test_errors_that_rise_with_the_time_do_not_widen_the_intervals_of_long_runs() -> None:
    assert _noisy(400, -0.3).narrowing == 0.0


def test_few_networks_tell_one_width_only() -> None:
    assert _noisy(19, 0.4).narrowing == 0.0


def test_about_its_level_of_new_networks_is_covered() -> None:
    found, draw = _noisy(60, 0.3), np.random.default_rng(1)
    predicted = np.exp(draw.uniform(np.log(1e-4), np.log(1e-1), 4000))
    measured = predicted * np.exp(draw.normal(0, 0.1, 4000) * (predicted / 1e-3) ** -0.3)
    assert found.covers(predicted, measured).mean() == pytest.approx(0.9, abs=0.06)
    width = 1 + found.half_width(predicted)
    inside = (measured >= predicted / width) & (measured <= predicted * width)
    np.testing.assert_array_equal(found.covers(predicted, measured), inside)


def test_runs_beyond_those_that_judged_have_the_width_of_the_nearest() -> None:
    found = _noisy(400, 0.3)
    shortest, longest = found.judged_s
    inside = found.half_width(np.array([shortest, longest]))
    np.testing.assert_array_equal(found.half_width(np.array([shortest / 9, 9 * longest])), inside)


def test_an_interval_is_read_back_as_written() -> None:
    found = _noisy(60, 0.3)
    assert NetworkInterval.from_dict(found.to_dict()) == found
