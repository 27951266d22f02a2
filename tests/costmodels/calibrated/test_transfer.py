"""A device that differs from a calibrated one by factors is found by a few probes."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibrated.device_model import GROUPS, DeviceModel
from costmodels.calibrated.samples import Sample
from costmodels.calibrated.transfer import LEAST_PROBES, transferred
from costmodels.calibrated.validating import totals
from costmodels.errors import BackendError
from costmodels.prediction_error import PredictionError
from tests.costmodels.calibrated.world import CONSTANT_S, DEVICE, World, slower

OTHER = replace(DEVICE, cpu="another law")


@pytest.fixture(scope="module")
def probes(world: World) -> tuple[Sample, ...]:
    """One mixed policy of 15 whole networks that the model was not fitted to."""
    mixed = [s for s in (*world.apart, *world.unseen) if s.policy == "mixed0"]
    assert len({sample.network for sample in mixed[:15]}) == 15
    return tuple(mixed[:15])


@pytest.fixture(scope="module")
def slow_conv(world: World, probes: tuple[Sample, ...]) -> DeviceModel:
    """The model after it saw probes whose floating-point layers take twice as long."""
    return transferred(world.model, slower(probes, GROUPS[0], 2.0), OTHER, 3)


def _scales(model: DeviceModel) -> dict[str, float]:
    return {name: part.scale for name, part in model.parts.items()}


def test_a_device_twice_as_slow_in_one_group_is_recovered(slow_conv: DeviceModel) -> None:
    scales = _scales(slow_conv)
    assert scales[GROUPS[0]] == pytest.approx(2.0, rel=0.08)
    assert scales[GROUPS[1]] == pytest.approx(1.0, rel=0.15)


def test_networks_of_the_other_device_are_predicted_far_better(
    world: World, slow_conv: DeviceModel
) -> None:
    others = [s for s in world.unseen if s.policy != "mixed0"]
    changed = slower(tuple(others), GROUPS[0], 2.0)
    measured = np.array([sample.total_s for sample in changed])
    before = PredictionError.of(totals(world.model, changed), measured).mean_absolute
    after = PredictionError.of(totals(slow_conv, changed), measured).mean_absolute
    assert after < 0.1
    assert after < 0.5 * before


def test_how_good_it_is_is_told_by_probes_that_were_left_out(
    world: World, probes: tuple[Sample, ...], slow_conv: DeviceModel
) -> None:
    found = slow_conv.validation
    assert (found["networks"], found["policies"]) == (15, 15)
    assert found["total"]["mean_absolute"] < 0.1 < found["before"]["mean_absolute"]
    assert slow_conv.interval is not None
    assert 0 < slow_conv.interval.at_1ms < 0.4
    # A probe that is left out is predicted a little worse than one that took part.
    measured = np.array([s.total_s for s in slower(probes, GROUPS[0], 2.0)])
    within = PredictionError.of(totals(slow_conv, slower(probes, GROUPS[0], 2.0)), measured)
    assert found["total"]["mean_absolute"] > within.mean_absolute


def test_who_was_measured_and_from_whom_it_was_rescaled_is_kept(slow_conv: DeviceModel) -> None:
    assert slow_conv.device == OTHER
    assert slow_conv.threads == 3
    assert slow_conv.half_widths == {}
    assert CONSTANT_S / 2 < slow_conv.constant_s < 2 * CONSTANT_S, "whole runs tell little of it"
    assert slow_conv.source["transferred_from"] == {"device": DEVICE.to_dict(), "threads": 1}
    assert slow_conv.source["probes"] == 15
    assert slow_conv.source["scales"] == _scales(slow_conv)


@pytest.mark.parametrize("factor", [0.25, 0.5])
def test_a_faster_device_is_predicted_as_well_as_its_validation_says(
    world: World, probes: tuple[Sample, ...], factor: float
) -> None:
    """A bound of the old device once kept its predictions up, and the validation did not see it."""
    found = transferred(world.model, slower(probes, "all", factor), OTHER, 1)
    changed = slower(world.unseen, "all", factor)
    measured = np.array([sample.total_s for sample in changed])
    error = PredictionError.of(totals(found, changed), measured).mean_absolute
    assert error < found.validation["total"]["mean_absolute"] + 0.02 < 0.1


def test_the_closed_formula_is_fitted_to_the_other_device(
    world: World, slow_conv: DeviceModel
) -> None:
    assert slow_conv.textbook.f_float > 1.4 * world.model.textbook.f_float


def test_a_device_that_did_not_change_is_left_as_it_was(
    world: World, probes: tuple[Sample, ...]
) -> None:
    found = transferred(world.model, probes, OTHER, 1)
    ways = found.validation["ways"]
    assert found.source["way"] == "as it was"
    assert ways["as it was"] == found.validation["before"]["mean_absolute"]
    assert set(_scales(found).values()) == {1.0}


def test_all_of_a_device_twice_as_slow_is_one_factor(
    world: World, probes: tuple[Sample, ...]
) -> None:
    found = transferred(world.model, slower(probes, "all", 2.0), OTHER, 1)
    assert found.source["way"] == "one factor"
    [scale] = set(_scales(found).values())
    assert scale == pytest.approx(2.0, rel=0.08)


def test_a_rescaled_device_is_never_said_to_be_worse_than_before(
    world: World, probes: tuple[Sample, ...]
) -> None:
    """As one way per group once was on a machine where four factors could not be told."""
    draw = np.random.default_rng(0)
    noisy = [replace(s, total_s=s.total_s * np.exp(draw.normal(0, 0.5))) for s in probes]
    found = transferred(world.model, noisy, OTHER, 1).validation
    assert found["total"]["mean_absolute"] <= found["before"]["mean_absolute"]


def test_a_device_that_is_slower_in_everything_is_recovered_by_the_fewest_probes(
    world: World, probes: tuple[Sample, ...]
) -> None:
    few = slower(probes[:LEAST_PROBES], "all", 3.0)
    found = transferred(world.model, few, OTHER, 1)
    assert all(scale == pytest.approx(3.0, rel=0.15) for scale in _scales(found).values())
    assert found.interval is None, "so few networks give no interval"


def test_a_rescaled_device_survives_json(world: World, slow_conv: DeviceModel) -> None:
    again = DeviceModel.from_json(slow_conv.to_json())
    assert _scales(again) == _scales(slow_conv)
    [one], [two] = (totals(model, world.unseen[:1]) for model in (again, slow_conv))
    assert one == pytest.approx(two, rel=1e-4)


def test_too_few_probes_are_an_error_that_says_how_many(
    world: World, probes: tuple[Sample, ...]
) -> None:
    some = probes[: LEAST_PROBES - 1]
    twice = tuple(replace(sample, policy="again") for sample in some)
    with pytest.raises(BackendError, match=f"{LEAST_PROBES - 1} probes.*{LEAST_PROBES} are needed"):
        transferred(world.model, (*some, *twice), OTHER, 1)
    with pytest.raises(BackendError, match="0 probes"):
        transferred(world.model, (), OTHER, 1)
