"""Intervals of paired differences at several looks: exact by hand, and in a seeded simulation."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom, rankdata

from costmodels.errors import CostError
from hil.sequential import decides, levels, signed_rank_interval

FloatArray = npt.NDArray[np.float64]
LOOKS = (10, 15, 22, 33, 50)
SCATTER = 0.012
"""Of the logarithm of one turn's time: what was measured of MobileNetV2."""
TRIALS = 400


def test_levels_add_up_to_alpha_and_grow_with_the_blocks() -> None:
    found = levels(LOOKS, 0.05)
    assert sum(found) == pytest.approx(0.05)
    assert found[0] == pytest.approx(0.05 * 0.2**2)
    assert found[-1] == max(found)
    assert levels((7,), 0.1) == (0.1,)


@pytest.mark.parametrize("count", [6, 9])
@pytest.mark.parametrize("level", [0.05, 0.1, 0.3])
def test_the_interval_is_that_of_all_sign_flips(count: int, level: float) -> None:
    values = np.random.default_rng(count).normal(0.3, 1.0, count)
    low, _mid, high = signed_rank_interval(values, level)

    def p_value(centre: float) -> float:
        """Two-sided, over all 2^n signs: what the signed-rank test is by definition."""
        shifted = values - centre
        ranks = rankdata(abs(shifted))
        signs = np.array(list(product([-1, 1], repeat=count)))
        return float(np.mean(abs(signs @ ranks) >= abs(np.sign(shifted) @ ranks) - 1e-9))

    edge = 1e-6
    assert p_value(low - edge) <= level < p_value(low + edge)
    assert p_value(high + edge) <= level < p_value(high - edge)


def test_too_few_differences_decide_nothing() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    low, mid, high = signed_rank_interval(values, 0.05)
    assert (low, mid, high) == (-math.inf, 3.0, math.inf)
    assert not decides(5, 0.05)
    assert decides(6, 0.05)
    with pytest.raises(CostError, match="no difference"):
        signed_rank_interval(np.array([]), 0.05)


def test_large_counts_keep_the_normal_approximation() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    low, mid, high = signed_rank_interval(values, 0.05)
    expected = 1.96 / math.sqrt(400) * math.sqrt(math.pi / 3)  # efficiency 3/pi against the mean
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert low < mid < high


def _independent(draw: np.random.Generator, turns: int) -> FloatArray:
    return SCATTER * draw.standard_normal(turns)


def _heavy_tailed(draw: np.random.Generator, turns: int) -> FloatArray:
    return 0.6 * SCATTER * draw.standard_t(2, turns)


def _drifting(draw: np.random.Generator, turns: int) -> FloatArray:
    """Autoregressive with 0.95: the clock and the neighbours change slowly."""
    level, found = 0.0, []
    for step in SCATTER * draw.standard_normal(turns):
        level = 0.95 * level + step
        found.append(level)
    return np.array(found) + 0.5 * SCATTER * draw.standard_normal(turns)


def _bursts(draw: np.random.Generator, turns: int) -> FloatArray:
    """Now and then up to 30 % slower for some five turns."""
    found, disturbed = 0.4 * SCATTER * draw.standard_normal(turns), False
    for turn in range(turns):
        disturbed = draw.random() < (0.8 if disturbed else 0.05)
        found[turn] += 0.3 * draw.random() if disturbed else 0.0
    return found


def _second_is_slower(draw: np.random.Generator, turns: int) -> FloatArray:
    """Whoever comes second in a block loses 2 %."""
    return _independent(draw, turns) + 0.02 * (np.arange(turns) % 2)


Noise = Callable[[np.random.Generator, int], FloatArray]
NOISES = (_independent, _heavy_tailed, _drifting, _bursts, _second_is_slower)


def _stopped(noise: Noise, effect: float, seed: int) -> tuple[int, float, float]:
    """Blocks, low and high where a comparison of log-ratio `effect` stops."""
    draw = np.random.default_rng(seed)
    turns = noise(draw, 2 * LOOKS[-1]).reshape(-1, 2)
    coin = draw.choice([-1.0, 1.0], LOOKS[-1])
    differences = effect + coin * (turns[:, 0] - turns[:, 1])
    low, high = -math.inf, math.inf
    for look, level in zip(LOOKS, levels(LOOKS, 0.05), strict=True):
        low, _, high = signed_rank_interval(differences[:look], level)
        if low > 0 or high < 0:
            return look, low, high
    return LOOKS[-1], low, high


@pytest.mark.parametrize("noise", NOISES)
def test_equals_differ_in_at_most_five_of_a_hundred_comparisons(noise: Noise) -> None:
    found = [_stopped(noise, 0.0, seed) for seed in range(TRIALS)]
    wrong = sum(low > 0 or high < 0 for _, low, high in found)
    assert wrong <= binom.ppf(0.99, TRIALS, 0.05)


@pytest.mark.parametrize("noise", NOISES)
def test_a_difference_of_three_percent_is_found_and_covered(noise: Noise) -> None:
    effect = math.log(1.03)
    found = [_stopped(noise, effect, seed) for seed in range(TRIALS)]
    assert np.mean([low > 0 for _, low, _ in found]) > 0.95
    covered = sum(low <= effect <= high for _, low, high in found)
    assert covered >= binom.ppf(0.01, TRIALS, 0.95)


@pytest.mark.parametrize("noise", NOISES)
def test_a_clear_loser_is_found_at_the_first_looks(noise: Noise) -> None:
    blocks = [_stopped(noise, math.log(1.3), seed)[0] for seed in range(100)]
    assert np.median(blocks) == LOOKS[0]
    assert np.mean(blocks) < 1.5 * LOOKS[0]
