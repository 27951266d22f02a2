"""Policies timed beside float: what is recorded, under which identity, and that once is enough."""

import pickle
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import pytest

from costmodels.measurement import Measurement
from hil import policy_timer, worker_process
from hil.ort import one_feed, random_inputs
from hil.policy_bench import PolicyBench, policy_worker
from hil.policy_timer import Job, PolicyTimer, RefusedPolicyError, Setup, subject
from hil.records import Failure, FailureKind, Record, Subject
from hil.timing import TimingOptions
from hil.worker import Worker, WorkerError
from quantization.bits import BitWidths
from quantization.deployment import ExportOptions
from quantization.errors import ModelError, PolicyError, QuantmeterError
from quantization.policy import Policy
from quantization.ranges import Ranges, made_up_ranges
from quantization.reading import read_network
from tests.hil.jobs import ABORTS, RAISES
from tests.networks import random_policy, small_mobilenet, uniform

LONG_S = 120.0
QUICK = TimingOptions(blocks=2)


def _setup(**changes: object) -> Setup:
    network = small_mobilenet()
    feed = one_feed(network, random_inputs(network, 1))
    options = ExportOptions(weight_method="minmax", pack=False)
    setup = Setup(network, made_up_ranges(network), feed, options, 1, QUICK)
    return replace(setup, **changes)  # type: ignore[arg-type]


@dataclass
class MemoryStore:
    """Keeps records as long as the test runs; the first measurement stays."""

    kept: dict[str, Record] = field(default_factory=dict)

    def get(self, subject: Subject) -> Record | None:
        return self.kept.get(subject.key)

    def put(self, subject: Subject, record: Record) -> Record:
        held = self.kept.get(subject.key)
        if held is None or held.failure is not None:
            held = self.kept[subject.key] = record
        return held


@dataclass
class Scripted:
    """Stands for a worker: answers from a list, and counts."""

    answers: list[Record | Exception]
    jobs: list[object] = field(default_factory=list)

    def call(self, job: object) -> object:
        self.jobs.append(job)
        answer = self.answers[len(self.jobs) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with policy_worker(_setup(), limit_s=LONG_S) as made:
        yield made


def test_what_a_worker_is_sent_is_read_back_as_it_was() -> None:
    setup, job = _setup(), Job(random_policy(small_mobilenet(), 0), 3)
    again, job_again = pickle.loads(pickle.dumps((setup, job)))
    assert subject(again, job_again) == subject(setup, job)
    assert again.network.layers == setup.network.layers
    assert (again.ranges, again.options, again.timing) == (
        setup.ranges,
        setup.options,
        setup.timing,
    )
    assert job_again == job


def test_a_policy_is_timed_beside_float_in_a_worker(worker: Worker) -> None:
    policy = random_policy(small_mobilenet(), 0, "w8a8 w32a32")
    bench = PolicyBench(_setup(), worker, MemoryStore())
    record = bench.measure(policy, 1)
    assert record.failure is None
    assert set(record.measurements) == {"policy", "float"}
    for measurement in record.measurements.values():  # the quicker one runs more often in a turn
        assert set(measurement.block or ()) == set(range(QUICK.blocks))
    assert Record.from_dict(record.to_dict()) == record
    assert worker.restarts == 0


def test_facts_say_where_the_time_went(worker: Worker) -> None:
    facts = PolicyBench(_setup(), worker, MemoryStore()).measure(Policy({})).facts
    assert set(facts) == {"build_s", "load_s", "timing_s", "inference_s", "model_bytes"}
    assert min(facts.values()) > 0
    assert facts["inference_s"] < facts["timing_s"]


def test_all_runs_count_as_inference_on_a_clock_that_only_they_move(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, now = [0], [0.0]

    class Counting(policy_timer.Runner):
        def __call__(self) -> list["np.ndarray[object, np.dtype[np.generic]]"]:
            runs[0] += 1
            now[0] += 0.25
            return super().__call__()

    monkeypatch.setattr(policy_timer, "Runner", Counting)
    timer = PolicyTimer(_setup(), clock=lambda: now[0])
    facts = timer(Job(Policy({}))).facts
    assert facts["inference_s"] == facts["timing_s"] == runs[0] / 4 > 0
    assert facts["build_s"] == facts["load_s"] == 0
    assert facts["model_bytes"] == len(timer._exporter.build(Policy({})))


def test_what_the_runtime_executes_otherwise_is_a_failure_and_is_not_timed() -> None:
    """Without the guard, a float layer between integer ones is re-quantized at load."""
    options = ExportOptions(weight_method="minmax", pack=False, guard_float=False)
    setup, store = _setup(options=options), MemoryStore()
    network = setup.network
    mixed = Policy({**uniform(network, "w8a8").layers, "b1.depthwise": BitWidths(32, 32)})
    with policy_worker(setup, limit_s=LONG_S) as worker:
        bench = PolicyBench(setup, worker, store)
        refused = bench.measure(mixed).failure
        assert refused is not None
        assert refused.kind is FailureKind.EXCEPTION
        assert re.search(r"b1\.depthwise.*re-quantized at load", refused.text)
        assert [record.failure for record in store.kept.values()] == [refused]
        assert bench.measure(uniform(network, "w8a8")).measurements
        assert worker.restarts == 0


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ModelError("ONNX Runtime refuses it"), FailureKind.EXCEPTION),
        (ModelError("ONNX Runtime refuses it: std::bad_alloc"), FailureKind.MEMORY),
    ],
)
def test_a_policy_that_the_runtime_refuses_is_a_failure_and_the_float_network_an_error(
    monkeypatch: pytest.MonkeyPatch, error: ModelError, kind: FailureKind
) -> None:
    timer, job = PolicyTimer(_setup()), Job(uniform(small_mobilenet(), "w8a8"))

    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(policy_timer, "Runner", refuse)
    with pytest.raises(RefusedPolicyError, match="refuses it") as refused:
        timer(job)
    said = pickle.loads(worker_process._reply(lambda: timer(job)))
    assert said.kind == (worker_process.MEMORY if kind is FailureKind.MEMORY else "exception")
    assert not isinstance(refused.value, QuantmeterError)
    with pytest.raises(ModelError, match="refuses it"):
        PolicyTimer(_setup())


