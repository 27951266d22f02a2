"""What is said of a calibration."""

from typing import Any

from quantmeter.prediction import describe_policies, describe_validation

SOURCE: dict[str, Any] = {
    "policies": 80,
    "inputs": "random",
    "disturbed_policies": 0,
    "unlike_policies": 0,
    "failed_policies": [],
}


def test_a_calibration_without_events_is_told_in_a_few_words() -> None:
    assert describe_policies(SOURCE) == "80 policies timed (random inputs)"


def test_failures_of_policies_and_of_the_profile_are_told() -> None:
    crash = {"kind": "killed", "text": "SIGSEGV"}
    said = describe_policies({**SOURCE, "failed_policies": [crash] * 2, "profile_failure": crash})
    assert "2 more failed, the first: killed, SIGSEGV" in said
    assert "no profile of integer layers (killed, SIGSEGV)" in said


def test_where_nothing_judged_it_is_unknown_how_good_a_calibration_is() -> None:
    [line] = describe_validation(None)
    assert "remains unknown" in line
