"""The first verb: a cost table for one network on this device."""

from collections.abc import Callable, Sequence
from pathlib import Path

from costmodels.errors import BackendError
from costmodels.model import BackendContext
from costmodels.replay import TableReplay
from costmodels.table import CostTable
from costmodels.units import Metric
from quantization.bits import BitWidths
from quantization.network import Network
from quantmeter.costs import parse_costs
from quantmeter.data import Data
from quantmeter.workbench import open_workbench


def calibrate(
    model: str | Path | Network,
    *,
    cost: str = "ort",
    seconds: float = 60.0,
    choices: Sequence[BitWidths] | None = None,
    data: str | Path | Data | None = None,
    threads: int = 1,
    seed: int = 0,
    store: Path | None = None,
    anew: bool = False,
    remote: str = "",
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> CostTable:
    """Measure the latency of every layer of a network at every choice.

    Args:
        model: path of an ONNX file, or a network.
        cost: a measuring backend, such as ``ort``.
        seconds: wall time to spend.
        choices: bit-widths of the table; None for those of what is measured: on a GPU fp16 and
            float32.
        data: images for realistic values; random inputs without.
        threads: of the runtime.
        seed: of what is drawn.
        store: file of the measurements that are kept; a run that was ended goes on from there, and
            what was measured within the last day is not measured again. None keeps none.
        anew: remove first what the store holds of this network, so that all is measured again.
        remote: ``HOST:PORT/KEY`` of the board that ``tvm`` measures on; "" for this machine.
        progress: called with the share done and what is being done.

    Returns:
        The table in seconds; `CostTable.source` says device, runtime and held-out error.

    Raises:
        BackendError: if the backend measures no latency.
    """
    bench = open_workbench(model, data, seed=seed)
    context = BackendContext(
        threads=threads,
        seconds=seconds,
        seed=seed,
        inputs=None if bench.data is None else bench.range_inputs,
        store=store,
        anew=anew,
        progress=progress,
        remote=remote,
    )
    costs = parse_costs([cost], context)
    priced = costs.models.get(Metric.LATENCY)
    if priced is None or isinstance(priced, TableReplay):
        raise BackendError(f"{cost} measures no latency; calibrate with --cost ort")
    asked = costs.target.default_choices if choices is None else tuple(choices)
    return priced.table(bench.network, asked, Metric.LATENCY)
