"""How often the kernel has killed for want of memory, from captured text of /proc and cgroups."""

from pathlib import Path


def oom_kills(root: Path = Path("/")) -> int:
    """Return a count that rises when the kernel kills a process for want of memory.

    The sum of the machine's counter and of this process's memory groups', where they can be read:
    one that rises while a process was killed by SIGKILL tells who sent it.

    Args:
        root: where ``proc`` and ``sys`` lie; for tests.
    """
    counted = [_count(_read(root / "proc/vmstat"))]
    for path in _memory_groups(_read(root / "proc/self/cgroup")):
        counted.append(_count(_read(root / path)))
    return sum(counted)


def _memory_groups(text: str) -> list[str]:
    """Where groups of the text of /proc/self/cgroup count, relative to the root.

    In a container the path may be that of the host, and the group itself be mounted as the top.
    """
    found = []
    for line in text.splitlines():
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        for inside in dict.fromkeys((path.strip("/"), "")):
            if not controllers:
                found.append(f"sys/fs/cgroup/{inside}/memory.events")
            elif "memory" in controllers.split(","):
                found.append(f"sys/fs/cgroup/memory/{inside}/memory.oom_control")
    return found


def _count(text: str) -> int:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdecimal():
            return int(value)
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