def test_a_policy_that_cannot_be_deployed_is_an_error_of_the_user(worker: Worker) -> None:
    with pytest.raises(PolicyError, match="not deployable"):
        PolicyBench(_setup(), worker, MemoryStore()).measure(uniform(small_mobilenet(), "w4a4"))


def test_jobs_that_fail_are_recorded_and_the_next_one_goes_on() -> None:
    setup, store, policy = _setup(), MemoryStore(), uniform(small_mobilenet(), "w8a8")
    with Worker("tests.hil.jobs:breakable_timer", setup, limit_s=LONG_S) as worker:
        bench = PolicyBench(setup, worker, store)
        crashed, raised = bench.measure(policy, ABORTS), bench.measure(policy, RAISES)
        assert crashed.failure is not None
        assert raised.failure is not None
        assert crashed.failure.kind is FailureKind.KILLED
        assert crashed.failure.text.startswith("SIGABRT")
        assert raised.failure == Failure(FailureKind.EXCEPTION, "ZeroDivisionError: by nobody")
        assert bench.measure(policy, 1).measurements
        assert worker.restarts == 1
    assert len(store.kept) == 3


def _record(value: float = 1.0) -> Record:
    return Record({"policy": Measurement("policy", (value,))})


def test_a_run_takes_nothing_again_and_a_later_run_only_what_failed() -> None:
    setup, store = _setup(), MemoryStore()
    policies = [random_policy(setup.network, seed) for seed in range(3)]
    failure = Failure(FailureKind.TIME, "no answer within 2 s")
    first = Scripted([_record(1), WorkerError(failure), _record(3)])
    ticks = iter([10.0, 10.5, 20.0, 22.5, 30.0])
    bench = PolicyBench(setup, first, store, clock=lambda: next(ticks))
    taken = [bench.measure(policy) for policy in policies]
    assert taken == [_record(1), Record({}, failure, {"wall_s": 9.5}), _record(3)]
    assert [bench.measure(policy) for policy in policies] == taken
    assert first.jobs == [Job(policy) for policy in policies]
    second = Scripted([_record(2)])
    again = PolicyBench(setup, second, store)
    for _ in range(2):
        assert [again.measure(p) for p in policies] == [_record(1), _record(2), _record(3)]
    assert second.jobs == [Job(policies[1])]


