"""What the benchmarks call met or exceeded can fail."""

from math import inf, nan

import pytest

from benchmarks import transfer
from benchmarks.certificate import REPAIR_ALONE, Row, learning_adds
from benchmarks.certificate import failures as certificate_failures
from benchmarks.noise import exceeds
from benchmarks.policy_error import Result
from benchmarks.qat import report
from benchmarks.transfer import misses
from costmodels.prediction_error import PredictionError


@pytest.mark.parametrize(
    ("error", "near", "noise", "covered", "met"),
    [
        (0.03, 0.97, 0.005, 0.9, True),
        (0.031, 1.0, 0.015, 0.9, False),
        (0.031, 1.0, 0.016, 0.9, True),  # twice the label noise is more
        (0.01, 0.96, 0.005, 0.9, False),
        (0.01, 1.0, 0.005, 0.74, False),
        (0.01, 1.0, 0.005, None, False),  # no interval covers nothing
    ],
)
def test_a_network_meets_all_targets_or_misses(
    error: float, near: float, noise: float, covered: float | None, met: bool
) -> None:
    errors = {"total": PredictionError(error, near, 0.9)}
    width = None if covered is None else 0.05
    assert Result("any", 100, 60, noise, errors, width, covered, 1e-3, 60.0).met is met


@pytest.mark.parametrize(
    ("in_file", "count", "matches"),
    [(0.902, 10_000, True), (0.9022, 10_000, False), (0.91, 100, True), (0.92, 100, False)],
)
def test_an_exported_file_matches_within_two_tenths_of_a_point_or_one_image(
    in_file: float, count: int, matches: bool
) -> None:
    assert report("any", 0.9, in_file, count) is matches


def test_one_session_against_itself_is_judged_without_the_floor() -> None:
    result = {"differ": 0, "exclude_1": 40, "limit": 15}
    assert exceeds(result, one_session=True)
    assert not exceeds(result, one_session=False)
    assert exceeds({**result, "differ": 16}, one_session=False)


def rows(
    learned: float, alone: float, warm: tuple[float, ...] | None = (0.04,)
) -> dict[tuple[str, str], Row]:
    found = {
        REPAIR_ALONE: Row((alone,), (1,)),
        ("random", "repaired"): Row((70.0, 80.0, 90.0), (600, 600, 600)),
        ("neighbourhood", "repaired"): Row((0.3, 0.2, 0.1), (600, 600, 600)),
        ("reinforce", "repaired"): Row((0.0, learned, inf), (600, 600, 600)),
    }
    if warm is not None:
        found["reinforce", "warm"] = Row(warm, (600,) * len(warm))
    return found


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        (rows(0.04, 0.71), []),
        (rows(1e-9, 0.0), []),  # both are the optimum
        (rows(0.04, inf), []),  # repair finds nothing
        (rows(0.72, 0.71), ["0.710 % without any search"]),
        (rows(5.1, inf), ["reinforce repaired: median 5.100 %"]),
        (rows(0.04, 0.71, (0.06, 0.06, 0.0)), ["reinforce warm: median 0.060 %"]),
        (rows(0.04, 0.71, (0.0, 0.0, 0.6)), ["worst 0.600 %"]),
        (rows(0.04, 0.71, None), ["reinforce warm: not measured"]),
        (rows(inf, 0.71, None), ["not measured", "median inf %", "without any search"]),
    ],
)
def test_a_row_of_the_certificate_meets_its_target_or_misses(
    measured: dict[tuple[str, str], Row], missed: list[str]
) -> None:
    found = certificate_failures(measured)
    assert len(found) == len(missed)
    assert all(part in line for part, line in zip(missed, found, strict=True))


def test_what_learning_adds_is_told_against_all_that_does_not_learn() -> None:
    told = learning_adds(rows(0.037, 0.71, None))
    order = ["0.037 %", "0.710 %", "0.200 %", "80.000 %"]
    assert sorted(order, key=told.index) == order
    assert "that of the least loss nothing" in learning_adds(rows(0.037, inf))


@pytest.mark.parametrize(
    ("one", "several", "missed"),
    [
        (0.5, 0.04, []),
        (0.2, 0.51, ["from 3 runs: 0.51"]),
        (0.51, 0.2, ["from one run: 0.51"]),
        (inf, nan, ["from one run: inf", "from 3 runs: nan"]),
    ],
)
def test_agents_of_one_run_and_of_several_are_judged_separately(
    one: float, several: float, missed: list[str]
) -> None:
    found = misses({"from one run": one, "from 3 runs": several})
    assert len(found) == len(missed)
    assert all(line.startswith(part) for part, line in zip(missed, found, strict=True))


@pytest.mark.parametrize(("ratio", "code"), [(0.5, 0), (0.6, 1)])
def test_the_exit_code_of_the_transfer_benchmark_follows_its_ratios(
    ratio: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_comparisons", lambda: {"made up": (None, [])})
    monkeypatch.setattr(transfer, "compare", lambda title, *_: {title: ratio})
    assert transfer.main([]) == code
