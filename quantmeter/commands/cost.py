"""``quantmeter cost``: what a policy costs, layer by layer."""

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_costs,
    add_model,
    add_store,
    add_threads,
    add_time,
    console,
    print_json,
    progress_bar,
    store_of,
    table,
)

if TYPE_CHECKING:
    from costmodels.table import CostTable
    from quantization.network import Network
    from quantization.policy import Policy


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "cost", "price a policy", run)
    add_model(parser)
    add_costs(parser)
    add_threads(parser)
    add_time(parser)
    add_store(parser)
    parser.add_argument(
        "--metric",
        choices=("latency", "energy", "size"),
        required=True,
        help="size needs no --cost: it is the exported file's",
    )
    parser.add_argument(
        "--policy",
        metavar="POLICY.json",
        help="or bits for every layer such as w8a8 (default w32a32)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the total and each layer's share."""
    from costmodels.model import BackendContext
    from costmodels.pricing import total
    from costmodels.provenance import said_of
    from costmodels.units import Metric, format_quantity, parse_duration
    from quantization.formats import formats
    from quantization.policy import PolicyBatch
    from quantization.reading import read_network
    from quantmeter.costs import parse_costs

    metric = Metric(arguments.metric)
    network = read_network(arguments.model)
    policy = _policy(arguments.policy, network)
    batch = PolicyBatch.of(network, [policy])
    tables = _stored_tables(arguments)
    with progress_bar("pricing") as progress:
        seconds = parse_duration(arguments.time)
        context = BackendContext(arguments.threads, seconds, store=store_of(arguments))
        context = replace(context, progress=progress)
        model = parse_costs(arguments.cost, context, tables=tables).model(metric)
        priced = model.table(network, batch.choices, metric)
        exact = float(model.total(network, batch, metric)[0])
    # The sum of the table; for size the file may be smaller, see `costmodels.size`.
    summed = float(total(priced, network, batch)[0])
    chosen = formats(network, policy)
    position = {name: i for i, name in enumerate(priced.layers)}
    layers = [
        {
            "name": name,
            "bits": str(policy[name]),
            "cost": float(priced.unary.value[position[name], batch.index[0, position[name]]]),
            "kernel": str(priced.unary.kernel[position[name], batch.index[0, position[name]]]),
            "provenance": str(
                priced.unary.provenance[position[name], batch.index[0, position[name]]]
            ),
        }
        for name in network.layer_names
    ]
    known = priced.formats
    glue = sum(
        float(priced.glue.value[i, known.index(chosen.reads[name])])
        for i, name in enumerate(priced.glue_names)
    )
    tensors = {name: i for i, name in enumerate(priced.tensors)}
    conversion = sum(
        float(priced.conversion.value[tensors[name], known.index(a), known.index(b)])
        for name, a, b in chosen.conversions
    )
    once = 0.0
    if priced.once is not None and priced.once.due(batch.index)[0]:
        once = priced.once.value
    neighbours = 0.0
    if priced.context is not None:
        neighbours = float(priced.context.correction(batch.index, batch.choices)[0])
    notes = [str(note) for note in priced.source.get("notes", ())]
    provenance = sorted({str(entry["provenance"]) for entry in layers})
    if arguments.json:
        print_json(
            {
                "metric": metric.value,
                "total": exact,
                "unit": priced.unit.value,
                "statistic": priced.statistic,
                "provenance": provenance,
                "costs_from": said_of(priced),
                "layers": layers,
                "glue": glue,
                "conversions": conversion,
                "constant": priced.constant,
                "once": once,
                "neighbours": neighbours,
                "table_total": summed,
                "source": dict(priced.source),
                "notes": notes,
            }
        )
        return 0
    rows = table(f"{metric.value} of {arguments.model}", "layer", "bits", "cost", "share", "from")
    for entry in layers:
        share = float(str(entry["cost"])) / summed if summed else 0.0
        rows.add_row(
            str(entry["name"]),
            str(entry["bits"]),
            format_quantity(float(str(entry["cost"])), priced.unit),
            f"{share:.1%}",
            " ".join(filter(None, (str(entry["provenance"]), str(entry["kernel"])))),
        )
    rest = {"glue": glue, "conversions": conversion, "constant": priced.constant, "once": once}
    rest["neighbours"] = neighbours
    for name, value in rest.items():
        share = value / summed if summed else 0.0
        rows.add_row(f"({name})", "", format_quantity(value, priced.unit), f"{share:.1%}", "")
    out = console()
    out.print(rows)
    out.print(f"total: {format_quantity(exact, priced.unit)}, {said_of(priced)}", soft_wrap=True)
    if min(glue, conversion, priced.constant, neighbours) < 0:
        notes.append("what is fitted may be negative: a fusion that is gained, or an even split")
    for note in notes:
        out.print(f"note: {note}")
    return 0


def _stored_tables(arguments: argparse.Namespace) -> "dict[str, CostTable]":
    """Read the tables that ``--cost`` names; say on standard error what one must know of them."""
    if not any("table:" in text for text in arguments.cost):
        return {}
    from quantmeter.costs import stored_tables
    from quantmeter.drifting import remark_on

    tables = stored_tables(arguments.cost)
    for path, found in tables.items():
        if remark := remark_on(found, arguments.threads):
            print(f"{path}: {remark}", file=sys.stderr)
    return tables


def _policy(text: str | None, network: "Network") -> "Policy":
    """Return the policy of a file, or the one that gives every layer the bits that `text` names."""
    from quantization.bits import BitWidths
    from quantization.errors import BitWidthError
    from quantization.policy import Policy

    if text is None:
        return Policy({})
    try:
        bits = BitWidths.parse(text)
    except BitWidthError:
        return Policy.read(text)
    return Policy.uniform(network, bits)
