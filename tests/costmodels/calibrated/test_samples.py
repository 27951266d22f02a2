"""The profiler's overhead is told apart from the time of operators."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibrated.samples import Overhead, Sample
from tests.costmodels.calibrated.world import CONSTANT_S, NODE_S, SLOPE, World, law_nodes, law_s


def test_overhead_recovers_what_the_profiler_adds(world: World) -> None:
    found = Overhead.of(world.fitted)
    assert found.node_s == pytest.approx(NODE_S, rel=1e-6)
    assert found.slope == pytest.approx(SLOPE, rel=1e-6)
    assert found.constant_s == pytest.approx(CONSTANT_S, rel=1e-6)


def test_a_few_disturbed_samples_move_the_overhead_little(world: World) -> None:
    disturbed = [
        replace(sample, total_s=sample.total_s * (2.0 if i % 20 == 0 else 1.0))
        for i, sample in enumerate(world.fitted)
    ]
    found = Overhead.of(disturbed)
    assert found.node_s == pytest.approx(NODE_S, rel=0.05)
    assert found.slope == pytest.approx(SLOPE, rel=0.02)


def test_no_part_of_an_overhead_is_negative_or_absurd(world: World) -> None:
    faster = [replace(s, profiled_s=s.profiled_s * 1e-3) for s in world.fitted[:20]]
    found = Overhead.of(faster)
    assert found.node_s >= 0
    assert found.slope >= 0.5
    assert found.constant_s >= 0


def test_undisturbed_seconds_are_those_of_the_law(world: World) -> None:
    overhead = Overhead(NODE_S, SLOPE, CONSTANT_S)
    for sample in world.fitted[:5]:
        found = overhead.undisturbed_s(sample)
        assert found.sum() + CONSTANT_S == pytest.approx(sample.total_s)
        executed = law_nodes(sample.items, sample.integer) > 0
        np.testing.assert_array_equal(found > 0, executed)
        ratio = found[executed] / law_s(sample.items, sample.integer)[executed]
        assert np.median(ratio) == pytest.approx(1, abs=0.15)


def test_what_was_executed_takes_some_time_whatever_the_profiler_said(world: World) -> None:
    sample = world.fitted[0]
    silent = replace(sample, profiled_s=np.zeros(len(sample.items)))
    found = Overhead(NODE_S, SLOPE, CONSTANT_S).undisturbed_s(silent)
    np.testing.assert_array_equal(found > 0, sample.nodes > 0)


def test_a_sample_reads_rows_as_a_record_keeps_them(world: World) -> None:
    sample = world.fitted[0]
    rows = {
        **sample.items.to_dict(),
        "integer": sample.integer.tolist(),
        "seconds": sample.profiled_s.tolist(),
        "nodes": sample.nodes.tolist(),
    }
    again = Sample.of("a", "float", rows, sample.total_s)
    assert (again.network, again.policy, again.total_s) == ("a", "float", sample.total_s)
    assert again.items.to_dict() == sample.items.to_dict()
    for name in ("integer", "profiled_s", "nodes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(sample, name))
