"""Accuracy on real images, and its interval."""

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import functional

from quantization import parameters
from quantization.bits import BitWidths, parse_choices
from quantization.channel_groups import ChannelGroups
from quantization.errors import DataError
from quantization.export import Exporter
from quantization.policy import Policy, PolicyBatch
from quantization.quantizer import Float32Array, QuantizedWeight
from quantization.ranges import collect_ranges
from quantization.simulation import Simulation
from search.oracle import Interval, PostTrainingOracle, count_right
from tests.networks import Subject

IMAGES = 50


@pytest.fixture(scope="module")
def simulation(digits: Subject) -> Simulation:
    ranges = collect_ranges(digits.network, digits.calibration[:40])
    return Simulation(Exporter(digits.network, ranges), digits.calibration[:40])


@pytest.fixture
def oracle(simulation: Simulation, digits: Subject) -> PostTrainingOracle:
    return PostTrainingOracle(simulation, digits.images[:IMAGES], digits.labels[:IMAGES])


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) with z = 1.959964, by hand
        (97, 100, 0.91548, 0.98975),
        (50, 100, 0.40383, 0.59617),
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (1, 1, 0.20655, 1.0),
        (870, 897, 0.95656, 0.97923),
    ],
)
def test_wilsons_interval_has_the_values_of_its_formula(
    right: int, count: int, low: float, high: float
) -> None:
    found = Interval.wilson(right, count)
    assert found.share == right / count
    assert found.low == pytest.approx(low, abs=5e-6)
    assert found.high == pytest.approx(high, abs=5e-6)


@pytest.mark.parametrize(("right", "count"), [(97, 100), (3, 8), (870, 897)])
def test_the_ends_are_the_shares_that_a_score_test_just_accepts(right: int, count: int) -> None:
    found = Interval.wilson(right, count)
    for end in (found.low, found.high):
        deviations = (right / count - end) / np.sqrt(end * (1 - end) / count)
        assert abs(deviations) == pytest.approx(1.959964, rel=1e-6)


