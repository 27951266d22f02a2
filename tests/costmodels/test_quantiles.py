"""How many runs a percentile needs, against the binomial distribution."""

import pytest
from scipy.stats import binom

from costmodels.quantiles import least_runs


@pytest.mark.parametrize(("quantile", "runs"), [(0.9, 64), (0.99, 662), (0.1, 64), (0.75, 24)])
def test_two_runs_lie_beyond_with_99_percent_confidence_and_with_one_run_less_they_do_not(
    quantile: float, runs: int
) -> None:
    beyond = min(quantile, 1 - quantile)
    assert least_runs(quantile) == runs
    assert binom.cdf(1, runs, beyond) <= 0.01 < binom.cdf(1, runs - 1, beyond)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1])
def test_a_quantile_lies_between_zero_and_one(quantile: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        least_runs(quantile)
