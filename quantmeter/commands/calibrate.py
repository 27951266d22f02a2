"""``quantmeter calibrate``: measure a cost table."""

import argparse
from pathlib import Path

from quantmeter.commands.options import (
    Subparsers,
    add_choices,
    add_command,
    add_data,
    add_model,
    add_seed,
    add_store,
    add_threads,
    add_time,
    console,
    print_json,
    progress_bar,
    store_of,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "calibrate", "measure a cost table of a network", run)
    add_model(parser)
    add_data(parser)
    add_choices(parser)
    add_seed(parser)
    add_threads(parser)
    parser.add_argument("--cost", default="ort", metavar="BACKEND", help="default ort")
    add_time(parser)
    add_store(parser)
    parser.add_argument(
        "--anew",
        action="store_true",
        help="forget what the store holds of this network on this device, and measure all of it; "
        "if that is ended, the command without --anew goes on",
    )
    parser.add_argument(
        "--out", required=True, metavar="TABLE.json", help="the table that is written"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the table, and say how good it is."""
    from costmodels.units import parse_duration
    from quantmeter.calibrating import calibrate
    from quantmeter.files import require_file, write
    from quantmeter.prediction import describe_policies, describe_validation

    seconds = parse_duration(arguments.time)
    out = Path(arguments.out)
    require_file(out, arguments.model, arguments.data)
    with progress_bar("calibrating") as progress:
        table = calibrate(
            arguments.model,
            cost=arguments.cost,
            seconds=seconds,
            choices=arguments.choices,
            data=arguments.data,
            threads=arguments.threads,
            seed=arguments.seed,
            store=store_of(arguments),
            anew=arguments.anew,
            progress=progress,
        )
    write(out, table.to_json())
    known = ("policies", "disturbed_policies", "unlike_policies", "failed_policies", "validation")
    runs = [bool(column.any()) for column in table.supported.T]
    masked = [str(bits) for bits, ok in zip(table.choices, runs, strict=True) if not ok]
    summary = {
        "out": str(out),
        **{key: table.source.get(key) for key in (*known, "inputs")},
        "masked": masked,
    }
    if arguments.json:
        print_json(summary)
        return 0
    if masked:
        console().print(f"no layer can run at {', '.join(masked)} here: masked in the table")
    if summary["policies"] is None:
        console().print(f"{out}: written as {arguments.cost} has it; nothing was measured")
        return 0
    console().print(f"{out}: {describe_policies(table.source)}")
    for line in describe_validation(table.source["validation"]):
        console().print(line)
    return 0
