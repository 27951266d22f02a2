"""A search that prices each tried policy as a whole: what is above its budget so is rejected."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.table import FloatArray
from costmodels.units import Metric, Unit
from hil.calibration import FailedPolicyError
from hil.device import detect
from hil.records import Failure, FailureKind
from hil.store import Store
from quantization.bits import FLOAT32, parse_choices
from quantization.errors import BudgetError
from quantization.network import Network
from quantization.policy import PolicyBatch
from quantmeter.costs import Costs
from quantmeter.data import Data
from quantmeter.preparing import prepare
from quantmeter.scoring import Scorer, Totals, open_totals
from quantmeter.search_options import Scoring
from quantmeter.searching import SearchReport, search
from quantmeter.workbench import open_workbench
from search.budgets import parse_budgets

NETWORK = example_network()
CHOICES = parse_choices("w2a8,w4a8,w8a8,w32a32")


@pytest.fixture(scope="module")
def data() -> Data:
    shape = NETWORK.tensor_by_name[NETWORK.input_names[0]].shape[1:]
    draw = np.random.default_rng(0)
    return Data(draw.standard_normal((40, *shape)).astype(np.float32), None)


@pytest.fixture(scope="module")
def dear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in which the second half of the layers takes three times as long as by the formula.

    Uniform float costs what it did: fractions of it mean the same.
    """
    table = backend("analytical:haq").table(NETWORK, CHOICES, Metric.LATENCY)
    value = table.unary.value.copy()
    value[len(value) // 2 :, :-1] *= 3
    path = tmp_path_factory.mktemp("dear") / "T.json"
    made = replace(table, unary=replace(table.unary, value=value))
    path.write_text(made.to_json())
    return path


def run(data: Data, **changes: object) -> SearchReport:
    given = {
        "cost": ["latency=analytical:haq"],
        "budgets": ["latency=0.5x"],
        "method": "random",
        "episodes": 40,
        "choices": CHOICES,
        **changes,
    }
    return search(NETWORK, data, **given)  # type: ignore[arg-type]


def test_policies_above_their_budget_as_a_whole_are_rejected_and_recorded(
    data: Data, dear: Path, tmp_path: Path
) -> None:
    report = run(data, scoring=Scoring(totals=f"table:{dear}"), out=tmp_path)
    limit = report.summary["totals"]["limits"]["latency"]
    assert limit == pytest.approx(report.summary["budgets"]["latency"]["limit"])
    trials = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == report.result.evaluations == 40
    rejected = [trial for trial in trials if trial["rejected"]]
    assert 0 < len(rejected) < 40
    for trial in trials:
        assert trial["costs"]["latency"] <= limit
        assert trial["measured"]["latency"] > trial["costs"]["latency"]
        assert trial["rejected"] == (trial["measured"]["latency"] > limit)
        assert (trial["score"] is None) == (trial["accuracy"] is None) == trial["rejected"]
    assert report.result.log["rejected_as_measured"] == len(rejected)
    best = report.summary["best"]
    assert best["measured"]["latency"] <= limit
    assert best["measured"]["latency"] > best["costs"]["latency"]
    assert best["search_accuracy"] == max(t["score"] for t in trials if not t["rejected"])


@pytest.mark.parametrize("warm", ["greedy", "exact"])
def test_a_warm_search_starts_within_its_budget_as_a_whole_and_goes_on_from_there(
    warm: str, data: Data, dear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"budgets": ["latency=0.5x"], "warm": warm, "episodes": 12}
    totals = Scoring(totals=f"table:{dear}")
    report = run(data, scoring=totals, out=tmp_path / "whole", **given)
    lines = (tmp_path / "whole/trials.jsonl").read_text().splitlines()
    trials = [json.loads(line) for line in lines]
    starts = [trial for trial in trials if trial["origin"] == f"{warm} start"]
    assert 0 < len(starts) < len(trials)
    assert trials[: len(starts)] == starts
    assert all(trial["rejected"] for trial in starts)
    first = report.result.trials[0]
    assert (first.origin, first.rejected) == ("random start", False)
    assert len(trials) == len(starts) + report.result.evaluations
    # ended behind the first rejected start
    (tmp_path / "ended").mkdir()
    for path in (tmp_path / "whole").iterdir():
        (tmp_path / "ended" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "ended/result.json").unlink()
    (tmp_path / "ended/trials.jsonl").write_text(lines[0] + "\n")
    assert run(data, scoring=totals, out=tmp_path / "ended", **given).read_back == 1
    for name in ("trials.jsonl", "result.json"):
        assert (tmp_path / "ended" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_search_that_is_left_with_nothing_says_so(data: Data, dear: Path) -> None:
    least = r"an iterative method, .*; the least latency of a whole policy was .*s of .*s$"
    with pytest.raises(BudgetError, match=rf"what greedy found is above.*{least}"):
        run(
            data,
            scoring=Scoring(totals=f"table:{dear}"),
            method="greedy",
            budgets=["latency=0.25x"],
        )


def test_what_the_refit_found_is_kept_where_the_method_finds_nothing(
    data: Data, dear: Path
) -> None:
    given = {"method": "greedy", "budgets": ["latency=0.45x"], "episodes": 31}
    report = run(data, scoring=Scoring(totals=f"table:{dear}", refit=30), **given)
    best = report.summary["best"]
    assert best["measured"]["latency"] <= report.summary["totals"]["limits"]["latency"]
    assert report.result.trials[-1].rejected, "what greedy found"


def test_a_search_that_goes_on_keeps_its_limits_though_float_is_timed_anew(
    data: Data, dear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"scoring": Scoring(totals=f"table:{dear}")}
    run(data, out=tmp_path / "whole", **options)
    left, original = 9, Totals.costs

    def costs(totals: Totals, *given: object) -> dict[Metric, float] | None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(totals, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Totals, "costs", costs)
        with pytest.raises(KeyboardInterrupt):
            run(data, out=tmp_path / "ended", **options)

    def faster(*given: object) -> Totals:
        made = open_totals(*given)  # type: ignore[arg-type]
        return replace(made, limits={m: 0.8 * limit for m, limit in made.limits.items()})

    monkeypatch.setattr("quantmeter.searching.open_totals", faster)
    assert run(data, out=tmp_path / "ended", **options).read_back == 9
    for name in ("request.json", "trials.jsonl", "result.json"):
        ended, whole = ((tmp_path / which / name).read_bytes() for which in ("ended", "whole"))
        assert ended == whole, name


def test_absolute_budgets_hold_for_totals_in_the_same_unit(data: Data, dear: Path) -> None:
    requests = parse_budgets(["latency=1ms"])
    spec = f"table:{dear}"
    totals = open_totals(spec, BackendContext(), requests, NETWORK)
    assert totals.limits == {Metric.LATENCY: 1e-3}
    given = spec, BackendContext(), parse_budgets(["size=1MB"]), NETWORK
    with pytest.raises(BudgetError, match="prices latency, which no budget limits: add "):
        open_totals(*given)
    with pytest.raises(BudgetError, match="cannot be compared with totals in s;"):
        open_totals(spec, BackendContext(), parse_budgets(["latency=1Mcycles"]), NETWORK)
    with pytest.raises(BackendError, match="did you mean 'ort'"):
        open_totals("orr", BackendContext(), requests, NETWORK)
    assert requests[0].unit is Unit.SECONDS


def test_totals_in_cycles_are_told_in_cycles(data: Data, tmp_path: Path) -> None:
    table = backend("analytical:haq").table(NETWORK, CHOICES, Metric.LATENCY)
    value = 3e9 * table.unary.value
    path = tmp_path / "C.json"
    made = replace(table, unit=Unit.CYCLES, unary=replace(table.unary, value=value))
    path.write_text(made.to_json())
    report = run(data, episodes=5, scoring=Scoring(totals=f"table:{path}"))
    totals = report.summary["totals"]
    assert totals["units"] == {"latency": "cycles"}
    [cost] = report.found.measured.values()
    assert cost == pytest.approx(3e9 * report.found.costs[Metric.LATENCY])
    bench = open_workbench(NETWORK, data)
    given = f"table:{path}", BackendContext(), parse_budgets(["latency=0.5x"]), NETWORK
    prepared = prepare(bench, Costs({Metric.LATENCY: backend("analytical:haq")}), (), CHOICES)
    scorer = Scorer(prepared, "proxy", open_totals(*given))
    assert scorer.closest() == "", "nothing was measured"
    scorer.of(np.full(len(NETWORK.layers), len(CHOICES) - 1, np.uint8))
    assert scorer.closest().endswith("cycles")


class Crashing:
    """Prices nothing: every policy crashes."""

    name = "crashing"
    metrics = frozenset({Metric.LATENCY})

    def total(self, _network: Network, _policies: PolicyBatch, _metric: Metric, /) -> FloatArray:
        raise FailedPolicyError(Failure(FailureKind.KILLED, "SIGSEGV"))


def test_a_policy_that_cannot_be_timed_is_rejected(data: Data) -> None:
    haq = backend("analytical:haq")
    bench = open_workbench(NETWORK, data)
    prepared = prepare(bench, Costs({Metric.LATENCY: haq}), (), CHOICES)
    totals = Totals({Metric.LATENCY: Crashing()}, {})  # type: ignore[dict-item]
    scorer = Scorer(prepared, "accuracy", totals)
    assert scorer(prepared.problem.lowest_loss).tolist() == [-np.inf]
    assert scorer.of(prepared.problem.lowest_loss[0]).measured == {}
    assert prepared.oracle.evaluations == 0


def test_every_policy_of_a_search_is_timed_briefly_and_each_kernel_pattern_once(
    data: Data, tmp_path: Path
) -> None:
    store = tmp_path / "kept.sqlite"
    report = run(
        data, scoring=Scoring(totals="ort"), budgets=["latency=100s"], episodes=12, store=store
    )
    measured = report.summary["best"]["measured"]
    assert 0 < measured["latency"] < 100
    assert report.summary["totals"]["backends"] == {"latency": "ort"}
    with Store(store, detect()) as kept:
        entries = list(kept.entries())
    floating = [
        tuple(CHOICES[int(i)] == FLOAT32 for i in trial.index) for trial in report.result.trials
    ]
    allfloat = (True,) * len(NETWORK.layers)
    assert len(entries) == len({*floating, allfloat}) < 13
    assert {entry.subject.content["timing"]["blocks"] for entry in entries} == {5}
