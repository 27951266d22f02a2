"""A machine whose clock moves only when something runs on it."""

from collections.abc import Callable

from hil.conditions import Snapshot


class Machine:
    """A clock, and candidates that make it go on; each run is noted."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def clock(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float) -> "Candidate":
        return Candidate(self, name, seconds)

    def observe(self) -> Snapshot:
        """Counters of an idle machine."""
        return Snapshot(0.5, {}, 0, 0, 0)


class Candidate:
    def __init__(self, machine: Machine, name: str, seconds: float) -> None:
        self.machine, self.name, self.seconds = machine, name, seconds

    def __call__(self) -> None:
        self.machine.ran.append(self.name)
        self.machine.now += self.seconds


def noisy(machine: Machine, seconds: float, noise: Callable[[], float]) -> Callable[[], None]:
    """A candidate each of whose runs takes ``seconds * noise()``."""

    def run() -> None:
        machine.now += seconds * noise()

    return run
