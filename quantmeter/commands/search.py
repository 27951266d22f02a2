"""``quantmeter search``: find the bits within budgets."""

import argparse
import shlex

from quantmeter.commands.drift import add_old_tables, check_named_tables
from quantmeter.commands.options import (
    Subparsers,
    add_choices,
    add_command,
    add_costs,
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


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "search", "find the bits within budgets", run)
    add_model(parser)
    add_data(parser, required=True)
    add_costs(parser)
    add_choices(parser)
    add_seed(parser)
    add_threads(parser)
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="METRIC=VALUE",
        help="such as latency=0.7x (of the float model), latency=8ms, latency=20Mcycles, size=2MB; "
        "repeat for several",
    )
    parser.add_argument(
        "--method",
        default="reinforce",
        help="reinforce (default), exact, greedy, uniform or random",
    )
    parser.add_argument(
        "--reward",
        default="accuracy",
        choices=("accuracy", "proxy"),
        help="accuracy on the search part, or the negative sum of sensitivities",
    )
    parser.add_argument("--episodes", type=positive, default=600, help="default 600")
    parser.add_argument("--warm", action="store_true", help="start from what greedy search finds")
    parser.add_argument(
        "--totals",
        metavar="BACKEND",
        help="prices each tried policy as a whole, such as ort, which builds and times it briefly; "
        "one above its budget is rejected (default: the sum of the table)",
    )
    parser.add_argument(
        "--tie",
        action="append",
        default=[],
        metavar="LAYER,LAYER",
        help="layers that must get equal bits; repeat for several groups",
    )
    parser.add_argument(
        "--ranges",
        default="minmax",
        choices=("minmax", "percentile", "mse"),
        help="how activation ranges are chosen (default minmax); the policy file carries it",
    )
    parser.add_argument(
        "--no-export",
        action="store_true",
        help="the policy is for other hardware, which a table prices: allow what ONNX Runtime "
        "cannot run, such as w4a4, and price no size",
    )
    add_time(parser)
    add_store(parser)
    add_old_tables(parser)
    parser.add_argument(
        "--out",
        default="runs/search",
        metavar="RUN",
        help="folder (runs/search); the same command goes on with a search that was ended",
    )
    parser.add_argument(
        "--anew", action="store_true", help="discard an unfinished search in the folder"
    )


def run(arguments: argparse.Namespace) -> int:
    """Search, write the run, and print the best policy."""
    from costmodels.units import SI_UNIT, Metric, Unit, format_quantity, parse_duration
    from quantmeter.searching import search

    tables = check_named_tables(arguments)
    with progress_bar("searching") as progress:
        report = search(
            arguments.model,
            arguments.data,
            cost=arguments.cost,
            budgets=arguments.budget,
            method=arguments.method,
            reward=arguments.reward,
            episodes=arguments.episodes,
            warm=arguments.warm,
            choices=arguments.choices,
            ties=[group.split(",") for group in arguments.tie],
            ranges=arguments.ranges,
            totals=arguments.totals,
            threads=arguments.threads,
            seconds=parse_duration(arguments.time),
            seed=arguments.seed,
            store=store_of(arguments),
            exported=not arguments.no_export,
            tables=tables,
            out=arguments.out,
            anew=arguments.anew,
            progress=progress,
        )
    if arguments.json:
        print_json(report.summary)
        return 0
    found, out = report.found, console()
    if report.read_back:
        out.print(f"went on with an ended search: {report.read_back} of its trials were read back")
    rows = table("Best policy", "layer", "bits")
    for name, bits in found.policy.layers.items():
        rows.add_row(name, str(bits))
    out.print(rows)
    test = found.test_accuracy
    assert test is not None  # `search` tests what it reports
    out.print(
        f"accuracy: {found.search_accuracy:.2%} on the search images, {test.share:.2%} "
        f"[{test.low:.2%}, {test.high:.2%}] on the test images"
    )
    best = report.optimum.loss
    named = "exact optimum" if report.optimum.proven else "best that the solver found in time,"
    above = "equal to" if found.gap is None else f"{max(found.gap, 0.0):.1%} above"
    if found.gap is None and found.loss > 0:
        above = "above"
    out.print(f"proxy loss: {found.loss:.4g}, {above} the {named} {best:.4g}")
    for name, budget in report.summary["budgets"].items():
        cost = found.costs[Metric(name)]
        unit = Unit(budget["unit"])
        how = "exactly" if name == Metric.SIZE.value else "predicted"
        said = report.summary["costs_from"][name]
        out.print(
            f"{name}: {how} {format_quantity(cost, unit)} of "
            f"{format_quantity(budget['limit'], unit)}"
            + ("" if name == Metric.SIZE.value else f", {said}"),
            soft_wrap=True,
        )
    for metric, cost in found.measured.items():
        limit = (report.summary["totals"] or {})["limits"].get(metric.value)
        named = report.summary["totals"]["backends"][metric.value]
        said = "" if limit is None else f" of {format_quantity(limit, SI_UNIT[metric])}"
        out.print(
            f"{metric.value} as a whole: {format_quantity(cost, SI_UNIT[metric])}{said}, by {named}"
        )
    out.print(f"written: {arguments.out}/policy.json, trials.jsonl, result.json")
    if arguments.no_export:
        return 0
    # With the same seed: another split would test on images that the search saw.
    given = ["--data", arguments.data, "--seed", str(arguments.seed)]
    words = ["quantmeter", "bench", arguments.model, f"{arguments.out}/policy.json", *given]
    command = shlex.join([*words, "--vs", "float", "--vs", "w8a8"])
    out.print(f"measure it: {command}", soft_wrap=True, markup=False)
    return 0
