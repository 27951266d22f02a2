"""``quantmeter compare``: cost backends beside each other, against measured latency."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmeter.commands.drift import remark_on_devices
from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_data,
    add_model,
    add_seed,
    add_store,
    add_threads,
    add_time,
    console,
    positive,
    print_json,
    progress_bar,
    store_of,
    table,
)

if TYPE_CHECKING:
    from costmodels.compare import Agreement
    from costmodels.prediction_error import PredictionError
    from quantmeter.comparing import Compared


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "compare", "compare cost backends with measured latency", run)
    add_model(parser)
    parser.add_argument(
        "policy",
        nargs="*",
        metavar="POLICY.json",
        help="policies to measure, right behind the model; float and w8a8 are always added",
    )
    parser.add_argument(
        "--cost",
        action="append",
        default=[],
        metavar="BACKEND",
        help="analytical:PRESET, table:FILE or ort (a second measurement); repeat, a row each",
    )
    parser.add_argument(
        "--policies",
        type=positive,
        metavar="N",
        help="random policies to measure instead of files (default 20)",
    )
    parser.add_argument(
        "--measured", metavar="MEASURED.json", help="what --out wrote: nothing is measured"
    )
    parser.add_argument(
        "--out", metavar="MEASURED.json", help="write the policies and their times, for --measured"
    )
    add_data(parser)
    add_seed(parser)
    add_threads(parser)
    add_time(parser)
    add_store(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure unless it was measured, compare, print a row per backend."""
    from costmodels.units import parse_duration
    from quantization.errors import PolicyError
    from quantmeter.benchmarking import read_policies
    from quantmeter.comparing import compare
    from quantmeter.files import require_file, write

    if arguments.policy and arguments.policies is not None:
        raise PolicyError("give policy files, or --policies N for random ones; not both")
    if arguments.measured and (arguments.policy or arguments.policies or arguments.out):
        raise PolicyError("--measured brings its policies and times: no others, and no --out")
    out = None if arguments.out is None else Path(arguments.out)
    if out is not None:
        tables = [text.partition("table:")[2] or None for text in arguments.cost]
        require_file(out, arguments.model, arguments.data, *arguments.policy, *tables)
    remark_on_devices(arguments)
    with progress_bar("comparing") as progress:
        found = compare(
            arguments.model,
            arguments.cost,
            policies=read_policies(arguments.policy) if arguments.policy else arguments.policies,
            measured=arguments.measured,
            data=arguments.data,
            seconds=parse_duration(arguments.time),
            threads=arguments.threads,
            seed=arguments.seed,
            store=store_of(arguments),
            progress=progress,
        )
    if out is not None:
        write(out, found.measured.to_json())
    if arguments.json:
        print_json(found.to_dict())
    else:
        _print(found)
        if out is not None:
            console().print(f"written: {out}")
    return 0


def _print(found: "Compared") -> None:
    from costmodels.units import Unit, format_quantity

    rows = table(
        "Predicted against measured latency",
        *(
            "backend",
            "error",
            "within 10 %",
            "scaled: error",
            "scaled: within 10 %",
            "rank correlation",
            "regret",
            "picked",
            "its time",
        ),
    )
    for each in found.agreements:
        rows.add_row(
            each.name,
            *_cells(each.error),
            *_cells(each.scaled),
            "-" if each.rank_correlation is None else f"{each.rank_correlation:.3f}",
            f"{each.regret:.1%}",
            _picked(each, found.names),
            format_quantity(each.picked_cost, Unit.SECONDS),
        )
    out = console()
    out.print(rows)
    seconds = found.measured.seconds
    fastest = format_quantity(float(seconds.min()), Unit.SECONDS)
    out.print(
        f"{len(seconds)} policies measured on {_where(found.measured.source)}; the fastest: "
        f"{found.names[found.best]}, {fastest}"
    )
    out.print(
        "regret: how much slower the policy is that a backend would have picked than the fastest "
        "of these; others may be faster still"
    )
    out.print("scaled: after the one factor that fits these policies best")
    for note in found.notes:
        out.print(f"note: {note}")


def _cells(error: "PredictionError | None") -> tuple[str, str]:
    return ("-", "-") if error is None else (f"{error.mean_absolute:.1%}", f"{error.near:.0%}")


def _picked(each: "Agreement", names: tuple[str, ...]) -> str:
    if len(each.picked) == 1:
        return names[each.picked[0]]
    return f"{len(each.picked)} that tie (mean)"


def _where(source: Mapping[str, Any]) -> str:
    """Say in words who measured; files that others wrote may not say it."""
    device, runtime = source.get("device"), source.get("runtime")
    if not isinstance(device, Mapping) or not isinstance(runtime, Mapping):
        return "a device that the file does not name"
    return (
        f"{device.get('cpu')}, {device.get('runtime')} {device.get('runtime_version')}, "
        f"{runtime.get('threads')} thread(s)"
    )
