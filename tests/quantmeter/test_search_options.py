"""The knobs of a search: how it scores, starts, races, and what it tells beside the best policy."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.table import FloatArray
from costmodels.units import Metric
from quantization.bits import BitWidths, parse_choices
from quantization.errors import PolicyError, QuantmeterError
from quantization.policy import Policy, PolicyBatch
from quantmeter.cli import build_parser
from quantmeter.commands import search_report
from quantmeter.costs import Costs
from quantmeter.data import Data
from quantmeter.explaining import Explanation, explain
from quantmeter.preparing import prepare
from quantmeter.runs import describe
from quantmeter.scoring import Score
from quantmeter.search_options import STARTS, Scoring, check_start, parse_front
from quantmeter.searching import SearchReport, search
from quantmeter.workbench import open_workbench
from search.exact import UnsolvedError, solve
from search.methods import METHODS
from search.oracle import PostTrainingOracle
from search.racing import RacingOracle
from search.searcher import SearchResult
from search.sensitivity import SENSITIVITIES

NETWORK = example_network()
CHOICES = parse_choices("w2a8,w3a8,w4a8,w8a8,w32a32")


@pytest.fixture(scope="module")
def data() -> Data:
    shape = NETWORK.tensor_by_name[NETWORK.input_names[0]].shape[1:]
    draw = np.random.default_rng(0)
    return Data(draw.standard_normal((200, *shape)).astype(np.float32), None)


def run(data: Data, **changes: object) -> SearchReport:
    given = {
        "cost": ["latency=analytical:haq"],
        "budgets": ["latency=0.5x"],
        "method": "random",
        "episodes": 15,
        "choices": CHOICES,
        **changes,
    }
    return search(NETWORK, data, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cross-entropy", "output-mse"])
def test_the_proxy_loss_sums_up_the_sensitivity_that_is_named(name: str, data: Data) -> None:
    report = run(data, method="exact", scoring=Scoring(sensitivity=name))
    assert report.summary["proxy"] == name
    cells = report.summary["sensitivity"]
    chosen = {layer: str(report.policy[layer]) for layer in NETWORK.layer_names}
    summed = sum(cells[layer][bits]["proxy_loss"] for layer, bits in chosen.items())
    assert report.found.loss == pytest.approx(summed)
    assert all("kl" in cell for layer in cells.values() for cell in layer.values())
    assert any(
        cell["kl"] != cell["proxy_loss"] for layer in cells.values() for cell in layer.values()
    )


def test_sensitivities_are_kept_beside_the_store_and_read_back(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"method": "exact", "store": tmp_path / "kept.sqlite"}
    first = run(data, **given)
    assert len(list((tmp_path / "kept.sensitivities").iterdir())) == 2

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("quantization.simulation.Simulation.sweep", fail)
    assert run(data, **given).summary["sensitivity"] == first.summary["sensitivity"]


@pytest.mark.parametrize("warm", STARTS)
def test_a_warm_search_tries_the_named_solution_of_the_proxy_first(warm: str, data: Data) -> None:
    alone = run(data, method=warm)
    report = run(data, warm=warm)
    first = report.result.trials[0].index
    assert first.tolist() == alone.result.trials[0].index.tolist()


def test_a_race_finds_as_good_a_policy_on_fewer_images(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[RacingOracle] = []
    original = RacingOracle.__init__

    def keep(oracle: RacingOracle, *given: object, **named: object) -> None:
        made.append(oracle)
        original(oracle, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(RacingOracle, "__init__", keep)
    whole = run(data, episodes=40)
    report = run(data, episodes=40, scoring=Scoring(race=1), out=tmp_path)
    assert report.policy == whole.policy
    assert report.found.search_accuracy == whole.found.search_accuracy
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    abandoned = [line for line in lines if line.get("abandoned")]
    assert len(abandoned) == made[0].abandoned > 0
    assert made[0].images_run < 40 * made[0].count
    assert all(line["score"] < report.found.search_accuracy for line in abandoned)


def test_estimates_of_abandoned_policies_are_told_to_no_fit(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[float] = []
    explained: list[float] = []

    def keep_fitted(loss: FloatArray, _index: object, scores: FloatArray) -> FloatArray:
        fitted.extend(scores.tolist())
        return loss

    def keep_explained(*given: object, **named: object) -> Explanation:
        assert isinstance(given[2], SearchResult)
        explained.extend(trial.score for trial in given[2].trials)
        return explain(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr("quantmeter.refitting.refit", keep_fitted)
    monkeypatch.setattr("quantmeter.searching.explain", keep_explained)
    report = run(data, episodes=60, scoring=Scoring(race=10, refit=40), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert any(line.get("abandoned") for line in lines[:40])
    assert any(line.get("abandoned") for line in lines[40:])
    assert fitted == [line["score"] for line in lines[:40] if not line.get("abandoned")]
    assert explained == [line["score"] for line in lines if not line.get("abandoned")]
    assert report.summary["proxy"] == "kl", "nothing was fitted"
    assert report.result.log["refitted_to"] == 0


def test_the_accuracy_of_an_abandoned_policy_is_found_out(data: Data) -> None:
    costs = Costs({Metric.LATENCY: backend("analytical:haq")})
    choices = parse_choices("w2a8,w32a32")
    prepared = prepare(open_workbench(NETWORK, data), costs, (), choices)
    optimum = solve(prepared.problem)
    given = prepared, "one", optimum.index, optimum
    estimate = Score(0.25, 0.25, abandoned=True)
    exact = prepared.oracle.score(prepared.policy(optimum.index))
    assert exact != 0.25
    assert describe(*given, score=estimate).search_accuracy == exact
    assert describe(*given, score=Score(0.25, 0.25)).search_accuracy == 0.25


def test_a_front_that_cannot_be_solved_in_time_does_not_lose_the_search(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        raise UnsolvedError("no policy was found within 60 s")

    monkeypatch.setattr("quantmeter.explaining.proxy_front", late)
    report = run(data, front="latency=4", out=tmp_path)
    assert report.explanation.front is None
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["front"], told["unsolved"]) == (None, "no policy was found within 60 s")


def test_the_policy_is_written_before_it_is_explained(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("quantmeter.searching.explain", fail)
        with pytest.raises(MemoryError):
            run(data, out=tmp_path)
    assert not (tmp_path / "result.json").exists()
    written = Policy.read(tmp_path / "policy.json")
    report = run(data, out=tmp_path)
    assert report.read_back == 15
    assert report.policy == written


@pytest.mark.parametrize(
    ("words", "cuda"),
    [
        ("--cost ort:cuda", True),
        ("--cost latency=ort:cuda", True),
        ("--cost analytical:haq --totals ort:cuda", True),
        ("--cost ort", False),
    ],
)
def test_the_command_that_measures_names_the_device(words: str, cuda: bool) -> None:
    line = f"search M.onnx --data D.npz --seed 3 {words}"
    told = search_report.bench_command(build_parser().parse_args(line.split()))
    assert told.startswith("quantmeter bench M.onnx runs/search/policy.json --data D.npz --seed 3 ")
    assert ("--device cuda" in told) == cuda


def test_an_ended_race_goes_on_to_the_same_end(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"episodes": 40, "scoring": Scoring(race=2)}
    run(data, out=tmp_path / "whole", **options)
    left = 17
    original = RacingOracle.score

    def score(oracle: RacingOracle, policy: Policy) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(oracle, policy)

    with monkeypatch.context() as patch:
        patch.setattr(RacingOracle, "score", score)
        with pytest.raises(KeyboardInterrupt):
            run(data, out=tmp_path / "ended", **options)
    assert run(data, out=tmp_path / "ended", **options).read_back == 17
    for name in ("trials.jsonl", "result.json", "policy.json"):
        ended, whole = ((tmp_path / which / name).read_bytes() for which in ("ended", "whole"))
        assert ended == whole, name


def test_divergence_is_maximised_downwards_and_accuracies_are_told_with_it(
    data: Data, tmp_path: Path
) -> None:
    report = run(data, scoring=Scoring("kl"), episodes=30, front="latency=3", out=tmp_path)
    assert report.summary["reward"] == "kl"
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    scores = [line["score"] for line in lines]
    assert len(set(scores)) > 10
    assert max(scores) < 0
    best = lines[int(np.argmax(scores))]
    assert {name: str(bits) for name, bits in report.policy.layers.items()} == best["layers"]
    assert report.found.search_accuracy == best["accuracy"]
    of_accuracies = run(data, episodes=30, front="latency=3").explanation.certificate.slope
    assert report.explanation.certificate.slope == of_accuracies, "the same policies were tried"
    assert 0 < report.summary["front"]["hypervolume"] < 1, "over accuracy"


def test_divergences_are_read_back_and_what_answers_no_numbers_is_rejected(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    whole = run(data, scoring=Scoring("kl"))
    divergence = PostTrainingOracle.divergence
    asked: list[float] = []

    def told(self: PostTrainingOracle, policies: PolicyBatch) -> FloatArray:
        asked.append(float(divergence(self, policies)[0]))
        return np.array([np.nan if len(asked) == 1 else asked[-1]])

    monkeypatch.setattr(PostTrainingOracle, "divergence", told)
    with monkeypatch.context() as patch:
        patch.setattr("quantmeter.searching.explain", fail)
        with pytest.raises(MemoryError):
            run(data, scoring=Scoring("kl"), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [line["rejected"] for line in lines] == [True] + [False] * 14
    assert [line["divergence"] for line in lines[1:]] == asked[1:]
    again = run(data, scoring=Scoring("kl"), out=tmp_path)
    assert again.read_back == len(asked) == 15, "nothing is scored again"
    assert again.found.divergence == min(asked[1:])
    assert whole.found.divergence == min(asked)


@pytest.mark.parametrize(
    ("scoring", "said"),
    [({"race": 5}, "leave out --race or --reward kl"), ({"oracle": "qat"}, "--reward kl")],
)
def test_what_divergence_cannot_be_combined_with_is_told(
    scoring: dict[str, Any], said: str
) -> None:
    with pytest.raises(QuantmeterError, match=said):
        Scoring("kl", **scoring)


def test_a_front_is_told_and_written_a_policy_for_each_budget(data: Data, tmp_path: Path) -> None:
    report = run(data, budgets=[], front="latency=4", out=tmp_path, episodes=30)
    front = report.explanation.front
    assert front is not None
    assert report.summary["front"]["metric"] == "latency"
    points = report.summary["front"]["points"]
    assert 2 <= len(points) <= 4
    files = sorted(tmp_path.glob("front-*.policy.json"))
    assert [path.name for path in files] == [
        f"front-{i + 1}.policy.json" for i in range(len(points))
    ]
    budgets = [point["budget"] for point in points]
    assert budgets == sorted(budgets)
    for point, path in zip(points, files, strict=True):
        written = {name: str(bits) for name, bits in Policy.read(path).layers.items()}
        tried = point["best_trial"]
        wins = tried is not None and tried["score"] > point["score"]
        assert written == (tried["layers"] if wins else point["layers"])
        if tried is not None:
            assert tried["costs"]["latency"] <= point["budget"] * (1 + 1e-9)
    assert any(point["best_trial"] for point in points)
    share = report.summary["front"]["hypervolume"]
    reference = report.summary["float"]["latency"]
    known = [(t.costs[Metric.LATENCY], t.score) for t in report.result.trials]
    grid = np.linspace(0, reference, 20001)[1:]
    best = [max((s for cost, s in known if cost <= limit), default=0.0) for limit in grid]
    assert share == pytest.approx(np.mean(best), abs=1e-3)
    run(data, out=tmp_path, anew=True)
    assert not list(tmp_path.glob("front-*")), "of an earlier run"


@pytest.mark.parametrize("reward", ["accuracy", "proxy"])
def test_no_policy_of_a_front_scores_less_than_the_optimum_of_the_proxy(
    reward: str, data: Data
) -> None:
    report = run(data, budgets=["latency=0.4x"], front="latency=5", scoring=Scoring(reward))
    front, limit = report.explanation.front, report.summary["budgets"]["latency"]["limit"]
    assert front is not None
    assert any(point.budget > limit for point in front.points), "the search had to stay below"
    for point, policy in zip(front.points, front.policies, strict=True):
        optimum, tried = point.score, point.trial
        assert optimum is not None, "also where the search may not spend as much"
        if reward == "proxy":
            assert optimum == pytest.approx(-point.solution.loss)
        wins = tried is not None and tried.score > optimum
        row = tried.index if tried is not None and wins else point.solution.index
        chosen = [str(policy[name]) for name in NETWORK.layer_names]
        assert chosen == [str(CHOICES[k]) for k in row]


def test_a_front_goes_by_the_tables_whatever_else_priced_the_policies(
    data: Data, tmp_path: Path
) -> None:
    table = backend("analytical:haq").table(NETWORK, CHOICES, Metric.LATENCY)
    unary = replace(table.unary, value=table.unary.value / 1000)
    (tmp_path / "S.json").write_text(replace(table, unary=unary).to_json())
    given = {"budgets": ["latency=0.9x"], "front": "latency=4", "episodes": 30}
    plain = run(data, **given).explanation
    scaled = run(data, **given, scoring=Scoring(totals=f"table:{tmp_path / 'S.json'}")).explanation
    assert plain.front is not None
    assert scaled.front is not None
    assert scaled.front.to_dict() == plain.front.to_dict()
    assert scaled.pareto.to_dict() == plain.pareto.to_dict()


def test_the_result_holds_the_best_policies_and_the_pareto_front_over_all_costs(
    data: Data,
) -> None:
    report = run(data, budgets=["latency=0.5x", "size=0.9x"], episodes=60)
    trials = report.result.trials
    archive = report.summary["archive"]
    scores = sorted((trial.score for trial in trials), reverse=True)
    assert [entry["score"] for entry in archive] == scores[: len(archive)]
    assert archive[0]["layers"] == report.summary["best"]["policy"]["layers"]
    metrics = (Metric.LATENCY, Metric.SIZE)
    values = [(-t.score, *(t.costs[m] for m in metrics)) for t in trials]
    beaten = [
        any(all(x <= y for x, y in zip(a, b, strict=True)) and a != b for a in values)
        for b in values
    ]
    front = {value for value, lost in zip(values, beaten, strict=True) if not lost}
    told = report.summary["pareto"]["trials"]
    assert {(-t["score"], t["costs"]["latency"], t["costs"]["size"]) for t in told} == front
    assert 1 < len(front) < len(trials)
    assert 0 < report.summary["pareto"]["hypervolume"] < 1


def test_zero_shot_runs_no_quantized_network_before_it_has_decided(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a quantized network was run")

    monkeypatch.setattr("quantization.simulation.Simulation.sweep", fail)
    report = run(data, method="zero-shot")
    assert report.summary["proxy"] == "fisher"
    assert report.result.trials == ()
    with pytest.raises(AssertionError, match="was run"):
        run(data, method="exact")
    with pytest.raises(AssertionError, match="was run"):
        run(data, method="zero-shot", scoring=Scoring(sensitivity="kl"))


def test_a_network_with_ties_of_its_own_is_searched_within_them(data: Data) -> None:
    names = NETWORK.layer_names
    own = NETWORK.tied([names[:2]])
    given = {"cost": ["latency=analytical:haq"], "budgets": ["latency=0.5x"], "method": "exact"}
    report = search(own, data, **given, ties=[names[2:4]])  # type: ignore[arg-type]
    assert report.policy[names[0]] == report.policy[names[1]]
    assert report.policy[names[2]] == report.policy[names[3]]
    with pytest.raises(PolicyError, match="tied layers must get equal bits"):
        open_workbench(own, data).export(Policy({names[0]: BitWidths(8, 8)}))


def test_a_start_that_greedy_search_does_not_find_is_told(
    data: Data, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.starting.greedy_policy", lambda _problem: None)
    run(data, warm="greedy")
    assert "greedy search finds no start within the budgets: a cold one; --warm" in caplog.text


def test_the_proxy_is_refitted_to_policies_that_were_scored(data: Data, tmp_path: Path) -> None:
    plain = run(data, method="exact")
    report = run(data, method="exact", episodes=25, scoring=Scoring(refit=20), out=tmp_path)
    assert report.summary["proxy"] == "kl, refitted to 20 policies"
    assert len(report.result.trials) in (20, 21)
    assert report.found.search_accuracy >= plain.found.search_accuracy
    lines = (tmp_path / "trials.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["layers"] == {n: str(b) for n, b in plain.policy.layers.items()}
    best = max(trial.score for trial in report.result.trials)
    assert report.found.search_accuracy == best
    assert report.summary["certificate"]["proxy_loss"] == pytest.approx(report.found.loss)
    with pytest.raises(QuantmeterError, match="leaves nothing of 10 episodes"):
        run(data, episodes=10, scoring=Scoring(refit=10))
    with pytest.raises(QuantmeterError, match="at least 10"):
        Scoring(refit=5)


def test_the_certificate_and_the_patterns_are_part_of_the_result(data: Data) -> None:
    report = run(data)
    certificate = report.summary["certificate"]
    assert certificate["proven"] is True
    assert certificate["proxy_loss"] == report.found.loss
    assert set(certificate["budgets"]) == {"latency"}
    price = certificate["budgets"]["latency"]
    assert price["minimum_reachable"] <= price["cost"] <= price["budget"]
    assert len(certificate["layers"]["latency"]) == len(NETWORK.layers)
    assert report.summary["patterns"]["policies"] == 1
    assert report.explanation.certificate.totals[Metric.LATENCY] == pytest.approx(
        report.found.costs[Metric.LATENCY]
    )


def test_contradictions_are_one_clear_line(data: Data) -> None:
    wrong = {
        "takes no start: leave out --warm": {"method": "exact", "warm": "greedy"},
        "no start 'exakt' .did you mean 'exact'": {"warm": "exakt"},
        "is no front; write METRIC=COUNT": {"front": "latency"},
        "nothing prices energy": {"front": "energy=3"},
        "uniform tries no policies: leave out --race": {
            "method": "uniform",
            "scoring": Scoring(race=4),
        },
        "has no refit: take --method exact": {
            "method": "zero-shot",
            "scoring": Scoring(refit=10),
        },
        "--out is empty": {"out": ""},
    }
    for message, options in wrong.items():
        with pytest.raises(QuantmeterError, match=message):
            run(data, **options)
    with pytest.raises(QuantmeterError, match="leave out --race"):
        Scoring("proxy", race=2)
    with pytest.raises(QuantmeterError, match=r"fewer than the 10 policies.*: --race 10"):
        Scoring(race=9, refit=30)
    with pytest.raises(QuantmeterError, match=r"no sensitivity 'kll'.*'kl'"):
        Scoring(sensitivity="kll")
    check_start(None, "exact")
    for text in ("latency=1", "latency=x", "speed=3", "=3", "latency=101"):
        with pytest.raises(QuantmeterError, match="is no front"):
            parse_front(text)


def test_help_names_every_method_and_every_sensitivity(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The parser is made before anything heavy is imported, so the names are written out."""
    with pytest.raises(SystemExit):
        build_parser().parse_args(["search", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    methods = text.partition("--method METHOD ")[2].partition("--reward")[0]
    assert set(METHODS) <= set(re.findall(r"[a-z-]+", methods))
    sensitivities = text.partition("--sensitivity NAME ")[2].partition("--race")[0]
    assert set(SENSITIVITIES) <= set(re.findall(r"[a-z-]+", sensitivities))