def test_an_interval_holds_its_share_and_narrows_with_the_images() -> None:
    widths = []
    for count in (10, 100, 1000):
        for right in (0, count // 2, count):
            found = Interval.wilson(right, count)
            assert 0 <= found.low <= found.share <= found.high <= 1
        half = Interval.wilson(count // 2, count)
        widths.append(half.high - half.low)
    assert widths == sorted(widths, reverse=True)


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    right = np.random.default_rng(0).binomial(200, 0.97, 2000)
    covered = [f.low <= 0.97 <= f.high for f in (Interval.wilson(int(r), 200) for r in right)]
    assert 0.93 < np.mean(covered) < 0.98


def test_an_accuracy_needs_an_image() -> None:
    with pytest.raises(DataError, match="at least one image"):
        Interval.wilson(0, 0)


def test_count_right_counts_rows_whose_largest_logit_is_the_label() -> None:
    logits = np.array([[1, 2, 0], [5, 1, 1], [0, 0, 9]], np.float32)
    assert count_right(logits, np.array([1, 2, 2])) == 2


def test_labels_must_be_as_many_as_images(simulation: Simulation, digits: Subject) -> None:
    with pytest.raises(DataError, match="50 images, but 49 labels"):
        PostTrainingOracle(simulation, digits.images[:50], digits.labels[:49])


def test_the_float_policy_has_the_accuracy_of_the_float_network(
    oracle: PostTrainingOracle, simulation: Simulation, digits: Subject
) -> None:
    logits = simulation.logits(Policy({}), digits.images[:IMAGES])
    assert oracle.score(Policy({})) == float((logits.argmax(1) == digits.labels[:IMAGES]).mean())
    assert oracle.score(Policy({})) > 0.85


def test_a_policy_is_scored_with_its_statistics_corrected(
    oracle: PostTrainingOracle, simulation: Simulation, digits: Subject
) -> None:
    policy = Policy.uniform(digits.network, BitWidths(3, 8))
    logits = simulation.logits(policy, digits.images[:IMAGES], simulation.correct(policy))
    expected = float((logits.argmax(1) == digits.labels[:IMAGES]).mean())
    assert oracle.score(policy) == expected


def test_distinct_policies_are_run_once(
    simulation: Simulation, digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = PostTrainingOracle(simulation, digits.images[:20], digits.labels[:20])
    names = digits.network.layer_names
    choices = parse_choices("w4a8,w32a32")
    index = np.ones((4, len(names)), np.uint8)
    index[1, 0] = index[3, 0] = 0
    calls: list[Policy] = []
    run = Simulation.logits

    def counted(self: Simulation, policy: Policy, *rest: Any, **named: Any) -> Float32Array:
        calls.append(policy)
        return run(self, policy, *rest, **named)

    monkeypatch.setattr(Simulation, "logits", counted)
    scores = oracle.accuracy(PolicyBatch(names, choices, index))
    assert scores.shape == (4,)
    assert scores[0] == scores[2]
    assert scores[1] == scores[3]
    batch = PolicyBatch(names, choices, index)
    assert oracle.divergence(batch)[0] < 1e-9, "it is the float network"
    assert oracle.divergence(batch)[1] > 1e-6
    assert oracle.evaluations == 2
    assert len(calls) == 3, "the float network, and each policy"
    # a policy that does not name its float layers is the same policy
    assert oracle.score(Policy({names[0]: choices[0]})) == scores[1]
    assert oracle.evaluations == 2


def test_weights_are_quantized_once_per_layer_and_width(
    digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = digits.calibration[:4]
    fresh = Simulation(Exporter(digits.network, collect_ranges(digits.network, few)), few)
    oracle = PostTrainingOracle(fresh, few)
    names = digits.network.layer_names
    quantized: list[int] = []
    run = parameters.quantize_weight

    def counted(weight: Float32Array, bits: int, *rest: Any) -> QuantizedWeight:
        quantized.append(bits)
        return run(weight, bits, *rest)

    monkeypatch.setattr(parameters, "quantize_weight", counted)
    index = np.random.default_rng(0).integers(0, 2, (4, len(names))).astype(np.uint8)
    oracle.accuracy(PolicyBatch(names, parse_choices("w4a8,w4a4"), index))
    assert quantized == [4] * len(names)
    fresh.exporter.build(Policy.uniform(digits.network, BitWidths(4, 8)))
    assert len(quantized) == len(names)


def test_divergence_is_that_of_class_probabilities_and_needs_no_labels(
    simulation: Simulation, digits: Subject
) -> None:
    images, policy = digits.images[:30], Policy.uniform(digits.network, BitWidths(2, 8))
    logits = [
        torch.from_numpy(simulation.logits(p, images, simulation.correct(p)))
        for p in (policy, Policy({}))
    ]
    found, exact = (torch.log_softmax(each.double(), 1) for each in logits)
    expected = functional.kl_div(found, exact, reduction="batchmean", log_target=True)
    batch = PolicyBatch.of(digits.network, [policy])
    wrong = (digits.labels[:30] + 1) % 10
    for labels in (None, digits.labels[:30], wrong):
        [divergence] = PostTrainingOracle(simulation, images, labels).divergence(batch)
        assert divergence == pytest.approx(float(expected), rel=1e-6)


def test_the_exported_file_has_the_score_of_its_policy(
    oracle: PostTrainingOracle, simulation: Simulation, digits: Subject
) -> None:
    """The correction that the oracle scores with is the one in the file."""
    policy = Policy.uniform(digits.network, BitWidths(2, 8))
    file = simulation.exporter.build(policy, simulation.correct(policy))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    logits = np.concatenate(
        [session.run(None, {name: image[None]})[0] for image in digits.images[:IMAGES]]
    )
    assert digits.labels is not None
    assert oracle.score(policy) == count_right(logits, digits.labels[:IMAGES]) / IMAGES
    plain = simulation.logits(policy, digits.images[:IMAGES])
    assert oracle.score(policy) > count_right(plain, digits.labels[:IMAGES]) / IMAGES


def test_images_scored_in_parts_are_the_same_and_corrected_once(
    simulation: Simulation, digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert digits.labels is not None
    oracle = PostTrainingOracle(simulation, digits.images[:IMAGES], digits.labels[:IMAGES])
    policy = Policy.uniform(digits.network, BitWidths(2, 8))
    corrected: list[Policy] = []
    run = Simulation.correct
    monkeypatch.setattr(
        Simulation, "correct", lambda self, policy: corrected.append(policy) or run(self, policy)
    )
    order = np.random.default_rng(0).permutation(IMAGES)
    right = np.concatenate([oracle.right(policy, part) for part in np.split(order, 5)])
    assert right.sum() / IMAGES == oracle.score(policy)
    assert len(corrected) == 1
    assert oracle.images_run == 2 * IMAGES


def test_groupings_of_one_layer_are_different_policies(oracle: PostTrainingOracle) -> None:
    names = oracle.network.layer_names
    rest = {name: BitWidths(3, 8) for name in names}
    scores = []
    for narrow in (range(24), range(24, 48)):
        wide = sorted(set(range(48)) - set(narrow))
        bits = ChannelGroups(8, {2: narrow, 8: wide})
        scores.append(oracle.score(Policy({**rest, names[0]: bits})))
    assert oracle.evaluations == 2
    assert all(0.1 < score <= 1.0 for score in scores)


def test_without_labels_accuracy_is_agreement_with_the_float_network(
    simulation: Simulation, digits: Subject
) -> None:
    images = digits.images[:IMAGES]
    oracle = PostTrainingOracle(simulation, images)
    assert oracle.score(Policy({})) == 1.0
    policy = Policy.uniform(digits.network, BitWidths(2, 8))
    logits = simulation.logits(policy, images, simulation.correct(policy))
    agreeing = logits.argmax(1) == simulation.logits(Policy({}), images).argmax(1)
    assert oracle.score(policy) == float(agreeing.mean())
    assert oracle.network is digits.network