def test_what_fails_in_every_run_is_kept_as_it_failed_last() -> None:
    setup, store = _setup(), MemoryStore()
    failures = [Failure(FailureKind.MEMORY, text) for text in ("then", "now")]
    for failure in failures:
        bench = PolicyBench(setup, Scripted([WorkerError(failure)]), store)
        for _ in range(2):
            assert bench.measure(Policy({})).failure == failure
    assert [record.failure for record in store.kept.values()] == failures[1:]


def test_what_another_process_stored_meanwhile_is_the_answer() -> None:
    class Late(MemoryStore):
        def put(self, subject: Subject, record: Record) -> Record:
            super().put(subject, _record(7))
            return super().put(subject, record)

    bench = PolicyBench(_setup(), Scripted([_record(1)]), Late())
    assert bench.measure(Policy({})) == _record(7)


def test_a_worker_that_cannot_start_is_no_failure_of_the_policy() -> None:
    store, failure = MemoryStore(), Failure(FailureKind.EXCEPTION, "ImportError: nothing")
    bench = PolicyBench(_setup(), Scripted([WorkerError(failure, starting=True)]), store)
    with pytest.raises(WorkerError, match="could not start"):
        bench.measure(Policy({}))
    assert not store.kept


def test_the_same_thing_has_the_same_subject_however_it_is_written() -> None:
    network, setup = small_mobilenet(), _setup()
    one = subject(setup, Job(Policy({"head": BitWidths(8, 8)})))
    listed = {name: BitWidths(32, 32) for name in reversed(network.layer_names)}
    same = Policy({**listed, "head": BitWidths(8, 8)}, {"ranges": "mse"})
    assert subject(_setup(), Job(same, QUICK.seed)) == one
    elsewhere = Ranges(network.digest, dict(reversed(setup.ranges.limits.items())), "other", 5)
    assert subject(_setup(ranges=elsewhere), Job(same)) == one
    read = read_network(onnx.load_model_from_string(network.model.SerializeToString()))
    assert subject(_setup(network=read), Job(same)).key == one.key


def _other_weights(setup: Setup) -> Setup:
    model = onnx.ModelProto()
    model.CopyFrom(setup.network.model)
    name = next(node.input[1] for node in model.graph.node if node.name == "head")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(weight) * 2
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    network = read_network(model)
    assert network.digest == setup.network.digest
    return replace(setup, network=network)


def _other_ranges(setup: Setup) -> Setup:
    limits = {**setup.ranges.limits, "stem.act.out": (0.0, 5.0)}
    return replace(setup, ranges=replace(setup.ranges, limits=limits))


def _other_inputs(setup: Setup) -> Setup:
    return replace(setup, feed={name: values + 1 for name, values in setup.feed.items()})


def _other_options(setup: Setup) -> Setup:
    return replace(setup, options=replace(setup.options, guard_float=False))


def _other_timing(setup: Setup) -> Setup:
    return replace(setup, timing=replace(setup.timing, blocks=3))


SETUPS: dict[str, Callable[[Setup], Setup]] = {
    "weights": _other_weights,
    "ranges": _other_ranges,
    "inputs": _other_inputs,
    "options": _other_options,
    "threads": lambda setup: replace(setup, threads=2),
    "timing": _other_timing,
}
HEAD = Policy({"head": BitWidths(8, 8)})


@pytest.mark.parametrize("what", SETUPS)
def test_whatever_decides_a_timing_is_in_the_subject(what: str) -> None:
    setup = _setup()
    assert subject(SETUPS[what](setup), Job(HEAD)).key != subject(setup, Job(HEAD)).key


@pytest.mark.parametrize(
    "job",
    [
        Job(Policy({"head": BitWidths(4, 8)})),
        Job(Policy({"stem": BitWidths(8, 8)})),
        Job(HEAD, QUICK.seed + 1),
    ],
)
def test_other_bits_another_layer_or_another_seed_is_another_subject(job: Job) -> None:
    assert subject(_setup(), job).key != subject(_setup(), Job(HEAD)).key


def test_another_revision_of_the_exporter_is_another_subject(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = subject(_setup(), Job(Policy({})))
    monkeypatch.setattr(policy_timer, "REVISION", policy_timer.REVISION + 1)
    assert subject(_setup(), Job(Policy({}))) != before
