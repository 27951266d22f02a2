"""What `benchmarks/rivals.py` stands on: remembered results and paired differences."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.contest.comparison import compare
from benchmarks.contest.memory import Memory
from benchmarks.contest.tasks import OBJECTIVES, digits
from benchmarks.fashion.networks import NETWORKS, model_path
from costmodels.table import BoolArray
from quantization.policy import Policy
from quantization.reading import read_network
from quantmeter.data import Data
from quantmeter.workbench import open_workbench


def test_what_is_known_is_not_found_again_even_after_a_killed_run(tmp_path: Path) -> None:
    path = tmp_path / "known.jsonl"
    first = Memory(path)
    assert first.recall("a", lambda: 0.5) == 0.5
    with path.open("a", encoding="utf-8") as stream:
        stream.write('["b", 0.2')  # killed within a line
    again = Memory(path)
    assert again.recall("a", lambda: pytest.fail("found again")) == 0.5
    assert again.recall("b", lambda: [1, 2]) == [1, 2]
    assert Memory(path).recall("b", lambda: pytest.fail("found again")) == [1, 2]
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) == ["b", [1, 2]]


def test_a_difference_that_every_seed_shows_is_significant() -> None:
    rng = np.random.default_rng(0)
    ours = np.tile(rng.random(1000) < 0.9, (5, 1))
    theirs = ours.copy()
    for seed in range(5):
        theirs[seed, np.flatnonzero(ours[seed])[: 20 + seed]] = False
    found = compare(theirs, ours)
    assert found.verdict == "behind"
    assert found.mean == pytest.approx(-0.022)
    assert found.low < -0.022 < found.high < 0
    assert compare(ours, theirs).verdict == "ahead"


def _changed(right: BoolArray, share: float, rng: np.random.Generator) -> BoolArray:
    """Return another policy of the same expected accuracy, 0.9, that differs on few images."""
    changed: BoolArray = right ^ (rng.random(len(right)) < share * np.where(right, 1, 9))
    return changed


def test_equal_methods_that_find_one_policy_with_most_seeds_are_told_apart_in_one_of_twenty() -> (
    None
):
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(1000):
        images = rng.random(1000) < 0.9
        ours, theirs = (
            np.array([_changed(images, 0.01, rng)] * 4 + [_changed(images, 0.01, rng)])
            for _ in range(2)
        )
        found = compare(ours, theirs)
        assert found.over == "seeds and images"
        verdicts.append(found.verdict != "-")
    assert 0.025 < np.mean(verdicts) < 0.06


def test_equal_methods_that_find_another_policy_with_every_seed_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(0)
    right = rng.random((400, 2, 5, 300)) < 0.9
    assert np.mean([compare(*pair).verdict != "-" for pair in right]) < 0.05


def test_seeds_that_differ_equally_on_other_images_do_not_make_a_difference_certain() -> None:
    ours = np.ones((5, 1000), bool)
    theirs = ours.copy()
    for seed in range(5):
        theirs[seed, 3 * seed : 3 * seed + 3] = False
    found = compare(ours, theirs)
    assert found.over == "seeds and images"
    assert 1e-5 < found.p < 0.01
    by_image = (ours.astype(int) - theirs).mean(0)
    assert found.high - found.mean == pytest.approx(
        stats.t(999).ppf(0.975) * by_image.std(ddof=1) / np.sqrt(1000), rel=0.01
    )


def test_where_seeds_make_no_difference_images_decide() -> None:
    right = np.ones((3, 100), bool)
    worse = right.copy()
    worse[:, :5] = False
    assert compare(right, right).p == 1.0
    few = compare(worse, right)
    assert few.over == "images"
    assert few.p == pytest.approx(2 * 0.5**5)
    worse[:, :6] = False
    assert compare(worse, right).verdict == "behind"


def test_a_budget_between_two_widths_is_the_mean_of_what_they_cost() -> None:
    task = digits(images=60)
    size = OBJECTIVES["size"]
    table = task.costs(size).model(size.metric)
    problem = task.problem(size)
    network = task.bench.network
    costs = [table.total(network, task.batch(problem, row[None]), size.metric) for row in _two(21)]
    between, exact = (task.limit(size, problem, limit) for limit in size.limits)
    assert between == pytest.approx(np.mean(costs))
    assert exact == pytest.approx(costs[1][0])


def _two(layers: int) -> list[np.ndarray]:
    return [np.full(layers, choice, np.uint8) for choice in (0, 1)]


@pytest.mark.parametrize("name", [name for name in NETWORKS if model_path(name).exists()])
def test_the_networks_for_fashion_can_be_simulated_on_many_images(name: str) -> None:
    images = np.random.default_rng(0).normal(size=(30, 1, 28, 28)).astype(np.float32)
    bench = open_workbench(read_network(model_path(name)), Data(images, None))
    logits = bench.simulation.logits(Policy({}), images)  # checks itself against ONNX Runtime
    assert logits.shape == (30, 10)
