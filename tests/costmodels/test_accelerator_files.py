"""Files of accelerators: those that are shipped, one of a user, and what is wrong with others."""

import fnmatch
from configparser import ConfigParser
from pathlib import Path

import pytest

from costmodels.accelerator import Accelerator
from costmodels.accelerator_files import FOLDER, find, read, shipped
from costmodels.errors import BackendError, CostError
from costmodels.presets import Preset
from costmodels.quantity import (
    OFF_CHIP_JOULES_PER_BIT,
    ON_CHIP_JOULES_PER_BIT,
    CoefficientUnit,
    Quantity,
    Source,
    SourceKind,
)
from costmodels.registry import backend
from costmodels.sketch import example_network
from costmodels.units import Metric, parse_coefficient_unit
from quantization.bits import BitWidths, parse_choices

ROOT = Path(__file__).parents[2]
SAID = 'kind = "published", source = "paper", locator = "table 1"'
MINE = f"""
title = "mine"
model = "roofline"
notes = ["made up"]

[sources]
paper = "Somebody, A paper, 2020"

[widths]
weights = [4, 8]
activations = [8]
float = ["w32a32"]

[throughput]
rule = "listed"
8 = {{value = 4, unit = "TOP/s", {SAID}}}
float32 = {{value = 1, unit = "TOP/s", kind = "assumed", locator = "a guess"}}

[mac_energy]
rule = "listed"
8 = {{value = 0.5, unit = "pJ/OP", {SAID}}}
float32 = {{value = 2, unit = "pJ/OP", kind = "assumed", locator = "a guess"}}

[[memory]]
name = "DRAM"
bandwidth = {{value = 4, unit = "GB/s", {SAID}}}
energy = {{value = 160, unit = "pJ/B", {SAID}}}

[[memory]]
name = "buffer"
capacity = {{value = 1, unit = "MiB", {SAID}}}
energy = {{value = 1, unit = "pJ/bit", {SAID}}}

[array]
rows = {{value = 1, unit = "1", {SAID}}}
columns = {{value = 8, unit = "1", {SAID}}}
dot_length = {{value = 8, unit = "1", {SAID}}}
"""


def test_the_presets_are_those_that_the_documentation_lists() -> None:
    assert shipped() == (
        "bit-fusion",
        "bit-serial-cloud",
        "bit-serial-edge",
        "fpga",
        "gpu-t4",
        "haq",
        "horowitz",
        "server-cpu",
        "systolic-int8",
    )


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_number_says_who_said_so(name: str) -> None:
    preset = find(name)
    assert preset.metrics >= {Metric.SIZE, Metric.ENERGY}
    for metric in preset.metrics - {Metric.SIZE}:
        numbers = dict(preset.numbers(metric))
        assert numbers
        for number in numbers.values():
            assert len(number.source.locator) > 5 or number.source.locator == "fitted"
            assumed = number.source.kind is SourceKind.ASSUMED
            assert assumed or number.source.ref != "no publication"


