"""``quantmeter import``: a published cost table becomes one of a network."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_model,
    console,
    positive,
    print_json,
)

if TYPE_CHECKING:
    from costmodels.table import CostTable
    from quantization.network import Network

_FORMATS = {
    "haq": (
        ".npy of HAQ: layers x weight bits x activation bits",
        "The value at [i, w-1, a-1] is what layer i costs at w bits of weights and a of "
        "activations, layers in order of execution. Widths that are no choice here, such as 1, are "
        "left out.",
    ),
    "hawq": (
        "JSON of HAWQ-V3: latencies of each layer at INT4 and INT8",
        'An entry such as "latency_ms_nvidia_t4" maps widths, of weights and of activations alike, '
        "to lists of latencies in the unit that it names, layers in order of execution. "
        '"parameters_millions" and "macs_millions" are compared with the model, and "tied_layers" '
        "are told. Sensitivities are not imported: a search measures them.",
    ),
    "csv": ("CSV: layer, choice, value", ""),
}

CSV_LAYOUT = """\
example of a file:

    # unit: us
    # statistic: median
    # provenance: measured
    # batch: 1
    # device: ACME NPU, SDK 3.1
    layer,choice,value
    stem,w8a8,12.5
    stem,w4a8,9.75
    head,w8a8,3.25

The columns are a layer (quantmeter inspect lists them), its bits, and what it costs then. What has
no row is not supported: here, the head at w4a8. Lines before them that begin with # say what the
values are; options say what such lines do not:

    unit        needed: cycles, Mcycles, s, ms, us, ns, J, mJ, uJ, ...
    statistic   needed: what the values are, in a word or two
    provenance  measured, calibrated, analytical, exact or assumed (the default)
    batch       inputs that one value is for
    device      in words
    metric      latency or energy: follows from the unit, and is checked
"""
"""What ``quantmeter import csv --help`` says of the file."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand, with one of its own for each format."""
    text = "make a published cost table one of a network"
    parser = subparsers.add_parser("import", help=text, description=text)
    formats = parser.add_subparsers(dest="form", required=True, metavar="FORMAT")
    for name, (summary, layout) in _FORMATS.items():
        _add_format(formats, name, summary, layout)


def _add_format(subparsers: Subparsers, name: str, summary: str, layout: str) -> None:
    parser = add_command(subparsers, name, summary, run)
    parser.add_argument("file", metavar="FILE", help="the published file")
    add_model(parser)
    parser.add_argument(
        "--out", required=True, metavar="TABLE.json", help="the table that is written"
    )
    if name != "hawq":
        default = "cycles" if name == "haq" else "what the file says"
        parser.add_argument(
            "--unit", help=f"of the values: cycles, s, ms, us, mJ, ... (default {default})"
        )
    parser.add_argument("--statistic", help="what the values are, such as median or model")
    parser.add_argument(
        "--provenance",
        choices=("measured", "calibrated", "analytical", "exact", "assumed"),
        help="how they came to be",
    )
    parser.add_argument("--batch", type=positive, help="inputs that one value is for, if known")
    parser.add_argument("--device", help="what the costs are of, in words")
    parser.add_argument(
        "--without",
        type=lambda text: tuple(part for part in text.split(",") if part),
        default=(),
        metavar="LAYER,LAYER",
        help="layers that the file leaves out; they cost 0",
    )
    if name == "csv":
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = CSV_LAYOUT
    else:
        parser.description = f"{summary}. {layout}"


def run(arguments: argparse.Namespace) -> int:
    """Read the file, write the table, and say what it holds and how to use it."""
    from costmodels.published.content import Stated
    from costmodels.table import Provenance
    from quantization.reading import read_network
    from quantmeter.files import require_file, write
    from quantmeter.importing import import_table

    out = Path(arguments.out)
    require_file(out, arguments.model, arguments.file)
    stated = Stated(
        getattr(arguments, "unit", None),
        arguments.statistic,
        None if arguments.provenance is None else Provenance(arguments.provenance),
        arguments.batch,
        arguments.device,
    )
    network = read_network(arguments.model)
    table = import_table(
        arguments.form, arguments.file, network, stated=stated, without=arguments.without
    )
    write(out, table.to_csv() if out.suffix == ".csv" else table.to_json())
    if arguments.json:
        print_json(
            {
                "out": str(out),
                "metric": table.metric.value,
                "unit": table.unit.value,
                "statistic": table.statistic,
                "layers": list(table.layers),
                "choices": [str(bits) for bits in table.choices],
                "source": dict(table.source),
            }
        )
        return 0
    _print(arguments, out, table, network)
    return 0


def _print(
    arguments: argparse.Namespace, out: Path, table: "CostTable", network: "Network"
) -> None:
    source, lines = table.source, console()
    lines.print(
        f"{out}: {table.metric.value} in {table.unit.value} ({table.statistic}) of "
        f"{len(table.layers)} layers at {len(table.choices)} choices; "
        f"checked: {', '.join(source['checked'])}",
        markup=False,
    )
    if left_out := source.get("left_out"):
        lines.print(f"left out, since no choice has such bits: {', '.join(left_out)}")
    if partly := int((~table.supported).any(0).sum()):
        lines.print(f"{partly} choices are not supported by every layer: masked in the table")
    for note in source["notes"]:
        lines.print(f"note: {note}", markup=False)
    for title, words in _next_commands(arguments.model, str(out), table, network).items():
        lines.print(f"{title}: {shlex.join(words)}", soft_wrap=True, markup=False)


def _next_commands(
    model: str, out: str, table: "CostTable", network: "Network"
) -> dict[str, list[str]]:
    """Return commands that price and search with the table, by what they do."""
    import math

    from costmodels.pricing import uniform_totals
    from costmodels.units import format_bound
    from quantization.deployment import not_deployable

    totals = dict(zip(table.choices, uniform_totals(table, network).tolist(), strict=True))
    known = {bits: cost for bits, cost in totals.items() if math.isfinite(cost)}
    if not known:
        return {}
    dearest = max(known, key=known.__getitem__)
    metric, cost = table.metric.value, ["--cost", f"table:{out}"]
    price = ["quantmeter", "cost", model, *cost, "--metric", metric, "--policy", str(dearest)]
    # Of a network that this runtime runs at two widths or more the search finds what it can run.
    runs = [b for b in known if not any(not_deployable(layer, b) for layer in network.layers)]
    choices = runs if len(runs) > 1 else list(known)
    extremes = [pick(known[bits] for bits in choices) for pick in (min, max)]
    halfway = format_bound(sum(extremes) / 2, table.unit, digits=3, upwards=True)
    search = ["quantmeter", "search", model, "--data", "DATA.npz", *cost]
    search += ["--choices", ",".join(map(str, choices))]
    search += ["--budget", f"{metric}={halfway.replace(' ', '')}"]
    search += [word for tie in table.source["ties"] for word in ("--tie", ",".join(tie))]
    search += [] if choices == runs else ["--no-export"]
    return {"price it": price, "search with it": search}
