"""Sequential comparisons, the race, and the noise floor, with a clock that the test turns."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from costmodels.errors import CostError
from hil.compare import (
    CompareOptions,
    Comparison,
    NoiseFloor,
    Verdict,
    compare,
    compare_many,
    noise_floor,
)
from hil.timing import Ratio, TurnOptions
from tests.hil.machine import Machine, noisy

QUICK = CompareOptions(turns=TurnOptions(turn_s=0.0, samples=2, warm_runs=1, warm_up=None))
"""With the default looks and floor."""


def _compared(ratio: float, seed: int, options: CompareOptions = QUICK) -> Comparison:
    """Compare two on a machine that drifts by a factor of 2 and is disturbed in bursts."""
    machine, draw = Machine(), np.random.default_rng(seed)
    disturbed = False

    def noise() -> float:
        nonlocal disturbed
        disturbed = draw.random() < (0.9 if disturbed else 0.02)
        drift = 1 + machine.now / (50 * 6 * 1e-3)
        burst = 1 + 0.2 * draw.random() if disturbed else 1.0
        return drift * burst * float(np.exp(0.01 * draw.standard_normal()))

    runs = [noisy(machine, seconds, noise) for seconds in (ratio * 1e-3, 1e-3)]
    return compare(*runs, replace(options, seed=seed), clock=machine.clock, observe=machine.observe)


def test_equals_differ_in_at_most_five_of_a_hundred_comparisons() -> None:
    options = replace(QUICK, floor=0.0)
    verdicts = Counter(_compared(1.0, seed, options).verdict for seed in range(120))
    assert 120 - verdicts[Verdict.UNDECIDED] <= binom.ppf(0.99, 120, 0.05)


@pytest.mark.parametrize(("ratio", "verdict"), [(1.03, Verdict.SLOWER), (1 / 1.03, Verdict.FASTER)])
def test_a_difference_of_three_percent_is_told(ratio: float, verdict: Verdict) -> None:
    found = [_compared(ratio, seed) for seed in range(40)]
    assert Counter(c.verdict for c in found)[verdict] >= 36
    assert sum(c.ratio.low <= ratio <= c.ratio.high for c in found) >= 36


def test_a_clear_loser_is_told_after_the_first_look() -> None:
    found = _compared(2.0, seed=1)
    assert (found.verdict, found.blocks, found.looks) == (Verdict.SLOWER, QUICK.looks[0], 1)
    assert str(found).startswith("slower: 2.0")
    assert set(found.candidate.block) == set(range(QUICK.looks[0]))


def test_no_difference_is_told_with_what_could_have_been_found() -> None:
    found = _compared(1.0, seed=2)
    assert (found.verdict, found.blocks, found.looks) == (Verdict.UNDECIDED, 50, 5)
    assert found.detectable > QUICK.floor
    assert str(found).startswith(f"no difference detectable below {found.detectable:.1%}")


def test_without_noise_only_the_floor_limits_what_is_told() -> None:
    for ratio, verdict in ((1.009, Verdict.UNDECIDED), (1.011, Verdict.SLOWER)):
        machine = Machine()
        runs = [machine.candidate(n, s * 1e-3) for n, s in (("new", ratio), ("old", 1.0))]
        found = compare(*runs, QUICK, clock=machine.clock, observe=machine.observe)
        assert found.verdict is verdict
        assert found.ratio.mid == pytest.approx(ratio)
        assert found.detectable == pytest.approx(0.01)


def test_in_a_race_the_decided_leave_and_the_others_go_on() -> None:
    machine = Machine()
    seconds = {"slow": 2e-3, "same": 1e-3, "fast": 0.5e-3}
    runs = {name: machine.candidate(name, s) for name, s in seconds.items()}
    shares: list[float] = []
    found = compare_many(
        runs,
        machine.candidate("reference", 1e-3),
        QUICK,
        clock=machine.clock,
        observe=machine.observe,
        progress=shares.append,
    )
    verdicts = {n: c.verdict.value for n, c in found.items()}
    assert verdicts == {"slow": "slower", "same": "undecided", "fast": "faster"}
    assert {n: c.blocks for n, c in found.items()} == {"slow": 10, "same": 50, "fast": 10}
    each = Counter(machine.ran)
    assert each["slow"] == each["fast"] == 10 * 3
    assert each["same"] == each["reference"] == 50 * 3
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def _raced(seconds: Mapping[str, Callable[[int], float]]) -> dict[str, Comparison]:
    """Race candidates that take so many ms in their n-th run, beside one of 1 ms and its second."""
    machine, counts = Machine(), Counter[str]()

    def candidate(name: str) -> Callable[[], None]:
        def run() -> None:
            machine.now += 1e-3 * seconds[name](counts[name])
            counts[name] += 1

        return run

    return compare_many(
        {name: candidate(name) for name in seconds},
        machine.candidate("reference", 1e-3),
        QUICK,
        again="again",
        clock=machine.clock,
        observe=machine.observe,
    )


def test_no_verdict_is_given_within_what_the_reference_differs_by_from_itself() -> None:
    found = _raced({"again": lambda _: 1.038, "near": lambda _: 0.975, "far": lambda _: 1 / 1.04})
    assert {n: c.verdict.value for n, c in found.items()} == {
        "again": "undecided",
        "near": "undecided",
        "far": "faster",
    }
    assert [c.floor for c in found.values()] == pytest.approx([0.038] * 3)
    assert found["near"].detectable == pytest.approx(0.038)
    assert {n: c.blocks for n, c in found.items()} == {"again": 50, "near": 50, "far": 10}


def test_a_quiet_second_session_leaves_the_floor_of_the_options() -> None:
    found = _raced({"again": lambda _: 1.0, "near": lambda _: 0.975})
    assert found["near"].verdict is Verdict.FASTER
    assert found["near"].floor == QUICK.floor


def test_a_candidate_comes_back_when_the_floor_rises_above_it() -> None:
    runs = 3  # of a turn
    late = {
        "again": lambda run: 1.0 if run < 10 * runs else 1.2,
        "early winner": lambda _: 0.95,
    }
    found = _raced(late)
    assert found["early winner"].floor == pytest.approx(0.2)
    assert found["early winner"].verdict is Verdict.UNDECIDED
    assert 10 < found["early winner"].blocks < 50, "it was away until the floor had risen"


def test_a_second_session_is_one_of_the_candidates() -> None:
    machine = Machine()
    with pytest.raises(CostError, match="no candidate is named 'other'"):
        compare_many(
            {"it": machine.candidate("it", 1e-3)},
            machine.candidate("reference", 1e-3),
            QUICK,
            again="other",
        )


def test_a_race_needs_candidates_and_the_name_of_the_reference() -> None:
    machine = Machine()
    for candidates in ({}, {"reference": machine.candidate("it", 1e-3)}):
        with pytest.raises(CostError, match="candidates are needed"):
            compare_many(candidates, machine.candidate("it", 1e-3), QUICK)


def test_a_comparison_is_plain_json() -> None:
    content = json.loads(json.dumps(_compared(2.0, seed=0).to_dict(), allow_nan=False))
    assert content["verdict"] == "slower"
    assert content["ratio"]["low"] <= content["ratio"]["mid"] <= content["ratio"]["high"]
    assert len(content["candidate"]["samples_s"]) == 2 * content["blocks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"looks": ()}, "increasing"),
        ({"looks": (10, 10)}, "increasing"),
        ({"looks": (0, 10)}, "increasing"),
        ({"looks": (3, 5)}, "5 blocks cannot decide"),
        ({"alpha": 1.0}, "shares"),
        ({"floor": -0.1}, "shares"),
    ],
)
def test_options_that_make_no_comparison_cannot_be_built(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(CostError, match=message):
        CompareOptions(**options)  # type: ignore[arg-type]


def test_the_noise_floor_is_what_two_loads_of_one_model_seem_to_differ_by() -> None:
    machine, placements = Machine(), iter([1.0, 1.01, 1.0, 1.0, 1.0, 1.03])
    loaded: list[float] = []

    def load() -> object:
        loaded.append(next(placements))
        return machine.candidate(f"session {len(loaded)}", loaded[-1] * 1e-3)

    found = noise_floor(
        load,  # type: ignore[arg-type]
        0.3,
        QUICK,
        clock=machine.clock,
        observe=machine.observe,
    )
    assert len(loaded) == 6
    assert found.relative == pytest.approx(0.03)
    assert [r.mid for r in found.pairs] == pytest.approx([1 / 1.01, 1.0, 1 / 1.03])
    assert machine.now == pytest.approx(0.3, rel=0.1)
    assert min(found.blocks) >= 6


def test_a_noise_floor_takes_as_many_blocks_as_it_must_and_needs_a_pair() -> None:
    machine = Machine()
    found = noise_floor(
        lambda: machine.candidate("it", 1e-3),
        0.0,
        QUICK,
        pairs=1,
        clock=machine.clock,
        observe=machine.observe,
    )
    assert (found.blocks, found.relative) == ((6,), pytest.approx(0.0))
    with pytest.raises(CostError, match="a pair of sessions"):
        noise_floor(lambda: machine.candidate("it", 1e-3), 0.0, QUICK, pairs=0)


def test_a_ratio_reaches_equally_far_on_either_side_of_one() -> None:
    floor = NoiseFloor((Ratio(1 / 1.02, 1.0, 1.01), Ratio(0.99, 1.0, 1.015)), (6, 6))
    assert floor.relative == pytest.approx(0.02)
    assert floor.to_dict()["pairs"][1]["high"] == 1.015
    assert Ratio(0.0, 1.0, np.inf).furthest == np.inf
