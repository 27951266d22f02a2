"""Runs on buffers that are bound to a device, here to the CPU's memory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hil.buffers import BoundRun, prepared_run
from hil.ort import Runner, load_session, one_feed, random_inputs, session_options
from hil.providers import CPU
from quantization.reading import read_network
from tests.networks import Subject
from tests.quantization.graphs import make_model, node, normal

BOUND = replace(CPU, bound=True)


@pytest.mark.parametrize("name", ["small", "branching", "attention"])
def test_outputs_are_those_of_a_run_without_bindings(
    name: str, request: pytest.FixtureRequest
) -> None:
    subject: Subject = request.getfixturevalue(name)
    model = subject.network.model.SerializeToString()
    feed = one_feed(subject.network, subject.images)
    bound, plain = Runner(model, 1, feed, provider=BOUND), Runner(model, 1, feed)
    assert bound() == []
    for found, expected in zip(bound.outputs(), plain(), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(bound.run(feed)[0], plain.run(feed)[0])


def test_outputs_of_several_kinds_come_back() -> None:
    nodes = [node("Conv", "x a", "y", "first"), node("Flatten", "y", "z", "flat")]
    network = read_network(
        make_model(nodes, {"a": normal(2, 2, 1, 1)}, {"x": (1, 2, 4, 4)}, {"y": None, "z": None})
    )
    feed = one_feed(network, random_inputs(network, 1))
    model = network.model.SerializeToString()
    found = Runner(model, 1, feed, provider=BOUND).outputs()
    for one, other in zip(found, Runner(model, 1, feed)(), strict=True):
        np.testing.assert_array_equal(one, other)


class Recorded:
    """A session that writes down what is asked of it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.asked: list[str] = []

    def get_outputs(self) -> Any:
        return self._session.get_outputs()

    def io_binding(self) -> Any:
        binding = self._session.io_binding()
        for name in ("bind_ortvalue_input", "synchronize_inputs", "synchronize_outputs"):
            setattr(binding, name, self._noting(name, getattr(binding, name)))
        return binding

    def run_with_iobinding(self, binding: Any) -> None:
        self.asked.append("run")
        self._session.run_with_iobinding(binding)

    def run(self, names: None, feed: Any) -> Any:
        self.asked.append("run with inputs")
        return self._session.run(names, feed)

    def _noting(self, name: str, call: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            self.asked.append(name)
            return call(*arguments)

        return noted


def test_a_run_copies_no_input_and_ends_with_the_device(small: Subject) -> None:
    feed = one_feed(small.network, small.images)
    model = small.network.model.SerializeToString()
    session = Recorded(load_session(model, session_options(1)))
    run = BoundRun(session, BOUND, feed)
    assert session.asked == ["bind_ortvalue_input", "synchronize_inputs"]
    del session.asked[:]
    run()
    run()
    assert session.asked == ["run", "synchronize_outputs"] * 2
    del session.asked[:]
    prepared_run(session, CPU, feed)()
    assert session.asked == ["run with inputs"]
