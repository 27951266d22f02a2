"""The command line: one subcommand per job, errors in one line, exit 2."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from quantization.errors import QuantmeterError

COMMANDS = (
    *("demo", "inspect", "cost", "calibrate", "search", "export", "bench", "devices", "backends"),
)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    parser = argparse.ArgumentParser(
        prog="quantmeter",
        description="What does each bit cost on this hardware, and where should the bits go?",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"quantmeter.commands.{name}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parsed = build_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
    except QuantmeterError as error:
        print(f"quantmeter: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("quantmeter: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"quantmeter: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
