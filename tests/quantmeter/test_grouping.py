"""Channel groups as the second level of a search: what is taken, told and refused."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.errors import UnsupportedChoiceError
from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.spread import spread_table
from costmodels.units import Metric
from quantization.bits import FLOAT32, BitWidths, parse_choices
from quantization.channel_groups import ChannelGroups
from quantization.errors import QuantmeterError
from quantization.network import Network
from quantization.policy import Policy
from quantmeter.cli import main
from quantmeter.data import Data
from quantmeter.grouping import grouping_lines
from quantmeter.reference_task import SHIPPED_MODEL
from quantmeter.scoring import Score, Scorer
from quantmeter.search_options import Scoring
from quantmeter.searching import SearchReport, search
from search.exact import UnsolvedError
from tests.networks import Subject

NETWORK = example_network()
CHOICES = parse_choices("w2a8,w4a8,w8a8")


@pytest.fixture(scope="module")
def data() -> Data:
    shape = NETWORK.tensor_by_name[NETWORK.input_names[0]].shape[1:]
    draw = np.random.default_rng(0)
    return Data(draw.standard_normal((100, *shape)).astype(np.float32), None)


def run(data: Data, **changes: object) -> SearchReport:
    given = {
        "cost": ["energy=analytical:haq"],
        "budgets": ["energy=0.2x"],
        "method": "exact",
        "scoring": Scoring("proxy"),
        "choices": CHOICES,
        "channel_groups": True,
        "exported": False,
        **changes,
    }
    return search(NETWORK, data, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def taken(data: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchReport, Path]:
    folder = tmp_path_factory.mktemp("taken")
    return run(data, out=folder), folder


def only_line(report: SearchReport) -> str:
    assert report.grouping is not None
    [line] = grouping_lines(report.grouping)
    assert "\n" not in line
    return line


def test_what_scores_better_is_the_result_and_stays_within_the_budgets(
    taken: tuple[SearchReport, Path],
) -> None:
    report, folder = taken
    assert report.grouping is not None
    refined = report.grouping.taken
    assert refined is not None
    grouped = [n for n, b in report.policy.layers.items() if isinstance(b, ChannelGroups)]
    assert len(grouped) == refined.grouped > 0
    assert report.found.loss < report.optimum.loss
    assert report.found.gap is not None
    assert report.found.gap < 0
    limit = report.summary["budgets"]["energy"]["limit"]
    [energy] = report.found.costs.values()
    assert energy <= limit * (1 + 1e-9)
    assert Policy.read(folder / "policy.json") == report.policy
    assert json.loads((folder / "policy.json").read_text())["version"] == 2
    assert report.found.test_accuracy is not None
    assert "taken, they score better" in only_line(report)


def test_both_policies_stand_in_the_result(taken: tuple[SearchReport, Path]) -> None:
    report, folder = taken
    told = json.loads((folder / "result.json").read_text())
    groups = told["channel_groups"]
    assert groups["taken"] is True
    assert groups["proven"] is True
    assert groups["grouped"]["policy"] == told["best"]["policy"]
    assert groups["grouped"]["score"] == -told["best"]["proxy_loss"]
    assert groups["one_width"]["policy"] == told["certificate"]["policy"]
    assert groups["one_width"]["score"] == -report.optimum.loss
    assert groups["one_width"]["test_accuracy"] is None, "the test images are read once"


def test_certificate_and_patterns_are_of_the_policy_that_is_the_result(
    taken: tuple[SearchReport, Path],
) -> None:
    report, _ = taken
    certificate = report.explanation.certificate
    assert certificate.grouped
    assert certificate.loss == report.found.loss
    assert certificate.totals[Metric.ENERGY] == pytest.approx(report.found.costs[Metric.ENERGY])
    layers = {layer.name: layer.bits for layer in certificate.layers[Metric.ENERGY]}
    assert layers == {name: str(bits) for name, bits in report.policy.layers.items()}
    weighted = [layer.name for layer in NETWORK.layers if layer.has_weights]
    mean = np.mean([report.policy[name].mean_weights for name in weighted])
    assert report.explanation.patterns.weight_mean == pytest.approx(mean)


def test_what_scores_no_better_is_told_and_not_taken(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def equal(scorer: Scorer, row: np.ndarray) -> Score:
        del scorer, row
        return Score(0.5, 0.5)

    monkeypatch.setattr(Scorer, "of", equal)
    report = run(data, out=tmp_path)
    assert report.grouping is not None
    assert (report.grouping.taken, report.grouping.best) == (None, report.grouping.before)
    assert report.policy == report.grouping.before.policy
    assert json.loads((tmp_path / "policy.json").read_text())["version"] == 1
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["channel_groups"]["taken"] is False
    assert told["channel_groups"]["grouped"]["policy"]["version"] == 2
    assert told["certificate"]["grouped"] is False
    assert "not taken, they score no better" in only_line(report)


def test_totals_without_a_price_for_groups_say_so_before_anything_is_searched(
    data: Data, tmp_path: Path
) -> None:
    choices = (*CHOICES, FLOAT32)
    without = backend("analytical:haq").table(NETWORK, choices, Metric.ENERGY)
    path = tmp_path / "table.json"
    path.write_text(without.to_json())
    totals = Scoring(totals=f"energy=table:{path}")
    with pytest.raises(UnsupportedChoiceError, match=r"--totals .* the energy of channel groups"):
        run(data, scoring=totals, out=tmp_path / "run")
    assert not (tmp_path / "run/trials.jsonl").exists()
    priced = Scoring(totals="energy=analytical:haq")
    assert run(data, scoring=priced).grouping is not None


def test_groups_above_a_budget_as_measured_are_not_taken(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Scorer.like

    def measured(scorer: Scorer, *given: object) -> Scorer:
        made = original(scorer, *given)  # type: ignore[arg-type]
        monkeypatch.setattr(made, "of", lambda _row: Score(-np.inf), raising=False)
        return made

    monkeypatch.setattr(Scorer, "like", measured)
    report = run(data)
    assert report.grouping is not None
    assert report.grouping.taken is None
    assert "not taken, above a budget as a whole" in only_line(report)
    json.dumps(report.summary, allow_nan=False)


def test_where_the_solver_runs_out_of_time_the_policy_that_was_found_stays(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object, **__: object) -> None:
        raise UnsolvedError("no policy was found within 60 s")

    monkeypatch.setattr("quantmeter.grouping.refine", late)
    report = run(data)
    assert not report.explanation.certificate.grouped
    assert only_line(report) == (
        "channel groups: no policy was found within 60 s; one width a layer stays"
    )


def test_where_no_groups_pay_one_line_says_so(data: Data) -> None:
    report = run(data, budgets=["energy=10J"])
    assert {report.policy[name] for name in NETWORK.layer_names} == {BitWidths(8, 8)}
    assert "none saves proxy loss within the budgets" in only_line(report)


def test_an_ended_search_goes_on_to_the_same_groups(
    taken: tuple[SearchReport, Path], data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("quantmeter.searching.group_channels", end)
        with pytest.raises(KeyboardInterrupt):
            run(data, out=tmp_path)
    assert json.loads((tmp_path / "policy.json").read_text())["version"] == 1, "what was found"
    with pytest.raises(QuantmeterError, match="differs in channel_groups"):
        run(data, out=tmp_path, channel_groups=False)
    assert run(data, out=tmp_path).read_back == 1
    for name in ("trials.jsonl", "result.json", "policy.json"):
        assert (tmp_path / name).read_bytes() == (taken[1] / name).read_bytes(), name


def stored(folder: Path, source: Mapping[str, object], network: Network = NETWORK) -> str:
    """A stored latency table in which all integer widths of a layer cost the same."""
    held = parse_choices("w8a8,w32a32")
    made = backend("analytical:haq").table(network, held, Metric.LATENCY)
    table = spread_table(made, network, (*CHOICES, *held[1:]))
    path = folder / "T.json"
    path.write_text(replace(table, source=source).to_json())
    return f"latency=table:{path}"


MEASURED = {"backend": "ort", "runtime": {"threads": 1}}


def test_a_measured_table_prices_groups_and_saves_nothing_by_them(
    data: Data, tmp_path: Path
) -> None:
    cost = stored(tmp_path, MEASURED)
    report = run(
        data,
        cost=[cost, "energy=analytical:haq"],
        budgets=["latency=0.9x", "energy=0.2x"],
        exported=True,
    )
    assert report.grouping is not None
    taken, idle = grouping_lines(report.grouping)
    assert "taken, they score better" in taken
    assert idle.startswith("channel groups save nothing of the latency, which by its table is the")
    assert report.summary["channel_groups"]["save_nothing_of"] == ["latency"]
    assert {Metric.LATENCY, Metric.ENERGY, Metric.SIZE} == set(report.found.costs)


def test_what_cannot_have_groups_is_one_line_before_anything_is_searched(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr("quantmeter.searching.prepare", fail)
    published = stored(tmp_path, {"backend": "import:csv"})
    with pytest.raises(UnsupportedChoiceError, match=r"T\.json does not price the latency of chan"):
        run(data, cost=[published], budgets=["latency=0.9x"])
    with pytest.raises(UnsupportedChoiceError, match=r"can be exported: .*or leave out --channel"):
        run(data, choices=parse_choices("w2a4,w4a4,w8a8"), exported=True)
    for text in ("w8a8,w32a32", "w2a4,w4a8,fp16"):
        with pytest.raises(QuantmeterError, match="differ in the bits of their weights alone"):
            run(data, choices=parse_choices(text))
    device = stored(tmp_path, {"backend": "ort:cuda", "target": "the CUDA provider"})
    with pytest.raises(QuantmeterError, match="integer weights, and the CUDA provider runs none"):
        run(data, cost=[device], budgets=["latency=0.9x"])


def test_a_search_without_channel_groups_has_none(data: Data) -> None:
    report = run(data, channel_groups=False)
    assert report.grouping is None
    assert report.summary["channel_groups"] is None


def test_through_the_command_a_policy_with_groups_is_priced_exported_and_timed(
    digits: Subject,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(line: str) -> str:
        assert main(line.split()) == 0
        told = capsys.readouterr()
        assert told.err == ""
        return told.out

    monkeypatch.chdir(tmp_path)
    Path("MODEL.onnx").write_bytes(SHIPPED_MODEL.read_bytes())
    np.savez_compressed("DATA.npz", x=digits.images[:80], y=digits.labels[:80])
    stored(tmp_path, MEASURED, digits.network)
    out = answer(
        "search MODEL.onnx --data DATA.npz --cost latency=table:T.json --budget latency=0.9x "
        "--budget size=115kB --choices w2a8,w4a8,w8a8 --reward proxy --method exact --out RUN "
        "--channel-groups"
    )
    taken, idle = re.findall("^channel groups .*$", out, re.MULTILINE)
    assert taken.endswith("taken, they score better")
    assert idle.startswith("channel groups save nothing of the latency")
    assert re.search(r"features.*\d+ w2a8 \+ \d+ w4a8", out)
    best = json.loads(Path("RUN/result.json").read_text())["best"]
    exported = answer("export MODEL.onnx RUN/policy.json --data DATA.npz --out Q.onnx --json")
    assert json.loads(exported)["audit"]["ok"] is True
    assert Path("Q.onnx").stat().st_size == best["costs"]["size"] <= 115_000
    line = "cost MODEL.onnx --cost latency=table:T.json --metric latency --policy RUN/policy.json"
    priced = json.loads(answer(f"{line} --json"))
    assert priced["total"] == pytest.approx(best["costs"]["latency"])
    line = "bench MODEL.onnx RUN/policy.json --data DATA.npz --cost latency=table:T.json"
    [timed, *_] = json.loads(answer(f"{line} --vs float --blocks 6 --json"))["results"]
    assert timed["predicted_s"] == priced["total"]
    assert (timed["audit"]["ok"], timed["accuracy"]) == (True, best["test_accuracy"])
