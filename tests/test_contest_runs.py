"""How `benchmarks/rivals.py` runs a contest: what it remembers, compares and times again."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import rivals
from benchmarks.contest import contest as contests
from benchmarks.contest import tasks
from benchmarks.contest.contest import Contest
from benchmarks.contest.memory import Memory, code_digest
from benchmarks.contest.tasks import OBJECTIVES, Task, digits
from costmodels.table import BoolArray, FloatArray
from quantization.bits import parse_choices
from quantization.policy import IndexArray, Policy
from search.problem import Problem

SIZE = OBJECTIVES["size"]


class Asked(Memory):
    """A memory that also counts what it had to find."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def recall(self, key: str, find: Callable[[], Any]) -> Any:
        """See `Memory.recall`."""

        def count() -> Any:
            self.found += 1
            return find()

        return super().recall(key, count)


@dataclass(frozen=True, eq=False)
class Scripted(Contest):
    """Searches return what they are told, by method; a policy of ones is above the budget."""

    told: dict[str, list[int | None]] = field(default_factory=dict)

    def search(self, method: str, seed: int, evaluations: int, start: IndexArray) -> dict[str, Any]:
        """Return the policy that has one choice everywhere, or none."""
        choice = self.told[method][seed]
        best = None if choice is None else [choice] * len(start)
        return {"best": best, "evaluations": evaluations}

    def evaluate(self, index: IndexArray) -> FloatArray:
        """Score policies."""
        return np.where(index[:, 0] == 1, -np.inf, index[:, 0] / 10)

    def right(self, row: IndexArray) -> BoolArray:
        """Classify ten images."""
        return np.arange(10) < row[0] + 4


@pytest.fixture(scope="module")
def task() -> Task:
    return digits(images=60)


def _contest(task: Task, memory: Memory) -> Contest:
    choices, network = parse_choices(SIZE.choices), task.bench.network
    sizes = task.costs(SIZE).model(SIZE.metric).table(network, choices, SIZE.metric)
    loss = np.random.default_rng(0).random((len(network.layers), len(choices)))
    free = Problem(network, choices, {SIZE.metric: sizes}, {}, loss)
    limit = task.limit(SIZE, free, SIZE.limits[0])
    return Contest(task, SIZE, replace(free, budgets={SIZE.metric: limit}), memory, "size")


def _scripted(task: Task, **told: list[int | None]) -> Scripted:
    made = _contest(task, Memory())
    return Scripted(made.task, SIZE, made.problem, made.memory, made.label, told=told)


def test_the_digest_of_code_changes_with_a_file_in_any_folder_below(tmp_path: Path) -> None:
    (tmp_path / "qat").mkdir()
    inner = tmp_path / "qat" / "rounding.py"
    inner.write_text("half = 0.5\n")
    before = code_digest(tmp_path)
    assert code_digest(tmp_path) == before
    inner.write_text("half = 0.25\n")
    code_digest.cache_clear()  # another process, later
    assert code_digest(tmp_path) != before


