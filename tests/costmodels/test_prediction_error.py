"""How far predictions are from measurements."""

import numpy as np
import pytest

from costmodels.prediction_error import PredictionError


def test_an_error_is_the_mean_the_share_within_ten_percent_and_the_rank_correlation() -> None:
    measured = np.array([1.0, 2.0, 4.0, 10.0])
    predicted = np.array([1.05, 1.6, 4.0, 11.5])
    found = PredictionError.of(predicted, measured)
    assert found.mean_absolute == pytest.approx((0.05 + 0.2 + 0.0 + 0.15) / 4)
    assert found.near == 0.5
    assert found.rank_correlation == pytest.approx(1.0)
    swapped = PredictionError.of(predicted[[1, 0, 2, 3]], measured)
    assert swapped.rank_correlation == pytest.approx(1 - 6 * 2 / (4 * 15))  # d = 1, 1, 0, 0
    assert PredictionError.of(-measured, measured).rank_correlation == pytest.approx(-1.0)


def test_where_all_are_equal_there_is_no_rank_correlation() -> None:
    ones, others = np.ones(3), np.array([1.0, 2.0, 3.0])
    for predicted, measured in ((ones, others), (others, ones), (ones[:1], others[:1])):
        assert PredictionError.of(predicted, measured).rank_correlation is None
