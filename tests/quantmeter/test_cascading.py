"""A policy for each input: what is chosen, what it costs, and what is said."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantmeter
from costmodels.units import Unit
from quantization.bits import BitWidths
from quantization.errors import QuantmeterError
from quantization.policy import Policy
from quantmeter.cascading import cascade
from quantmeter.cli import main
from quantmeter.data import Data
from quantmeter.reference_task import SHIPPED_MODEL
from quantmeter.workbench import open_workbench
from search.dynamic import confidence
from search.oracle import Interval
from tests.networks import Subject

ENERGY = "energy=analytical:haq"


@pytest.fixture(scope="module")
def data(digits: Subject) -> Data:
    return Data(digits.images[:150], digits.labels[:150])


@pytest.fixture(scope="module")
def policies(digits: Subject, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Uniform 2, 3 and 8 bits."""
    folder, paths = tmp_path_factory.mktemp("policies"), []
    for bits in (2, 3, 8):
        paths.append(folder / f"w{bits}.json")
        policy = Policy.uniform(digits.network, BitWidths(bits, 8))
        paths[-1].write_text(policy.to_json())
    return paths


def test_the_pair_costs_less_than_the_best_policy_and_is_told_on_unseen_images(
    data: Data, policies: list[Path], digits: Subject
) -> None:
    found = cascade(SHIPPED_MODEL, data, policies, cost=ENERGY)
    assert found.unit is Unit.JOULES
    assert list(found.costs) == ["w2", "w3", "w8"]
    assert found.costs["w2"] < found.costs["w3"] < found.costs["w8"]
    chosen, report = found.report.cascade, found.report
    assert 0 < chosen.threshold < 1
    assert report.cost < found.costs[found.single]
    assert found.measured is None, "a model says what policies cost"
    # by hand, from exported files
    bench = open_workbench(SHIPPED_MODEL, data)
    images, labels = bench.part("test")
    named = dict(zip(found.costs, map(Policy.read, policies), strict=True))
    logits = {
        name: bench.simulation.logits(policy, images, bench.corrections(policy))
        for name, policy in named.items()
    }
    sent = confidence(logits[chosen.cheap]) < chosen.threshold
    answers = np.where(sent, logits[chosen.dear].argmax(1), logits[chosen.cheap].argmax(1))
    assert labels is not None
    right = int((answers == labels).sum())
    assert report.forwarded == Interval.wilson(int(sent.sum()), len(labels))
    assert report.accuracy == Interval.wilson(right, len(labels))
    cost = found.costs[chosen.cheap] + sent.mean() * found.costs[chosen.dear]
    assert report.cost == pytest.approx(cost)


def test_files_are_timed_and_so_is_the_cascade_as_a_whole(
    data: Data, policies: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = {"w2": 1.0, "w8": 10.0}
    monkeypatch.setattr(
        "quantmeter.cascading._timed",
        lambda turns, rounds, _seed, _progress: {
            name: np.full(rounds, ticks.get(name, 4.0)) for name in turns
        },
    )
    found = cascade(SHIPPED_MODEL, data, [policies[0], policies[2]], rounds=8)
    assert found.costs == {"w2": 1.0, "w8": 10.0}
    assert found.report.cascade.cheap == "w2"
    assert found.measured is not None
    assert found.measured.whole_s == 4.0
    assert found.measured.ratio == pytest.approx((1.0, 1.0, 1.0))


def test_times_are_taken_in_turns_and_the_first_round_is_not_kept(
    data: Data, policies: list[Path]
) -> None:
    found = cascade(SHIPPED_MODEL, data, policies[1:], rounds=6, tolerance=0.5)
    assert found.unit is Unit.SECONDS
    assert all(0 < cost < 1 for cost in found.costs.values())


def test_without_labels_the_float_network_is_right(data: Data, policies: list[Path]) -> None:
    found = cascade(SHIPPED_MODEL, replace(data, y=None), policies, cost=ENERGY)
    assert found.searched["w8"] == 1.0
    assert found.searched["w2"] < 1.0


@pytest.fixture(scope="module")
def folder(data: Data, policies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("front")
    np.savez(made / "D.npz", x=data.x, y=data.y)
    (made / "RUN").mkdir()
    for number, path in zip((1, 2, 10), policies, strict=True):
        (made / "RUN" / f"front-{number}.policy.json").write_text(path.read_text())
    (made / "EMPTY").mkdir()
    return made


def _main(folder: Path, line: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main(["cascade", str(SHIPPED_MODEL), *line.split()])


def test_the_front_of_a_run_is_a_cascade_by_one_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(folder, f"RUN --data D.npz --cost {ENERGY}") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.index("front-1 ") < told.index("front-2 ") < told.index("front-10 ")
    for words in ("cheapest single policy", "as well", "on the test images: ", " alone: "):
        assert words in told
    assert "timed as a whole" not in told
    assert _main(folder, f"RUN --data D.npz --cost {ENERGY} --json") == 0
    content: Any = json.loads(capsys.readouterr().out)
    assert content["unit"] == "J"
    assert list(content["policies"]) == ["front-1", "front-2", "front-10"]
    assert content["measured"] is None
    assert _main(folder, f"RUN --data D.npz --cost {ENERGY} --tolerance 0.9") == 0
    assert "no cascade is cheaper: front-1 alone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("EMPTY", "holds no front: search with --front"),
        ("RUN/front-1.policy.json", "two policies or more"),
        ("RUN --tolerance 1", "a share from 0 to 1, not 1"),
        ("RUN --tolerance nan", "a share from 0 to 1, not nan"),
        ("RUN --rounds 5", "at least 6 rounds"),
        ("RUN --cost analytical:haq", "prices .* name one, such as --cost "),
        ("RUN nothere.json", "nothere.json: No such file"),
    ],
)
def test_wrong_input_is_one_line(
    line: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(folder, f"{line} --data D.npz") == 2
    [told] = capsys.readouterr().err.splitlines()
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(told)


def test_the_verb_is_at_the_front_door(data: Data) -> None:
    with pytest.raises(QuantmeterError, match="two policies or more"):
        quantmeter.cascade(SHIPPED_MODEL, data, [])
