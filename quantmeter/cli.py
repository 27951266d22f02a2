"""The command line: one subcommand per job, errors in one line, exit 2."""

import argparse
import importlib
import io
import keyword
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from quantization.errors import QuantmeterError

COMMANDS = (
    *(
        "demo",
        "inspect",
        "cost",
        "calibrate",
        "drift",
        "import",
        "compare",
        "search",
        "cascade",
        "export",
        "bench",
        "devices",
        "backends",
        "accelerators",
    ),
)


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments like every other error: one line, exit 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"quantmeter: error: {message}; see {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser with every subcommand."""
    parser = _Parser(
        prog="quantmeter",
        description="What does each bit cost on this hardware, and where should the bits go?",
    )
    parser.add_argument(
        "--version", action="version", version=f"quantmeter {version('quantmeter')}"
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = f"{name}_" if keyword.iskeyword(name) else name
        importlib.import_module(f"quantmeter.commands.{module}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    # The matrices of a fit are small: on a shared machine, threads of BLAS wait for each other and
    # make it 50 times as slow. Read when numpy and scipy are first imported, so not yet.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if sys.stdout is None:  # closed by whoever started this
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may have no µ
    parsed = build_parser().parse_args(arguments)
    try:
        status: int = parsed.run(parsed)
        sys.stdout.flush()
    except QuantmeterError as error:
        print(f"quantmeter: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RecursionError:
        print("quantmeter: error: a file is nested too deeply to be read", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"quantmeter: interrupted{error}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"quantmeter: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return status


if __name__ == "__main__":
    sys.exit(main())
