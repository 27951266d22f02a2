"""What else the machine did while something was timed, and advice about its settings.

Everything is read below a root from the texts of /proc and /sys; what they do not say is None, and
no setting is ever changed.
"""

import resource
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_STEAL = 7
_COUNTED = 8
"""Fields of a line of /proc/stat: user nice system idle iowait irq softirq steal; see proc(5).

Guest time, which follows, is already part of user and nice."""
_IDLE = (3, 4)
_BUSY_SHARE = 0.2
"""A sibling that works this share of the time takes part of a core's units for itself."""
_STEAL_SHARE = 0.001


@dataclass(frozen=True)
class Ticks:
    """Time of one processor since boot, in ticks of the kernel (commonly 10 ms)."""

    busy: int
    steal: int
    total: int


@dataclass(frozen=True)
class Snapshot:
    """Counters of the machine and of this process at one moment.

    Args:
        load: mean number of runnable processes over the last minute.
        processors: ticks by processor number; empty if unknown.
        swapped_pages: pages moved from or to swap since boot.
        voluntary_switches: context switches of this process while it waited, all its threads.
        involuntary_switches: the same, taken from it by the scheduler.
    """

    load: float | None
    processors: Mapping[int, Ticks]
    swapped_pages: int | None
    voluntary_switches: int
    involuntary_switches: int


