"""``quantmeter cost``: what a policy costs, layer by layer."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmeter.commands.drift import remark_on_devices
from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_costs,
    add_model,
    add_store,
    add_threads,
    add_time,
    console,
    positive,
    print_json,
    progress_bar,
    store_of,
)

if TYPE_CHECKING:
    from rich.console import Console

    from costmodels.model import CostModel
    from costmodels.table import CostTable
    from costmodels.units import Metric
    from quantization.network import Network
    from quantization.policy import Policy
    from quantmeter.costs import Costs
    from quantmeter.itemizing import Bill

_ROWS = 40
"""Layers that are listed unless more are asked for."""


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
        action="append",
        default=[],
        help="repeat for several (default all that --cost prices, and size); size needs no --cost: "
        "it is the exported file's",
    )
    parser.add_argument(
        "--policy",
        metavar="POLICY.json",
        help="or bits for every layer such as w8a8 (default w32a32)",
    )
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--top",
        type=positive,
        default=_ROWS,
        metavar="N",
        help="list the N layers of the largest share in any metric, in execution order "
        f"(default {_ROWS})",
    )
    rows.add_argument("--all", action="store_true", help="list every layer")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw it too: roofline and energy breakdown of an accelerator, else bars of layers",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print each layer's costs and shares, and the totals; draw them if asked to."""
    from costmodels.model import BackendContext
    from costmodels.units import Metric, parse_duration
    from quantization.reading import read_network
    from quantmeter.costs import parse_costs

    asked = tuple(Metric(name) for name in dict.fromkeys(arguments.metric))
    if arguments.plot is not None:
        from quantmeter.plots import require_plot

        require_plot(arguments.plot, arguments.model, arguments.policy)
    network = read_network(arguments.model)
    policy = _policy(arguments.policy, network)
    tables = _stored_tables(arguments)
    with progress_bar("pricing") as progress:
        seconds = parse_duration(arguments.time)
        context = BackendContext(arguments.threads, seconds, store=store_of(arguments))
        context = replace(context, progress=progress, remote=arguments.remote)
        costs = parse_costs(arguments.cost, context, tables=tables)
        bills, left_out = _bills(costs, network, policy, asked)
    if arguments.plot is not None:
        from quantmeter.plots import panels, plot

        title = f"{Path(arguments.model).name} at {Path(arguments.policy or 'w32a32').name}"
        plot(arguments.plot, title, panels(bills, costs, network, policy))
    if arguments.json:
        print_json(_json(bills, left_out, bool(asked), arguments.plot))
        return 0
    out = console()
    out.print(f"{arguments.model} at {arguments.policy or 'w32a32'}", markup=False)
    _print_table(out, bills, len(network.layers) if arguments.all else arguments.top)
    for note in _notes(bills, left_out):
        out.print(f"note: {note}", markup=False)
    if arguments.plot is not None:
        out.print(f"drawn: {arguments.plot}", markup=False)
    return 0


def _bills(
    costs: "Costs", network: "Network", policy: "Policy", asked: "Sequence[Metric]"
) -> "tuple[list[Bill], dict[str, str]]":
    """Price the metrics that are asked for, or all; also say which have no price, and why."""
    from costmodels.errors import BackendError, UnsupportedChoiceError
    from costmodels.units import Metric

    if asked:
        return [_itemize(costs.model(m), network, policy, m) for m in asked], {}
    priced = [m for m in Metric if m in costs.models]
    if priced == [Metric.SIZE]:
        raise BackendError("say what is priced: --cost BACKEND, or --metric size")
    bills, left_out = [], {}
    for metric in priced:
        try:
            bills.append(_itemize(costs.model(metric), network, policy, metric))
        except UnsupportedChoiceError as error:
            if metric is not Metric.SIZE:
                raise
            left_out["size"] = f"no file of this policy can be exported: {error}"
    return bills, left_out


def _itemize(model: "CostModel", network: "Network", policy: "Policy", metric: "Metric") -> "Bill":
    """Price one metric; where a backend lacks the widths, say which it has and how to choose."""
    from costmodels.errors import UnsupportedChoiceError
    from costmodels.units import Metric
    from quantmeter.itemizing import itemize

    try:
        return itemize(model, network, policy, metric)
    except UnsupportedChoiceError as error:
        if metric is Metric.SIZE:
            raise
        widths = getattr(model, "widths_text", "")
        has = f"; it has {widths}" if widths else ""
        raise UnsupportedChoiceError(
            f"{model.name}: {error}{has}; choose with --policy POLICY.json or bits such as w8a8"
        ) from None


def _json(
    bills: "Sequence[Bill]", left_out: dict[str, str], asked: bool, plot: Path | None
) -> dict[str, Any]:
    """Return the one bill that was asked for, else each by its metric."""
    if asked and len(bills) == 1:
        content = bills[0].to_dict()
    else:
        by_metric = {bill.metric.value: bill.to_dict() for bill in bills}
        content = {"metrics": by_metric, "left_out": left_out}
    return content | ({} if plot is None else {"plot": str(plot)})


def _notes(bills: "Sequence[Bill]", left_out: dict[str, str]) -> list[str]:
    """Return what is to be known of the costs, each once."""
    notes = [f"no {metric}: {why}" for metric, why in left_out.items()]
    for bill in bills:
        notes += bill.notes
        no_term = bill.source.get("glue")
        if isinstance(no_term, str) and not any("glue" in note for note in bill.notes):
            notes.append(f"{bill.metric.value} of glue and conversions: {no_term}")
        if any(item.cost < 0 for item in bill.others if item.name != "difference"):
            notes.append("what is fitted may be negative: a fusion that is gained, an even split")
        if bill.other("difference"):
            notes.append(
                f"{bill.metric.value}: (difference) is what the whole costs beyond its parts"
            )
    return list(dict.fromkeys(notes))


def _print_table(out: "Console", bills: "Sequence[Bill]", top: int) -> None:
    """Print the dearest layers in execution order, what is beside them, and totals."""
    from costmodels.units import format_quantity
    from quantmeter.cost_table import cost_tables, dearest

    shown = dearest(bills, top)
    terminal = sys.stdout.isatty()
    for part in cost_tables(bills, shown, out.width if terminal else 100):
        out.print(part, markup=False, crop=False)
    left = len(bills[0].layers) - len(shown)
    if left:
        out.print(f"the {left} layers of the smallest shares are one row; --all lists every layer")
    for bill in bills:
        name = f"total {bill.metric.value}" if len(bills) > 1 else "total"
        paid = format_quantity(bill.total, bill.unit)
        if bill.interval is not None:
            low, high = (format_quantity(end, bill.unit) for end in bill.interval)
            paid += f" (90 % interval {low} to {high})"
        out.print(f"{name}: {paid}, {bill.said}", soft_wrap=not terminal, markup=False)


def _stored_tables(arguments: argparse.Namespace) -> "dict[str, CostTable]":
    """Read the tables that ``--cost`` names; say on standard error what one must know of them."""
    remark_on_devices(arguments)
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
        if Path(text).suffix != ".json" and not Path(text).exists():
            raise
        return Policy.read(text)
    return Policy.uniform(network, bits)
