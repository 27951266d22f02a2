"""``quantmeter demo``: the main job, end to end, on a real network and real images."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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

    from quantmeter.demo_result import DemoResult


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
        options = DemoOptions(seconds=6, episodes=10, blocks=6, seed=arguments.seed)
    out = Path(arguments.out)
    result = run_demo(options, out, progress_bar if sys.stderr.isatty() else _announce)
    if arguments.json:
        print_json(result.to_dict())
    else:
        _print(result, console(), out)
    if result.deployed is None:
        print(f"quantmeter: {result.exceeded()}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _announce(title: str) -> Iterator[Callable[[float, str], None]]:
    """Say which stage runs, where no progress bar can be drawn, and how long it took."""
    started = time.perf_counter()
    yield lambda _share, _what: None
    print(f"{title}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)


def _print(result: "DemoResult", screen: "Console", out: Path) -> None:
    from costmodels.units import Metric, Unit, format_quantity
    from quantmeter.demo_result import EQUAL_SIZE, LATENCY_BUDGET, meets

    prepared = result.prepared
    problem, network = prepared.problem, prepared.bench.network
    weights = sum(layer.weight_count for layer in network.layers)
    accuracy = result.float_accuracy
    screen.print(
        f"network: {len(network.layers)} layers, {network.macs / 1e6:.1f} M multiply-accumulates, "
        f"{weights:,} weights; float accuracy {accuracy.share:.2%} on test images"
    )
    screen.print(
        f"latency table: {result.table.source['policies']} policies timed; "
        f"{result.table.source['held_out_mean_absolute_error']:.1%} mean absolute error on "
        f"{result.table.source['held_out_policies']} that were not fitted"
    )
    screen.print(_layer_table(result))
    limit = problem.budgets[Metric.SIZE]
    screen.print(
        f"budgets: latency at most {LATENCY_BUDGET}x of float, size at most "
        f"{format_quantity(limit, Unit.BYTES)} (that of uniform {EQUAL_SIZE})"
    )
    timed = {r.name: r for r in result.timed.results}
    rows = table(
        "Search",
        *("method", "proxy", "gap", "search", "test accuracy [95 %]", "predicted"),
        *("measured, x float [95 %]", "bytes", "budgets"),
    )
    for row in result.rows:
        measured, test = timed[row.name].ratio_to_float, row.test_accuracy
        assert test is not None  # every reported policy was tested
        predicted = timed[row.name].predicted_ratio_to_float
        rows.add_row(
            ("* " if row.name == result.deployed else "  ") + row.name,
            f"{row.loss:.3f}",
            "-" if row.gap is None else f"{row.gap:+.0%}",
            f"{row.search_accuracy:.1%}",
            f"{test.share:.1%} [{test.low:.1%}, {test.high:.1%}]",
            "-" if predicted is None else f"{predicted:.3f}",
            f"{measured.mid:.3f} [{measured.low:.3f}, {measured.high:.3f}]",
            f"{timed[row.name].size_bytes:,}",
            "met" if meets(timed[row.name], limit) else "over",
        )
    screen.print(rows)
    _print_verdict(result, screen)
    screen.print(f"written: {out}/report.html, result.json, table.json, *.policy.json")


def _layer_table(result: "DemoResult") -> "object":
    from costmodels.units import Metric, Unit, format_quantity

    problem = result.prepared.problem
    kl = result.prepared.sensitivity.kl
    names = [str(c) for c in problem.choices]
    w8, w32 = names.index("w8a8"), names.index("w32a32")
    latency = result.table.unary.value
    energy = problem.tables[Metric.ENERGY].unary.value
    rows = table(
        "Layers: latency measured in context, energy analytical (haq), KL of one layer alone",
        *("layer", "float", "INT8", "energy w8a8", "KL w2", "KL w3", "KL w4", "deployed"),
    )
    for i, layer in enumerate(result.prepared.bench.network.layers):
        rows.add_row(
            layer.name,
            format_quantity(float(latency[i, w32]), Unit.SECONDS),
            format_quantity(float(latency[i, w8]), Unit.SECONDS),
            format_quantity(float(energy[i, w8]), Unit.JOULES),
            *(f"{kl[i, names.index(f'w{b}a8')]:.4f}" for b in (2, 3, 4)),
            "-" if result.policy is None else str(result.policy[layer.name]),
        )
    return rows


def _print_verdict(result: "DemoResult", screen: "Console") -> None:
    from quantmeter.demo_result import LATENCY_BUDGET

    if result.deployed is None:
        return
    timed = next(r for r in result.timed.results if r.name == result.deployed)
    accuracy = next(row.test_accuracy for row in result.rows if row.name == result.deployed)
    ratio, predicted = timed.ratio_to_float, timed.predicted_ratio_to_float
    assert accuracy is not None
    assert predicted is not None
    screen.print(
        f"deployed: {result.deployed}; predicted {predicted:.3f}x of float, measured "
        f"{ratio.mid:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}], budget {LATENCY_BUDGET}x; "
        f"{accuracy.share:.2%} of the test images right when the exported file runs; "
        f"audit {'ok' if timed.audit.ok else 'FAILED'}"
    )
