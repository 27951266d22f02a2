"""Arguments that several subcommands share, and how results reach the terminal."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from costmodels.errors import BackendError
from quantization.bits import DEFAULT_CHOICES, BitWidths, parse_choices
from quantization.errors import BitWidthError

Subparsers = Any  # argparse's own class for them is private
Run = Callable[[argparse.Namespace], int]
ONNX_RUNTIME = "onnxruntime"
_SEEDS = 2**32
_LINE_EVERY_S = 30.0


def add_command(subparsers: Subparsers, name: str, text: str, run: Run) -> argparse.ArgumentParser:
    """Add a subcommand with ``--json``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="print JSON for machines")
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the ONNX file."""
    parser.add_argument("model", metavar="MODEL.onnx", help="float ONNX model")


def add_data(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the images."""
    parser.add_argument(
        "--data",
        metavar="DATA.npz",
        required=required,
        help="images the network never saw: x (N, ...) float32, y (N,) classes; split by --seed "
        "into ranges, search and test (20/40/40 %%)",
    )


def add_costs(parser: argparse.ArgumentParser) -> None:
    """Add the cost backends."""
    parser.add_argument(
        "--cost",
        action="append",
        default=[],
        metavar="[METRIC=]BACKEND",
        help="analytical:PRESET, table:FILE, calibrated:DEVICE.json, ort or tvm; "
        "repeat for several metrics",
    )
    add_remote(parser)


def add_remote(parser: argparse.ArgumentParser) -> None:
    """Add the board of the backend ``tvm``."""
    parser.add_argument(
        "--remote",
        default="",
        metavar="HOST:PORT/KEY",
        help="a board behind Apache TVM's RPC tracker, on which tvm measures; the protocol has no "
        "authentication: keep it on loopback, or on a network of your own",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the seed."""
    parser.add_argument("--seed", type=natural, default=0, help="of all that is drawn (default 0)")


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the runtime's threads."""
    parser.add_argument(
        "--threads", type=positive, default=1, help="threads of the runtime (default 1)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add what executes exported files."""
    parser.add_argument(
        "--device", default="cpu", metavar="NAME", help="cpu, or cuda for a GPU (default cpu)"
    )


def require_no_board(arguments: argparse.Namespace) -> None:
    """Raise if a board is named where nothing is measured on one.

    Raises:
        BackendError: says where boards measure.
    """
    if arguments.remote and not getattr(arguments, "cost", ()):
        raise BackendError("--remote names a board, on which only --cost tvm measures")


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """Add who runs what is deployed."""
    parser.add_argument(
        "--runtime",
        default=ONNX_RUNTIME,
        metavar="NAME",
        help="onnxruntime (default), or tvm: compiled by Apache TVM into a shared library with "
        "kernels for each width; tvm:mcpu=NAME,mtriple=TRIPLE for another processor",
    )


def add_time(parser: argparse.ArgumentParser) -> None:
    """Add the time that a measuring backend may take."""
    parser.add_argument(
        "--time",
        default="60s",
        metavar="SPAN",
        help="of a measuring backend, such as 5m (default 60s); tvm takes as long as it has "
        "kernels to time, a second each",
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add where measurements are kept."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--store",
        type=Path,
        metavar="FILE",
        help="measurements that are kept, and used for a day: the same command goes on where it "
        "was ended "
        "(default $QUANTMETER_STORE, else measurements.sqlite in the user's cache folder)",
    )
    group.add_argument("--no-store", action="store_true", help="keep no measurements, and use none")


def store_of(arguments: argparse.Namespace) -> Path | None:
    """Return the store that the arguments of `add_store` name."""
    from hil.store import default_store_path

    if arguments.no_store:
        return None
    given: Path | None = arguments.store
    return given or default_store_path(os.environ, Path.home())


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the bit-widths."""
    parser.add_argument(
        "--choices",
        type=choices,
        metavar="W,W,...",
        help=f"bit-widths (default {','.join(map(str, DEFAULT_CHOICES))}; on a GPU fp16,w32a32)",
    )


def choices(text: str) -> tuple[BitWidths, ...]:
    """Read a list of bit-widths for argparse."""
    try:
        return parse_choices(text)
    except BitWidthError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """Read a positive number for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def natural(text: str) -> int:
    """Read a seed for argparse: a whole number that every generator takes."""
    if not text.isdecimal() or int(text) >= _SEEDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {_SEEDS - 1}")
    return int(text)


def print_json(content: Any) -> None:
    """Print JSON to standard output."""
    print(json.dumps(content, indent=2, allow_nan=False))


def console() -> Console:
    """Return the console of standard output; wide enough for tables when it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 150, highlight=False)


def table(title: str, *columns: str) -> Table:
    """Return a table whose columns after the first are aligned to the right."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
    return made


@contextmanager
def progress_bar(
    title: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[float, str], None]]:
    """Show a bar on standard error while the block runs; yields what moves it.

    Where standard error is no terminal, there is a line every half minute instead.

    Args:
        title: what is going on.
        clock: seconds; for tests.
    """
    columns = (TextColumn("{task.fields[title]:<14}"), BarColumn(), TimeElapsedColumn())
    stderr = Console(stderr=True)
    silent = not stderr.is_terminal
    with Progress(
        *columns, TextColumn("{task.description}"), console=stderr, disable=silent
    ) as bar:
        task = bar.add_task("", total=1.0, title=title)
        told = clock()

        def move(share: float, what: str) -> None:
            nonlocal told
            bar.update(task, completed=share, description=what)
            if silent and (now := clock()) - told >= _LINE_EVERY_S:
                told = now
                print(f"{title} {share:.0%} {what}".rstrip(), file=sys.stderr, flush=True)

        yield move
        bar.update(task, completed=1.0)
