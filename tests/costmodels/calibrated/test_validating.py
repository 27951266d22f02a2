"""Intervals: the rank that split conformal prediction takes, and how often they hold."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibrated.samples import Overhead
from costmodels.calibrated.validating import judged, totals
from tests.costmodels.calibrated.world import CONSTANT_S, NODE_S, SLOPE, World, law_s


def test_the_interval_covers_about_its_level_of_networks_nobody_saw(world: World) -> None:
    interval = world.model.interval
    assert interval is not None
    predicted = totals(world.model, world.unseen)
    assert (interval.half_width(predicted) > 0.02).all()
    assert (interval.half_width(predicted) < 0.3).all()
    measured = np.array([sample.total_s for sample in world.unseen])
    assert 0.75 <= interval.covers(predicted, measured).mean() <= 1.0


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
    assert few.interval is None


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
    assert again.interval is not None
    assert again.interval.at_1ms > 0.8
    assert again.validation["total"]["near"] == 0
