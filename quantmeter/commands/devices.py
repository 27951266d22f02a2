"""``quantmeter devices``: what this machine is."""

import argparse

from quantmeter.commands.options import Subparsers, add_command, console, print_json


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    add_command(subparsers, "devices", "describe this machine", run)


def run(arguments: argparse.Namespace) -> int:
    """Print the fingerprint."""
    from hil.device import detect

    device = detect()
    if arguments.json:
        print_json({"devices": [{**device.to_dict(), "saturates": device.saturates}]})
        return 0
    out = console()
    for name, value in device.to_dict().items():
        out.print(f"{name:<16} {' '.join(value) if isinstance(value, list) else value}")
    saturation = "yes: 8-bit weights are reduced to 7 bits" if device.saturates else "no"
    out.print(f"{'u8s8 saturates':<16} {saturation}")
    return 0
