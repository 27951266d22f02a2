"""The knobs of a search: how it scores, starts, races, and what it tells beside the best policy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.table import FloatArray
from costmodels.units import Metric
from quantization.bits import parse_choices
from quantization.errors import QuantmeterError
from quantization.policy import Policy, PolicyBatch
from quantmeter.cli import build_parser
from quantmeter.commands import search as command
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
        "choices": parse_choices("w2a8,w3a8,w4a8,w8a8,w32a32"),
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
        assert written == (point["layers"] if tried is None else tried["layers"])
        if tried is not None:
            assert tried["costs"]["latency"] <= point["budget"] * (1 + 1e-9)
    assert any(point["best_trial"] for point in points)
    assert 0 < report.summary["front"]["hypervolume"] < 1
    run(data, out=tmp_path)
    assert not list(tmp_path.glob("front-*")), "of an earlier run"


def test_what_is_dearer_than_the_search_may_spend_is_the_optimum_of_the_proxy(data: Data) -> None:
    report = run(data, budgets=["latency=0.4x"], front="latency=5")
    front, limit = report.explanation.front, report.summary["budgets"]["latency"]["limit"]
    assert front is not None
    dearer = [i for i, point in enumerate(front.points) if point.budget > limit]
    assert dearer
    for i in dearer:
        chosen = [str(front.policies[i][name]) for name in NETWORK.layer_names]
        assert chosen == list(front.entries[i]["layers"].values())
        assert front.points[i].trial is not None, "what the search found is told all the same"


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


def test_help_names_every_method_and_every_sensitivity() -> None:
    """The parser is made before anything heavy is imported, so the names are written out."""
    text = Path(command.__file__).read_text()
    for name in (*METHODS, *SENSITIVITIES):
        assert name in text
