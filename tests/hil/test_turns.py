"""Turns of one candidate, with a clock that the test turns."""

import numpy as np
import pytest

from costmodels.errors import CostError
from hil.turns import Mode, TurnOptions, Turns, WarmUp
from tests.hil.machine import Machine


def _nothing() -> None:
    """Caches stay as they are."""


def _turns(run: object, options: TurnOptions, machine: Machine) -> Turns:
    return Turns(run, options, _nothing, machine.clock)  # type: ignore[arg-type]


def _bare(samples: int = 3, warm_runs: int = 2, turn_s: float = 0.0) -> TurnOptions:
    return TurnOptions(turn_s, samples, warm_runs, sample_s=1e-3, warm_up=None)


@pytest.mark.parametrize("run_s", [3e-5, 4e-4, 4e-3, 7e-2])
def test_a_turn_lasts_ten_milliseconds_by_itself_and_holds_three_samples(run_s: float) -> None:
    machine = Machine()
    turns = _turns(machine.candidate("it", run_s), TurnOptions(), machine)
    turns.take(0)
    counted = sum(turns.samples_s) * turns.inner_loops
    assert counted >= 10e-3 - 1e-12
    assert len(turns.samples_s) >= 3
    assert counted <= max(10e-3 + turns.inner_loops * run_s, 3.001 * run_s)


def test_inner_loops_make_a_sample_last_long_enough() -> None:
    machine = Machine()
    for run_s, fewest in ((3e-5, 34), (4e-3, 1)):
        turns = _turns(machine.candidate("it", run_s), _bare(), machine)
        turns.take(0)
        assert turns.inner_loops == fewest
        np.testing.assert_allclose(turns.samples_s, run_s)


@pytest.mark.parametrize("slow_runs", [4, 6, 7, 40])
def test_every_sample_lasts_long_enough_even_if_a_candidate_warms_up_late(slow_runs: int) -> None:
    machine = Machine()
    run = machine.candidate("late", 1e-3)

    def warming() -> None:
        run.seconds = 1e-3 if len(machine.ran) < slow_runs else 1e-4
        run()

    turns = _turns(warming, _bare(samples=5), machine)
    for block in range(8):
        turns.take(block)
    assert len(turns.samples_s) == len(turns.blocks) == 40
    loops = turns.context().get("inner_loops", [turns.inner_loops] * 40)
    assert loops[-1] == turns.inner_loops in (10, 11)  # sums of floats
    assert min(s * n for s, n in zip(turns.samples_s, loops, strict=True)) >= 0.999e-3
    assert turns.samples_s[-1] == pytest.approx(1e-4)


