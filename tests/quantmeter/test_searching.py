"""The second verb, on the digits network with few images and an analytical latency."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.registry import backend
from costmodels.table import CostTable
from costmodels.units import Metric, Unit
from quantization.bits import DEFAULT_CHOICES, FLOAT32, BitWidths, parse_choices
from quantization.errors import BudgetError, DataError, PolicyError, QuantmeterError
from quantization.policy import Policy, PolicyBatch
from quantmeter.costs import parse_costs
from quantmeter.data import Data
from quantmeter.search_options import Scoring
from quantmeter.searching import SearchReport, search
from quantmeter.workbench import Workbench, open_workbench
from search.methods import METHODS
from search.oracle import Interval
from tests.networks import Subject

BUDGETS = ("latency=0.7x", "size=90kB")
EPISODES = 12


@pytest.fixture(scope="module")
def data(digits: Subject) -> Data:
    return Data(digits.images[:60], digits.labels[:60])


@pytest.fixture(scope="module")
def run(digits: Subject, data: Data, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Searches by method, each done once; the run folder goes by the method's name."""
    home = tmp_path_factory.mktemp("runs")
    known: dict[str, SearchReport] = {}

    def report(method: str) -> tuple[SearchReport, Path]:
        if method not in known:
            known[method] = search(
                digits.network,
                data,
                cost=["analytical:haq"],
                budgets=BUDGETS,
                method=method,
                episodes=EPISODES,
                choices=parse_choices("w2a8,w4a8,w8a8,w32a32"),
                store=home / "kept.sqlite",  # sensitivities are measured once
                out=home / method,
            )
        return known[method], home / method

    return report


@pytest.mark.parametrize("method", METHODS)
def test_every_method_respects_the_budgets(method: str, run, digits: Subject) -> None:  # type: ignore[no-untyped-def]
    report, _ = run(method)
    costs = parse_costs(["analytical:haq"], BackendContext())
    network = digits.network
    [latency] = costs.total(network, [report.policy], Metric.LATENCY)
    assert latency <= 0.7 * costs.float_total(network, Metric.LATENCY) * (1 + 1e-9)
    [size] = costs.total(network, [report.policy], Metric.SIZE)
    assert size <= 90_000
    assert report.found.feasible
    assert report.found.costs[Metric.SIZE] == size
    assert report.result.evaluations <= EPISODES


@pytest.mark.parametrize("method", METHODS)
def test_the_run_folder_holds_what_was_found(method: str, run, digits: Subject) -> None:  # type: ignore[no-untyped-def]
    report, folder = run(method)
    assert sorted(p.name for p in folder.iterdir() if p.name != "agent.npz") == [
        "energy.table.json",
        "latency.table.json",
        "policy.json",
        "request.json",
        "result.json",
        "trials.jsonl",
    ]
    policy = Policy.read(folder / "policy.json")
    policy.check(digits.network)
    assert dict(policy.layers) == dict(report.policy.layers)
    result = json.loads((folder / "result.json").read_text())
    assert result == json.loads(json.dumps(report.summary))
    assert result["best"]["policy"] == json.loads((folder / "policy.json").read_text())
    assert result["network"] == digits.network.digest
    assert set(result["budgets"]) == {"latency", "size"}
    trials = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert len(trials) == result["evaluations"]
    if method == "zero-shot":  # it tries nothing; what it finds is scored for the report alone
        assert trials == []
        return
    best = max(trials, key=lambda trial: trial["score"])
    assert result["best"]["search_accuracy"] == best["score"]
    assert {n: str(b) for n, b in policy.layers.items()} in [t["layers"] for t in trials]
    for trial in trials:
        assert trial["costs"]["size"] <= 90_000 * (1 + 1e-9)
        assert trial["costs"]["latency"] <= result["budgets"]["latency"]["limit"] * (1 + 1e-9)


def test_no_method_beats_the_exact_optimum_of_the_proxy_loss(run) -> None:  # type: ignore[no-untyped-def]
    reports = [run(method)[0] for method in METHODS if method != "zero-shot"]  # its own proxy
    assert len({report.optimum.loss for report in reports}) == 1
    for report in reports:
        assert report.found.loss >= report.optimum.loss * (1 - 1e-9)
    exact = run("exact")[0]
    assert exact.found.gap == pytest.approx(0, abs=1e-9)
    assert exact.summary["certificate"]["proven"] is True


@pytest.mark.parametrize("method", ["reinforce", "random"])
def test_the_same_seed_finds_the_same_policy(
    method: str,
    digits: Subject,
    data: Data,
    run,  # type: ignore[no-untyped-def]
) -> None:
    first, _ = run(method)
    again = search(
        digits.network,
        data,
        cost=["analytical:haq"],
        budgets=BUDGETS,
        method=method,
        episodes=EPISODES,
        choices=parse_choices("w2a8,w4a8,w8a8,w32a32"),
    )
    assert again.policy == first.policy
    assert [t.index.tolist() for t in again.result.trials] == [
        t.index.tolist() for t in first.result.trials
    ]
    assert again.summary["split"] == first.summary["split"]