@dataclass(frozen=True)
class Conditions:
    """What happened between two snapshots.

    Args:
        load: before and after.
        steal_share: of the processors' time, given by the hypervisor to others; None if unknown,
            also where less than a tick has passed.
        swapped_pages: moved in between.
        voluntary_switches: of this process.
        involuntary_switches: the same.
        busy_share: of each processor, by number; JSON keys are texts.
    """

    load: tuple[float | None, float | None]
    steal_share: float | None
    swapped_pages: int | None
    voluntary_switches: int
    involuntary_switches: int
    busy_share: Mapping[int, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        shares = {str(number): share for number, share in self.busy_share.items()}
        return {**asdict(self), "load": list(self.load), "busy_share": shares}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Conditions":
        """Read what `to_dict` wrote."""
        before, after = values["load"]
        shares = {int(number): share for number, share in values["busy_share"].items()}
        return cls(**{**values, "load": (before, after), "busy_share": shares})


def parse_stat(text: str) -> dict[int, Ticks]:
    """Return the ticks of each processor from the text of /proc/stat."""
    found = {}
    for line in text.splitlines():
        name, *fields = line.split()[: 1 + _COUNTED] or [""]
        number = name.removeprefix("cpu")
        if name.startswith("cpu") and number.isdecimal() and len(fields) == _COUNTED:
            ticks = [int(value) for value in fields]
            total, steal = sum(ticks), ticks[_STEAL]
            found[int(number)] = Ticks(total - steal - sum(ticks[i] for i in _IDLE), steal, total)
    return found


def parse_loadavg(text: str) -> float | None:
    """Return the mean of the last minute from the text of /proc/loadavg."""
    try:
        return float(text.split()[0])
    except (IndexError, ValueError):
        return None


def parse_swapped(text: str) -> int | None:
    """Return the pages swapped in and out since boot from the text of /proc/vmstat."""
    values = dict(line.split(maxsplit=1) for line in text.splitlines() if len(line.split()) == 2)
    moved = [values.get("pswpin", ""), values.get("pswpout", "")]
    return sum(map(int, moved)) if all(m.isdecimal() for m in moved) else None


def parse_processors(text: str) -> tuple[int, ...]:
    """Return the numbers that a list such as ``0-2,8`` names; empty if it is none.

    >>> parse_processors("0-2,8")
    (0, 1, 2, 8)
    """
    try:
        ends = [[int(n) for n in part.split("-")] for part in text.strip().split(",")]
    except ValueError:
        return ()
    return tuple(n for end in ends for n in range(end[0], end[-1] + 1))


def switches() -> tuple[int, int]:
    """Return context switches of this process so far, voluntary and involuntary, all threads.

    /proc/self/status counts those of the first thread only, which is why it is not read.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_nvcsw, used.ru_nivcsw


def observe(root: Path = Path("/"), switched: Callable[[], tuple[int, int]] = switches) -> Snapshot:
    """Read all counters now.

    Args:
        root: where ``proc`` lies; for tests.
        switched: voluntary and involuntary context switches; for tests.
    """
    return Snapshot(
        parse_loadavg(_read(root / "proc/loadavg")),
        parse_stat(_read(root / "proc/stat")),
        parse_swapped(_read(root / "proc/vmstat")),
        *switched(),
    )


def between(before: Snapshot, after: Snapshot) -> Conditions:
    """Return what happened between two snapshots."""
    gone = {
        number: (last.busy - first.busy, last.steal - first.steal, last.total - first.total)
        for number, last in after.processors.items()
        if (first := before.processors.get(number)) is not None and last.total > first.total
    }
    total = sum(ticks for _, _, ticks in gone.values())
    swaps = (before.swapped_pages, after.swapped_pages)
    return Conditions(
        load=(before.load, after.load),
        steal_share=sum(steal for _, steal, _ in gone.values()) / total if total else None,
        swapped_pages=None if swaps[0] is None or swaps[1] is None else swaps[1] - swaps[0],
        voluntary_switches=after.voluntary_switches - before.voluntary_switches,
        involuntary_switches=after.involuntary_switches - before.involuntary_switches,
        busy_share={number: busy / ticks for number, (busy, _, ticks) in gone.items()},
    )


def advice(conditions: Conditions | None = None, root: Path = Path("/")) -> tuple[str, ...]:
    """Return what would make timings on this machine steadier, one line each.

    Empty where nothing is amiss, or nothing can be told.

    Args:
        conditions: what happened while something was timed; None looks at settings only.
        root: where ``proc`` and ``sys`` lie; for tests.
    """
    processors = root / "sys/devices/system/cpu"
    found = [*_clock_advice(processors)]
    if conditions is not None:
        found += [*_load_advice(conditions, processors), *_sibling_advice(conditions, processors)]
    return tuple(found)


def _clock_advice(processors: Path) -> list[str]:
    governors = {_read(p).strip() for p in processors.glob("cpufreq/policy*/scaling_governor")}
    slow = sorted(governors - {"performance", ""})
    boosts = (
        _read(processors / "cpufreq/boost").strip() == "1"
        or _read(processors / "intel_pstate/no_turbo").strip() == "0"
    )
    found = []
    if slow:
        found.append(
            f"the frequency governor is {', '.join(slow)}: with 'performance' times vary less"
        )
    if boosts:
        found.append("clock boost is on: times depend on temperature and on what other cores do")
    return found


def _load_advice(conditions: Conditions, processors: Path) -> list[str]:
    found = []
    cores = len(parse_processors(_read(processors / "online")))
    load = max((value for value in conditions.load if value is not None), default=0.0)
    if 0 < cores < load:
        found.append(f"the load was {load:.1f} on {cores} processors: others competed for them")
    if conditions.steal_share is not None and conditions.steal_share >= _STEAL_SHARE:
        found.append(
            f"the hypervisor gave {conditions.steal_share:.1%} of the time to others: "
            "time at a quieter hour or on a dedicated host"
        )
    if conditions.swapped_pages:
        found.append(f"{conditions.swapped_pages} pages were swapped: free some memory")
    return found


def _sibling_advice(conditions: Conditions, processors: Path) -> list[str]:
    cores = {
        parse_processors(_read(path))
        for path in processors.glob("cpu[0-9]*/topology/thread_siblings_list")
    }
    for core in sorted(cores):
        busy = [n for n in core if conditions.busy_share.get(n, 0.0) >= _BUSY_SHARE]
        if len(busy) > 1:
            return [
                f"processors {', '.join(map(str, busy))} share one core and were busy at once: "
                "keep the sibling idle"
            ]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
