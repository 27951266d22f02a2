"""``quantmeter bench --runtime tvm``: time compiled policies beside ONNX Runtime."""

import argparse
from typing import TYPE_CHECKING

from costmodels.errors import BackendError
from quantmeter.commands.drift import check_named_tables
from quantmeter.commands.options import console, print_json, progress_bar, store_of, table

if TYPE_CHECKING:
    from quantmeter.compiled import CompiledBenchmark


def run_compiled(arguments: argparse.Namespace) -> int:
    """Benchmark compiled policies; exit 1 if integers differ from the exported file's."""
    from costmodels.model import BackendContext
    from quantization.deployment import TVM_TARGET
    from quantmeter.benchmarking import read_policies
    from quantmeter.compiled import benchmark_compiled, open_compiler
    from quantmeter.costs import parse_costs
    from quantmeter.workbench import open_workbench

    if arguments.device != "cpu":
        raise BackendError("--runtime tvm compiles for processors; leave --device out")
    if arguments.remote:
        raise BackendError(
            "bench times on this machine; quantmeter cost --cost tvm --remote times a board"
        )
    if arguments.energy:
        raise BackendError("--energy is not measured with --runtime tvm; leave it out")
    tables = check_named_tables(arguments)
    policies = read_policies(arguments.policy)
    bench = open_workbench(arguments.model, arguments.data, seed=arguments.seed, target=TVM_TARGET)
    context = BackendContext(
        threads=arguments.threads,
        seed=arguments.seed,
        inputs=bench.range_inputs,
        store=store_of(arguments),
    )
    live = open_compiler(arguments.runtime, context)
    costs = parse_costs(arguments.cost, context, tables=tables) if arguments.cost else None
    with progress_bar("benchmarking") as progress:
        found = benchmark_compiled(
            bench,
            policies,
            live,
            costs=costs,
            rivals=arguments.vs or None,
            blocks=arguments.blocks,
            cold=arguments.cold,
            progress=progress,
        )
    if arguments.json:
        print_json(found.to_dict())
    else:
        _print(found)
    return 0 if all(r.agreement is None or r.agreement.ok for r in found.results) else 1


def _print(found: "CompiledBenchmark") -> None:
    from costmodels.units import Unit, format_quantity
    from quantmeter.commands.verdicts import verdict_of

    columns = ("median", "p10", "ratio to float", "verdict", "predicted", "outputs", "accuracy")
    rows = table(
        "Compiled by Apache TVM, interleaved, paired against float in ONNX Runtime",
        *("policy", *columns, "bytes"),
    )
    for r in found.results:
        ratio = r.to_float.ratio
        rows.add_row(
            r.name,
            format_quantity(r.measurement.median_s, Unit.SECONDS),
            format_quantity(r.measurement.p10_s, Unit.SECONDS),
            f"{ratio.mid:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            verdict_of(r.name, r.to_float),
            "-" if r.predicted_s is None else format_quantity(r.predicted_s, Unit.SECONDS),
            "-" if r.agreement is None else r.agreement.short,
            "-" if r.accuracy is None else f"{r.accuracy.share:.2%}",
            f"{r.size_bytes:,}",
        )
    out = console()
    out.print(rows)
    out.print(
        f"{found.device['cpu']}, apache-tvm {found.device['runtime_version']}, "
        f"{found.instructions}, 1 thread"
    )
    for r in found.results:
        if r.kernels:
            kernels = ", ".join(f"{count} x {name}" for name, count in r.kernels.items())
            out.print(f"{r.name}: {kernels}; outputs {r.agreement}", soft_wrap=True)
    for note in found.notes:
        out.print(f"note: {note}")
