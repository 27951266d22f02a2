"""What the benchmarks call met or exceeded can fail."""

import pytest

from benchmarks.noise import exceeds
from benchmarks.policy_error import Result
from costmodels.prediction_error import PredictionError


@pytest.mark.parametrize(
    ("error", "near", "noise", "covered", "met"),
    [
        (0.03, 0.97, 0.005, 0.9, True),
        (0.031, 1.0, 0.015, 0.9, False),
        (0.031, 1.0, 0.016, 0.9, True),  # twice the label noise is more
        (0.01, 0.96, 0.005, 0.9, False),
        (0.01, 1.0, 0.005, 0.74, False),
        (0.01, 1.0, 0.005, None, False),  # no interval covers nothing
    ],
)
def test_a_network_meets_all_targets_or_misses(
    error: float, near: float, noise: float, covered: float | None, met: bool
) -> None:
    errors = {"total": PredictionError(error, near, 0.9)}
    width = None if covered is None else 0.05
    assert Result("any", 100, 60, noise, errors, width, covered, 1e-3, 60.0).met is met


def test_one_session_against_itself_is_judged_without_the_floor() -> None:
    result = {"differ": 0, "exclude_1": 40, "limit": 15}
    assert exceeds(result, one_session=True)
    assert not exceeds(result, one_session=False)
    assert exceeds({**result, "differ": 16}, one_session=False)
