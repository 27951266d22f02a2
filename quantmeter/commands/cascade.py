"""``quantmeter cascade``: a cheap policy first, a dear one where it is not confident."""

import argparse
from typing import TYPE_CHECKING

from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_data,
    add_model,
    add_seed,
    add_threads,
    console,
    positive,
    print_json,
    progress_bar,
    table,
)

if TYPE_CHECKING:
    from quantmeter.cascading import CascadeResult


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers,
        "cascade",
        "choose a policy per input: the cheap one first, then a dear one",
        run,
    )
    add_model(parser)
    parser.add_argument(
        "policies",
        nargs="+",
        metavar="POLICY.json|RUN",
        help="policy files, two at least, or the folder of a search with --front",
    )
    add_data(parser, required=True)
    add_seed(parser)
    add_threads(parser)
    parser.add_argument(
        "--cost",
        metavar="[METRIC=]BACKEND",
        help="what says what a policy costs, such as energy=analytical:haq (default: the exported "
        "files are timed, and the cascade as a whole)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of right answers that may be lost against the best policy (default 0)",
    )
    parser.add_argument(
        "--rounds", type=positive, default=20, help="of timing, 6 at least (default 20)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Choose, and say what the cascade does."""
    from quantmeter.cascading import cascade

    with progress_bar("cascade") as progress:
        found = cascade(
            arguments.model,
            arguments.data,
            arguments.policies,
            cost=arguments.cost,
            tolerance=arguments.tolerance,
            rounds=arguments.rounds,
            threads=arguments.threads,
            seed=arguments.seed,
            progress=progress,
        )
    if arguments.json:
        print_json(found.to_dict())
    else:
        _print(found)
    return 0


def _print(found: "CascadeResult") -> None:
    from costmodels.units import format_quantity

    out, report, chosen = console(), found.report, found.report.cascade
    right_is = "right" if found.labelled else "like float"
    rows = table("Policies", "name", "cost", f"{right_is} on search images")
    for name, cost in found.costs.items():
        rows.add_row(name, format_quantity(cost, found.unit), f"{found.searched[name]:.2%}")
    out.print(rows)
    single = format_quantity(found.costs[found.single], found.unit)
    out.print(f"cheapest single policy by the same rule: {found.single} at {single}")
    if not chosen.threshold:
        out.print(f"no cascade is cheaper: {chosen.cheap} alone")
        return
    out.print(
        f"chosen: {chosen.cheap}, and below a confidence of {chosen.threshold:.3f} {chosen.dear} "
        "as well",
        soft_wrap=True,
    )
    sent, right = report.forwarded, report.accuracy
    out.print(
        f"on the test images: {sent.share:.1%} forwarded, {right.share:.2%} {right_is} "
        f"[{right.low:.2%}, {right.high:.2%}] at a mean of "
        f"{format_quantity(report.cost, found.unit)}",
        soft_wrap=True,
    )
    out.print(
        f"{chosen.dear} alone: {report.dear.share:.2%} {right_is} at "
        f"{format_quantity(report.dear_cost, found.unit)}; only the cascade right "
        f"{report.only_cascade}, only {chosen.dear} {report.only_dear}",
        soft_wrap=True,
    )
    if (times := found.measured) is not None:
        low, mid, high = times.ratio
        whole, dear = (format_quantity(s, found.unit) for s in (times.whole_s, times.dear_s))
        out.print(
            f"timed as a whole: {whole} beside {dear} of {chosen.dear} alone, {mid:.3f} "
            f"[{low:.3f}, {high:.3f}] of it",
            soft_wrap=True,
        )
