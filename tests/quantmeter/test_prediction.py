"""What is said of a calibration."""

from typing import Any

import numpy as np

from hil.validation import Validation
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


def test_errors_and_interval_on_policies_that_were_never_fitted_are_told() -> None:
    measured = np.linspace(1.0, 2.0, 40)
    found = Validation.of(measured * 1.02, measured * 1.2, measured)
    first, second, third = describe_validation(found.to_dict())
    assert first.startswith("on 40 policies that were never fitted: mean absolute error 2.0 %")
    assert second.startswith(
        "the table alone, which is what a search adds up: mean absolute error 20.0 %"
    )
    assert third.startswith("90 % interval of a new policy: from its prediction over 1.020 to")


def test_where_nothing_judged_it_is_unknown_how_good_a_calibration_is() -> None:
    [line] = describe_validation(None)
    assert "remains unknown" in line
