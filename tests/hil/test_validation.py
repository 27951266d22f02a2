"""How well predictions hold, and how often the interval of a new policy holds what is measured."""

import json
import math

import numpy as np
import pytest
from scipy.stats import binom

from costmodels.prediction_error import PredictionError
from hil.validation import (
    LEAST_POLICIES,
    LEVEL,
    Validation,
    half_width,
    ratios_covered,
)


def test_the_half_width_is_the_distance_of_the_rank_that_split_conformal_demands() -> None:
    draw = np.random.default_rng(0)
    for count in (30, 39, 40, 99, 100):
        predicted = draw.uniform(1, 2, count)
        distances = draw.permutation(np.arange(1, count + 1) / 1000)
        measured = predicted * np.exp(distances * draw.choice([-1, 1], count))
        rank = math.ceil(0.9 * (count + 1))
        expected = math.exp(rank / 1000) - 1
        assert half_width(predicted, measured) == pytest.approx(expected, rel=1e-9)
        width = half_width(predicted, measured)
        assert width is not None
        assert sum(ratios_covered(predicted, measured, width * (1 + 1e-9))) == rank


def test_the_interval_is_a_factor_to_both_sides() -> None:
    predicted = np.full(4, 2.0)
    measured = np.array([2.0 * 1.1, 2.0 / 1.1, 2.0 * 1.101, 2.0 / 1.101])
    assert list(ratios_covered(predicted, measured, 0.1 + 1e-12)) == [True, True, False, False]


def test_fewer_than_thirty_policies_or_too_few_for_the_level_give_no_interval() -> None:
    draw = np.random.default_rng(0)
    predicted, measured = draw.uniform(1, 2, (2, 200))
    assert LEAST_POLICIES == 30
    assert half_width(predicted[:29], measured[:29]) is None
    assert half_width(predicted[:30], measured[:30]) is not None
    assert half_width(predicted[:98], measured[:98], 0.99) is None
    assert half_width(predicted[:99], measured[:99], 0.99) is not None


@pytest.mark.parametrize("count", [30, 60])
def test_the_interval_covers_a_new_policy_as_often_as_it_says(count: int) -> None:
    """3000 calibrations with a new policy each, noise with heavy tails; 99.9 % binomial limits.

    The probability is ceil(0.9 (n + 1)) / (n + 1) exactly, where no two distances are equal.
    """
    draw, covered, rounds = np.random.default_rng(count), 0, 3000
    for _ in range(rounds):
        predicted = draw.uniform(0.4, 1.6, count + 1)
        measured = predicted * np.exp(0.02 * draw.standard_t(3, count + 1))
        width = half_width(predicted[:-1], measured[:-1])
        assert width is not None
        covered += ratios_covered(predicted[-1:], measured[-1:], width)[0]
    exact = math.ceil(LEVEL * (count + 1)) / (count + 1)
    low, high = binom.interval(0.999, rounds, exact)
    assert low <= covered <= high
    assert covered / rounds > 0.88


def test_a_validation_compares_both_predictions_and_is_json() -> None:
    draw = np.random.default_rng(2)
    measured = draw.uniform(0.4, 1.2, 40)
    total, table = (measured * np.exp(s * draw.standard_normal(40)) for s in (0.01, 0.05))
    found = Validation.of(total, table, measured)
    assert found.policies == 40
    assert found.total == PredictionError.of(total, measured)
    assert found.table == PredictionError.of(table, measured)
    assert found.total.mean_absolute < found.table.mean_absolute
    assert found.half_width == half_width(total, measured)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["level"] == 0.9
    assert content["total"] == {
        "mean_absolute": found.total.mean_absolute,
        "near": found.total.near,
        "rank_correlation": found.total.rank_correlation,
    }
    assert set(content) == {"policies", "total", "table", "half_width", "level"}
    assert Validation.of(total[:29], table[:29], measured[:29]).to_dict()["half_width"] is None
