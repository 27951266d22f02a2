"""``quantmeter calibrate``: measure a cost table."""

import argparse
from pathlib import Path

from costmodels.errors import BackendError
from quantmeter.commands.options import (
    Subparsers,
    add_choices,
    add_command,
    add_data,
    add_remote,
    add_seed,
    add_store,
    add_threads,
    add_time,
    console,
    positive,
    print_json,
    progress_bar,
    store_of,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers,
        "calibrate",
        "measure a cost table of a network; without one, this device, for any network",
        run,
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL.onnx",
        help="float ONNX model; without it random networks are measured, and "
        "--cost calibrated:OUT.json prices any network afterwards (5m are a good --time)",
    )
    add_data(parser)
    add_choices(parser)
    add_seed(parser)
    add_threads(parser)
    parser.add_argument("--cost", default="ort", metavar="BACKEND", help="ort (default) or tvm")
    add_remote(parser)
    add_time(parser)
    add_store(parser)
    parser.add_argument(
        "--anew",
        action="store_true",
        help="forget what the store holds of this network (without one: of this device), and "
        "measure all of it; if that is ended, the command without --anew goes on",
    )
    parser.add_argument(
        "--from",
        dest="known",
        metavar="DEVICE.json",
        help="rescale this calibrated device by a few random networks, instead of --time",
    )
    parser.add_argument("--probes", type=positive, metavar="N", help="so many of them (default 15)")
    parser.add_argument(
        "--raw", type=Path, metavar="FILE.json.gz", help="also write a device's raw readings"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE.json", help="the table, or device, that is written"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, write the table, and say how good it is."""
    if arguments.model is None:
        from quantmeter.commands.calibrate_device import run_device

        return run_device(arguments)
    if any(given is not None for given in (arguments.known, arguments.probes, arguments.raw)):
        raise BackendError("--from, --probes and --raw are for a device: leave MODEL.onnx out")
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
            remote=arguments.remote,
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
    if kernels := table.source.get("kernels"):  # nothing is fitted: no policies, no validation
        told = {key: table.source[key] for key in ("instructions", "processor", "caches", "inputs")}
        summary = {"out": str(out), "kernels": kernels, **told, "masked": masked}
    if arguments.json:
        print_json(summary)
        return 0
    if masked:
        console().print(f"no layer can run at {', '.join(masked)} here: masked in the table")
    if kernels:
        console().print(f"{out}: {kernels} kernels timed, {table.source['instructions']}")
        return 0
    if summary["policies"] is None:
        console().print(f"{out}: written as {arguments.cost} has it; nothing was measured")
        return 0
    console().print(f"{out}: {describe_policies(table.source)}")
    for line in describe_validation(table.source["validation"]):
        console().print(line)
    return 0
