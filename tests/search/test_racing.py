"""Policies are scored on growing subsets, and abandoned once the K-th best beats them."""

from math import comb

import numpy as np
import pytest

from costmodels.table import BoolArray
from quantization.bits import BitWidths
from quantization.errors import DataError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import collect_ranges
from quantization.simulation import Simulation
from search.oracle import PostTrainingOracle, policy_key
from search.racing import LOOKS, RacingOracle, tail
from tests.networks import Subject
from tests.search.networks import RICH_CHOICES, deep

IMAGES = 800


class MadeUp:
    """Images that each policy gets right are drawn, its accuracy too; every run is written down."""

    def __init__(self, low: float = 0.3, seed: int = 0) -> None:
        self.network: Network = deep()
        self.count = IMAGES
        self.images_run = 0
        self.runs: list[tuple[tuple[str, ...], int]] = []
        self._low, self._seed = low, seed

    @property
    def evaluations(self) -> int:
        return len({key for key, _ in self.runs})

    def all_right(self, policy: Policy) -> BoolArray:
        """Hard images are hard for all policies."""
        key = policy_key(self.network, policy)
        rng = np.random.default_rng([self._seed, *map(ord, "".join(key))])
        hard = np.random.default_rng(self._seed).random(IMAGES)
        made: BoolArray = hard + rng.normal(0, 0.05, IMAGES) < rng.uniform(self._low, 0.95)
        return made

    def right(
        self, policy: Policy, where: "np.ndarray[tuple[int], np.dtype[np.intp]]"
    ) -> BoolArray:
        self.runs.append((policy_key(self.network, policy), len(where)))
        self.images_run += len(where)
        found: BoolArray = self.all_right(policy)[where]
        return found

    def accuracy(self, policies: PolicyBatch) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        return np.array([self.all_right(policies[i]).mean() for i in range(len(policies))])


def drawn(count: int, seed: int = 0) -> PolicyBatch:
    network = deep()
    index = np.random.default_rng(seed).integers(0, 4, (count, len(network.layers)))
    return PolicyBatch(network.layer_names, RICH_CHOICES, index.astype(np.uint8))


def test_policies_that_are_run_to_the_end_have_the_other_oracles_scores() -> None:
    policies, plain = drawn(60), MadeUp()
    race = RacingOracle(MadeUp(), keep=3)
    scores, truth = race.accuracy(policies), plain.accuracy(policies)
    ended = np.array([not race.is_abandoned(policies[i]) for i in range(60)])
    np.testing.assert_array_equal(scores[ended], truth[ended])
    assert 0 < race.abandoned == (~ended).sum() < 60
    assert race.evaluations == 60


@pytest.mark.parametrize("keep", [1, 4])
def test_the_best_are_those_of_a_search_without_a_race(keep: int) -> None:
    """At an error of 1 % per policy that could be among the best, 30 searches lose none or one."""
    lost = 0
    for seed in range(30):
        policies = drawn(50, seed)
        race = RacingOracle(MadeUp(seed=seed), keep=keep)
        best = np.sort(race.accuracy(policies))[-keep:]
        lost += list(best) != sorted(MadeUp(seed=seed).accuracy(policies))[-keep:]
    assert lost <= 1


def test_an_abandoned_policy_is_never_among_the_best() -> None:
    policies = drawn(80)
    race = RacingOracle(MadeUp(low=0.85), keep=2, error=0.49, seed=1)
    scores = []
    for i in range(80):
        scores.append(race.score(policies[i]))
        best = sorted(range(i + 1), key=lambda j: scores[j])[-2:]
        assert not any(race.is_abandoned(policies[j]) for j in best)
    assert race.abandoned > 20


def test_an_estimate_is_the_kth_best_less_the_difference_on_the_same_images() -> None:
    oracle = MadeUp()
    policies = drawn(40)
    race = RacingOracle(oracle, keep=1, seed=5)
    order = np.random.default_rng(5).permutation(IMAGES)
    best: Policy | None = None
    checked = 0
    for policy in (policies[i] for i in range(40)):
        oracle.runs.clear()
        score = race.score(policy)
        if race.is_abandoned(policy):
            assert best is not None
            seen = order[: sum(count for _, count in oracle.runs)]
            here, there = (oracle.all_right(each)[seen].mean() for each in (policy, best))
            assert score == pytest.approx(oracle.all_right(best).mean() - (there - here))
            checked += 1
        elif best is None or score > oracle.all_right(best).mean():
            best = policy
    assert checked > 5


