"""``quantmeter bench``: time exported policies, paired against rivals."""

import argparse
from typing import TYPE_CHECKING

from quantmeter.commands.drift import add_old_tables, check_named_tables
from quantmeter.commands.options import (
    ONNX_RUNTIME,
    Subparsers,
    add_command,
    add_costs,
    add_data,
    add_device,
    add_model,
    add_runtime,
    add_seed,
    add_store,
    add_threads,
    console,
    positive,
    print_json,
    progress_bar,
    require_no_board,
    store_of,
    table,
)

if TYPE_CHECKING:
    from rich.console import Console

    from quantmeter.benchmarking import Benchmark


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "bench", "export, audit and time policies", run)
    add_model(parser)
    parser.add_argument("policy", nargs="+", metavar="POLICY.json", help="policy files")
    add_data(parser)
    add_costs(parser)
    add_seed(parser)
    add_threads(parser)
    add_device(parser)
    add_runtime(parser)
    add_store(parser)
    add_old_tables(parser)
    parser.add_argument(
        "--vs",
        action="append",
        default=[],
        metavar="RIVAL",
        help="float, or bits for every layer such as w8a8; repeat (float is always the reference)",
    )
    parser.add_argument(
        "--blocks",
        type=positive,
        default=50,
        help="turns of each candidate at most (default 50); clear winners and losers get fewer",
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="empty the caches before each run: how long the first run after other work takes",
    )
    parser.add_argument(
        "--energy",
        action="store_true",
        help="measure the energy per warm run too (needs RAPL, or NVML for a GPU, and the extra "
        "energy), or "
        "say why that is not possible; what --cost prices is printed beside it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Benchmark; exit 1 if an audit fails."""
    if arguments.runtime != ONNX_RUNTIME:
        from quantmeter.commands.bench_compiled import run_compiled

        return run_compiled(arguments)
    from costmodels.model import BackendContext
    from hil.providers import find_provider
    from quantmeter.benchmarking import benchmark, read_policies
    from quantmeter.costs import parse_costs
    from quantmeter.workbench import open_workbench

    require_no_board(arguments)
    tables = check_named_tables(arguments)
    provider, accelerator = find_provider(arguments.device)
    policies = read_policies(arguments.policy)
    bench = open_workbench(
        arguments.model, arguments.data, seed=arguments.seed, target=provider.target
    )
    context = BackendContext(
        threads=arguments.threads,
        seed=arguments.seed,
        inputs=bench.range_inputs,
        store=store_of(arguments),
        remote=arguments.remote,
    )
    costs = parse_costs(arguments.cost, context, tables=tables) if arguments.cost else None
    with progress_bar("benchmarking") as progress:
        found = benchmark(
            bench,
            policies,
            costs=costs,
            rivals=arguments.vs,
            threads=arguments.threads,
            blocks=arguments.blocks,
            cold=arguments.cold,
            energy=arguments.energy,
            provider=provider,
            accelerator=accelerator,
            progress=progress,
        )
    if arguments.json:
        print_json(found.to_dict())
    else:
        _print(found)
    return 0 if all(result.audit.ok for result in found.results) else 1


def _print(found: "Benchmark") -> None:
    from costmodels.units import Unit, format_quantity
    from quantmeter.commands.verdicts import verdict_of

    rows = table(
        f"Timed interleaved, {found.mode.value}, paired against float",
        *(
            "policy",
            "median",
            "p10",
            "p90",
            "ratio to float",
            "verdict",
            "predicted",
            "accuracy",
            "bytes",
            "audit",
        ),
    )
    for r in found.results:
        ratio = r.ratio_to_float
        predicted, p90 = r.predicted_ratio_to_float, r.measurement.quantile_s(0.9)
        rows.add_row(
            r.name,
            format_quantity(r.measurement.median_s, Unit.SECONDS),
            format_quantity(r.measurement.p10_s, Unit.SECONDS),
            "-" if p90 is None else format_quantity(p90, Unit.SECONDS),
            f"{ratio.mid:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            verdict_of(r.name, r.to_float),
            "-" if predicted is None else f"{predicted:.3f}",
            "-" if r.accuracy is None else f"{r.accuracy.share:.2%}",
            f"{r.size_bytes:,}",
            "ok" if r.audit.ok else "FAILED",
        )
    out = console()
    out.print(rows)
    if found.energy is not None:
        print_energy(found, out)
    who = found.device.get("accelerator") or found.device["cpu"]
    out.print(
        f"{who}, onnxruntime {found.device['runtime_version']}, "
        f"{found.runtime['threads']} thread(s)"
    )
    out.print(
        f"noise floor of this run: {found.noise.furthest:.1%} (float against itself, loaded twice: "
        f"{found.noise.mid:.3f} [{found.noise.low:.3f}, {found.noise.high:.3f}]); "
        f"faster and slower are by more than {found.floor:.1%}",
        soft_wrap=True,
    )
    for result in found.results:
        for problem in result.audit.problems:
            out.print(f"audit of {result.name}: {problem}")
    for note in found.notes:
        out.print(f"note: {note}")


def print_energy(found: "Benchmark", out: "Console") -> None:
    """Print energy per run beside latency, or why there is none; what is modelled says so."""
    from costmodels.units import Unit, format_quantity
    from hil.energy import NotMeasured

    report = found.energy
    assert report is not None
    modelled = report.modelled
    if isinstance(report.measured, NotMeasured):
        out.print(f"energy: not measurable here, because {report.reason}", soft_wrap=True)
    else:
        columns = ("policy", "median", "energy per run", "95 % interval", "running", "idle")
        rows = table("Energy per run, measured, idle subtracted", *columns)
        notes = []
        for result in found.results:
            taken = report.measured[result.name]
            median = format_quantity(result.measurement.median_s, Unit.SECONDS)
            if isinstance(taken, NotMeasured):
                rows.add_row(result.name, median, "-", "-", "-", "-")
                notes.append(f"energy of {result.name}: not measured: {taken.reason}")
                continue
            limits = (format_quantity(j, Unit.JOULES) for j in (taken.low_j, taken.high_j))
            rows.add_row(
                result.name,
                median,
                format_quantity(taken.energy_j, Unit.JOULES),
                f"[{', '.join(limits)}]",
                f"{taken.load_w:.3g} W",
                f"{taken.idle_w:.3g} W",
            )
            notes += [f"energy of {result.name}: {note}" for note in taken.notes]
        out.print(rows)
        for note in notes:
            out.print(note, soft_wrap=True)
    if modelled is None:
        return
    for result in found.results:
        joules = format_quantity(modelled.energy_j[result.name], Unit.JOULES)
        out.print(f"energy of {result.name}: {joules}, {modelled.provenance}", soft_wrap=True)
