"""``quantmeter demo``: the main job, end to end, on a real network and real images."""

import argparse
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantmeter.commands.options import (
    Subparsers,
    add_command,
    add_seed,
    console,
    print_json,
    progress_bar,
    table,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLUMNS = (
    "*: deployed. proxy: sum of the layers' KL, each quantized alone. gap: proxy above its exact "
    "optimum within the budgets, - over a budget. predicted: x float, by the latency table."
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(
        subparsers, "demo", "go from a float network to a timed mixed-precision model", run
    )
    add_seed(parser)
    parser.add_argument("--out", default="runs/demo", metavar="RUN", help="folder (runs/demo)")
    parser.add_argument("--quick", action="store_true", help="a taste: seconds instead of minutes")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; exit 1 if no policy meets the latency budget when measured."""
    from quantmeter.demo import DemoOptions, run_demo

    options = DemoOptions(seed=arguments.seed)
    if arguments.quick:
        options = DemoOptions(6, 10, 60, images=100, blocks=6, seed=arguments.seed)
    out = Path(arguments.out)
    result = run_demo(options, out, progress_bar if sys.stderr.isatty() else announce)
    if arguments.json:
        print_json(result.to_dict())
    else:
        screen = console()
        print_result(result.to_dict(), screen)
        print_files(out, arguments.seed, screen, deployed=result.deployed is not None)
    if result.deployed is None:
        print(f"quantmeter: {result.exceeded()}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def announce(title: str) -> Iterator[Callable[[float, str], None]]:
    """Say which stage begins, where no progress bar can be drawn, and then how long it took."""
    started = time.perf_counter()
    print(f"{title} ...", end="", file=sys.stderr, flush=True)
    took = ""
    try:
        yield lambda _share, _what: None
        took = f" {time.perf_counter() - started:.0f} s"
    finally:
        print(took, file=sys.stderr, flush=True)


def print_result(result: Mapping[str, Any], screen: "Console") -> None:
    """Print what `DemoResult.to_dict` returned, judged as the page judges it."""
    from costmodels.units import Unit, format_quantity
    from quantmeter.prediction import describe_policies, describe_validation
    from quantmeter.report import describe_page

    page = describe_page(result)
    network, fitted, budgets = result["network"], result["calibration"], result["budgets"]
    screen.print(
        f"network: {network['layers']} layers, {network['macs'] / 1e6:.1f} M multiply-accumulates, "
        f"{network['weight_count']:,} weights; float accuracy "
        f"{result['float']['test_accuracy']:.2%} on test images"
    )
    screen.print(f"latency table: {describe_policies(fitted)}")
    for line in describe_validation(fitted["validation"]):
        screen.print(line)
    screen.print(_layer_table(result))
    screen.print(
        f"budgets: latency at most {budgets['latency_ratio']}x of float, size at most "
        f"{format_quantity(budgets['size_bytes'], Unit.BYTES)} (that of "
        f"{budgets['size_is_that_of']})"
    )
    screen.print(_search_table(page))
    screen.print(_COLUMNS, soft_wrap=True)
    screen.print(
        f"noise floor of that run: {result['noise_floor']['relative']:.1%} (float against itself, "
        "loaded twice: {mid:.3f} [{low:.3f}, {high:.3f}]); ".format_map(result["noise_floor"])
        + f"the budget is met with {result['float']['timed']['floor']:.1%} above the limits",
        soft_wrap=True,
    )
    _print_verdict(page, screen)


def _layer_table(result: Mapping[str, Any]) -> "Table":
    from costmodels.units import Unit, format_quantity

    rows = table(
        "Layers: latency measured in context, energy analytical (haq), not measured, "
        "KL of one layer alone",
        *("layer", "float", "INT8", "energy w8a8", "KL w2", "KL w3", "KL w4", "deployed"),
    )

    def quantity(value: float | None, unit: Unit) -> str:
        return "-" if value is None else format_quantity(value, unit)

    for layer in result["layers"]:
        cells = layer["choices"]
        rows.add_row(
            layer["name"],
            quantity(cells["w32a32"]["latency"], Unit.SECONDS),
            quantity(cells["w8a8"]["latency"], Unit.SECONDS),
            quantity(cells["w8a8"]["energy"], Unit.JOULES),
            *(f"{cells[bits]['kl']:.4f}" for bits in ("w2a8", "w3a8", "w4a8")),
            layer["deployed_bits"] or "-",
        )
    return rows


def _search_table(page: Mapping[str, Any]) -> "Table":
    from quantmeter.report import format_gap

    rows = table(
        "Search",
        *("method", "proxy", "gap", "search", "test accuracy [95 %]", "predicted"),
        *("measured, x float [95 %]", "bytes", "budgets"),
    )
    for row in page["rows"]:
        if row["kind"] == "float":
            continue
        low, high = row["interval"]
        rows.add_row(
            ("* " if row["deployed"] else "  ") + row["name"],
            f"{row['loss']:.3f}",
            "-" if row["gap"] is None else f"{format_gap(row['gap'])}%",
            f"{row['search_accuracy']:.1%}",
            f"{row['accuracy']:.1%} [{low:.1%}, {high:.1%}]",
            "-" if row["predicted"] is None else f"{row['predicted']:.3f}",
            "{mid:.3f} [{low:.3f}, {high:.3f}]".format_map(row["ratio"]),
            f"{row['size_bytes']:,}",
            "met" if row["met"] else "over",
        )
    return rows


def _print_verdict(page: Mapping[str, Any], screen: "Console") -> None:
    row, ahead = page["deployed"], page["ahead"]
    if row is None:
        return
    screen.print(
        f"deployed: {row['name']}; predicted {row['predicted']:.3f}x of float, measured "
        + "{mid:.3f}x [{low:.3f}, {high:.3f}]".format_map(row["ratio"])
        + f", budget {page['result']['budgets']['latency_ratio']}x; "
        f"{row['accuracy']:.2%} of the test images right when the exported file runs; "
        f"audit {'ok' if row['audit']['ok'] else 'FAILED'}"
    )
    screen.print(
        f"chosen by accuracy on the search images ({row['search_accuracy']:.1%}; of those within a "
        "standard error of the best, the least proxy loss); test images are only reported"
    )
    if ahead is not None:
        low, high = ahead["interval"]
        screen.print(
            f"higher on the test images, within both budgets: {' and '.join(ahead['names'])}, "
            f"{ahead['accuracy']:.1%} [{low:.1%}, {high:.1%}]; the two 95 % intervals "
            + ("do not overlap" if ahead["apart"] else "overlap")
        )


def print_files(out: Path, seed: int, screen: "Console", *, deployed: bool) -> None:
    """Say what was written, and how to go on with it."""
    files = ["model.onnx", "data.npz", "table.json", "*.policy.json", "result.json", "report.html"]
    if deployed:
        files[4:4] = ["deployed.onnx", "deployed.policy.json"]
    screen.print(f"written to {out}: {', '.join(files)}", soft_wrap=True)
    if deployed:
        for what, command in next_commands(out, seed).items():
            screen.print(f"{what}: {command}", soft_wrap=True, markup=False)


def next_commands(out: Path, seed: int) -> dict[str, str]:
    """Return commands for the shell that go on with the files of a run, by what they do."""
    program = [sys.executable, "-m", "quantmeter.cli"]
    if shutil.which("quantmeter"):
        program = ["quantmeter"]
    elif Path(sys.argv[0]).name == "quantmeter":
        program = [sys.argv[0]]
    given = ["--data", str(out / "data.npz"), "--cost", f"table:{out / 'table.json'}"]
    given += ["--seed", str(seed)] if seed else []
    model, policy = str(out / "model.onnx"), str(out / "deployed.policy.json")
    budgets = ["--budget", "latency=0.7x", "--budget", "size=100kB"]
    return {
        "time it again": shlex.join([*program, "bench", model, policy, *given, "--vs", "w8a8"]),
        "other budgets": shlex.join(
            [*program, "search", model, *given, *budgets, "--method", "exact"]
        ),
    }
