"""Worker processes: what jobs do to them, and that nothing outlives anybody."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hil.oom import oom_kills
from hil.records import FailureKind
from hil.worker import Worker, WorkerError
from quantization.errors import ModelError

HANDLER = "tests.hil.jobs:handler"
LONG_S = 60.0
"""Longer than any job here takes on a busy machine."""
SHORT_S = 0.3
"""For jobs that never end."""


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Worker(HANDLER, "argument", limit_s=LONG_S) as made:
        yield made


def failure_of(worker: Worker, *job: object, limit_s: float | None = None) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        worker.call(job, limit_s)
    assert "\n" not in caught.value.failure.text
    return caught.value


def is_gone(process: int) -> bool:
    """Whether it runs no more; a zombie that nobody reaps does not run."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"


def wait_until_gone(process: int) -> None:
    deadline = time.monotonic() + LONG_S
    while not is_gone(process):
        assert time.monotonic() < deadline, f"process {process} outlives its parent"
        time.sleep(0.01)


def test_the_handler_is_made_once_and_lives_from_job_to_job(worker: Worker) -> None:
    assert worker.call(("remember", 1)) == ["argument", 1]
    assert worker.call(("remember", 2)) == ["argument", 1, 2]
    assert worker.call(("process",)) == worker.call(("process",)) != os.getpid()
    assert worker.restarts == 0


def test_no_process_is_started_before_the_first_job() -> None:
    with Worker("no.such.module:at_all", None, limit_s=LONG_S) as worker:
        assert worker.restarts == 0


def test_an_exception_is_one_line_with_its_type_and_leaves_the_process_alone(
    worker: Worker,
) -> None:
    worker.call(("remember", 1))
    failure = failure_of(worker, "raise").failure
    assert (failure.kind, failure.text) == (FailureKind.EXCEPTION, "ValueError: not this one")
    assert failure_of(worker, "exit", False).failure.text == "SystemExit: enough"
    assert worker.call(("remember", 2)) == ["argument", 1, 2]
    assert worker.restarts == 0


@pytest.mark.parametrize(
    ("job", "kind", "words"),
    [
        (("fault",), FailureKind.KILLED, r"SIGSEGV in string_at \(__init__\.py, line \d+\)"),
        (("abort",), FailureKind.KILLED, r"SIGABRT in _abort \(jobs\.py, line \d+\)"),
        (("abort", "at\nlast"), FailureKind.KILLED, r"SIGABRT in _abort .*: last"),
        (("kill",), FailureKind.KILLED, "SIGKILL"),
        (("kill", signal.SIGTERM), FailureKind.KILLED, "SIGTERM"),
        (("kill", signal.SIGRTMIN + 3), FailureKind.KILLED, f"signal {signal.SIGRTMIN + 3}"),
        (("exit", True), FailureKind.KILLED, "it ended by itself with status 3"),
        (("abort", "what(): std::bad_alloc"), FailureKind.MEMORY, r"SIGABRT .*std::bad_alloc"),
    ],
)
def test_a_job_that_ends_its_process_is_a_failure_and_the_next_one_gets_another(
    worker: Worker, job: tuple[object, ...], kind: FailureKind, words: str
) -> None:
    before = worker.call(("process",))
    error = failure_of(worker, *job)
    assert error.failure.kind is kind
    assert re.fullmatch(words, error.failure.text)
    assert not error.starting
    assert worker.call(("remember", 2)) == ["argument", 2]
    assert worker.call(("process",)) != before
    assert worker.restarts == 1


@pytest.mark.parametrize("job", ["hang", "hang locked"])
def test_a_job_that_takes_too_long_is_killed(worker: Worker, job: str) -> None:
    process = worker.call(("process",))
    assert isinstance(process, int)
    failure = failure_of(worker, job, limit_s=SHORT_S).failure
    assert (failure.kind, failure.text) == (FailureKind.TIME, "no answer within 0.3 s")
    assert is_gone(process)
    assert worker.call(("remember", 2)) == ["argument", 2]
    assert worker.restarts == 1


def test_the_limit_of_the_worker_holds_where_a_job_has_none() -> None:
    with Worker(HANDLER, None, limit_s=SHORT_S) as worker:
        assert failure_of(worker, "hang").failure.kind is FailureKind.TIME
        assert worker.call(("hang", 2 * SHORT_S), LONG_S) is None


