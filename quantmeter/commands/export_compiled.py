"""``quantmeter export --runtime tvm``: write a policy as a shared library."""

import argparse
import tempfile
from pathlib import Path

from costmodels.errors import BackendError
from quantmeter.commands.options import console, print_json, progress_bar, store_of

_SUFFIXES = (".so", ".tar")


def run_compiled(arguments: argparse.Namespace) -> int:
    """Compile a policy; a library of integers is only written if it runs as the exported file."""
    from costmodels.model import BackendContext
    from quantization.deployment import TVM_TARGET
    from quantization.policy import Policy
    from quantmeter.compiled import (
        Agreement,
        agreement,
        compile_policy,
        kernels_of,
        open_compiler,
    )
    from quantmeter.files import require_file
    from quantmeter.workbench import open_workbench

    out = Path(arguments.out)
    if out.suffix not in _SUFFIXES:
        raise BackendError(f"--out {out}: a compiled network is a {' or '.join(_SUFFIXES)} file")
    if out.suffix == ".so" and "mtriple=" in arguments.runtime:
        raise BackendError(
            f"--out {out}: only that system can link a library of its own; write a .tar, whose "
            "objects are linked there"
        )
    if arguments.device != "cpu":
        raise BackendError("--runtime tvm compiles for processors; leave --device out")
    require_file(out, arguments.model, arguments.policy, arguments.data)
    context = BackendContext(
        seed=arguments.seed, store=store_of(arguments), remote=arguments.remote
    )
    live = open_compiler(arguments.runtime, context)
    policy = Policy.read(arguments.policy)
    bench = open_workbench(arguments.model, arguments.data, seed=arguments.seed, target=TVM_TARGET)
    with progress_bar("compiling"), tempfile.TemporaryDirectory(dir=out.parent) as folder:
        made = Path(folder) / f"network{out.suffix}"
        program = compile_policy(bench, policy, live, made)
        checked: Agreement | None = None
        if live.is_here and out.suffix == ".so":
            checked = agreement(bench, policy, made, program)
            if not checked.ok:
                raise BackendError(f"nothing is written: outputs are {checked}; report this")
        size = made.stat().st_size
        made.replace(out)
    kernels = kernels_of(program)
    notes = [] if bench.data is not None else ["random inputs: ranges mean nothing, no accuracy"]
    if not live.is_measured:
        notes.append("kernels are cut by a rule of thumb: nothing can be timed there; see --remote")
    if checked is None:
        notes.append("outputs were not compared: only a .so for this machine can be run here")
    if arguments.json:
        print_json(
            {
                "out": str(out),
                "size_bytes": size,
                "instructions": live.machine.instructions.name,
                "kernels": kernels,
                "outputs": None if checked is None else checked.to_dict(),
                "notes": notes,
            }
        )
        return 0
    screen = console()
    described = ", ".join(f"{count} x {name}" for name, count in kernels.items())
    screen.print(f"{out}: {size:,} bytes, {live.machine.instructions.name}; {described}")
    if checked is not None:
        screen.print(f"outputs are {checked}, of {checked.images} images")
    for note in notes:
        screen.print(f"note: {note}")
    return 0
