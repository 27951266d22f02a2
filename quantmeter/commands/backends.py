"""``quantmeter backends``: which cost backends are registered."""

import argparse

from quantmeter.commands.options import Subparsers, add_command, console, print_json


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    add_command(subparsers, "backends", "list the registered cost backends", run)


def run(arguments: argparse.Namespace) -> int:
    """Print name and origin of each backend."""
    from costmodels.registry import backends

    found = backends()
    if arguments.json:
        print_json({"backends": [{"name": n, "factory": p.value} for n, p in found.items()]})
        return 0
    for name, point in found.items():
        console().print(f"{name:<12} {point.value}")
    return 0
