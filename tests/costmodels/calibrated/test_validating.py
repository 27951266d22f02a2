"""Intervals: the rank that split conformal prediction takes, and how often they hold."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibrated.samples import Overhead
from costmodels.calibrated.validating import judged, network_half_width, totals
from tests.costmodels.calibrated.world import CONSTANT_S, NODE_S, SLOPE, World, law_s


def _width(factors: Sequence[float], networks: Sequence[str], level: float = 0.9) -> float | None:
    predicted = np.full(len(factors), 2.0)
    return network_half_width(predicted, predicted * np.array(factors), networks, level)


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


def test_the_interval_covers_about_its_level_of_networks_nobody_saw(world: World) -> None:
    width = world.model.validation["half_width"]
    assert 0.02 < width < 0.3
    predicted = totals(world.model, world.unseen)
    measured = np.array([sample.total_s for sample in world.unseen])
    inside = (measured >= predicted / (1 + width)) & (measured <= predicted * (1 + width))
    assert 0.75 <= inside.mean() <= 1.0


def test_the_intervals_of_rows_cover_about_their_level(world: World) -> None:
    inside: list[bool] = []
    for sample in world.unseen:
        executed = sample.nodes > 0
        items, integer = sample.items.at(executed), sample.integer[executed]
        truth = Overhead(NODE_S, SLOPE, CONSTANT_S).undisturbed_s(sample)[executed]
        width, found = world.model.spread(items, integer), world.model.seconds(items, integer)
        told = ~np.isnan(width) & (truth > 2e-6)
        off = np.abs(np.log(truth[told] / found[told]))
        inside += (off <= np.log1p(width[told])).tolist()
    assert len(inside) > 1000
    assert 0.8 <= np.mean(inside) <= 0.98


def test_a_kind_that_was_hardly_judged_has_no_interval(world: World) -> None:
    few = judged(world.model, world.apart[:1], Overhead(NODE_S, SLOPE, CONSTANT_S))
    rows = world.apart[0].items
    head = rows.at(rows.kind == "Gemm")
    assert len(head)
    assert np.isnan(few.spread(head, np.zeros(len(head), np.bool_))).all()
    assert few.validation["half_width"] is None


def test_a_validation_says_how_much_judged_and_how_far_off_each_rival_is(world: World) -> None:
    found = world.model.validation
    assert found["networks"] == 12
    assert found["policies"] == len(world.apart)
    assert found["level"] == 0.9
    assert found["total"]["mean_absolute"] < 0.1 < found["textbook"]["mean_absolute"]


def test_a_total_is_the_constant_and_every_row(world: World) -> None:
    sample = world.apart[0]
    [found] = totals(world.model, [sample])
    rows = world.model.seconds(sample.items, sample.integer)
    assert found == pytest.approx(CONSTANT_S + rows.sum(), rel=1e-6)
    law = law_s(sample.items, sample.integer)[sample.nodes > 0].sum()
    assert found == pytest.approx(law, rel=0.3)


def test_judging_keeps_the_model_and_changes_what_is_known_of_it(world: World) -> None:
    worse = [replace(sample, total_s=sample.total_s * 2) for sample in world.apart]
    again = judged(world.model, worse, Overhead(NODE_S, SLOPE, CONSTANT_S))
    assert again.parts is world.model.parts
    assert again.validation["half_width"] > 0.8
    assert again.validation["total"]["near"] == 0
