"""A search that trains: each policy to score it, or the best ones to export them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from costmodels.model import BackendContext
from costmodels.table import FloatArray
from quantization.bits import parse_choices
from quantization.deployment import CUDA_TARGET
from quantization.errors import DataError, QuantmeterError
from quantization.policy import IndexArray, Policy
from quantization.qat.training import PHASE_1, PHASE_2
from quantization.task import Examples
from quantization.torch_export import export_module
from quantmeter.cli import build_parser, main
from quantmeter.commands import search_training
from quantmeter.costs import parse_costs
from quantmeter.search_options import Scoring
from quantmeter.searching import SearchReport, search
from quantmeter.tasks import open_task
from quantmeter.training import Training, check_target, open_oracle
from quantmeter.workbench import Workbench
from search.qat_oracle import QatOracle, fine_tune
from search.refit import refit
from tests.small_task import digits

LINE = (
    "search --cost latency=analytical:haq --budget size=7kB --choices w2a8,w3a8,w4a8,w8a8,w32a32 "
)
BRIEF = "--method random --episodes 6 --no-store --qat-epochs 1 "
TASK = "--task tests.small_task:digits "
GIVEN: dict[str, Any] = {
    "cost": ["latency=analytical:haq"],
    "budgets": ["size=7kB"],
    "choices": parse_choices("w2a8,w3a8,w4a8,w8a8,w32a32"),
    "method": "random",
    "episodes": 6,
}
QAT, TWO = Scoring(oracle="qat"), Training(fine_tune=2, epochs=1, fine_tune_epochs=2)


@pytest.fixture(scope="module", autouse=True)
def _exported_once() -> Iterator[None]:
    """The one module of these tests takes seconds to be exported to ONNX."""
    made = cache(lambda module: export_module(module, torch.from_numpy(digits().test.images[:1])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("quantization.torch_export.export_module", lambda module, _: made(module))
        yield


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return open_task(digits())


def file_accuracy(path: Path, examples: Examples) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    right = [
        session.run(None, {feed: image[None]})[0].argmax() == label
        for image, label in zip(examples.images, examples.labels, strict=True)
    ]
    return float(np.mean(right))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def weights(model: bytes) -> dict[str, bytes]:
    tensors = onnx.load_from_string(model).graph.initializer
    return {t.name: numpy_helper.to_array(t).tobytes() for t in tensors if t.name.endswith(":m")}


def test_the_command_scores_by_training_and_exports_what_it_scored(
    bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "RUN"
    assert main(f"{LINE}{BRIEF}{TASK}--oracle qat --json --out {run}".split()) == 0
    told = json.loads(capsys.readouterr().out)
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    best, trained = told["best"], told["trained"]
    assert told["oracle"] == "qat"
    assert len(trials) == 6
    assert best["search_accuracy"] == max(trial["accuracy"] for trial in trials)
    policy = Policy.read(run / "policy.json")
    alone = open_oracle(bench, Training(epochs=1), seed=0)
    assert alone.score(policy) == best["search_accuracy"] == trained["search_accuracy"]
    assert best["test_accuracy"] is None, "the network that was scored is not kept"
    assert Policy.read(run / trained["file"].replace(".onnx", ".policy.json")) == policy
    assert (trained["rank"], trained["epochs"]) == (1, [1, 0])
    assert file_accuracy(run / trained["file"], digits().test) == trained["test_accuracy"]
    assert (run / trained["file"]).stat().st_size == trained["costs"]["size"]


def test_the_best_policies_are_fine_tuned_and_the_best_of_them_is_exported(
    bench: Workbench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"{LINE}{BRIEF}{TASK}--fine-tune 2 --fine-tune-epochs 2 --out {tmp_path}"
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "result.json").read_text())
    trained, candidates = told["trained"], told["trained"]["candidates"]
    trials = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert [one["rank"] for one in candidates] == [1, 2]
    assert trained["search_accuracy"] == max(one["phase_2"] for one in candidates)
    assert trained["search_accuracy"] == candidates[trained["rank"] - 1]["phase_2"]
    ranked = sorted(trials, key=lambda trial: (-trial["score"], trial["proxy_loss"]))
    policy = Policy.read(tmp_path / "trained.policy.json")
    layers = {name: str(bits) for name, bits in policy.layers.items()}
    assert layers == ranked[trained["rank"] - 1]["layers"]
    short = open_oracle(bench, TWO, seed=0)
    [same] = fine_tune(short, [policy], keep=1, recipe=replace(PHASE_2, epochs=2))
    model = (tmp_path / "trained.onnx").read_bytes()
    assert model == same.model.build()
    assert weights(model) != weights(bench.export(policy)), "scales were trained too"
    accuracy = file_accuracy(tmp_path / "trained.onnx", digits().test)
    assert accuracy == trained["test_accuracy"]
    floats = file_accuracy(tmp_path / "model.onnx", digits().test)
    assert trained["float_test_accuracy"] == floats
    assert "training (1 + 2 epochs): " in said
    assert f"{accuracy:.2%} [" in said.partition("trained (the exported file)")[0]
    assert f", {floats:.2%} [" in said.partition("trained (the exported file)")[2]
    assert "result.json, trained.onnx, trained.policy.json" in said
    assert not list(tmp_path.glob("trained-*")), "candidates"


class Trainings:
    """Counts the policies that are trained by phase 1, and ends the search before one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.left = 0, 10**9
        original = QatOracle.trained

        def trained(oracle: QatOracle, policy: Policy) -> Any:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.count += 1
            return original(oracle, policy)

        patch.setattr(QatOracle, "trained", trained)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    return Trainings(monkeypatch)


