"""A start within its budgets as measured."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.units import Metric
from quantization.errors import BudgetError
from quantization.policy import IndexArray
from search.exact import solve
from search.problem import Problem
from search.starting import STEP, TRIES, accepted_start
from tests.search.networks import chain, problem

LATENCY, SIZE = Metric.LATENCY, Metric.SIZE


def given() -> Problem:
    return problem(chain(), 0, {LATENCY: 0.8, SIZE: 0.9})


def exact(problem: Problem) -> IndexArray:
    return solve(problem).index


def test_the_first_start_that_is_accepted_is_the_best_within_the_widest_budget() -> None:
    whole = given()
    limit = 0.999 * float(whole.costs(exact(whole)[None])[LATENCY][0])
    tried: list[bytes] = []

    def accepts(index: IndexArray) -> bool:
        tried.append(index.tobytes())
        return bool(whole.costs(index[None])[LATENCY][0] <= limit)

    found = accepted_start(whole, exact, accepts, [LATENCY])
    assert found is not None
    assert whole.costs(found[None])[LATENCY][0] <= limit
    assert len(set(tried)) == len(tried) > 1, "none is measured twice"
    best = next(
        index
        for n in range(TRIES)
        if whole.costs((index := _within(whole, STEP**n))[None])[LATENCY][0] <= limit
    )
    assert found.tolist() == best.tolist()


def _within(whole: Problem, share: float) -> IndexArray:
    latency = share * whole.budgets[LATENCY]
    return exact(replace(whole, budgets={**whole.budgets, LATENCY: latency}))


def test_only_measured_budgets_are_tightened() -> None:
    seen: list[dict[Metric, float]] = []

    def find(problem: Problem) -> IndexArray:
        seen.append(dict(problem.budgets))
        return np.full(len(problem.network.layers), len(seen) % 2, np.uint8)

    whole = given()
    assert accepted_start(whole, find, lambda _: False, [LATENCY]) is None
    assert [budgets[SIZE] for budgets in seen] == [whole.budgets[SIZE]] * TRIES
    shares = [budgets[LATENCY] / whole.budgets[LATENCY] for budgets in seen]
    assert shares == pytest.approx([STEP**n for n in range(TRIES)])


@pytest.mark.parametrize("unreachable", [True, False])
def test_where_nothing_is_found_any_more_there_is_no_start(unreachable: bool) -> None:
    calls = 0

    def find(_: Problem) -> IndexArray | None:
        nonlocal calls
        calls += 1
        if calls == 3 and unreachable:
            raise BudgetError("cannot be met")
        return None if calls == 3 else np.array([calls], np.uint8)

    assert accepted_start(given(), find, lambda _: False, [LATENCY]) is None
    assert calls == 3