def test_scores_and_searches_by_other_code_are_not_taken_from_the_cache(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Asked()
    contest = _contest(task, memory)
    start = np.full(21, 0, np.uint8)

    def ask() -> int:
        before = memory.found
        contest.evaluate(start[None])
        contest.right(start)
        contest.search("greedy", 0, 1, start)
        return memory.found - before

    assert ask() >= 3
    assert ask() == 0
    (tmp_path / "quantizer.py").write_text("half = 0.5\n")
    monkeypatch.setattr(contests, "SCORING", (tmp_path,))
    assert ask() >= 3


@pytest.mark.parametrize("changed", ["loss", "table", "zero-shot", "reward"])
def test_a_search_of_another_problem_is_not_taken_from_the_cache(
    task: Task, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Asked()
    contest = _contest(task, memory)
    start, method = np.full(21, 0, np.uint8), "zero-shot" if changed == "zero-shot" else "greedy"
    loss = contest.problem.loss
    monkeypatch.setattr(Task, "loss", lambda _task, _choices, name: loss * (1 + len(name)))
    contest.search(method, 0, 1, start)
    known = memory.found
    problem = contest.problem
    if changed == "loss":
        problem = replace(problem, loss=problem.loss * 2)
    elif changed == "table":
        metric = SIZE.metric
        table = problem.tables[metric]
        problem = replace(problem, tables={metric: replace(table, constant=table.constant + 1)})
    elif changed == "zero-shot":
        monkeypatch.setattr(contests, "ZERO_SHOT", "another")
    reward = "accuracy" if changed == "reward" else contest.reward
    replace(contest, problem=problem, reward=reward).search(method, 0, 1, start)
    assert memory.found > known
    unchanged = memory.found
    replace(contest, problem=replace(problem)).search(method, 0, 1, start)
    assert memory.found == unchanged


def test_searches_maximise_accuracy_or_closeness_to_the_float_network(task: Task) -> None:
    contest = _contest(task, Memory())
    low, high = np.full(21, 0, np.uint8), np.full(21, 4, np.uint8)
    accuracy, divergence = contest.searched(low)
    assert contest.evaluate(low[None])[0] == -divergence < 0
    assert contest.evaluate(high[None])[0] > contest.evaluate(low[None])[0]
    assert replace(contest, reward="accuracy").evaluate(low[None])[0] == accuracy


def test_a_policy_above_the_budget_as_measured_counts_as_not_found(
    task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    contest = _scripted(task, **{"reinforce": [2, 2, 2], "zero-shot": [1]})
    rows = rivals.compete(contest, ["reinforce", "zero-shot"], 3, 7)
    assert list(rows) == ["reinforce"]
    assert "zero-shot: nothing found" in capsys.readouterr().out


def test_a_method_that_fails_with_one_seed_is_compared_over_the_others(task: Task) -> None:
    contest = _scripted(task, reinforce=[2, 2, 3, 2], random=[0, 1, 3, None], exact=[4])
    rows = rivals.compete(contest, ["reinforce", "random", "exact"], 4, 7)
    assert rows["random"].seeds == [0, 2]
    assert rows["exact"].seeds == [0, 1, 2, 3]
    lines = rivals.table(rows, 4).splitlines()
    assert re.search(r"random .*\+10\.00 .*2 of 4 seeds\)  found in 2 of 4 seeds$", lines[2])
    assert "of 4 seeds" not in lines[1] + lines[3]


def test_methods_without_a_seed_in_common_are_not_compared(task: Task) -> None:
    contest = _scripted(task, reinforce=[2, None], random=[None, 2])
    rows = rivals.compete(contest, ["reinforce", "random"], 2, 7)
    assert "not compared" in rivals.table(rows, 2)


def test_what_was_found_is_timed_again_beside_its_budget(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = _scripted(task, reinforce=[2, 3, 4])
    rows = rivals.compete(contest, ["reinforce"], 3, 7)
    first = task.bench.network.layer_names[0]

    def measured(_task: Task, _objective: object, policy: Policy, *, at_length: bool) -> float:
        assert at_length
        return 1e-3 * policy[first].weights / 8  # float32 4 ms; found 0.5, 0.75 and 1 ms

    monkeypatch.setattr(Task, "measured", measured)
    text = rivals.timed_again(contest, rows, 0.2)
    assert "500 µs..1.00 ms, at most 800 µs, met with 2 of 3 seeds" in text


def test_timing_at_length_is_neither_brief_nor_taken_from_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(tasks, "parse_costs", lambda _texts, context, **_: seen.append(context))
    whole = replace(digits(images=60), folder=tmp_path)
    whole.costs(OBJECTIVES["latency-whole"])
    whole.costs(OBJECTIVES["latency-whole"], at_length=True)
    assert [context.brief for context in seen] == [True, False]
    assert [context.store for context in seen] == [tmp_path / "measured.sqlite", None]


def test_without_options_every_objective_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    run = []
    monkeypatch.setattr(rivals, "TASKS", {"fashion-mobilenet": digits, "fashion-resnet": digits})
    monkeypatch.setattr(rivals, "run_task", lambda _t, chosen, *_: run.append(list(chosen)))
    monkeypatch.setattr(sys, "argv", ["rivals.py"])
    rivals.main()
    assert run == [list(OBJECTIVES)] * 2
    assert "latency-whole" in OBJECTIVES
