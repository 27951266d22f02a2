"""The backend ``tvm`` as the registry finds it; without Apache TVM it says how to get that."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from costmodels.errors import BackendError
from costmodels.model import BackendContext

if TYPE_CHECKING:
    from hil.tvm.live import TvmLive

COLD = "cold"


def require_tvm() -> None:
    """Raise unless Apache TVM is installed.

    Raises:
        BackendError: says how to get it.
    """
    if find_spec("tvm") is None:
        raise BackendError("Apache TVM is not installed: pip install 'quantmeter[tvm]'")


def create(argument: str, context: BackendContext) -> "TvmLive":
    """Measure kernels that TVM compiles: ``tvm``, or ``tvm:mcpu=NAME`` for another processor.

    With ``cold`` among what stands behind the colon, the caches are emptied before each run.

    Raises:
        BackendError: if TVM is not installed, the processor is not known, or the board is not
            there.
    """
    require_tvm()
    from hil.tvm.live import TvmLive
    from hil.tvm.machine import parse_machine

    parts = [part for part in argument.split(",") if part]
    described = ",".join(part for part in parts if part != COLD)
    machine = parse_machine(described) if described else None
    return TvmLive(context, machine, cold=COLD in parts)