def test_a_race_runs_fewer_images_and_no_policy_twice() -> None:
    oracle = MadeUp()
    race = RacingOracle(oracle)
    policies = drawn(50)
    race.accuracy(policies)
    assert race.images_run < 0.5 * 50 * IMAGES
    before = race.images_run
    race.accuracy(policies)
    assert race.images_run == before
    parts = {count for _, count in oracle.runs}
    assert parts <= {IMAGES, *np.diff([0, *(round(IMAGES * share) for share in LOOKS), IMAGES])}


def test_nothing_is_abandoned_before_there_are_enough_to_compare_with() -> None:
    race = RacingOracle(MadeUp(), keep=20)
    race.accuracy(drawn(20))
    assert race.abandoned == 0


def test_the_share_of_equals_that_are_abandoned_is_within_the_error() -> None:
    """A rival that errs on as many other images: what the rule promises, by drawing orders."""

    class Equal(MadeUp):
        def all_right(self, policy: Policy) -> BoolArray:
            right = np.ones(IMAGES, bool)
            first = policy[self.network.layer_names[0]] == RICH_CHOICES[0]
            right[:40] = first
            right[40:80] = not first
            return right

    names = deep().layer_names
    policies = PolicyBatch(names, RICH_CHOICES, np.eye(2, len(names), dtype=np.uint8))
    error, abandoned = 0.2, 0
    for seed in range(300):
        race = RacingOracle(Equal(), error=error, seed=seed)
        scores = race.accuracy(policies)
        abandoned += race.abandoned
        assert scores[0] == 0.95
        assert (scores[1] == 0.95) == (race.abandoned == 0)
    assert 0 < abandoned / 300 < error


def test_a_fair_coin_bounds_draws_without_replacement() -> None:
    """Of M images that tell two policies apart, half for each, m drawn: the exact tail is lower."""
    for half in range(1, 25):
        for m in range(1, 2 * half + 1):
            ways = [comb(half, i) * comb(half, m - i) for i in range(m + 1)]
            for fewer in range((m - 1) // 2 + 1):
                exact = sum(ways[: fewer + 1]) / comb(2 * half, m)
                assert exact <= tail(fewer, m) + 1e-12


def test_a_restored_race_goes_on_as_the_uninterrupted_one() -> None:
    policies = drawn(60)
    whole = RacingOracle(MadeUp(), keep=2)
    scores = whole.accuracy(policies)
    later = RacingOracle(oracle := MadeUp(), keep=2)
    later.restore((policies[i], float(scores[i])) for i in range(25))
    np.testing.assert_array_equal(later.accuracy(policies), scores)
    again = {policy_key(deep(), policies[i]) for i in range(25)} & {key for key, _ in oracle.runs}
    assert len(again) <= 2  # only those that others are compared with


def test_scores_do_not_depend_on_how_policies_are_grouped() -> None:
    policies = drawn(30)
    one, other = RacingOracle(MadeUp()), RacingOracle(MadeUp())
    together = one.accuracy(policies)
    single = [other.score(policies[i]) for i in range(30)]
    np.testing.assert_array_equal(together, single)


def test_arguments_out_of_range_are_errors() -> None:
    for wrong in ({"keep": 0}, {"error": 0.5}, {"looks": (0.5, 0.25)}, {"looks": (0.5, 1.0)}):
        with pytest.raises(DataError):
            RacingOracle(MadeUp(), **wrong)  # type: ignore[arg-type]


def test_real_policies_race_to_the_same_best(digits: Subject) -> None:
    count, labels = 160, digits.labels
    assert labels is not None
    given = digits.images[:count], labels[:count]
    few = digits.calibration[:24]
    simulation = Simulation(Exporter(digits.network, collect_ranges(digits.network, few)), few)
    names = digits.network.layer_names
    choices = tuple(BitWidths(bits, 8) for bits in (2, 8))
    index = np.zeros((3, len(names)), np.uint8)
    index[0], index[2, :1] = 1, 1  # far apart: the last one is no close call
    policies = PolicyBatch(names, choices, index)
    race = RacingOracle(PostTrainingOracle(simulation, *given))
    plain = PostTrainingOracle(simulation, *given)
    scores, truth = race.accuracy(policies), plain.accuracy(policies)
    assert race.abandoned >= 1  # that at 2 bits; the third is near enough to be run to the end
    assert scores[0] == truth[0] == scores.max() == truth.max()
    assert race.images_run < plain.images_run == 3 * count