def test_a_process_that_takes_no_message_is_killed_at_the_limit(worker: Worker) -> None:
    """Sending hangs then: the message is larger than what a socket holds."""
    process = worker.call(("process",))
    assert isinstance(process, int)
    os.kill(process, signal.SIGSTOP)
    failure = failure_of(worker, "echo", bytes(1 << 24), limit_s=SHORT_S).failure
    assert failure.kind is FailureKind.TIME
    assert worker.call(("remember", 2)) == ["argument", 2]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_between_jobs_is_no_failure_of_the_next_job(
    worker: Worker, number: int
) -> None:
    process = worker.call(("process",))
    assert isinstance(process, int)
    os.kill(process, number)
    wait_until_gone(process)
    assert worker.call(("remember", 2)) == ["argument", 2]
    assert worker.restarts == 1


def test_children_of_a_job_that_is_killed_end_with_it(worker: Worker) -> None:
    child = worker.call(("child",))
    assert isinstance(child, int)
    assert not is_gone(child)
    failure_of(worker, "kill")
    wait_until_gone(child)


def test_memory_beyond_the_limit_is_a_failure_of_the_job() -> None:
    with Worker(HANDLER, "argument", limit_s=LONG_S, memory_bytes=1 << 30) as worker:
        assert worker.call(("allocate", 1 << 20)) == 1 << 20
        assert failure_of(worker, "allocate", 1 << 31).failure.kind is FailureKind.MEMORY
        assert worker.call(("remember", 1)) == ["argument", 1]
        assert worker.restarts == 1


def test_an_error_about_memory_is_one_whatever_its_type(worker: Worker) -> None:
    failure = failure_of(worker, "cramped").failure
    assert failure.kind is FailureKind.MEMORY
    assert "std::bad_alloc" in failure.text


def test_a_kill_that_the_kernel_counts_as_one_for_want_of_memory_is_told_apart(
    tmp_path: Path,
) -> None:
    counter = tmp_path / "proc/vmstat"
    counter.parent.mkdir()
    counter.write_text("oom_kill 2\n", encoding="utf-8")
    with Worker(HANDLER, None, limit_s=LONG_S, root=tmp_path) as worker:
        assert failure_of(worker, "kill").failure.kind is FailureKind.KILLED
        failure = failure_of(worker, "killed for memory", str(counter)).failure
        assert (failure.kind, counter.read_text()) == (FailureKind.MEMORY, "oom_kill 3\n")


