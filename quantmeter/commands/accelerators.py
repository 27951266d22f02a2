"""``quantmeter accelerators``: what ``analytical:NAME`` knows, and who said so."""

import argparse
from typing import TYPE_CHECKING

from quantmeter.commands.options import Subparsers, add_command, console, print_json

if TYPE_CHECKING:
    from costmodels.accelerator import Accelerator
    from costmodels.presets import Preset
    from costmodels.quantity import Quantity


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers, "accelerators", "list accelerators, or who said their numbers", run
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="shipped names or files MINE.toml (default all)"
    )
    parser.add_argument(
        "--sources", action="store_true", help="who said what: each number with unit and source"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print name, title, metrics and widths of each, or all numbers with their sources."""
    from costmodels.accelerator_files import find, shipped

    found = [find(name) for name in arguments.names or shipped()]
    if arguments.json:
        print_json({"accelerators": [_described(each, arguments.sources) for each in found]})
        return 0
    out = console()
    if arguments.sources:
        for preset in found:
            for field, number in _numbers(preset).items():
                said = number.source
                value = f"{number.value:g} {number.unit.value}".removesuffix(" 1")
                line = f"{preset.name} {field} = {value} ({said.kind}) {said.ref}: {said.locator}"
                out.print(line, markup=False, soft_wrap=True)
        return 0
    for preset in found:
        metrics = ", ".join(sorted(preset.metrics))
        line = f"{preset.name:<16} {metrics:<21} {preset.widths_text}\n    {preset.title}"
        out.print(line, markup=False, soft_wrap=True)
    return 0


def _described(preset: "Preset | Accelerator", sources: bool) -> dict[str, object]:
    content: dict[str, object] = {
        "name": preset.name,
        "title": preset.title,
        "metrics": sorted(preset.metrics),
        "widths": preset.widths_text,
    }
    if sources:
        numbers = _numbers(preset).items()
        content["numbers"] = [{"field": field, **number.to_dict()} for field, number in numbers]
    return content


def _numbers(preset: "Preset | Accelerator") -> "dict[str, Quantity]":
    """Return every number by its field; those that two metrics share once."""
    from costmodels.units import Metric

    return {field: n for metric in Metric for field, n in preset.numbers(metric)}
