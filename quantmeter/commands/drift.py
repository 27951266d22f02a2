"""``quantmeter drift``: whether a measured table still holds."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_data,
    add_model,
    add_seed,
    add_threads,
    console,
    print_json,
    progress_bar,
)

if TYPE_CHECKING:
    from hil.drift import Drift


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers, "drift", "time ten policies of a measured table again: does it hold?", run
    )
    add_model(parser)
    parser.add_argument("table", metavar="TABLE.json", help="a table that calibrate wrote here")
    add_data(parser)
    add_seed(parser)
    add_threads(parser)
    parser.add_argument(
        "--out", metavar="TABLE.json", help="write the table to use: rescaled, or as it was"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, print the answer; exit 1 if the table must be calibrated anew."""
    from hil.drift import Answer
    from quantmeter.drifting import drift
    from quantmeter.files import require_file, write

    out = None if arguments.out is None else Path(arguments.out)
    if out is not None:
        require_file(out, arguments.model, arguments.data)
    with progress_bar("drift") as progress:
        found = drift(
            arguments.model,
            arguments.table,
            data=arguments.data,
            threads=arguments.threads,
            seed=arguments.seed,
            progress=progress,
        )
    anew = found.drift.answer is Answer.RECALIBRATE
    if out is not None and not anew:
        write(out, found.table.to_json())
    if arguments.json:
        print_json({**asdict(found.drift), "answer": str(found.drift), "noise": found.noise})
        return int(anew)
    console().print(describe(arguments.table, found.drift))
    if out is not None and not anew:
        console().print(f"written: {out}")
    return int(anew)


def describe(name: str, found: "Drift") -> str:
    """Return the answer and what it rests on, as one line."""
    return (
        f"{name}: {found} (float network {found.scale:.3f}x as slow as then, "
        f"ratios to it off by {found.median_change:.1%} in the median of {found.probes} policies; "
        f"up to {found.median_limit:.1%} means nothing)"
    )