def test_kills_are_counted_on_the_machine_and_in_both_kinds_of_groups(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0
    texts = {
        "proc/vmstat": "nr_free_pages 7\noom_kill 1\n",
        "proc/self/cgroup": "4:cpu,memory:/jobs/a\n3:cpuset:/jobs/a\n0::/jobs/b\nnonsense\n",
        "sys/fs/cgroup/memory/jobs/a/memory.oom_control": "under_oom 0\noom_kill 10\n",
        "sys/fs/cgroup/jobs/b/memory.events": "oom 900\noom_kill 100\noom_group_kill 900\n",
        "sys/fs/cgroup/memory.events": "oom_kill 1000\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert oom_kills(tmp_path) == 1111


@pytest.mark.parametrize(
    ("way", "kind"),
    [("raise", FailureKind.EXCEPTION), ("fault", FailureKind.KILLED), ("hang", FailureKind.TIME)],
)
def test_a_handler_that_cannot_be_made_is_a_failure_to_start(way: str, kind: FailureKind) -> None:
    limit_s = SHORT_S if way == "hang" else LONG_S
    with Worker("tests.hil.jobs:failing", way, limit_s=LONG_S, start_limit_s=limit_s) as worker:
        for restarts in range(2):
            error = failure_of(worker, "process")
            assert (error.failure.kind, error.starting) == (kind, True)
            assert worker.restarts == restarts


def test_a_factory_that_does_not_exist_is_named() -> None:
    with Worker("hil.no_such_module:make", None, limit_s=LONG_S) as worker:
        assert "hil.no_such_module" in failure_of(worker, "process").failure.text


def test_a_start_that_failed_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "there"
    with Worker("tests.hil.jobs:once", str(path), limit_s=LONG_S) as worker:
        assert failure_of(worker, "process").starting
        path.touch()
        assert worker.call(("remember", 1)) == [str(path), 1]


def test_errors_that_the_user_can_mend_are_raised_as_themselves(worker: Worker) -> None:
    with pytest.raises(ModelError, match=r"cannot read 'a\.onnx'"):
        worker.call(("refuse",))
    failing = Worker("tests.hil.jobs:failing", "refuse", limit_s=LONG_S)
    with failing, pytest.raises(ModelError, match="cannot read"):
        failing.call(("process",))
    worker.call(("process",))
    assert worker.restarts == 0


def test_such_an_error_that_cannot_travel_comes_as_its_text(worker: Worker) -> None:
    assert failure_of(worker, "particular").failure.text == "ParticularError: particular 3"


def test_what_cannot_be_pickled_is_a_failure_and_ends_nothing(worker: Worker) -> None:
    with pytest.raises(Exception, match="pickle"):
        worker.call(("echo", lambda: None))
    assert "pickle" in failure_of(worker, "unpicklable").failure.text
    worker.call(("process",))
    assert worker.restarts == 0


def test_answers_and_jobs_may_be_large(worker: Worker) -> None:
    large = os.urandom(1 << 16) * 512
    assert worker.call(("echo", large)) == large


def test_workers_do_not_disturb_each_other() -> None:
    with Worker(HANDLER, 1, limit_s=LONG_S) as one, Worker(HANDLER, 2, limit_s=LONG_S) as two:
        assert one.call(("remember", "a")) == [1, "a"]
        assert two.call(("remember", "b")) == [2, "b"]
        assert failure_of(one, "kill").failure.kind is FailureKind.KILLED
        assert two.call(("remember", "c")) == [2, "b", "c"]
        assert two.call(("process",)) != one.call(("process",))
        assert (one.restarts, two.restarts) == (1, 0)


def test_a_worker_outlives_the_thread_that_started_it(worker: Worker) -> None:
    thread = threading.Thread(target=worker.call, args=[("remember", 1)])
    thread.start()
    thread.join()
    assert worker.call(("remember", 2)) == ["argument", 1, 2]


def test_the_worker_ends_with_its_context() -> None:
    with Worker(HANDLER, None, limit_s=LONG_S) as worker:
        process, child = worker.call(("process",)), worker.call(("child",))
    assert isinstance(process, int)
    assert isinstance(child, int)
    assert is_gone(process)
    wait_until_gone(child)


def test_environment_import_path_and_folder_are_those_of_the_parent(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    answer = worker.call(("surroundings",))
    assert isinstance(answer, tuple)
    path, environment, folder = answer
    assert (path, folder) == (sys.path, str(tmp_path))
    assert environment["OMP_NUM_THREADS"] == "3"
    assert "CUDA_LAUNCH_BLOCKING" not in environment  # no timing waits for each launch


def test_what_a_job_writes_stays_away_from_the_parents_output(
    worker: Worker, capfd: pytest.CaptureFixture[str]
) -> None:
    worker.call(("write", "much ado"))
    assert failure_of(worker, "abort").failure.text.endswith(")")  # not the words of a job before
    assert capfd.readouterr() == ("", "")


PARENT = """
import sys
from hil.worker import Worker
worker = Worker("tests.hil.jobs:handler", None, limit_s=600)
print(worker.call(("process",)), worker.call(("child",)), flush=True)
if sys.argv[1] != "idle":
    worker.call((sys.argv[1],))
sys.stdin.readline()
"""


@pytest.mark.parametrize("job", ["idle", "hang", "hang locked"])
def test_a_worker_and_its_children_end_when_the_parent_is_killed(job: str) -> None:
    command = [sys.executable, "-c", PARENT, job]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=path) as parent:
        assert parent.stdout is not None
        processes = [int(word) for word in parent.stdout.readline().split()]
        assert len(processes) == 2
        assert not any(map(is_gone, processes))
        time.sleep(0.05)  # into the job; if it is not there yet, the end is the same
        parent.kill()
    for process in processes:
        wait_until_gone(process)


def test_ctrl_c_ends_the_worker_without_a_word_of_its_own() -> None:
    command = [sys.executable, "-c", PARENT, "hang"]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=path, process_group=0
    ) as parent:
        assert parent.stdout is not None
        process, child = map(int, parent.stdout.readline().split())
        time.sleep(0.05)
        os.killpg(parent.pid, signal.SIGINT)
        _, text = parent.communicate(timeout=LONG_S)
    assert text.count("Traceback") == 1
    assert text.rstrip().endswith("KeyboardInterrupt")
    wait_until_gone(process)
    wait_until_gone(child)


def test_a_job_that_was_interrupted_does_not_answer_the_next_one(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.call(("remember", 1))
    this = threading.get_ident()
    interrupt = threading.Timer(SHORT_S, signal.pthread_kill, [this, signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        worker.call(("hang",))
    assert worker.call(("remember", 2)) == ["argument", 2]


def test_the_error_says_what_happened_in_one_line(worker: Worker) -> None:
    error = failure_of(worker, "raise")
    assert str(error) == "the worker gave no answer (exception): ValueError: not this one"