def test_a_clock_that_moves_in_steps_needs_more_runs_and_no_end_of_them() -> None:
    machine = Machine()
    options = _bare(samples=2)
    run = machine.candidate("quick", 1e-5)
    turns = Turns(run, options, _nothing, lambda: machine.now // 15e-3 * 15e-3)
    turns.take(0)
    turns.take(1)
    assert turns.inner_loops < 1e6
    loops = turns.context().get("inner_loops", [turns.inner_loops] * 4)
    assert min(s * n for s, n in zip(turns.samples_s, loops, strict=True)) > 1e-3


def test_samples_that_were_too_short_are_discarded_and_counted() -> None:
    machine = Machine()
    run = machine.candidate("it", 4e-3)

    def once_faster() -> None:
        run.seconds = 4e-3 if len(machine.ran) < 3 else 3e-4
        run()

    turns = _turns(once_faster, _bare(), machine)
    turns.take(0)
    # two warm runs, a sample of one slow run, and a fast one that is too short
    np.testing.assert_allclose(turns.warmups_s, [4e-3, 4e-3, 3e-4])
    np.testing.assert_allclose(turns.samples_s, [4e-3, 3e-4, 3e-4])
    assert turns.context()["inner_loops"] == [1, 4, 4]
    assert turns.context()["discarded_runs"] == 3


def test_the_first_runs_after_another_candidate_never_count() -> None:
    machine = Machine()
    inner = machine.candidate("it", 1e-3)
    turns = _turns(inner, TurnOptions(0.0, 3, 1, sample_s=5e-4, warm_up=None), machine)
    for block in range(10):
        inner.seconds = 9e-3
        first = machine.clock()

        def run(first: float = first) -> None:
            inner.seconds = 9e-3 if machine.now == first else 1e-3
            inner()

        turns._run = run
        turns.take(block)
    np.testing.assert_allclose(turns.samples_s, 1e-3)
    np.testing.assert_allclose(turns.warmups_s, 9e-3)
    assert turns.context()["discarded_runs"] == 10


def test_a_warm_up_ends_once_the_medians_of_small_blocks_are_quiet() -> None:
    machine = Machine()
    run = machine.candidate("it", 5e-3)

    def warming() -> None:
        run.seconds = max(1e-3, 5e-3 - 0.5e-3 * len(machine.ran))  # steady from the ninth run
        run()

    rule = WarmUp(samples=3, blocks=3, tolerance=0.02)
    turns = _turns(warming, TurnOptions(warm_up=rule, warm_runs=0, turn_s=0.0), machine)
    # blocks end at runs 3, 6, ...; those that end at 12, 15 and 18 are the first three alike
    assert turns.context()["warm_up"] == {"runs": 18, "reached_cap": False}
    assert len(turns.warmups_s) == turns.context()["discarded_runs"] == 18
    turns.take(0)
    assert turns.context()["warm_up"]["runs"] == 18
    np.testing.assert_allclose(turns.samples_s, 1e-3)


def test_a_warm_up_that_never_gets_quiet_ends_at_its_cap_and_says_so() -> None:
    machine, factor = Machine(), iter(np.tile([1.0, 1.0, 1.0, 1.1, 1.1, 1.1], 100))
    run = machine.candidate("it", 1e-3)

    def restless() -> None:
        run.seconds = 1e-3 * next(factor)
        run()

    turns = _turns(restless, TurnOptions(warm_up=WarmUp(cap_s=0.05)), machine)
    found = turns.context()["warm_up"]
    assert found["reached_cap"]
    assert found["runs"] == len(machine.ran)
    assert 0.05 <= machine.now < 0.053


def test_a_slow_candidate_reaches_the_cap_in_one_run() -> None:
    machine = Machine()
    turns = _turns(machine.candidate("slow", 3.0), TurnOptions(), machine)
    assert turns.context()["warm_up"] == {"runs": 1, "reached_cap": True}


def test_without_a_warm_up_the_first_turn_begins_at_once() -> None:
    machine = Machine()
    turns = _turns(machine.candidate("it", 1e-3), _bare(), machine)
    assert machine.ran == []
    assert turns.context()["warm_up"] == {"runs": 0, "reached_cap": False}


def test_a_cold_sample_is_one_run_however_short() -> None:
    machine = Machine()
    options = TurnOptions(turn_s=0.0, samples=4, mode=Mode.COLD)
    turns = _turns(machine.candidate("quick", 1e-6), options, machine)
    warmed = len(machine.ran)
    turns.take(0)
    assert turns.inner_loops == 1
    assert len(machine.ran) - warmed == len(turns.samples_s) == 4


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"turn_s": -1.0}, {"warm_runs": -1}, {"sample_s": -1e-3}],
)
def test_turns_without_samples_or_with_negative_times_cannot_be_built(
    options: dict[str, float],
) -> None:
    with pytest.raises(CostError, match="at least one sample"):
        TurnOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["samples", "blocks", "tolerance", "cap_s"])
def test_a_warm_up_without_an_end_cannot_be_built(field: str) -> None:
    with pytest.raises(CostError, match="above zero"):
        WarmUp(**{field: 0})
