"""Probes are timed whole and operator by operator, in the worker."""

import numpy as np
import pytest

from costmodels.calibrated.items import Items
from costmodels.calibrated.samples import Sample
from hil.device_calibration import samples_of
from hil.limits import limits_of
from hil.policy_timer import RefusedPolicyError
from hil.probe_timer import (
    LimitsJob,
    ProbeJob,
    ProbeSetup,
    ProbeTimer,
    items_and_formats,
    policies_of,
    subject,
)
from hil.probes import probe
from hil.records import Record
from hil.timing import TimingOptions
from quantization.errors import ModelError, QuantmeterError

BRIEF = TimingOptions(blocks=2, samples=1, warm_runs=1, turn_s=0.0, sample_s=0.0, warm_up=None)
JOB = ProbeJob(3)


@pytest.fixture(scope="module")
def record() -> Record:
    return ProbeTimer(ProbeSetup(timing=BRIEF))(JOB)


def test_each_policy_of_a_probe_is_timed_whole(record: Record) -> None:
    names = list(policies_of(probe(JOB.seed), JOB))
    assert names[:2] == ["float", "integer"]
    assert list(record.measurements) == names
    assert record.facts["parts"].keys() == set(names)
    assert record.facts["wall_s"] > 0


def test_rows_are_those_of_the_network_under_each_policy(record: Record) -> None:
    expected = items_and_formats(probe(JOB.seed), JOB)
    for (items, integer), sample in zip(expected, samples_of(JOB, record), strict=True):
        assert sample.items.near.tolist() == items.near.tolist()
        np.testing.assert_array_equal(sample.items.features, items.features)
        np.testing.assert_array_equal(sample.integer, integer)
        assert (sample.profiled_s >= 0).all()
        assert (sample.profiled_s[sample.nodes == 0] == 0).all()
        assert sample.nodes.sum() > len(probe(JOB.seed).layers)


def test_the_parts_of_a_run_take_about_as_long_as_the_whole(record: Record) -> None:
    """With a wide margin: the profiler adds its own time, and this machine may be busy."""
    ratios = [sample.profiled_s.sum() / sample.total_s for sample in samples_of(JOB, record)]
    assert 0.3 < np.median(ratios) < 5


def test_a_record_survives_json(record: Record) -> None:
    again = samples_of(JOB, Record.from_dict(record.to_dict()))
    first: Sample = again[0]
    assert isinstance(first.items, Items)
    assert first.total_s == record.measurements["float"].p10_s


def test_other_probes_threads_and_timings_are_other_subjects() -> None:
    setups = (ProbeSetup(), ProbeSetup(threads=2), ProbeSetup(timing=BRIEF))
    jobs = (ProbeJob(1), ProbeJob(2), ProbeJob(1, whole=True))
    keys = {subject(setup, job).key for setup in setups for job in jobs}
    assert len(keys) == 9
    assert subject(ProbeSetup(), ProbeJob(1)).key == subject(ProbeSetup(), ProbeJob(1)).key


def test_a_probe_that_the_runtime_refuses_is_a_recorded_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not an error of the user's, which would end the calibration."""

    def refuse(*_: object) -> None:
        raise ModelError("ONNX Runtime cannot load the model: no")

    monkeypatch.setattr("hil.probe_timer.profile_session", refuse)
    with pytest.raises(RefusedPolicyError, match="float: ONNX Runtime cannot load") as caught:
        ProbeTimer(ProbeSetup(timing=BRIEF))(JOB)
    assert not isinstance(caught.value, QuantmeterError)


def test_the_limits_of_a_machine_are_plausible() -> None:
    found = limits_of(ProbeTimer(ProbeSetup())(LimitsJob()))
    assert 1e8 < found.float_peak < 1e14
    assert 1e8 < found.integer_peak < 1e14
    sizes, rates = zip(*found.bandwidth, strict=True)
    assert sizes[0] <= 2**15
    assert sizes[-1] >= 2**27
    assert all(1e8 < rate < 1e14 for rate in rates)
