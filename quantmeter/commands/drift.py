"""``quantmeter drift``: whether a measured table still holds."""

import argparse
import sys
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
        require_file(out, arguments.model, arguments.table, arguments.data)
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


def add_old_tables(parser: argparse.ArgumentParser) -> None:
    """Add whether old tables are checked before they are used."""
    parser.add_argument(
        "--no-drift-check",
        action="store_true",
        help="use tables that were measured here more than a day ago without timing ten of their "
        "policies again",
    )


def report_old_tables(arguments: argparse.Namespace) -> None:
    """Check the old tables that ``--cost`` names, and say on standard error what was found."""
    from quantmeter.drifting import check_old_tables

    if arguments.no_drift_check or not any("table:" in text for text in arguments.cost):
        return
    with progress_bar("drift check") as progress:
        found = check_old_tables(
            arguments.model,
            arguments.cost,
            data=arguments.data,
            threads=arguments.threads,
            seed=arguments.seed,
            progress=progress,
        )
    for name, checked in found.items():
        print(describe(name, checked.drift), file=sys.stderr)
        if checked.drift.rescales:
            print("its ratios hold; quantmeter drift --out writes it rescaled", file=sys.stderr)


def describe(name: str, found: "Drift") -> str:
    """Return the answer and what it rests on, as one line."""
    from hil.drift import Answer

    cure = "; calibrate --anew does so" if found.answer is Answer.RECALIBRATE else ""
    return (
        f"{name}: {found} (float network {found.scale:.3f}x as slow as then, "
        f"ratios to it off by {found.median_change:.1%} in the median of {found.probes} policies; "
        f"up to {found.median_limit:.1%} means nothing){cure}"
    )
