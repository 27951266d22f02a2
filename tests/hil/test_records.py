"""Records of jobs: identity by content, and what is written is what is read."""

import json

import pytest

from costmodels.errors import CostError
from costmodels.measurement import Device, Measurement
from hil.device import detect
from hil.records import Failure, FailureKind, Record, Subject

TIMED = Measurement("policy", (2e-3, 1e-3), (5e-3,), 2, (0, 1), {"load": [0.1, 0.2]})


@pytest.mark.parametrize(
    "record",
    [
        Record({"policy": TIMED}, facts={"build_s": 0.1}),
        Record({}, Failure(FailureKind.TIME, "no answer within 2 s")),
    ],
)
def test_a_record_is_read_back_from_json_as_it_was(record: Record) -> None:
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record


def test_a_device_is_read_back_from_json_as_it_was() -> None:
    assert Device.from_dict(json.loads(json.dumps(detect().to_dict()))) == detect()


def test_a_record_holds_either_measurements_or_a_failure() -> None:
    failure = Failure(FailureKind.KILLED, "signal 9")
    for measurements, failed in (({}, None), ({"policy": TIMED}, failure)):
        with pytest.raises(CostError, match="either measurements or a failure"):
            Record(measurements, failed)


def test_the_key_is_of_the_content_whatever_its_order() -> None:
    one = Subject({"network": "a", "options": {"threads": 1, "mode": "warm"}})
    same = Subject({"options": {"mode": "warm", "threads": 1}, "network": "a"})
    other = Subject({"network": "a", "options": {"threads": 2, "mode": "warm"}})
    assert one.key == same.key != other.key


def test_a_subject_of_anything_but_json_is_refused() -> None:
    for value in (object(), float("nan")):
        with pytest.raises(CostError, match="JSON values only"):
            Subject({"network": value})