@pytest.fixture(scope="module")
def small_data(data: Data) -> Data:
    assert data.y is not None
    return Data(data.x[:20], data.y[:20])


def _quick(digits: Subject, data: Data, **given: object) -> SearchReport:
    options = {"method": "exact", "choices": parse_choices("w4a8,w8a8,w32a32"), **given}
    return search(digits.network, data, **options)  # type: ignore[arg-type]


def _table(digits: Subject, **changes: object) -> CostTable:
    table = backend("analytical:haq").table(digits.network, DEFAULT_CHOICES, Metric.LATENCY)
    return replace(table, **changes)  # type: ignore[arg-type]


def test_a_relative_latency_refers_to_float_in_the_table(
    digits: Subject, small_data: Data, tmp_path: Path
) -> None:
    table = _table(digits, constant=1.0)
    (tmp_path / "t.json").write_text(table.to_json())
    report = _quick(
        digits, small_data, cost=[f"table:{tmp_path / 't.json'}"], budgets=["latency=0.9999999x"]
    )
    floats = PolicyBatch.of(digits.network, [Policy.uniform(digits.network, FLOAT32)])
    [base] = total(table, digits.network, floats)
    budget = report.summary["budgets"]["latency"]
    assert budget["limit"] == pytest.approx(0.9999999 * base, rel=1e-12)
    assert budget["unit"] == "s"
    assert report.summary["float"]["latency"] == pytest.approx(base, rel=1e-12)


def test_without_a_budget_nothing_needs_to_be_lost(digits: Subject, small_data: Data) -> None:
    report = _quick(digits, small_data)
    assert {report.policy[name] for name in digits.network.layer_names} == {FLOAT32}
    assert report.found.loss == 0
    assert report.found.gap is None


def test_without_labels_accuracy_is_agreement(digits: Subject, small_data: Data) -> None:
    report = _quick(digits, Data(small_data.x, None))
    tested = len(report.summary["split"]["test"])
    assert report.found.search_accuracy == 1.0
    assert report.found.test_accuracy == Interval.wilson(tested, tested)


def test_a_policy_found_with_other_ranges_carries_them_to_export(
    digits: Subject, small_data: Data, tmp_path: Path
) -> None:
    report = _quick(digits, small_data, budgets=["size=200kB"], ranges="mse", out=tmp_path)
    policy = Policy.read(tmp_path / "policy.json")
    assert policy == report.policy
    assert policy.options == {"ranges": "mse"}
    made = {m: open_workbench(digits.network, small_data, ranges=m) for m in ("minmax", "mse")}
    plain = Policy(policy.layers)
    exported = made["minmax"].export(policy)
    assert exported == made["mse"].export(policy) == made["mse"].export(plain)
    assert exported != made["minmax"].export(plain)


def test_a_policy_found_with_the_best_ranges_carries_their_table_to_export(
    small: Subject, tmp_path: Path
) -> None:
    data = Data(small.images[:60], None)
    report = _quick(small, data, budgets=["size=0.5x"], ranges="best", out=tmp_path)
    policy = Policy.read(tmp_path / "policy.json")
    assert policy == report.policy
    assert isinstance(policy.options["ranges"], dict)
    exported = open_workbench(small.network, data).export(policy)
    assert exported != open_workbench(small.network, data).export(Policy(policy.layers))
    again = _quick(small, data, budgets=["size=0.5x"], ranges="best")
    assert again.policy == policy


def test_tied_layers_get_equal_bits(digits: Subject, small_data: Data) -> None:
    names = digits.network.layer_names
    tie = (names[2], names[-1], names[5])
    report = _quick(digits, small_data, budgets=["size=170kB"], ties=[tie])
    assert len({report.policy[name] for name in tie}) == 1
    with pytest.raises(PolicyError, match="no layer 'nothere'"):
        _quick(digits, small_data, ties=[("nothere", names[0])])


def test_choices_that_cannot_run_are_never_chosen(digits: Subject, small_data: Data) -> None:
    choices = parse_choices("w4a4,w8a8,fp16,w32a32,w16a16")
    report = _quick(digits, small_data, budgets=["size=300kB"], choices=choices)
    chosen = {report.policy[name] for name in digits.network.layer_names}
    assert chosen <= {BitWidths(8, 8), FLOAT32}
    assert BitWidths(8, 8) in chosen


