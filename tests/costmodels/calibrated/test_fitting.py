"""A model that was fitted to a law predicts networks that it never saw."""

import sys
from collections.abc import Sequence

import numpy as np
import pytest

from costmodels.calibrated.device_model import GROUPS, groups_of
from costmodels.calibrated.features import NAMES, columns_of
from costmodels.calibrated.fitting import Rows, fit_parts, grow
from costmodels.calibrated.samples import Overhead, Sample
from costmodels.calibrated.validating import totals
from costmodels.cells import FloatArray
from costmodels.errors import BackendError
from costmodels.prediction_error import PredictionError
from tests.costmodels.calibrated.world import (
    CONSTANT_S,
    LIMITS,
    NODE_S,
    SLOPE,
    World,
    law_nodes,
    law_s,
)

OVERHEAD = Overhead(NODE_S, SLOPE, CONSTANT_S)


def _measured(samples: Sequence[Sample]) -> FloatArray:
    return np.array([sample.total_s for sample in samples])


def test_networks_that_were_never_fitted_are_predicted_closely(world: World) -> None:
    error = PredictionError.of(totals(world.model, world.unseen), _measured(world.unseen))
    assert error.mean_absolute < 0.08
    assert error.near > 0.8
    assert error.rank_correlation is not None
    assert error.rank_correlation > 0.99


def test_it_predicts_better_than_the_closed_formula_and_than_the_roofline(world: World) -> None:
    measured = _measured(world.unseen)
    error = PredictionError.of(totals(world.model, world.unseen), measured).mean_absolute
    formula = PredictionError.of(world.model.textbook.seconds(world.unseen), measured)
    bounds = np.array([LIMITS.bound_s(s.items, s.integer).sum() for s in world.unseen])
    roofline = PredictionError.of(bounds, measured)
    assert error < 0.5 * formula.mean_absolute
    assert error < 0.5 * roofline.mean_absolute


def test_the_constant_is_that_of_a_run(world: World) -> None:
    assert world.model.constant_s == pytest.approx(CONSTANT_S, rel=1e-6)


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_of_rows_is_predicted(world: World, group: str) -> None:
    found, expected = [], []
    for sample in world.unseen:
        here = groups_of(sample.items, sample.integer) == group
        here &= sample.nodes > 0
        found.append(world.model.seconds(sample.items, sample.integer)[here])
        expected.append(law_s(sample.items, sample.integer)[here])
    one, other = np.concatenate(found), np.concatenate(expected)
    assert one.sum() == pytest.approx(other.sum(), rel=0.1)
    # Half of the rows of a group are off by no more than what no feature tells, and a little.
    assert np.median(np.abs(np.log(np.maximum(one, 1e-9) / other))) < 0.12


def test_no_prediction_is_below_the_compute_bound(world: World) -> None:
    for sample in (*world.unseen, *world.fitted[:20]):
        layer = np.isin(groups_of(sample.items, sample.integer), GROUPS[:2])
        found = world.model.seconds(sample.items, sample.integer)[layer]
        bound = LIMITS.compute_s(sample.items, sample.integer)[layer]
        assert (found >= bound * (1 - 1e-12)).all()


def test_what_is_taken_over_costs_almost_nothing_and_the_rest_is_not_taken_over(
    world: World,
) -> None:
    predicted, would, kept, paid = [], [], [], []
    for sample in world.unseen:
        glue = groups_of(sample.items, sample.integer) == GROUPS[2]
        alone = law_s(sample.items, sample.integer)
        found = world.model.seconds(sample.items, sample.integer)
        fused = glue & (law_nodes(sample.items, sample.integer) == 0)
        predicted.append(found[fused].sum())
        would.append(alone[fused].sum())
        kept.append(found[glue & ~fused].sum())
        paid.append(alone[glue & ~fused].sum())
    assert sum(predicted) < 0.15 * sum(would)
    assert sum(kept) == pytest.approx(sum(paid), rel=0.1)


def test_a_sum_is_taken_over_by_its_format(world: World) -> None:
    """The law takes over float sums behind a convolution if the channels are a multiple of 8."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    glue = world.model.parts[GROUPS[2]]
    for sample in world.unseen:
        near = np.array(sample.items.near)
        here = (near == "Add behind Conv, Conv") & (sample.items.column("even_in") >= 8)
        items, integer = sample.items.at(here), sample.integer[here]
        if not len(items):
            continue
        columns = glue.columns(items, integer, LIMITS)
        listed = world.model.executed.listed(items, integer)
        share = world.model.executed.corrected(columns, listed)
        for word in (True, False):
            shares[word] += share[integer == word].tolist()
    assert np.mean(shares[True]) > 0.9
    assert np.mean(shares[False]) < 0.2


def test_too_few_rows_of_a_group_are_an_error_that_names_it(world: World) -> None:
    floats = [sample for sample in world.fitted[:30] if sample.policy == "float"]
    with pytest.raises(BackendError, match=r"layers, integer.*more time"):
        fit_parts(Rows.of(floats, OVERHEAD), LIMITS, 0)


def test_without_scikit_learn_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(BackendError, match="quantmeter\\[calibrate\\]"):
        grow(np.zeros((20, 2)), np.zeros(20), np.ones(20), 0)


def test_columns_mark_kind_maker_and_reader(world: World) -> None:
    sample = world.fitted[0]
    kinds, neighbours = ("Conv", "Add"), ("Conv", "outside")
    columns = columns_of(sample.items, sample.integer, LIMITS, kinds, neighbours)
    assert columns.shape == (len(sample.items), len(NAMES) + 2 + 2 * 2)
    assert np.isfinite(columns).all()
    marks = columns[:, len(NAMES) :]
    expected = [sample.items.kind == "Conv", sample.items.kind == "Add"]
    expected += [
        text == n for text in (sample.items.maker, sample.items.reader) for n in neighbours
    ]
    np.testing.assert_array_equal(marks, np.stack(expected, axis=1))
    macs = columns[:, NAMES.index("macs")]
    np.testing.assert_allclose(macs, np.log2(1 + sample.items.column("macs")))
    np.testing.assert_array_equal(columns[:, NAMES.index("integer")], sample.integer)


def test_without_rows_there_are_columns_but_no_rows(world: World) -> None:
    none = world.fitted[0].items.at(np.array([], np.intp))
    columns = columns_of(none, np.array([], np.bool_), LIMITS, ("Conv",), ())
    assert columns.shape == (0, len(NAMES) + 1)
    assert world.model.seconds(none, np.array([], np.bool_)).shape == (0,)
