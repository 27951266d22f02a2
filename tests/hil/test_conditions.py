"""What else the machine did, from captured texts of /proc and /sys."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hil.conditions import (
    Conditions,
    Snapshot,
    Ticks,
    advice,
    between,
    observe,
    parse_loadavg,
    parse_processors,
    parse_stat,
    parse_swapped,
    switches,
)

STAT = """\
cpu  1607738 819 191990 2760049 18048 0 1127 1573 0 0
cpu0 800000 400 95000 1380000 9000 0 600 800 0 0
cpu1 807738 419 96990 1380049 9048 0 527 773 5 0
intr 12345 0 0
ctxt 98765
"""
LATER = """\
cpu0 800600 400 95100 1380100 9100 0 600 900 0 0
cpu1 807738 419 96990 1381049 9048 0 527 773 5 0
"""
VMSTAT = "nr_free_pages 6000000\npswpin 12\npswpout 30\n"
CALM = Conditions((0.5, 0.6), 0.0, 0, 1, 2, {0: 0.9, 1: 0.01})
PROCESSORS = "sys/devices/system/cpu"


def _write(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_ticks_are_those_of_each_processor_and_idle_time_is_not_busy() -> None:
    found = parse_stat(STAT)
    assert set(found) == {0, 1}
    total = 800000 + 400 + 95000 + 1380000 + 9000 + 600 + 800
    assert found[0] == Ticks(total - 1380000 - 9000 - 800, 800, total)


@pytest.mark.parametrize("text", ["", "cpu0 1 2 3\n", "nothing to see\n\n"])
def test_a_stat_that_does_not_tell_gives_no_processor(text: str) -> None:
    assert parse_stat(text) == {}


@pytest.mark.parametrize(
    ("text", "load"), [("0.83 0.37 0.63 2/101 14302\n", 0.83), ("", None), ("much", None)]
)
def test_the_load_is_the_first_number_or_unknown(text: str, load: float | None) -> None:
    assert parse_loadavg(text) == load


@pytest.mark.parametrize(
    ("text", "pages"), [(VMSTAT, 42), ("", None), ("pswpin 1\n", None), ("pswpin\n", None)]
)
def test_swapped_pages_are_those_in_and_out(text: str, pages: int | None) -> None:
    assert parse_swapped(text) == pages


@pytest.mark.parametrize(
    ("text", "numbers"), [("0-2,8\n", (0, 1, 2, 8)), ("3", (3,)), ("", ()), ("all", ())]
)
def test_lists_of_processors(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_processors(text) == numbers


def test_switches_only_grow() -> None:
    before, after = switches(), switches()
    assert all(0 <= b <= a for b, a in zip(before, after, strict=True))


def test_between_two_snapshots_of_captured_texts(tmp_path: Path) -> None:
    texts = {"proc/stat": STAT, "proc/loadavg": "0.5 0 0 1/9 7\n", "proc/vmstat": VMSTAT}
    before = observe(_write(tmp_path / "before", texts), lambda: (10, 100))
    texts |= {"proc/stat": LATER, "proc/vmstat": VMSTAT.replace("30", "33")}
    after = observe(_write(tmp_path / "after", texts), lambda: (11, 130))
    found = between(before, after)
    assert found.load == (0.5, 0.5)
    assert found.steal_share == pytest.approx(100 / (1000 + 1000))
    assert (found.voluntary_switches, found.involuntary_switches) == (1, 30)
    assert found.swapped_pages == 3
    assert found.busy_share == pytest.approx({0: 0.7, 1: 0.0})
    assert Conditions.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_what_a_system_does_not_tell_is_unknown_not_zero(tmp_path: Path) -> None:
    found = observe(tmp_path, lambda: (0, 0))
    assert found == Snapshot(None, {}, None, 0, 0)
    conditions = between(found, found)
    assert (conditions.load, conditions.steal_share) == ((None, None), None)
    assert conditions.swapped_pages is None
    assert advice(conditions, tmp_path) == ()


def test_less_than_a_tick_tells_nothing_of_steal() -> None:
    moment = Snapshot(0.1, parse_stat(STAT), 0, 0, 0)
    assert between(moment, moment).steal_share is None


def test_a_quiet_well_set_machine_needs_no_advice(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            f"{PROCESSORS}/cpufreq/policy0/scaling_governor": "performance\n",
            f"{PROCESSORS}/cpufreq/boost": "0\n",
            f"{PROCESSORS}/intel_pstate/no_turbo": "1\n",
            f"{PROCESSORS}/online": "0-1\n",
            f"{PROCESSORS}/cpu0/topology/thread_siblings_list": "0-1\n",
        },
    )
    assert advice(CALM, root) == ()
    assert advice(None, root) == ()


@pytest.mark.parametrize(
    ("texts", "conditions", "expected"),
    [
        ({"cpufreq/policy3/scaling_governor": "powersave\n"}, CALM, "governor is powersave"),
        ({"cpufreq/boost": "1\n"}, CALM, "clock boost is on"),
        ({"intel_pstate/no_turbo": "0\n"}, CALM, "clock boost is on"),
        ({"online": "0-1\n"}, replace(CALM, load=(0.1, 2.6)), "load was 2.6 on 2 processors"),
        ({}, replace(CALM, steal_share=0.034), "gave 3.4% of the time to others"),
        ({}, replace(CALM, swapped_pages=17), "17 pages were swapped"),
        (
            {"cpu1/topology/thread_siblings_list": "0,1\n"},
            replace(CALM, busy_share={0: 0.9, 1: 0.5}),
            "processors 0, 1 share one core",
        ),
    ],
)
def test_advice_is_one_line_for_each_thing_amiss(
    tmp_path: Path, texts: dict[str, str], conditions: Conditions, expected: str
) -> None:
    root = _write(tmp_path, {f"{PROCESSORS}/{name}": text for name, text in texts.items()})
    [line] = advice(conditions, root)
    assert expected in line
    assert "\n" not in line
