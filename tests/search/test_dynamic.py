import numpy as np
import pytest

from quantization.errors import DataError
from search.dynamic import (
    Cascade,
    Stage,
    choose_cascade,
    confidence,
    report_cascade,
    run_cascade,
)


def logits(answers, sure) -> np.ndarray:
    """Logits of two classes: the answer has probability `sure`."""
    answers, sure = np.asarray(answers), np.asarray(sure, np.float64)
    rows = np.empty((len(answers), 2))
    rows[np.arange(len(answers)), answers] = np.log(sure)
    rows[np.arange(len(answers)), 1 - answers] = np.log(1 - sure)
    return rows


LABELS = np.zeros(10, np.int64)
SURE = np.array([0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.52])
# wrong on the least sure image and on the third least sure
CHEAP = Stage("cheap", 1.0, logits([0, 0, 0, 0, 0, 0, 0, 1, 0, 1], SURE))
DEAR = Stage("dear", 4.0, logits(np.zeros(10, int), np.full(10, 0.99)))


def test_confidence_is_the_largest_probability_whatever_is_added_to_the_logits():
    values = logits([0, 1, 1], [0.7, 0.6, 0.99])
    np.testing.assert_allclose(confidence(values), [0.7, 0.6, 0.99])
    np.testing.assert_allclose(confidence(values + 1e4), [0.7, 0.6, 0.99])
    assert confidence(np.array([[1e5, 0.0]]))[0] == 1.0


def test_the_least_sure_are_forwarded_until_the_accuracy_is_kept():
    chosen = choose_cascade([CHEAP, DEAR], LABELS)
    assert (chosen.cheap, chosen.dear) == ("cheap", "dear")
    assert 0.6 < chosen.threshold < 0.65
    assert chosen.forwards(CHEAP.logits).sum() == 3
    report = report_cascade(chosen, [CHEAP, DEAR], LABELS)
    assert report.accuracy.share == 1.0
    assert report.forwarded.share == pytest.approx(0.3)
    assert report.cost == pytest.approx(1.0 + 0.3 * 4.0)
    assert (report.cheap.share, report.dear.share) == (0.8, 1.0)


def test_with_a_tolerance_fewer_are_forwarded():
    chosen = choose_cascade([CHEAP, DEAR], LABELS, tolerance=0.1)
    assert chosen.forwards(CHEAP.logits).sum() == 1
    none = choose_cascade([CHEAP, DEAR], LABELS, tolerance=0.2)
    assert none.threshold == 0.0
    assert not none.forwards(CHEAP.logits).any()


def test_the_choice_is_the_cheapest_of_all_that_keep_the_accuracy():
    """Against a plain search over pairs and thresholds, with random answers."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        labels = rng.integers(0, 2, 25)
        stages = [
            Stage(
                name,
                cost,
                logits(
                    np.where(rng.random(25) < good, labels, 1 - labels),
                    rng.choice([0.6, 0.7, 0.8, 0.9], 25),
                ),
            )
            for name, cost, good in (("a", 1.0, 0.7), ("b", 1.7, 0.8), ("c", 3.0, 0.9))
        ]
        right = {s.name: s.logits.argmax(1) == labels for s in stages}
        floor = max(r.mean() for r in right.values()) - 0.04
        least = np.inf
        for one in stages:
            for other in stages:
                for threshold in (0.0, 0.65, 0.75, 0.85, 2.0):
                    sent = confidence(one.logits) < threshold
                    mixed = np.where(sent, right[other.name], right[one.name])
                    if one is not other and mixed.mean() >= floor - 1e-12:
                        least = min(least, one.cost + sent.mean() * other.cost)
        chosen = choose_cascade(stages, labels, tolerance=0.04)
        report = report_cascade(chosen, stages, labels)
        assert report.cost == pytest.approx(least)
        assert report.accuracy.share >= floor - 1e-12


def test_equally_sure_inputs_are_forwarded_together():
    cheap = Stage("cheap", 1.0, logits([1, 0, 0, 0], [0.6, 0.6, 0.6, 0.9]))
    dear = Stage("dear", 4.0, logits([0, 0, 0, 0], [0.9] * 4))
    chosen = choose_cascade([cheap, dear], LABELS[:4])
    assert chosen.forwards(cheap.logits).tolist() == [True, True, True, False]


def test_a_dear_policy_that_errs_where_the_cheap_one_does_not_is_told():
    dear = Stage("dear", 4.0, logits([1, 0, 0, 0, 0, 0, 0, 0, 1, 0], [0.9] * 10))
    report = report_cascade(Cascade("cheap", "dear", 0.53), [CHEAP, dear], LABELS)
    assert report.forwarded.share == pytest.approx(0.1)
    # the cascade: wrong on image 7 only; the dear policy: wrong on 0 and 8
    assert (report.only_cascade, report.only_dear) == (2, 1)
    assert report.accuracy.share == pytest.approx(0.9)
    assert report.accuracy.low < 0.9 < report.accuracy.high
    assert report.to_dict()["mean_cost_predicted"] == pytest.approx(1.4)


def test_a_cascade_run_whole_decides_as_its_report_says_and_times_each_input():
    cascade = Cascade("cheap", "dear", 0.62)
    now = [0.0]

    def clock() -> float:
        return now[0]

    def timed(stage: Stage):
        def run(i: int) -> np.ndarray:
            now[0] += stage.cost
            return stage.logits[i : i + 1].reshape(1, 1, 2)

        return run

    found = run_cascade(cascade, timed(CHEAP), timed(DEAR), range(10), clock=clock)
    report = report_cascade(cascade, [CHEAP, DEAR], LABELS)
    assert found.forwarded.tolist() == cascade.forwards(CHEAP.logits).tolist()
    assert (found.answers == LABELS).mean() == report.accuracy.share
    assert found.seconds.tolist() == [1.0] * 7 + [5.0] * 3
    assert found.seconds.mean() == pytest.approx(report.cost)


def test_what_does_not_fit_is_an_error():
    with pytest.raises(DataError, match="two policies or more"):
        choose_cascade([CHEAP], LABELS)
    with pytest.raises(DataError, match="two policies or more"):
        choose_cascade([CHEAP, CHEAP], LABELS)
    with pytest.raises(DataError, match="10 logits, 3 labels"):
        choose_cascade([CHEAP, DEAR], LABELS[:3])
    with pytest.raises(DataError, match="no stage 'other'"):
        report_cascade(Cascade("cheap", "other", 0.5), [CHEAP, DEAR], LABELS)
    with pytest.raises(DataError, match="not positive"):
        Stage("free", 0.0, CHEAP.logits)
    with pytest.raises(DataError, match="classes"):
        Stage("flat", 1.0, np.zeros(3))
