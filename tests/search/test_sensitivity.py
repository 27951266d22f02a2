"""How much each layer suffers at each width, alone."""

import numpy as np
import pytest

from quantization.bits import FLOAT32, BitWidths, parse_choices
from quantization.export import Exporter
from quantization.policy import Policy
from quantization.ranges import collect_ranges
from quantization.simulation import Simulation
from search.sensitivity import Sensitivity, measure_sensitivity
from tests.networks import Subject

CHOICES = parse_choices("w32a32,w2a8,w3a8,w4a8,w8a8")
IMAGES = 30


@pytest.fixture(scope="module")
def simulation(digits: Subject) -> Simulation:
    ranges = collect_ranges(digits.network, digits.calibration[:30])
    return Simulation(Exporter(digits.network, ranges), digits.calibration[:30])


@pytest.fixture(scope="module")
def found(simulation: Simulation, digits: Subject) -> Sensitivity:
    return measure_sensitivity(simulation, CHOICES, digits.images[:IMAGES], digits.labels[:IMAGES])


def test_there_is_a_row_for_each_layer_and_a_column_for_each_choice(
    found: Sensitivity, digits: Subject
) -> None:
    shape = (len(digits.network.layers), len(CHOICES))
    assert found.kl.shape == found.drop.shape == shape
    assert np.isfinite(found.kl).all()
    assert (found.kl >= 0).all()
    assert (np.abs(found.drop) <= 1).all()


def test_nothing_is_lost_at_float32(found: Sensitivity) -> None:
    column = CHOICES.index(FLOAT32)
    assert not found.kl[:, column].any()
    assert not found.drop[:, column].any()


def test_the_divergence_grows_as_bits_shrink(found: Sensitivity) -> None:
    two, three, four, eight = (found.kl[:, k].mean() for k in range(1, 5))
    assert two > three > four > eight > 0


def test_an_entry_is_the_divergence_of_the_network_with_that_layer_quantized(
    found: Sensitivity, simulation: Simulation, digits: Subject
) -> None:
    images, labels = digits.images[:IMAGES], digits.labels[:IMAGES]
    row, column = 3, CHOICES.index(BitWidths(2, 8))
    policy = Policy({digits.network.layer_names[row]: CHOICES[column]})
    floats = simulation.logits(Policy({}), images)
    other = simulation.logits(policy, images, simulation.correct(policy))

    def probabilities(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        exponentials = np.exp(logits.astype(np.float64))
        return np.asarray(exponentials / exponentials.sum(1, keepdims=True))

    p, q = probabilities(floats), probabilities(other)
    assert found.kl[row, column] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=0.02)
    drop = (floats.argmax(1) == labels).mean() - (other.argmax(1) == labels).mean()
    assert found.drop[row, column] == pytest.approx(drop)


def test_the_order_of_choices_does_not_matter_and_progress_reaches_the_end(
    found: Sensitivity, simulation: Simulation, digits: Subject
) -> None:
    seen: list[float] = []
    turned = measure_sensitivity(
        simulation,
        CHOICES[::-1],
        digits.images[:IMAGES],
        digits.labels[:IMAGES],
        lambda share, _what: seen.append(share),
    )
    np.testing.assert_allclose(turned.kl[:, ::-1], found.kl, rtol=1e-6, atol=1e-12)
    assert seen == sorted(seen)
    assert 0.9 < seen[-1] <= 1.0


def test_without_labels_the_drop_is_disagreement_with_the_float_network(
    simulation: Simulation, digits: Subject
) -> None:
    images, choices = digits.images[:15], parse_choices("w2a8,w32a32")
    found = measure_sensitivity(simulation, choices, images)
    assert (found.drop >= 0).all()
    assert not found.drop[:, 1].any()