MAGNITUDES = {
    "throughput(int1)": (1e12, 1e15),
    "throughput(int4)": (1e11, 1e15),
    "throughput(int8)": (1e11, 1e15),
    "throughput(int16)": (1e10, 1e14),
    "throughput(float16)": (1e11, 1e14),
    "throughput(float32)": (1e11, 1e13),
    "mac_energy(int1)": (1e-14, 3e-12),
    "mac_energy(int4)": (5e-14, 2e-11),
    "mac_energy(int8)": (1e-13, 1e-10),
    "mac_energy(int16)": (1e-13, 2e-10),
    "mac_energy(float16)": (1e-12, 1e-10),
    "mac_energy(float32)": (3e-12, 2e-10),
    "e_mem": (8 * 1e-12, 8 * 80e-12),
    "e_mac(int2)": (5e-15, 1e-13),
    "e_mac(int4)": (2e-14, 3e-13),
    "e_mac(int8)": (1e-13, 1e-12),
    "e_mac(int16)": (5e-13, 5e-12),
    "e_mac(int32)": (1e-12, 1e-11),
    "e_mac(float16)": (5e-13, 5e-12),
    "e_mac(float32)": (1e-12, 2e-11),
    "alpha": (1e-13, 1e-8),
    "beta": (1e-14, 1e-8),
    **{f"f(int{width})": (0.01, 4.0) for width in (2, 4, 8, 16)},
    "f(float32)": (1.0, 64.0),
    "bandwidth": (8 * 1e8, 8 * 1e12),
    "capacity": (8 * 1e4, 8 * 1e9),
    "rows": (1, 1024),
    "columns": (1, 1024),
    "dot_length": (1, 4096),
}
"""What such hardware has, in SI units without prefix; narrower than what a `Quantity` allows."""


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_number_has_a_magnitude_that_such_hardware_has(name: str) -> None:
    preset = find(name)
    for metric in preset.metrics:
        for field, number in preset.numbers(metric):
            memory, dot, last = field.rpartition(".")
            if last == "energy":
                outside = memory in {"DRAM", "GDDR6", "host"}
                low, high = OFF_CHIP_JOULES_PER_BIT if outside else ON_CHIP_JOULES_PER_BIT
            else:
                low, high = MAGNITUDES[last if dot else field]
            assert low <= number.value <= high, f"{name}: {field}"


def test_energy_per_word_given_as_per_byte_is_refused() -> None:
    """640 pJ is per 32-bit word; per byte it would be four times what any DRAM needs."""
    word, byte = (640 * parse_coefficient_unit(f"pJ/{per}")[1] for per in ("word32", "B"))
    assert word == pytest.approx(20e-12)
    assert byte / 8 == pytest.approx(80e-12)
    assert OFF_CHIP_JOULES_PER_BIT[0] < word < OFF_CHIP_JOULES_PER_BIT[1] < byte / 8


def test_a_file_that_gives_a_words_energy_per_byte_names_the_field(tmp_path: Path) -> None:
    for unit, wrong in (("pJ/word32", False), ("pJ/B", True)):
        text = MINE.replace('value = 160, unit = "pJ/B"', f'value = 640, unit = "{unit}"')
        path = written(tmp_path, text)
        if wrong:
            with pytest.raises(BackendError, match=r"DRAM\.energy: 8e-11 .*per word"):
                read(path)
        else:
            assert isinstance(read(path), Accelerator)


def test_the_dram_of_horowitz_is_160_picojoules_a_byte_and_20_a_bit() -> None:
    preset = find("horowitz")
    assert isinstance(preset, Preset)
    assert preset.energy is not None
    assert preset.energy.e_mem.value == pytest.approx(160e-12)
    assert preset.energy.e_mem.unit is CoefficientUnit.JOULES_PER_BYTE


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_file_of_a_user_prices_a_network(tmp_path: Path) -> None:
    path = written(tmp_path, MINE)
    model = backend(f"analytical:{path}")
    assert model.name == f"analytical:{path}"
    table = model.table(example_network(), parse_choices("w8a8,w4a8,w4a4,w32a32"), Metric.LATENCY)
    assert table.supported.all(0).tolist() == [True, True, False, True]
    assert table.source["coefficients"]["throughput(int8)"]["ref"] == "Somebody, A paper, 2020"
    assert table.source["notes"] == ["made up"]
    assert table.source["assumed"] == ["w32a32"]


def test_numbers_are_read_in_si_units(tmp_path: Path) -> None:
    found = read(written(tmp_path, MINE))
    assert isinstance(found, Accelerator)
    numbers = {n: q.value for metric in Metric for n, q in found.numbers(metric)}
    assert numbers["throughput(int8)"] == pytest.approx(2e12), "an operation is half a MAC"
    assert numbers["mac_energy(int8)"] == pytest.approx(1e-12)
    assert numbers["DRAM.bandwidth"] == pytest.approx(32e9), "bits"
    assert numbers["DRAM.energy"] == pytest.approx(20e-12), "per bit"
    assert numbers["buffer.capacity"] == 8 * 2**20


