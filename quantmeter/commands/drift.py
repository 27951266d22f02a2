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
    from costmodels.table import CostTable


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
    from hil.judgement import Answer
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
    console().print(
        f"{arguments.table}: {found.drift} ({found.drift.grounds})"
        f"{'; calibrate --anew does so' if anew else ''}",
        soft_wrap=True,
        markup=False,
    )
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


def check_named_tables(arguments: argparse.Namespace) -> dict[str, "CostTable"]:
    """Check the old tables that ``--cost`` names, and say on standard error what was found.

    Returns:
        The tables to use, by the file as typed.
    """
    from quantmeter.drifting import check_tables

    remark_on_devices(arguments)
    if not any("table:" in text for text in arguments.cost):
        return {}
    with progress_bar("drift check") as progress:
        found = check_tables(
            arguments.model,
            arguments.cost,
            data=arguments.data,
            threads=arguments.threads,
            seed=arguments.seed,
            old=not arguments.no_drift_check,
            progress=progress,
        )
    for name, checked in found.items():
        if checked.remark:
            print(f"{name}: {checked.remark}", file=sys.stderr)
    return {name: checked.table for name, checked in found.items()}


def remark_on_devices(arguments: argparse.Namespace) -> None:
    """Say on standard error if a calibrated device is another one, or of other threads."""
    from quantmeter.drifting import remarks_on_devices

    if any("calibrated:" in text for text in arguments.cost):
        for name, remark in remarks_on_devices(arguments.cost, arguments.threads).items():
            print(f"{name}: {remark}", file=sys.stderr)
