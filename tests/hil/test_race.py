"""Files are compared in a worker process; one that crashes or hangs ends only that."""

import pytest

from hil.compare import CompareOptions, Verdict
from hil.ort import one_feed, random_inputs
from hil.race import Race, run
from hil.records import FailureKind
from hil.timing import TurnOptions
from hil.worker import WorkerError
from quantization.deployment import ExportOptions
from quantization.errors import ModelError
from quantization.export import Exporter
from quantization.policy import Policy
from quantization.ranges import made_up_ranges
from tests.networks import Subject

BRIEF = CompareOptions((6,), turns=TurnOptions(turn_s=1e-4, samples=1, warm_up=None))


def _race(subject: Subject, options: CompareOptions = BRIEF, **models: bytes) -> Race:
    network = subject.network
    options_ = ExportOptions(weight_method="minmax")
    model = Exporter(network, made_up_ranges(network), options_).build(Policy({}))
    feed = one_feed(network, random_inputs(network, 1))
    return Race({"float": model, "again": model, **models}, "float", "again", feed, 1, options)


def test_every_model_but_the_reference_is_compared_with_raw_samples(small: Subject) -> None:
    race = _race(small)
    found = run(Race(**{**vars(race), "models": {**race.models, "other": race.models["float"]}}))
    assert set(found) == {"again", "other"}
    for comparison in found.values():
        assert comparison.blocks == 6
        assert len(set(comparison.candidate.block)) == 6
        assert len(set(comparison.reference.block)) == 6
        assert isinstance(comparison.verdict, Verdict)


def test_a_model_that_the_runtime_refuses_is_one_clear_error(small: Subject) -> None:
    with pytest.raises(ModelError, match="cannot load the model"):
        run(_race(small, broken=b"no model"))


def test_a_race_that_lasts_too_long_is_ended_and_says_so(small: Subject) -> None:
    long = CompareOptions((500,), turns=TurnOptions(turn_s=5.0))
    with pytest.raises(WorkerError, match="no answer within 2 s") as caught:
        run(_race(small, long), limit_s=2.0)
    assert caught.value.failure.kind is FailureKind.TIME


def test_a_model_that_kills_its_process_ends_only_the_worker(
    small: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hil.race.Worker", _Crashing)
    with pytest.raises(WorkerError) as caught:
        run(_race(small))
    assert caught.value.failure.kind is FailureKind.KILLED


class _Crashing:
    """A worker whose handler crashes as a runtime would."""

    def __init__(self, _factory: str, argument: object, *, limit_s: float) -> None:
        from hil.worker import Worker

        self._worker = Worker("tests.hil.jobs:handler", argument, limit_s=limit_s)

    def __enter__(self) -> "_Crashing":
        return self

    def __exit__(self, *_error: object) -> None:
        self._worker.close()

    def call(self, _race: object) -> object:
        return self._worker.call(("abort",))