def test_an_accelerator_constrains_the_search_to_its_widths(
    digits: Subject, small_data: Data
) -> None:
    choices = parse_choices("w2a2,w4a8,w6a6,w8a8")
    options = {"choices": choices, "budgets": ["energy=10J"], "exported": False}
    wide = _quick(digits, small_data, cost=["energy=analytical:bit-fusion"], **options)
    only = _quick(digits, small_data, cost=["energy=analytical:systolic-int8"], **options)
    names = digits.network.layer_names
    assert {only.policy[name] for name in names} == {BitWidths(8, 8)}
    assert {wide.policy[name] for name in names} <= set(choices)


def test_the_minimum_reachable_is_named_where_a_budget_is_not(
    digits: Subject, small_data: Data
) -> None:
    with pytest.raises(BudgetError, match=r"size.*(minimum|lowest|least|at best)") as caught:
        _quick(digits, small_data, budgets=["size=10kB"])
    assert "kB" in str(caught.value)
    with pytest.raises(BudgetError, match="latency"):
        _quick(digits, small_data, cost=["analytical:haq"], budgets=["latency=0.0001x"])


def test_a_table_in_cycles_takes_no_budget_in_seconds(
    digits: Subject, small_data: Data, tmp_path: Path
) -> None:
    (tmp_path / "t.json").write_text(_table(digits, unit=Unit.CYCLES).to_json())
    cost = [f"table:{tmp_path / 't.json'}"]
    with pytest.raises(BudgetError, match=r"cannot be compared with a table in cycles"):
        _quick(digits, small_data, cost=cost, budgets=["latency=8ms"])
    report = _quick(digits, small_data, cost=cost, budgets=["latency=0.8x"])
    assert report.summary["budgets"]["latency"]["unit"] == "cycles"


def test_a_budget_that_nothing_prices_is_an_error(digits: Subject, small_data: Data) -> None:
    with pytest.raises(BackendError, match="nothing prices latency"):
        _quick(digits, small_data, budgets=["latency=0.5x"])


def test_no_choice_left_is_an_error(digits: Subject, small_data: Data) -> None:
    with pytest.raises(UnsupportedChoiceError, match="no choice is supported"):
        _quick(digits, small_data, choices=parse_choices("w4a4,fp16"))


def test_a_search_that_replaces_another_replaces_every_file_of_it(
    digits: Subject, small_data: Data, tmp_path: Path
) -> None:
    _quick(digits, small_data, out=tmp_path)
    second = _quick(digits, small_data, budgets=["size=170kB"], out=tmp_path, anew=True)
    assert Policy.read(tmp_path / "policy.json") == second.policy
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["budgets"]["size"]["limit"] == 170_000
    trials = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert len(trials) == second.result.evaluations


def test_an_interrupted_search_leaves_nothing_of_an_earlier_one(
    digits: Subject, small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(digits, small_data, out=tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantmeter.searching.run_method", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _quick(digits, small_data, budgets=["size=170kB"], out=tmp_path, anew=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["request.json", "trials.jsonl"]
    assert (tmp_path / "trials.jsonl").read_text() == ""


def test_a_warm_reinforce_starts_from_what_greedy_finds(digits: Subject, small_data: Data) -> None:
    given = {"budgets": ["size=170kB"], "scoring": Scoring("proxy"), "episodes": 10}
    greedy = _quick(digits, small_data, method="greedy", **given)
    warm = _quick(digits, small_data, method="reinforce", warm="greedy", **given)
    assert warm.found.loss <= greedy.found.loss + 1e-12


def test_wrong_arguments_are_refused_before_anything_is_written(
    digits: Subject, small_data: Data, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(QuantmeterError, match=r"no method 'reinforced'.*did you mean 'reinforce'"):
        _quick(digits, small_data, method="reinforced", out=out)
    with pytest.raises(BudgetError, match="is no budget"):
        _quick(digits, small_data, budgets=["size"], out=out)
    with pytest.raises(QuantmeterError, match="no reward 'luck'"):
        _quick(digits, small_data, scoring=Scoring("luck"), out=out)
    with pytest.raises(DataError, match="no such file"):
        search(digits.network, tmp_path / "absent.npz", out=out)
    assert not list(tmp_path.rglob("*.json*"))


def test_the_summary_holds_sensitivities_of_every_layer_and_choice(run, digits: Subject) -> None:  # type: ignore[no-untyped-def]
    report, _ = run("exact")
    found = report.summary["sensitivity"]
    assert list(found) == list(digits.network.layer_names)
    for entry in found.values():
        assert list(entry) == ["w2a8", "w4a8", "w8a8", "w32a32"]
        assert entry["w32a32"] == {"kl": 0.0, "accuracy_drop": 0.0, "proxy_loss": 0.0}
        assert all(np.isfinite(v) for cell in entry.values() for v in cell.values())


def test_a_workbench_is_what_a_search_stands_on(digits: Subject, data: Data) -> None:
    bench = open_workbench(digits.network, data)
    assert isinstance(bench, Workbench)
    assert bench.split is not None
    assert len(bench.split.test) > len(bench.split.ranges)