def test_a_search_that_was_ended_trains_nothing_twice_and_ends_the_same(
    bench: Workbench, tmp_path: Path, trainings: Trainings
) -> None:
    def run(name: str) -> SearchReport:
        return search(bench, **GIVEN, scoring=QAT, training=TWO, out=tmp_path / name)

    run("whole")
    assert trainings.count == 6 + 2
    for before in (3, 4):  # among those that are scored, then among those that are fine-tuned
        trainings.left = before
        with pytest.raises(KeyboardInterrupt):
            run("ended")
    trainings.left = 10**9
    report = run("ended")
    assert trainings.count == 2 * (6 + 2)
    assert report.read_back == 6
    assert contents(tmp_path / "ended") == contents(tmp_path / "whole")


def test_scores_of_one_oracle_are_not_taken_for_those_of_another(
    bench: Workbench, tmp_path: Path, trainings: Trainings
) -> None:
    def run(scoring: Scoring, training: Training) -> SearchReport:
        return search(bench, **GIVEN, scoring=scoring, training=training, out=tmp_path)

    trainings.left = 3
    with pytest.raises(KeyboardInterrupt):
        run(QAT, Training(epochs=1))
    before = contents(tmp_path)
    for changed, scoring, training in (
        ("oracle, training", Scoring(), Training()),
        ("training", QAT, Training(epochs=2)),
        ("training", QAT, Training(epochs=1, images=50)),
        ("training", QAT, Training(epochs=1, learning_rate=0.02)),
        ("training", QAT, Training(epochs=1, fine_tune=1)),
    ):
        with pytest.raises(QuantmeterError, match=f"differs in {changed}: "):
            run(scoring, training)
    assert bench.task is not None
    for task in (
        replace(bench.task, augment=lambda x, _: x),
        replace(bench.task, train=bench.task.search),
    ):
        with pytest.raises(QuantmeterError, match="differs in training: "):
            search(
                replace(bench, task=task),
                **GIVEN,
                scoring=QAT,
                training=Training(epochs=1),
                out=tmp_path,
            )
    assert contents(tmp_path) == before


def test_what_an_earlier_run_trained_is_removed(bench: Workbench, tmp_path: Path) -> None:
    given = {**GIVEN, "method": "greedy", "out": tmp_path}
    search(bench, **given, training=Training(1, epochs=1, fine_tune_epochs=1, images=20))
    assert (tmp_path / "trained.onnx").exists()
    for name in ("trained-1.onnx", "trained-1.json", "model.onnx", "trained_resnet.onnx"):
        (tmp_path / name).write_text("{}")
    search(bench, **given, anew=True)
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["trained_resnet.onnx"]
    assert not list(tmp_path.glob("trained*.json"))


