"""Which energy counters there are, from made-up trees of /sys, and how zeus's are read."""

from configparser import ConfigParser
from pathlib import Path

import pytest

from hil.counters import CPU_PARTS, RAPL, ZEUS, Availability, ZeusMeter, measurable, open_meter
from hil.meters import EnergyError, Part

GPU = frozenset({Part.GPU})
ZONES = {
    "intel-rapl:0": "package-0",
    "intel-rapl:0/intel-rapl:0:0": "core",
    "intel-rapl:0/intel-rapl:0:1": "dram",
    "intel-rapl:1": "psys",
}


def _tree(root: Path, zones: dict[str, str]) -> Path:
    (root / RAPL[0]).mkdir(parents=True)
    for zone, name in zones.items():
        folder = root / RAPL[0] / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text("12500000\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    return root


def _asked(root: Path, *, readable: bool = True, installed: bool = True) -> Availability:
    return measurable(
        CPU_PARTS | GPU, root, readable=lambda _path: readable, installed=lambda: installed
    )


def test_a_virtual_machine_has_no_counters_and_says_so_in_one_line(tmp_path: Path) -> None:
    found = _asked(tmp_path)
    assert found.counters == ()
    assert str(found) == (
        "not measurable here, because there is no RAPL (no /sys/class/powercap/intel-rapl; "
        "virtual machines hide it) and there is no NVIDIA driver (no /proc/driver/nvidia)"
    )
    assert "NVIDIA" not in str(measurable(CPU_PARTS, tmp_path)), "nobody asked for it"


def test_a_folder_without_a_package_holds_no_counter(tmp_path: Path) -> None:
    found = measurable(CPU_PARTS, _tree(tmp_path, {"intel-rapl:1": "psys"}))
    assert "RAPL shows no package" in str(found)


def test_counters_that_only_root_may_read_are_named_as_such(tmp_path: Path) -> None:
    found = _asked(_tree(tmp_path, ZONES), readable=False)
    assert "only root may read the RAPL counters" in str(found)


def test_counters_without_zeus_say_how_to_install_it(tmp_path: Path) -> None:
    found = _asked(_tree(tmp_path, ZONES), installed=False)
    assert str(found) == f"not measurable here, because zeus is not installed: pip install {ZEUS}"
    extra = ConfigParser()
    extra.read(Path(__file__).parents[2] / "setup.cfg")
    assert extra["options.extras_require"]["energy"].split() == [ZEUS]


def test_packages_and_a_driver_are_measurable(tmp_path: Path) -> None:
    root = _tree(tmp_path, ZONES)
    assert str(_asked(root)) == "measurable: package-0"
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "proc/driver/nvidia/version").write_text("NVRM version: 580\n")
    assert _asked(root).counters == ("package-0", "NVML")
    assert measurable(GPU, root, installed=lambda: True).counters == ("NVML",)


def test_where_nothing_is_measurable_no_meter_opens(tmp_path: Path) -> None:
    with pytest.raises(EnergyError, match="not measurable here, because there is no RAPL"):
        open_meter(root=tmp_path)


class _File:
    def __init__(self, folder: Path) -> None:
        self.name = (folder / "name").read_text().strip()
        self.energy_uj_path = str(folder / "energy_uj")
        self.max_energy_range_uj = float((folder / "max_energy_range_uj").read_text())


class _Cpu:
    def __init__(self, folder: Path) -> None:
        self.cpu_index = 0
        self.rapl_file = _File(folder)
        self.dram: _File | None = _File(folder / "intel-rapl:0:1")


class _Gpu:
    gpu_index = 3

    def get_total_energy_consumption(self) -> int:
        return 7_250


def test_readings_are_joules_of_the_parts_asked_for(tmp_path: Path) -> None:
    cpu = _Cpu(_tree(tmp_path, ZONES) / RAPL[0] / "intel-rapl:0")
    meter = ZeusMeter([cpu], [_Gpu()], CPU_PARTS | GPU, "0.16.0")
    assert [counter.name for counter in meter.counters] == ["package-0", "dram-0", "gpu-3"]
    assert [counter.range_j for counter in meter.counters] == [262143.32885, 262143.32885, None]
    assert meter.read().joules == (12.5, 12.5, 7.25)
    assert meter.described == "NVML and RAPL through zeus 0.16.0"
    before = meter.clock()
    meter.sleep(0.002)
    assert meter.read().time_s >= before + 0.002
    only = ZeusMeter([cpu], [_Gpu()], CPU_PARTS, "0.16.0")
    assert only.described == "RAPL through zeus 0.16.0"
    Path(cpu.rapl_file.energy_uj_path).unlink()
    with pytest.raises(EnergyError, match="an energy counter cannot be read"):
        only.read()


def test_a_meter_without_counters_is_none() -> None:
    with pytest.raises(EnergyError, match="no energy counter of what runs"):
        ZeusMeter([], [_Gpu()], CPU_PARTS, "0.16.0")


def test_zeus_itself_reads_a_made_up_tree(tmp_path: Path) -> None:
    pytest.importorskip("zeus", reason="the extra energy is not installed")
    meter = open_meter(root=_tree(tmp_path, ZONES))
    assert [counter.name for counter in meter.counters] == ["package-0", "dram-0"]
    assert meter.read().joules == (12.5, 12.5)
    assert meter.described == "RAPL through zeus 0.16.0"
