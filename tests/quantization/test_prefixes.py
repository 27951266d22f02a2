"""Policies that begin alike: what they share is computed once, and changes nothing."""

import numpy as np
import pytest
import torch

from quantization.bits import BitWidths
from quantization.deployment import Correction
from quantization.execution import Executor
from quantization.network import Layer
from quantization.policy import Policy
from quantization.prefixes import Prefixes, detached
from quantization.simulation import Simulation
from tests.networks import Subject, random_policy, uniform


def fresh(given: Subject, limit: int) -> Simulation:
    return Simulation(given.exporter, given.simulation.calibration[:70], limit=limit)


def changed(given: Subject, policy: Policy, where: int, bits: str) -> Policy:
    """The policy with other bits at one layer, counted in execution order."""
    layers = [node.name for node in given.network.execution_order if isinstance(node, Layer)]
    known = {name: policy[name] for name in layers}
    return Policy({**known, layers[where]: BitWidths.parse(bits)})


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes that were executed, once a block."""
    executed: list[str] = []
    step = Executor.step

    def recorded(self, node, *rest):  # type: ignore[no-untyped-def]
        executed.append(node.name)
        return step(self, node, *rest)

    monkeypatch.setattr(Executor, "step", recorded)
    return executed


@pytest.mark.parametrize("name", ["small", "branching", "attention", "digits"])
def test_results_are_those_of_a_simulation_that_remembers_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    given: Subject = request.getfixturevalue(name)
    remembers, forgets = fresh(given, 2**28), fresh(given, 0)
    first = random_policy(given.network, 0) or uniform(given.network, "w4a8")
    count = len(given.network.layers)
    others = [changed(given, first, k, "w3a8") for k in (count - 1, count // 2, 0)]
    others.append(changed(given, first, count // 2, "w32a32"))
    images = given.images[:66]  # two blocks
    for policy in (first, *others, uniform(given.network, "w16a16"), first):
        expected, corrections = forgets.correct(policy), remembers.correct(policy)
        assert expected.keys() == corrections.keys()
        for layer, correction in expected.items():
            np.testing.assert_array_equal(corrections[layer].gain, correction.gain)
            np.testing.assert_array_equal(corrections[layer].shift, correction.shift)
        for given_corrections in (corrections, None):
            np.testing.assert_array_equal(
                remembers.logits(policy, images, given_corrections, token="images"),
                forgets.logits(policy, images, given_corrections),
            )


def test_a_policy_that_differs_late_is_not_run_from_the_start(
    digits: Subject, steps: list[str]
) -> None:
    simulation, images = fresh(digits, 2**28), digits.images[:64]
    policy = uniform(digits.network, "w4a8")
    steps.clear()
    simulation.logits(policy, images, token="images")
    whole = len(steps)
    steps.clear()
    simulation.logits(changed(digits, policy, -1, "w2a8"), images, token="images")
    assert 0 < len(steps) < whole / 2
    steps.clear()
    simulation.logits(changed(digits, policy, 0, "w2a8"), images, token="images")
    assert len(steps) == whole


def test_other_images_and_other_corrections_share_nothing(
    digits: Subject, steps: list[str]
) -> None:
    simulation, images = fresh(digits, 2**28), digits.images[:64]
    policy = uniform(digits.network, "w2a8")
    corrections = simulation.correct(policy)
    steps.clear()
    simulation.logits(policy, images, corrections, token="images")
    whole = len(steps)
    first = next(n.name for n in digits.network.execution_order if isinstance(n, Layer))
    doubled = Correction(2 * corrections[first].gain, corrections[first].shift)
    for given, token in (
        (None, "images"),
        ({**corrections, first: doubled}, "images"),
        (corrections, "others"),
    ):
        steps.clear()
        simulation.logits(policy, images, given, token=token)
        assert len(steps) == whole


def test_memory_stays_below_its_limit_and_forgets_what_was_not_used(digits: Subject) -> None:
    limit = 2**23
    simulation, images = fresh(digits, limit), digits.images[:32]
    prefixes: Prefixes = simulation._prefixes
    policies = [uniform(digits.network, f"w{w}a32") for w in range(2, 9)]  # keeps floats
    keys = [prefixes.keys("images", 32, policy, {}) for policy in policies]
    for policy in policies:
        simulation.logits(policy, images, token="images")
        assert 0 < prefixes.size <= limit
    assert prefixes.latest(keys[0]) is None
    assert prefixes.latest(keys[-1]) is not None


@pytest.mark.parametrize("limit", [0, 2**28])
def test_states_are_made_at_cuts_only_and_without_memory_none_is(
    limit: int, digits: Subject
) -> None:
    prefixes = fresh(digits, limit)._prefixes
    keys = prefixes.keys("images", 64, uniform(digits.network, "w4a8"))
    assert list(keys) == (sorted(prefixes.cuts) if limit else [])


def test_a_part_of_a_tensor_is_kept_without_the_whole() -> None:
    whole = torch.zeros(8, 64, 4, 4)
    kept = detached({"part": whole[:, :1], "whole": whole})
    assert kept["part"].untyped_storage().nbytes() == kept["part"].nbytes
    assert kept["whole"] is whole


def test_states_that_would_fill_the_memory_are_not_even_made(digits: Subject) -> None:
    simulation = fresh(digits, 2**20)
    simulation.logits(uniform(digits.network, "w4a8"), digits.images[:640], token="images")
    assert simulation._prefixes.size == 0