@pytest.mark.parametrize(
    ("name", "field", "bits"),
    [
        ("bit-serial-cloud", "buffer.capacity", 2160 * 36 * 2**10),
        ("fpga", "buffer.capacity", (2160 * 36 + 960 * 288) * 2**10),
        ("server-cpu", "L3.capacity", 28 * 1.375 * 2**20 * 8),
    ],
)
def test_memories_that_sources_give_in_binary_units_hold_those_bits(
    name: str, field: str, bits: float
) -> None:
    assert dict(find(name).numbers(Metric.ENERGY))[field].value == bits


BAD = {
    "no title": ('title = "mine"', "", "title: missing"),
    "unknown model": ('"roofline"', '"rooflin"', r"model: 'rooflin' \(did you mean 'roofline'\?\)"),
    "unknown field": ("title", "titel = 1\ntitle", r"titel: no such field \(did you mean 'title'"),
    "unknown unit": ('"TOP/s"', '"TOPS"', r"throughput\.8: 'TOPS' is no unit of a coefficient"),
    "energy as time": ('0.5, unit = "pJ/OP"', '0.5, unit = "ns/OP"', "in J/MAC"),
    "bandwidth as energy": ('4, unit = "GB/s"', '4, unit = "pJ/bit"', r"memory\[0\]\.bandwidth: p"),
    "capacity as time": ('1, unit = "MiB"', '1, unit = "s"', r"memory\[1\]\.capacity: s is no un"),
    "seconds per byte as bandwidth": ('4, unit = "GB/s"', '4, unit = "ns/B"', "bandwidth: ns/B is"),
    "forgotten prefix": ('0.5, unit = "pJ/OP"', '0.5, unit = "J/OP"', "mac_energy.8: .*check pref"),
    "no widths": (
        '[4, 8]\nactivations = [8]\nfloat = ["w32a32"]',
        "[]\nactivations = []",
        "none is gi",
    ),
    "no locator": (', locator = "a guess"', "", "throughput.float32.locator: missing"),
    "no source": (', source = "paper"', "", "throughput.8.source: missing"),
    "unknown source": ('source = "paper"', 'source = "papers"', "did you mean 'paper'"),
    "unknown kind": ('kind = "assumed"', 'kind = "guessed"', "throughput.float32.kind: 'guessed'"),
    "value that is none": ("value = 4,", 'value = "4",', "throughput.8.value: '4' is no number"),
    "value that is true": ("value = 4,", "value = true,", "throughput.8.value: True is no number"),
    "value of zero": ("value = 4,", "value = 0,", "throughput.8: 0 MAC/s is no plausible"),
    "unknown rule": ('"listed"', '"liste"', "throughput.rule: 'liste'.*did you mean 'listed'"),
    "entry for no width": ("\n8 = ", "\n9 = ", "throughput.9: no such field"),
    "product of two": ('"listed"', '"product"\n4 = {X}', "throughput: the rule product takes one"),
    "width that is none": ("weights = [4, 8]", "weights = [4, 9]", "widths.weights: 9 is none of"),
    "float that is none": ('["w32a32"]', '["w8a8"]', "widths.float: w8a8 is no float"),
    "memory without name": ('name = "DRAM"', "", r"memory\[0\]\.name: missing"),
    "no level of DRAM": ("[[memory]]", "[[memories]]", "memory: the first level is the outermost"),
    "limited DRAM": ('name = "DRAM"', 'name = "DRAM"\ncapacity = {X}', "memory: the first level"),
    "unlimited buffer": ("capacity = {value", "x = {value", r"memory\[1\]\.x: no such field"),
    "half a row": ("rows = {value = 1,", "rows = {value = 1.5,", "array: rows: 1.5 is no whole"),
    "array without columns": ("columns =", "column =", "array.columns: missing"),
    "two of one name": ('name = "buffer"', 'name = "DRAM"', "memory: two levels have one name"),
    "inner level larger than the outer": (
        "[array]",
        f'[[memory]]\nname = "L1"\ncapacity = {{value = 10, unit = "GB", {SAID}}}\n[array]',
        "memory: L1 holds no less than buffer",
    ),
    "inner level as large as the outer": (
        "[array]",
        f'[[memory]]\nname = "L1"\ncapacity = {{value = 1, unit = "MiB", {SAID}}}\n[array]',
        "memory: L1 holds no less than buffer",
    ),
    "float without a price": ('["w32a32"]', '["w32a32", "fp16"]', "throughput: no price at fp16"),
    "integer without a price": ("weights = [4, 8]", "weights = [8, 16]", "no price at w16a8"),
    "product of activations without a price": (
        "activations = [8]",
        "activations = [4, 8]",
        "throughput: no price at w4a4",
    ),
    "width without an energy": (
        "float32 = {value = 2,",
        "float16 = {value = 2,",
        "mac_energy: no price at w32a32",
    ),
    "huge value": ("value = 4,", f"value = 1{'0' * 400},", "throughput.8: int too large"),
    "value that is nan": ("value = 4,", "value = nan,", "throughput.8: nan MAC/s is no plausible"),
    "number without unit": ("8 = {", "8 = 4\nx = {", "throughput.8: 4 is no section"),
    "no TOML": ("[widths]", "[widths", "no TOML: "),
    "sources that are none": ("paper = ", "paper = 3 #", "sources: write KEY"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_file_is_one_line_that_names_file_and_field(name: str, tmp_path: Path) -> None:
    old, new, message = BAD[name]
    new = new.replace("{X}", f'{{value = 8, unit = "{_unit(name)}", {SAID}}}')
    assert old in MINE
    path = written(tmp_path, MINE.replace(old, new, 1))
    with pytest.raises(BackendError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def _unit(name: str) -> str:
    return "MiB" if name == "limited DRAM" else "TOP/s"


def test_a_file_that_prices_nothing_is_refused(tmp_path: Path) -> None:
    text = MINE.replace("[throughput]", "[throughput_]").replace("[mac_energy]", "[mac_energy_]")
    with pytest.raises(BackendError, match="nothing is priced: latency needs throughput"):
        read(written(tmp_path, text))
    closed = 'title = "t"\nmodel = "closed-formula"\n'
    with pytest.raises(BackendError, match="nothing is priced: give energy, latency or both"):
        read(written(tmp_path, closed))


def test_a_missing_file_or_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"absent\.toml: No such file"):
        backend("analytical:absent.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(BackendError, match=r"folder\.toml: Is a directory"):
        find(str(tmp_path / "folder.toml"))


def test_a_closed_formula_of_a_user_is_read_too(tmp_path: Path) -> None:
    text = (FOLDER / "haq.toml").read_text().replace("value = 0.2,", "value = 0.3,")
    found = read(written(tmp_path, text))
    assert isinstance(found, Preset)
    assert found.energy is not None
    reading = found.energy.e_mac.at(BitWidths(8, 8))
    assert reading is not None
    assert reading.value == pytest.approx(0.3e-12)


def test_a_quantity_of_a_unit_is_refused_where_another_is_wanted() -> None:
    said = Source("a test", "here", SourceKind.ASSUMED)
    joules = Quantity(1e-12, CoefficientUnit.JOULES_PER_BIT, said)
    accelerator = find("gpu-t4")
    assert isinstance(accelerator, Accelerator)
    dram = accelerator.memories[0]
    with pytest.raises(CostError, match="bandwidth is given in J/bit, expected bit/s"):
        type(dram)("DRAM", bandwidth=joules)
    with pytest.raises(CostError, match="energy is given in bit/s, expected J/bit"):
        type(dram)("DRAM", energy=dram.bandwidth)
    with pytest.raises(CostError, match="capacity is given in bit/s, expected bit"):
        type(dram)("L2", capacity=dram.bandwidth)


def test_an_installed_package_contains_every_file() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["costmodels"].replace(" ", "").split(",")
    for path in FOLDER.iterdir():
        inside = path.relative_to(ROOT / "costmodels").as_posix()
        assert any(fnmatch.fnmatch(inside, pattern) for pattern in patterns), inside
