"""What budgets mean to a search, and agents that outlive it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.sketch import example_network
from costmodels.units import Metric
from quantization.bits import parse_choices
from quantization.errors import BudgetError, PolicyError, QuantmeterError
from quantmeter.data import Data
from quantmeter.search_options import CONSTRAINTS, Objective, Scoring
from quantmeter.searching import SearchReport, search
from search.slope import measured_slope

NETWORK = example_network()


@pytest.fixture(scope="module")
def data() -> Data:
    shape = NETWORK.tensor_by_name[NETWORK.input_names[0]].shape[1:]
    draw = np.random.default_rng(0)
    return Data(draw.standard_normal((60, *shape)).astype(np.float32), None)


def run(data: Data, **changes: object) -> SearchReport:
    given = {
        "cost": ["latency=analytical:haq"],
        "budgets": ["latency=0.5x"],
        "method": "reinforce",
        "episodes": 20,
        "choices": parse_choices("w2a8,w4a8,w8a8,w32a32"),
        **changes,
    }
    return search(NETWORK, data, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("constraint", [c for c in CONSTRAINTS if c != "weighted"])
def test_whatever_the_constraint_the_best_policy_is_within_the_budgets(
    constraint: str, data: Data
) -> None:
    report = run(data, objective=Objective(constraint))
    assert report.found.feasible
    limit = report.summary["budgets"]["latency"]["limit"]
    costs = [trial.costs[Metric.LATENCY] for trial in report.result.trials]
    assert (max(costs) > limit * (1 + 1e-9)) == (constraint == "soft")


def test_weighted_costs_count_beside_accuracy(data: Data, tmp_path: Path) -> None:
    objective = Objective("weighted", ("latency=0.5",))
    report = run(data, method="random", objective=objective, out=tmp_path)
    limit = report.summary["budgets"]["latency"]["limit"]
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    for line in lines:
        expected = line["accuracy"] - 0.5 * line["costs"]["latency"] / limit
        assert line["score"] == pytest.approx(expected)
    best = max(lines, key=lambda line: line["score"])
    assert report.found.search_accuracy == best["accuracy"]
    slope = report.explanation.certificate.slope
    assert slope is not None
    plain = measured_slope(
        [
            replace(t, score=line["accuracy"])
            for t, line in zip(report.result.trials, lines, strict=True)
        ]
    )
    assert slope == plain, "of accuracies, not of scores"


def test_an_agent_is_kept_and_continued(data: Data, tmp_path: Path) -> None:
    first = run(data, out=tmp_path / "first")
    again = run(data, out=tmp_path / "again")
    kept = (tmp_path / "first/agent.npz").read_bytes()
    assert kept == (tmp_path / "again/agent.npz").read_bytes()
    indices = [[t.index.tolist() for t in r.result.trials] for r in (first, again)]
    assert indices[0] == indices[1]
    later = run(data, init_from=[tmp_path / "first", tmp_path / "again"], out=tmp_path / "later")
    assert [t.index.tolist() for t in later.result.trials] != indices[0]
    asked = json.loads((tmp_path / "later/request.json").read_text())["request"]["init_from"]
    assert len(set(asked)) == 1
    run(data, method="random", out=tmp_path / "first", anew=True)
    assert not (tmp_path / "first/agent.npz").exists(), "of an earlier run"


def test_knobs_reach_the_agent_and_belong_to_what_a_run_is_asked_for(
    data: Data, tmp_path: Path
) -> None:
    knobs = ["hidden=8", "rollouts=5"]
    small = run(data, agent=knobs, out=tmp_path / "small")
    assert small.result.trials[5].origin == "reinforce update 1"
    asked = json.loads((tmp_path / "small/request.json").read_text())["request"]
    assert asked["agent"] == {"hidden": 8, "rollouts": 5}
    assert len((tmp_path / "small/agent.npz").read_bytes()) < 100_000
    with pytest.raises(QuantmeterError, match="random has no agent: leave out --agent"):
        run(data, method="random", agent=knobs)


def test_an_agent_is_not_replaced_by_the_run_that_continues_it(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(data, out=tmp_path / "run")
    kept = (tmp_path / "run/agent.npz").read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(QuantmeterError, match="--init-from run is also the folder of this run"):
        run(data, init_from=["run"], out=tmp_path / "run")
    assert (tmp_path / "run/agent.npz").read_bytes() == kept


def test_a_front_under_soft_budgets_keeps_the_other_budgets(data: Data) -> None:
    report = run(
        data,
        budgets=["latency=0.5x", "size=0.9x"],
        objective=Objective("soft"),
        warm="greedy",
        front="latency=6",
        episodes=40,
    )
    limit = report.summary["budgets"]["size"]["limit"] * (1 + 1e-9)
    assert any(trial.costs[Metric.SIZE] > limit for trial in report.result.trials)
    front = report.explanation.front
    assert front is not None
    tried = [point.trial for point in front.points if point.trial is not None]
    assert tried
    assert all(trial.costs[Metric.SIZE] <= limit for trial in tried)


def test_contradictions_are_one_clear_line(data: Data, tmp_path: Path) -> None:
    for options, message in (
        ({"constraint": "sofd"}, "no constraint 'sofd'.*'soft'"),
        ({"constraint": "weighted"}, "needs weights: --weight"),
        ({"weights": ("latency=1",)}, "weights need --constraint weighted"),
        ({"constraint": "weighted", "weights": ("latency=-1",)}, "is no weight; write"),
        ({"constraint": "weighted", "weights": ("speed=1",)}, "is no weight; write"),
        ({"constraint": "weighted", "weights": ("size=1", "size=2")}, "two weights for size"),
    ):
        with pytest.raises(QuantmeterError, match=message):
            Objective(**options)  # type: ignore[arg-type]
    soft = Objective("soft")
    with pytest.raises(QuantmeterError, match="soft is the agent's: take --method reinforce"):
        run(data, method="random", objective=soft)
    with pytest.raises(QuantmeterError, match="proposes no policies: leave out --constraint"):
        run(data, method="exact", objective=Objective("reject"))
    with pytest.raises(QuantmeterError, match="random has no agent: leave out --init-from"):
        run(data, method="random", init_from=[tmp_path])
    with pytest.raises(PolicyError, match="there is no saved agent"):
        run(data, init_from=[tmp_path])
    for constraint, weights in (("soft", ()), ("weighted", ("latency=1",))):
        with pytest.raises(QuantmeterError, match=f"leave out --race or .* {constraint}"):
            run(data, objective=Objective(constraint, weights), scoring=Scoring(race=2))
    size = Objective("weighted", ("size=1",))
    with pytest.raises(BudgetError, match="a weight of size needs a budget for size"):
        run(data, objective=size)
