"""Training with quantization in the loop, and that what it leaves is what is exported."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from quantization.bits import BitWidths
from quantization.channel_groups import ChannelGroups
from quantization.errors import DataError, PolicyError
from quantization.network import Network
from quantization.policy import Policy
from quantization.qat.network import QatNetwork
from quantization.qat.training import Recipe, accuracy, train
from quantization.qat.tuned import TunedModel, freeze
from quantization.quantizer import Float32Array
from quantization.simulation import Simulation
from quantization.task import Examples
from tests.networks import (
    Subject,
    attention,
    branching,
    random_policy,
    small_mobilenet,
    subject,
    uniform,
)

BRIEF = Recipe(epochs=1, learning_rate=0.02, step_learning_rate=0.01, batch=16)
NETWORKS = {"mobilenet": small_mobilenet, "branching": branching, "attention": attention}


def learnable(given: Subject) -> Examples:
    """Two classes of the ten: dark images and bright ones."""
    ranks = given.images.mean(tuple(range(1, given.images.ndim))).argsort().argsort()
    return Examples(given.images, (ranks * 2 // len(ranks)).astype(np.int64))


def qat(given: Subject, policy: Policy, **options: Any) -> QatNetwork:
    return QatNetwork(given.exporter, policy, given.calibration, **options)


@torch.inference_mode()
def logits(network: QatNetwork, images: Float32Array) -> Float32Array:
    return np.asarray(network(torch.from_numpy(images)).numpy())


def simulated(tuned: TunedModel, given: Subject) -> Float32Array:
    simulation = Simulation(tuned.exporter, given.calibration)
    return simulation.logits(tuned.policy, given.images)


def run(model: bytes, images: Float32Array, network: Network) -> Float32Array:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feed = network.input_names[0]
    return np.concatenate([session.run(None, {feed: image[None]})[0] for image in images])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_float_policy_starts_as_the_float_network(name: str) -> None:
    given = subject(NETWORKS[name](), 8)
    found = logits(qat(given, Policy({})), given.images)
    expected = given.simulation.logits(Policy({}), given.images)
    # Normalizations are set to the calibration images' variances with and without Bessel's
    # correction, which differ by one in the number of values.
    np.testing.assert_allclose(found, expected, atol=0.03 * float(np.abs(expected).max()))


def test_training_starts_as_the_statistics_corrected_network() -> None:
    """Both give each convolution's output the float network's mean and deviation."""
    given = subject(small_mobilenet(), 32)
    policy = uniform(given.network, "w3a8")
    corrections = dict(given.simulation.correct(policy))
    del corrections["classifier"]  # a matrix product has no normalization
    corrected = given.simulation.logits(policy, given.images, corrections)
    plain = given.simulation.logits(policy, given.images)
    found = logits(qat(given, policy), given.images)
    assert np.abs(found - corrected).mean() < 0.1 * np.abs(plain - corrected).mean()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("choices", ["w2a8 w3a8 w8a8 w32a32", "w4a4 w8a8 w3a6 w32a32", "w5a32"])
def test_the_frozen_model_computes_what_was_trained(name: str, choices: str) -> None:
    given = subject(NETWORKS[name](), 24)
    policy = random_policy(given.network, 1, choices)
    network = qat(given, policy)
    train(network, learnable(given), BRIEF, seed=0)
    found, expected = simulated(freeze(network), given), logits(network, given.images)
    step = freeze(network).exporter.ranges.grid(given.network.output_names[0], 8).scale
    assert np.abs(found - expected).mean() < 0.2 * step


@pytest.mark.parametrize("name", NETWORKS)
def test_the_exported_file_computes_what_was_trained(name: str) -> None:
    given = subject(NETWORKS[name](), 24)
    policy = random_policy(given.network, 2, "w2a8 w3a8 w4a8 w8a8 w32a32")
    network = qat(given, policy)
    train(network, learnable(given), BRIEF, seed=0)
    tuned = freeze(network)
    found = run(tuned.build(), given.images, given.network)
    step = tuned.exporter.ranges.grid(given.network.output_names[0], 8).scale
    assert np.abs(found - logits(network, given.images)).mean() < 0.2 * step
    assert len(tuned.build()) == tuned.exporter.size_bytes(policy)


def test_training_learns_and_the_same_seed_learns_the_same() -> None:
    given = subject(small_mobilenet(), 48)
    examples, policy = learnable(given), uniform(given.network, "w3a4")
    runs = []
    for seed in (0, 0, 1):
        network = qat(given, policy)
        before = accuracy(network, examples)
        seen: list[int] = []
        losses = train(
            network,
            examples,
            replace(BRIEF, epochs=4),
            seed=seed,
            on_epoch=lambda epoch, _, seen=seen: seen.append(epoch),  # type: ignore[misc]
        )
        assert seen == [1, 2, 3, 4]
        assert losses[-1] < 0.9 * losses[0]
        assert accuracy(network, examples) > before
        assert not network.training
        runs.append(losses)
    assert runs[0] == runs[1] != runs[2]


def test_weights_steps_and_ranges_all_move() -> None:
    given = subject(small_mobilenet(), 32)
    policy = uniform(given.network, "w4a8")
    fresh, trained = qat(given, policy), qat(given, policy)
    train(trained, learnable(given), BRIEF, seed=0)
    kept = dict(fresh.named_parameters())
    moved = {name for name, after in trained.named_parameters() if not after.equal(kept[name])}
    assert {name for name in kept if not name.endswith("bias")} <= moved
    before, after = given.exporter.ranges, freeze(trained).exporter.ranges
    assert after.method == "trained"
    stored = [n for n in after.limits if n not in given.network.inner_tensors]
    assert all(after.limits[name] != before.limits[name] for name in stored)


def test_each_width_of_a_tensor_has_a_range_of_its_own() -> None:
    given = subject(small_mobilenet(), 16)
    network = qat(given, uniform(given.network, "w4a4"))
    train(network, learnable(given), BRIEF, seed=0)
    ranges = freeze(network).exporter.ranges
    written, read = ranges.limits["stem.act.out"], ranges.at_width[4]["stem.act.out"]
    assert read[1] < 0.9 * written[1]  # fewer levels clip more


def test_channel_groups_are_trained_each_on_its_own_grid() -> None:
    given = subject(small_mobilenet(), 24)
    layer = given.network.layer("head")
    half = layer.out_channels // 2
    groups = ChannelGroups(8, {2: range(half), 5: range(half, layer.out_channels)})
    policy = Policy({"head": groups, "stem": BitWidths.parse("w3a8")})
    network = qat(given, policy)
    train(network, learnable(given), BRIEF, seed=0)
    tuned = freeze(network)
    values = tuned.exporter.parameters.quantized("head", groups).values
    assert set(np.unique(values[:half])) == {-2, -1, 0, 1}
    assert values[half:].max() > 7
    found = run(tuned.build(), given.images, given.network)
    step = tuned.exporter.ranges.grid(given.network.output_names[0], 8).scale
    assert np.abs(found - logits(network, given.images)).mean() < 0.2 * step


def test_the_integers_of_the_frozen_model_are_those_of_training() -> None:
    """Folding a normalization changes scales and biases only."""
    given = subject(small_mobilenet(), 16)
    network = qat(given, uniform(given.network, "w2a8"))
    train(network, learnable(given), BRIEF, seed=0)
    parameters = freeze(network).exporter.parameters
    for name in given.network.layer_names:
        layer = network.trained_layer(name)
        assert layer.step is not None
        shape = (-1, *[1] * (layer.weight.dim() - 1))
        integers = (layer.quantized_weight() / layer.step.view(shape)).round().detach().numpy()
        np.testing.assert_array_equal(parameters.weight(name, 2).values, integers)


def test_augmentation_and_fewer_images_reach_the_loop() -> None:
    given = subject(small_mobilenet(), 32)
    seen: list[int] = []

    def augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(len(x))
        return x + torch.rand(1, generator=generator)

    recipe = replace(BRIEF, epochs=2, images=20)
    train(
        qat(given, uniform(given.network, "w4a8")),
        learnable(given),
        recipe,
        seed=0,
        augment=augment,
    )
    assert seen == [16, 4, 16, 4]


def test_another_width_than_was_trained_is_refused() -> None:
    given = subject(small_mobilenet(), 16)
    tuned = freeze(qat(given, uniform(given.network, "w3a8")))
    with pytest.raises(PolicyError, match="was trained at w3a8, not w4a8"):
        tuned.exporter.build(uniform(given.network, "w4a8"))


def test_a_channel_that_is_nearly_gone_keeps_its_bias() -> None:
    given = subject(small_mobilenet(), 8)
    network = qat(given, uniform(given.network, "w3a8"))
    layer = network.trained_layer("stem")
    assert layer.bias is not None
    with torch.no_grad():
        layer.gain[0] = 1e-12
        layer.bias[0] = 5.0
    tuned = freeze(network)
    scale = tuned.exporter.parameters.weight("stem", 3).scale[0]
    step = tuned.exporter.ranges.grid("x", 8).scale
    assert 5.0 / (scale * step) < 2**29
    found = run(tuned.build(), given.images, given.network)
    np.testing.assert_allclose(found, simulated(tuned, given), atol=0.5)


def test_steps_that_training_pushes_below_zero_come_back() -> None:
    given = subject(small_mobilenet(), 8)
    network = qat(given, uniform(given.network, "w3a8"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(-1.0)
    network.stay_positive()
    layer = network.trained_layer("stem")
    assert layer.step is not None
    assert float(layer.step.detach().min()) > 0
    assert float(layer.gain.detach().min()) > 0
    assert all(float(step.detach()) > 0 for step in network.steps)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch": 0},
        {"images": 0},
        {"learning_rate": 0.0},
        {"step_learning_rate": float("nan")},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        Recipe(**wrong)


def test_a_policy_of_another_network_is_refused() -> None:
    given = subject(small_mobilenet(), 8)
    with pytest.raises(PolicyError, match="no layer"):
        qat(given, Policy({"elsewhere": BitWidths.parse("w4a8")}))