def test_policies_for_elsewhere_are_trained_and_simulated(bench: Workbench, tmp_path: Path) -> None:
    given = {**GIVEN, "budgets": ["latency=0.3x"], "choices": parse_choices("w4a4,w8a8")}
    report = search(
        bench, **given, scoring=QAT, training=Training(epochs=1), exported=False, out=tmp_path
    )
    trained = report.trained
    assert trained is not None
    assert "w4a4" in map(str, report.policy.layers.values())
    assert (trained.best.model, report.summary["trained"]["file"]) == (None, None)
    assert not (tmp_path / "trained.onnx").exists()
    oracle = open_oracle(bench, Training(epochs=1), seed=0)
    task = bench.task
    assert task is not None
    tested = QatOracle(
        bench.exporter, bench.range_inputs, task.train, task.test, oracle.recipe, seed=0
    )
    test = trained.found.test_accuracy
    assert test is not None
    assert abs(test.share - tested.score(report.policy)) <= 1 / 200
    [_, accuracy] = search_training.trained_lines(trained)
    assert "trained (simulated)" in accuracy


def test_images_are_changed_as_the_task_says(bench: Workbench) -> None:
    seen: list[int] = []

    def augment(x: Any, _: Any) -> Any:
        seen.append(len(x))
        return x

    task = replace(digits(), augment=augment)
    training = Training(epochs=2, images=50)
    search(
        replace(bench, task=task),
        **{**GIVEN, "method": "exact"},
        scoring=QAT,
        training=training,
    )
    assert seen == 2 * 2 * [50], "two epochs to score the one policy, and to export it"


