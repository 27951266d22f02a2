"""Files of accelerators and of closed formulas: TOML, every number with unit, source and kind.

    title = "what it is"
    model = "roofline"                      # or "closed-formula", see `costmodels.presets`
    notes = ["what whoever uses the numbers should know"]
    [sources]
    paper = "Author, Title, Venue Year"
    [widths]
    weights = [2, 4, 8]
    activations = [8]
    equal = false                           # optional
    float = ["fp16", "w32a32"]              # optional
    [throughput]                            # and [mac_energy], alike
    rule = "product"                        # see `costmodels.width_rules.Rule`
    8 = {value = 4, unit = "TOP/s", kind = "published", source = "paper", locator = "table 1"}
    [[memory]]                              # the outermost first
    name = "DRAM"
    bandwidth = {value = 2.1, unit = "GB/s", kind = "assumed", locator = "the reasoning"}
    [array]                                 # optional: rows, columns, dot_length
    [convolution]                           # optional
    lowered = true

An assumed number needs no source, but the reasoning as its locator.
"""

import tomllib
from functools import lru_cache
from pathlib import Path

from costmodels.accelerator import Accelerator, Array, Memory, Widths
from costmodels.errors import BackendError, CostError
from costmodels.presets import EnergyCoefficients, LatencyCoefficients, Preset
from costmodels.quantity import CoefficientUnit, Quantity, WidthCurve
from costmodels.sections import Section
from costmodels.width_rules import Rule, WidthRule
from quantization.bits import INTEGER_WIDTHS, BitWidths
from quantization.errors import QuantmeterError, did_you_mean

FOLDER = Path(__file__).parent / "accelerators"
SUFFIX = ".toml"

_MODELS = ("roofline", "closed-formula")
_BITWISE_WIDTHS = {"1": 1, **{str(width): width for width in INTEGER_WIDTHS}, "32": 32}
"""Widths that entries have: also single bits, which nobody chooses but sources give."""
_FLOATS = ("float16", "float32")
_NUMBERS_OF_MEMORY = {
    "capacity": CoefficientUnit.BITS,
    "bandwidth": CoefficientUnit.BITS_PER_SECOND,
    "energy": CoefficientUnit.JOULES_PER_BIT,
}


def shipped() -> tuple[str, ...]:
    """Return the names of the files that are shipped."""
    return tuple(sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}")))


def find(argument: str) -> Preset | Accelerator:
    """Return what ``analytical:ARGUMENT`` prices with: a shipped name, or a file ``MINE.toml``.

    Raises:
        BackendError: if there is no such name or file, or the file is wrong; names file and field.
    """
    if argument.endswith(SUFFIX):
        return read(argument)
    names = shipped()
    if argument not in names:
        raise BackendError(
            f"no analytical preset {argument!r}{did_you_mean(argument, names)}; "
            f"write analytical:haq or one of {', '.join(names)}, or a file MINE.toml"
        )
    return _shipped(argument)


@lru_cache(maxsize=64)
def _shipped(name: str) -> Preset | Accelerator:
    return read(FOLDER / f"{name}{SUFFIX}", name)


def read(path: str | Path, name: str | None = None) -> Preset | Accelerator:
    """Read a file.

    Args:
        path: the file.
        name: what ``analytical:NAME`` calls it; the path unless given.

    Raises:
        BackendError: if the file is missing, no TOML, or a field is missing or wrong; names both.
    """
    try:
        with Path(path).open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BackendError(f"{path}: no TOML: {error}") from None
    top = Section.of_file(str(path), content)
    with top.naming():
        model = top.choice("model", _MODELS)
        make = _accelerator if model == "roofline" else _closed_formula
        made = make(top, str(path) if name is None else name)
        top.finish()
    return made


