"""``quantmeter export``: write the deployable model of a policy, audited."""

import argparse
from pathlib import Path

from costmodels.errors import BackendError
from quantmeter.commands.options import (
    ONNX_RUNTIME,
    Subparsers,
    add_command,
    add_data,
    add_device,
    add_model,
    add_remote,
    add_runtime,
    add_seed,
    add_store,
    console,
    print_json,
    require_no_board,
)


def add_parser(subparsers: Subparsers) -> None:
    """Add the subcommand."""
    parser = add_command(subparsers, "export", "write the deployable model of a policy", run)
    add_model(parser)
    parser.add_argument("policy", metavar="POLICY.json", help="a policy file")
    add_data(parser)
    add_seed(parser)
    add_device(parser)
    add_runtime(parser)
    add_remote(parser)
    add_store(parser)
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE",
        help="the ONNX file that is written; with --runtime tvm the shared library, .so, or for "
        "another system an archive of objects to be linked there, .tar",
    )


def run(arguments: argparse.Namespace) -> int:
    """Export, audit, and write the file only if the audit passes."""
    if arguments.runtime != ONNX_RUNTIME:
        from quantmeter.commands.export_compiled import run_compiled

        return run_compiled(arguments)
    from hil.audit import audit
    from hil.providers import find_provider
    from quantization.deployment import idle_options
    from quantization.policy import Policy
    from quantmeter.files import require_file, write
    from quantmeter.workbench import open_workbench

    require_no_board(arguments)
    out = Path(arguments.out)
    if out.suffix == ".so":
        raise BackendError(f"--out {out}: a .so is a compiled network; add --runtime tvm")
    require_file(out, arguments.model, arguments.policy, arguments.data)
    provider, _ = find_provider(arguments.device)
    policy = Policy.read(arguments.policy)
    bench = open_workbench(
        arguments.model, arguments.data, seed=arguments.seed, target=provider.target
    )
    model = bench.export(policy)
    expected = bench.exporter.size_bytes(policy)
    found = audit(bench.network, policy, model, expected, bench.exporter.options, provider)
    found.require()
    write(out, model)
    notes = [] if bench.data is not None else ["random inputs: ranges mean nothing, no accuracy"]
    notes += [
        f"the option {o} decides nothing on this runtime" for o in idle_options(policy.options)
    ]
    if arguments.json:
        print_json({"out": str(out), "audit": found.to_dict(), "notes": notes})
        return 0
    screen = console()
    screen.print(f"{out}: {len(model):,} bytes as predicted; bits and kernels as asked")
    for entry in found.layers:
        if entry.reason:
            screen.print(f"note: layer {entry.name}: {entry.reason}")
    for note in notes:
        screen.print(f"note: {note}")
    return 0
