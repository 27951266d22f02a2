"""The fingerprint of a machine, from captured texts of /proc."""

from dataclasses import replace
from pathlib import Path

import pytest

from costmodels.measurement import Device
from costmodels.sketch import example_network
from hil.device import detect, parse_cpuinfo, parse_meminfo
from quantization.deployment import ExportOptions
from quantization.export import Exporter
from quantization.ranges import made_up_ranges

ZEN5 = """\
processor	: 0
vendor_id	: AuthenticAMD
cpu family	: 26
model		: 2
model name	: AMD EPYC 9R45
stepping	: 1
cpu MHz		: 2600.000
flags		: fpu sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 avx512f avx512bw avx_vnni \
avx512_bf16 avx512_vnni
bugs		: sysret_ss_attrs

processor	: 1
model name	: another name
flags		: fpu
"""
HASWELL = """\
processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Core(TM) i7-4790 CPU @ 3.60GHz
flags		: fpu vme sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 erms
"""
SKYLAKE_SERVER = """\
processor	: 0
model name	: Intel(R) Xeon(R) Platinum 8175M CPU @ 2.50GHz
flags		: fpu sse4_1 fma avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl
"""
GRAVITON2 = """\
processor	: 0
BogoMIPS	: 243.75
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp ssbs
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1
"""
MEMINFO = """\
MemTotal:        7947136 kB
MemFree:         1264164 kB
MemAvailable:    5512408 kB
"""
SATURATING = Device("a CPU", "x86_64", ("avx2",), 2, 0, "Linux", "onnxruntime", "1")


def test_cpuinfo_gives_the_first_processors_name_and_only_decisive_extensions() -> None:
    name, isa = parse_cpuinfo(ZEN5)
    assert name == "AMD EPYC 9R45"
    assert set(isa) == {
        *("sse4_1", "avx", "avx2", "fma", "avx_vnni"),
        *("avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    }


def test_an_arm_cpu_is_named_by_its_part_and_has_its_features() -> None:
    assert parse_cpuinfo(GRAVITON2) == ("0xd0c", ("asimd", "asimddp"))


def test_an_empty_cpuinfo_is_an_unknown_cpu() -> None:
    assert parse_cpuinfo("") == ("unknown", ())


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [(MEMINFO, 7947136 * 1024), ("", 0), ("MemTotal:\n", 0), ("MemFree: 5 kB\n", 0)],
)
def test_meminfo_gives_bytes_or_zero(text: str, bytes_: int) -> None:
    assert parse_meminfo(text) == bytes_


@pytest.mark.parametrize(
    ("text", "saturates"),
    [(ZEN5, False), (HASWELL, True), (SKYLAKE_SERVER, True), (GRAVITON2, False), ("", False)],
)
def test_products_saturate_exactly_on_avx2_without_vnni(text: str, saturates: bool) -> None:
    assert replace(SATURATING, isa=parse_cpuinfo(text)[1]).saturates is saturates


@pytest.mark.parametrize("vnni", ["avx_vnni", "avx512_vnni"])
def test_either_kind_of_vnni_prevents_saturation(vnni: str) -> None:
    assert not replace(SATURATING, isa=("avx2", vnni)).saturates


def test_detect_reads_proc_below_the_given_root(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(HASWELL)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    device = detect(root=tmp_path)
    assert device.cpu.startswith("Intel(R) Core(TM) i7-4790")
    assert device.memory_bytes == 7947136 * 1024
    assert device.saturates
    assert device.cores >= 1
    assert device.runtime == "onnxruntime"
    assert device.runtime_version[0].isdigit()


def test_detect_works_without_proc(tmp_path: Path) -> None:
    device = detect(root=tmp_path)
    assert (device.cpu, device.isa, device.memory_bytes) == ("unknown", (), 0)


@pytest.mark.parametrize(("text", "largest"), [(HASWELL, 63), (ZEN5, 127)])
def test_the_exporter_reduces_the_range_of_weights_where_products_saturate(
    text: str, largest: int
) -> None:
    network = example_network()
    device = replace(SATURATING, isa=parse_cpuinfo(text)[1])
    options = ExportOptions(weight_method="minmax", reduce_range=device.saturates)
    exporter = Exporter(network, made_up_ranges(network), options)
    values = exporter.parameters.weight("stem", 8).values.astype(int)
    assert abs(values).max() in (largest, largest + 1)