def _accelerator(top: Section, name: str) -> Accelerator:
    array, convolution = top.optional("array"), top.optional("convolution")
    lowered = False
    if convolution is not None:
        lowered = convolution.truth("lowered")
        convolution.finish()
    return Accelerator(
        name=name,
        title=top.text("title"),
        widths=_widths(top.section("widths")),
        memories=tuple(_memory(level) for level in top.sections("memory")),
        throughput=_rule(top.optional("throughput"), CoefficientUnit.MACS_PER_SECOND),
        mac_energy=_rule(top.optional("mac_energy"), CoefficientUnit.JOULES_PER_MAC),
        array=None if array is None else _array(array),
        lowered=lowered,
        remarks=top.texts("notes"),
    )


def _widths(section: Section) -> Widths:
    weights, activations = section.numbers("weights"), section.numbers("activations")
    for field, given in (("weights", weights), ("activations", activations)):
        if wrong := sorted(set(given) - INTEGER_WIDTHS):
            raise CostError(f"widths.{field}: {wrong[0]} is none of 2 to 8 and 16")
    floats = []
    for text in section.texts("float"):
        try:
            floats.append(BitWidths.parse(text))
        except QuantmeterError as error:
            raise CostError(f"widths.float: {error}") from None
        if not floats[-1].is_float:
            raise CostError(f"widths.float: {text} is no float; write fp16 or w32a32")
    if not (floats or (weights and activations)):
        raise CostError("widths: none is given; list integer bits, or floats")
    found = Widths(weights, activations, section.truth("equal"), tuple(floats))
    section.finish()
    return found


def _rule(section: Section | None, unit: CoefficientUnit) -> WidthRule | None:
    if section is None:
        return None
    with section.naming():
        rule = Rule(section.choice("rule", [rule.value for rule in Rule]))
        integer, floats = _by_width(section, unit)
        return WidthRule(rule, integer, floats.get("float32"), floats.get("float16"))


def _by_width(
    section: Section, unit: CoefficientUnit
) -> tuple[dict[int, Quantity], dict[str, Quantity]]:
    """Read entries by integer width, ascending, and those of floats; there are no others."""
    widths = [text for text in _BITWISE_WIDTHS if text in section]
    integer = {_BITWISE_WIDTHS[text]: section.quantity(text, unit) for text in widths}
    floats = {text: section.quantity(text, unit) for text in _FLOATS if text in section}
    section.finish()
    return dict(sorted(integer.items())), floats


def _memory(section: Section) -> Memory:
    with section.naming():
        name, separate = section.text("name"), section.truth("separate_writes")
        given = {
            field: section.quantity(field, unit) if field in section else None
            for field, unit in _NUMBERS_OF_MEMORY.items()
        }
        section.finish()
        return Memory(name, separate_writes=separate, **given)


def _array(section: Section) -> Array:
    with section.naming():
        fields = ("rows", "columns", "dot_length")
        rows, columns, dot = (section.quantity(f, CoefficientUnit.RATIO) for f in fields)
        section.finish()
        return Array(rows, columns, dot)


def _closed_formula(top: Section, name: str) -> Preset:
    energy, latency = top.optional("energy"), top.optional("latency")
    found = Preset(
        name,
        top.text("title"),
        None if energy is None else _energy(energy),
        None if latency is None else _latency(latency),
    )
    if energy is latency is None:
        raise CostError("nothing is priced: give energy, latency or both")
    return found


def _energy(section: Section) -> EnergyCoefficients:
    found = EnergyCoefficients(
        section.quantity("e_mem", CoefficientUnit.JOULES_PER_BYTE),
        _curve(section.section("e_mac"), CoefficientUnit.JOULES_PER_MAC),
        section.texts("notes"),
    )
    section.finish()
    return found


def _latency(section: Section) -> LatencyCoefficients:
    found = LatencyCoefficients(
        section.quantity("alpha", CoefficientUnit.SECONDS_PER_BYTE),
        section.quantity("beta", CoefficientUnit.SECONDS_PER_MAC),
        _curve(section.section("f"), CoefficientUnit.RATIO),
        section.texts("notes"),
    )
    section.finish()
    return found


def _curve(section: Section, unit: CoefficientUnit) -> WidthCurve:
    with section.naming():
        integer, floats = _by_width(section, unit)
        return WidthCurve(integer, single=floats.get("float32"), half=floats.get("float16"))
