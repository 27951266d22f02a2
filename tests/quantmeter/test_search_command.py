"""Every option of ``quantmeter search`` reaches the search, and is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.units import Metric
from quantization.bits import parse_choices
from quantmeter.cli import build_parser, main

NETWORK = example_network()
NAMES = NETWORK.layer_names
GIVEN = "--cost latency=analytical:haq --budget latency=0.5x --choices w2a8,w4a8,w8a8,w32a32"
REACHING = {
    "--method random --reward kl --seed 3": {"method": "random", "reward": "kl", "seed": 3},
    "--method random --race": {"race": 4},
    "--method random --race 2 --ranges percentile": {"race": 2, "ranges": "percentile"},
    "--method random --refit 10 --sensitivity output-mse": {
        "refit": 10,
        "sensitivity": "output-mse",
    },
    "--method random --constraint weighted --weight latency=0.1": {
        "constraint": "weighted",
        "weights": ["latency=0.1"],
    },
    "--method random --constraint reject --warm": {"constraint": "reject", "warm": "greedy"},
    "--method exact --no-export": {"method": "exact", "export": False},
    f"--method exact --tie {NAMES[0]},{NAMES[1]} --tie residual": {"method": "exact"},
    "--method zero-shot": {"sensitivity": "fisher"},
    "--warm exact --agent rollouts=4 --agent entropy=0.01": {
        "method": "reinforce",
        "warm": "exact",
        "agent": {"rollouts": 4, "entropy": 0.01},
    },
    "--constraint mask --front latency=3": {"constraint": "mask", "front": "latency=3"},
    "--constraint soft": {"constraint": "soft"},
    "--reward proxy --totals table:T.json": {"reward": "proxy"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, images, a table, and a finished run of REINFORCE."""
    made = tmp_path_factory.mktemp("command")
    (made / "M.onnx").write_bytes(NETWORK.model.SerializeToString())
    shape = NETWORK.tensor_by_name[NETWORK.input_names[0]].shape[1:]
    draw = np.random.default_rng(0)
    np.savez(made / "D.npz", x=draw.standard_normal((60, *shape)).astype(np.float32))
    choices = parse_choices("w2a8,w4a8,w8a8,w32a32")
    table = backend("analytical:haq").table(NETWORK, choices, Metric.LATENCY)
    value = table.unary.value * np.where(np.arange(len(NAMES))[:, None] % 2, 1.3, 0.9)
    table = replace(table, unary=replace(table.unary, value=value))
    (made / "T.json").write_text(table.to_json())
    return made


def search(folder: Path, line: str) -> Any:
    out = "" if "--out" in line else " --out RUN --anew"
    words = f"search M.onnx --data D.npz {GIVEN} --episodes 24 --no-store {line}{out}".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(words) == 0
    run = folder / (words[words.index("--out") + 1])
    request = json.loads((run / "request.json").read_text())["request"]
    return request, json.loads((run / "result.json").read_text())


@pytest.mark.parametrize("line", REACHING)
def test_an_option_is_part_of_the_request_of_the_run(line: str, folder: Path) -> None:
    request, result = search(folder, line)
    assert {name: request[name] for name in REACHING[line]} == REACHING[line]
    assert result["best"]["feasible"] or request["constraint"] == "soft"


def test_ties_bind_and_totals_reject(folder: Path) -> None:
    request, result = search(folder, f"--method exact --tie {NAMES[0]},{NAMES[1]}")
    assert request["ties"] == [sorted(NAMES[:2])]
    bits = result["best"]["policy"]["layers"]
    assert bits[NAMES[0]] == bits[NAMES[1]]
    _, result = search(folder, "--method random --reward proxy --totals table:T.json")
    assert result["totals"]["backends"] == {"latency": "table:T.json"}
    assert result["best"]["measured"]["latency"] <= result["totals"]["limits"]["latency"]


def test_a_run_continues_the_agent_of_another_and_says_what_it_did(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(folder, "--reward proxy --out FIRST")
    capsys.readouterr()
    request, _ = search(folder, "--reward kl --front latency=3 --init-from FIRST --out SECOND")
    assert len(request["init_from"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    for words in (
        "nats from the float network on the search images",
        "tried: 24 distinct policies",
        "agent: 30 episodes in 3 updates, ",
        "Pareto front of score, latency, size: ",
        "Best within each latency budget",
        "front-1.policy.json",
        "agent.npz (for --init-from)",
    ):
        assert words in told
    assert "it learned nothing" not in told


def test_a_search_too_short_for_its_agent_says_that_it_learned_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(folder, "--reward proxy --agent rollouts=25")
    told = " ".join(capsys.readouterr().out.split())
    assert "fewer episodes than its rollouts: it learned nothing" in told


def test_a_search_that_runs_out_of_proposals_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(folder, "--method random --reward proxy --choices w8a8,w32a32 --episodes 5000")
    assert "ended before its evaluations were spent" in " ".join(capsys.readouterr().out.split())


def test_a_front_says_what_is_beyond_the_budget_and_why_it_is_short(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(folder, "--method uniform --reward proxy --front latency=60")
    told = " ".join(capsys.readouterr().out.split())
    assert "budgets of 60: the others have the same optimum" in told
    assert "may cost more than the budget of the search" in told
    assert "within the budget, more than what the search found" in told, "uniform is no optimum"
    assert "agreement with the float network: " in told, "the images have no classes"
    assert "accuracy: " not in told


def test_a_refitted_proxy_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "--method random --refit 12"
    for refit, told in ((lambda loss, *_: loss, False), (lambda loss, *_: 2 * loss, True)):
        monkeypatch.setattr("quantmeter.refitting.refit", refit)
        _, result = search(folder, line)
        said = " ".join(capsys.readouterr().out.split())
        assert ("proxy loss: kl, refitted to 12 policies, in units" in said) is told
        assert result["proxy"] == ("kl, refitted to 12 policies" if told else "kl")


def test_a_search_without_any_budget_warns(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    line = "search M.onnx --data D.npz --cost latency=analytical:haq --method exact --no-store"
    assert main([*line.split(), "--out", "FREE"]) == 0
    assert "no budget keeps layers from float32" in caplog.text


def test_no_option_of_a_search_is_left_untried_here() -> None:
    """What other tests of commands try is named there."""
    elsewhere = {
        *("--help", "--json", "--data", "--cost", "--choices", "--threads", "--budget", "--out"),
        *("--time", "--store", "--anew", "--episodes", "--no-store", "--no-drift-check"),
        *("--remote", "--task", "--oracle", "--fine-tune", "--channel-groups"),
        *("--qat-epochs", "--qat-images", "--qat-learning-rate", "--fine-tune-epochs"),
    }
    subparsers = build_parser()._subparsers
    assert subparsers is not None
    [action] = subparsers._group_actions
    assert isinstance(action.choices, dict)
    parser = action.choices["search"]
    known = {o for a in parser._actions for o in a.option_strings if o.startswith("--")}
    tried = {word for line in REACHING for word in line.split() if word.startswith("--")}
    assert known - elsewhere - tried == {"--init-from"}, "above, in a test of its own"
