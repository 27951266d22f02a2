"""What the tests of the store put into it, and a process of its own that does so.

``python -m tests.hil.store_writer JOB STORE WRITER FIRST COUNT``: prints what it was told is
committed, a line each, at once.
"""

import random
import resource
import subprocess
import sys
from itertools import count
from pathlib import Path

from costmodels.errors import StoreError
from costmodels.measurement import Device, Measurement
from hil.records import Record, Subject
from hil.store import Store

ROOT = Path(__file__).parents[2]
DEVICE = Device("A CPU", "x86_64", ("avx2", "fma"), 2, 2**33, "Linux 6", "onnxruntime", "1.32.0")


def subject(number: int) -> Subject:
    return Subject({"network": "digest", "number": number, "options": {"threads": 1}})


def record(number: int, writer: int) -> Record:
    """200 samples (4 kB), so that a few hundred records fill the log of SQLite."""
    draw = random.Random(1000 * writer + number)
    samples = tuple(draw.uniform(1e-3, 2e-3) for _ in range(200))
    timed = Measurement("policy", samples, samples[:3], 2, tuple(range(200)), {"load": [0.1, 0.2]})
    return Record({"policy": timed}, facts={"writer": writer})


class Writer:
    """A process that puts into a store.

    Args:
        job: what it does, see below.
        path: the store.
        writer: its number, which its records tell.
        first: its first subject.
        number: how many subjects; or what else the job needs.
    """

    def __init__(self, job: str, path: Path, writer: int, first: int, number: int = 0) -> None:
        numbers = map(str, (writer, first, number))
        command = [sys.executable, "-m", "tests.hil.store_writer", job, str(path), *numbers]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def go(self) -> None:
        """Wait until it has imported what it needs, and let it open the store."""
        assert self._process.stdin is not None
        assert self.line() == "ready"
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def line(self) -> str:
        """Wait for its next line."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> tuple[int, list[str]]:
        """Wait for its end; return its status and the whole lines that it said since."""
        with self._process as process:
            assert process.stdout is not None
            said = process.stdout.read().splitlines(keepends=True)
        return self._process.returncode, [line.strip() for line in said if line[-1] == "\n"]


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def _share(path: Path, writer: int, first: int, number: int) -> None:
    """Put some subjects in an order of its own; say for each whose record is held."""
    numbers = list(range(first, first + number))
    random.Random(writer).shuffle(numbers)
    with Store(path, DEVICE) as store:
        for each in numbers:
            _say(each, store.put(subject(each), record(each, writer)).facts["writer"])


def _forever(path: Path, writer: int, first: int, _: int) -> None:
    """Put subjects until killed; say which are committed."""
    with Store(path, DEVICE) as store:
        for each in count(first):
            store.put(subject(each), record(each, writer))
            _say(each)


def _limited(path: Path, writer: int, first: int, number: int) -> None:
    """Put subjects until no file may grow beyond `number` bytes; then lift the limit and go on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(path, DEVICE) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, hard))
        stored = 0
        try:
            for each in count(first):
                store.put(subject(each), record(each, writer))
                stored += 1
        except StoreError as error:
            _say(error)
        held = [store.get(subject(first + i)) == record(first + i, writer) for i in range(stored)]
        _say(stored, sum(held), store.get(subject(first + stored)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.put(subject(first + stored), record(first + stored, writer))


if __name__ == "__main__":
    jobs = {"share": _share, "forever": _forever, "limited": _limited}
    _say("ready")
    sys.stdin.readline()
    jobs[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))
