"""``quantmeter backends``: which cost backends are registered."""

import argparse

from quantmeter.commands.options import Subparsers, add_command, console, print_json


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    add_command(subparsers, "backends", "list the registered cost backends", run)


def run(arguments: argparse.Namespace) -> int:
    """Print name, origin and meaning of each backend."""
    import inspect

    from costmodels.registry import backends

    listed = []
    for name, point in backends().items():
        text = inspect.getdoc(point.load()) or ""
        listed.append({"name": name, "factory": point.value, "usage": text.partition("\n")[0]})
    if arguments.json:
        print_json({"backends": listed})
        return 0
    for entry in listed:
        console().print(f"{entry['name']:<12} {entry['usage']} ({entry['factory']})")
    return 0