def test_a_refit_takes_scores_of_trained_policies(
    bench: Workbench, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[float] = []

    def spy(loss: FloatArray, index: IndexArray, scores: FloatArray) -> FloatArray:
        assert (trainings.count, len(index)) == (10, 10)
        fitted.extend(scores)
        return refit(loss, index, scores)

    monkeypatch.setattr("quantmeter.refitting.refit", spy)
    report = search(
        bench,
        **{**GIVEN, "episodes": 11, "method": "greedy"},
        scoring=Scoring(oracle="qat", refit=10),
        training=Training(epochs=1, images=20),
    )
    assert trainings.count in (11, 12), "ten, what greedy finds, and one to be exported"
    assert fitted == [trial.score for trial in report.result.trials[:10]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--oracle qat --data D.npz M.onnx", "--oracle qat needs the images .*give --task"),
        ("--fine-tune 2 --data D.npz M.onnx", "--fine-tune 2 needs the images .*give --task"),
        (TASK + "--oracle qat --race", "leave out --race"),
        (TASK + "--oracle qat --reward proxy", "leave out --oracle qat"),
        (TASK + "--fine-tune 2 --no-export", "leave out --no-export"),
        (TASK + "--fine-tune 33", "--fine-tune 32 at most"),
        (TASK + "--fine-tune-epochs 3", "nothing without --fine-tune K"),
        (TASK + "--qat-epochs 3", "give --oracle qat or --fine-tune K"),
        *(
            (
                f"{TASK}{asks} --qat-learning-rate {rate}",
                f"--qat-learning-rate is a positive number, not {rate}$",
            )
            for asks, rate in (
                ("--oracle qat", "0"),
                ("--oracle qat", "-1"),
                ("--fine-tune 1", "nan"),
                ("--fine-tune 1", "inf"),
            )
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"{LINE}{line} --out /nowhere".split()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(said)


def test_a_network_without_training_images_is_refused_in_python_too(bench: Workbench) -> None:
    with pytest.raises(DataError, match="give --task"):
        search(replace(bench, task=None), **GIVEN, scoring=QAT)
    with pytest.raises(QuantmeterError, match="no oracle 'qta'; choose ptq or qat"):
        Scoring(oracle="qta")


def test_another_provider_than_files_are_exported_for_is_refused(bench: Workbench) -> None:
    costs = parse_costs(["latency=analytical:haq"], BackendContext())
    check_target(bench, costs.target, "--fine-tune 1")
    with pytest.raises(QuantmeterError, match="--cost prices the CUDA provider"):
        check_target(bench, CUDA_TARGET, "--fine-tune 1")


@pytest.mark.parametrize("scoring", [QAT, Scoring("proxy")])
def test_a_policy_with_channel_groups_is_scored_and_trained_like_any_other(
    scoring: Scoring, bench: Workbench, tmp_path: Path
) -> None:
    given = {**GIVEN, "cost": ["energy=analytical:haq"], "budgets": ["energy=0.12x"]}
    report = search(
        bench,
        **{**given, "method": "exact", "choices": parse_choices("w2a8,w3a8,w4a8,w8a8")},
        channel_groups=True,
        scoring=scoring,
        training=Training(epochs=1) if scoring is QAT else replace(TWO, fine_tune_epochs=1),
        out=tmp_path,
    )
    assert report.grouping is not None
    assert report.grouping.after is not None
    grouped = report.grouping.after.policy
    assert any(len(bits.weight_widths) == 2 for bits in grouped.layers.values())
    assert report.trained is not None
    assert report.trained.found.policy == report.policy
    if scoring is QAT:  # by as little as an image, so it may be taken or not
        scored = open_oracle(bench, Training(epochs=1), seed=0).score(grouped)
        assert report.grouping.after.search_accuracy == scored
    else:
        assert report.policy == grouped
    test = report.trained.found.test_accuracy
    assert test is not None
    assert test.share == file_accuracy(tmp_path / "trained.onnx", digits().test)


def test_training_that_diverges_is_told(bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="give a smaller --qat-learning-rate"):
        search(bench, **GIVEN, training=replace(TWO, epochs=3, learning_rate=1e30), out=tmp_path)
    assert (tmp_path / "policy.json").exists(), "what the search found is not lost"


@pytest.mark.parametrize(("epochs", "rate"), [(1, 1e30), (3, 1e30), (3, 1e3)])
def test_training_that_diverges_is_no_score(
    epochs: int, rate: float, bench: Workbench, tmp_path: Path, trainings: Trainings
) -> None:
    """Its losses may be finite: of one epoch, most are of what the first update began with."""
    training = Training(epochs=epochs, learning_rate=rate)
    with pytest.raises(DataError, match=r"training diverges \(.*--qat-learning-rate.* 0\.001$"):
        search(bench, **GIVEN, scoring=QAT, training=training, out=tmp_path)
    assert trainings.count == 1, "at the first policy"
    assert not (tmp_path / "trials.jsonl").read_text()
    assert not (tmp_path / "trained.onnx").exists()


@pytest.mark.parametrize(
    ("field", "number", "option"),
    [
        ("epochs", 0, "--qat-epochs"),
        ("fine_tune_epochs", -2, "--fine-tune-epochs"),
        ("images", 0, "--qat-images"),
        ("learning_rate", -1.0, "--qat-learning-rate"),
        ("learning_rate", float("nan"), "--qat-learning-rate"),
        ("fine_tune", -1, "--fine-tune"),
    ],
)
def test_a_number_that_makes_no_sense_is_told_by_its_option(
    field: str, number: float, option: str
) -> None:
    training = replace(TWO, **{field: number})
    with pytest.raises(DataError, match=f"^{option} is a positive number, not {number:g}$"):
        training.check(QAT, exported=True, with_task=True)


def test_labels_to_train_on_fit_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the images that ranges come from are a part of them."""
    monkeypatch.setattr("quantmeter.tasks.CALIBRATION", 16)
    task = digits()
    wrong = Examples(task.train.images, np.where(np.arange(200) == 7, 10, task.train.labels))
    assert wrong.drawn(16, 0).labels.max() < 10
    with pytest.raises(DataError, match="labels run from 0 to 10, the network has 10 classes"):
        open_task(replace(task, train=wrong))


def test_help_tells_the_epochs_and_rate_of_the_recipes() -> None:
    """The parser is made before anything heavy is imported, so the numbers are written out."""
    text = Path(search_training.__file__).read_text()
    assert f"(default {PHASE_1.epochs})" in text
    assert f"(default {PHASE_2.epochs})" in text
    assert PHASE_1.learning_rate == PHASE_2.learning_rate
    assert f"(default {PHASE_1.learning_rate})" in text
    parsed = build_parser().parse_args(f"{LINE}{TASK}".split())
    assert search_training.training_of(parsed) == Training()
    assert Training().recipes() == (PHASE_1, None)
    assert Training(fine_tune=1).recipes() == (PHASE_1, PHASE_2)
