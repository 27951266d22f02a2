"""The backend ``tvm``: latency of kernels that Apache TVM compiles, measured on this machine.

`table` lowers the network at each choice, and times every kernel that this takes, once: equal
kernels share one measurement, which the store keeps by shape, bits, processor and version. `total`
compiles the whole network of a policy and times that.
"""

import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.measurement import Device
from costmodels.model import BackendContext
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric
from hil.bench import Bench, MemoryStore, RecordStore
from hil.calibration import FailedPolicyError
from hil.device import detect
from hil.records import Record, Subject
from hil.store import OLD_S, Store
from hil.tvm.address import Address
from hil.tvm.compiling import build
from hil.tvm.lowering import lower
from hil.tvm.machine import Machine, this_machine
from hil.tvm.operations import Operation
from hil.tvm.program import Program, Step
from hil.tvm.remote import Patience
from hil.tvm.tables import Prices, priced_table
from hil.tvm.tiles import Tile
from hil.tvm.timer import COLD_TIMING, KERNEL, WARM_TIMING, TimerSetup
from hil.worker import Worker, WorkerError
from quantization.bits import BitWidths
from quantization.deployment import TVM_TARGET, Corrections, ExportOptions, not_deployable
from quantization.errors import PolicyError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import check_inputs, collect_ranges, made_up_ranges

_LIMIT_S = 120.0
"""Longest time for compiling and timing one kernel or network; what takes longer counts as hung."""

_RANGE_INPUTS = 64
_RUNTIME = "apache-tvm"


class TvmLive:
    """Measures latency of kernels that Apache TVM compiles.

    Args:
        context: threads, real inputs, store, board, and whether to measure anew.
        machine: what kernels are compiled for; None for the board's own processor.
        cold: whether the caches are emptied before each run. Else a kernel's inputs are in the
            first ones, and its weights further away.

    Attributes:
        name: the backend's.
        device: who measures.
        machine: what kernels are compiled for.

    Raises:
        BackendError: if several threads are asked for, or there is no such board.
        StoreError: if the store cannot be used.
    """

    metrics = frozenset({Metric.LATENCY})
    target = TVM_TARGET

    def __init__(
        self, context: BackendContext, machine: Machine | None = None, *, cold: bool = False
    ) -> None:
        if context.threads != 1:
            raise BackendError("kernels of tvm run on one thread; leave --threads out")
        if cold and context.remote:
            raise BackendError("tvm:cold empties the caches of this machine; leave --remote out")
        self.name = "tvm:cold" if cold else "tvm"
        self._context = context
        address = Address.parse(context.remote) if context.remote else None
        self.machine = machine or (this_machine() if address is None else _board_machine(address))
        self.device = _device(self.machine, address)
        self._store: RecordStore = MemoryStore()
        if context.store is not None:
            # With `anew`, what was stored before counts as old: kernels belong to many networks.
            since_s = time.time() - (0.0 if context.anew else OLD_S)
            store = Store(context.store, self.device, since_s=since_s)
            weakref.finalize(self, store.close)
            self._store = store
        self._setup = TimerSetup(self.machine, address, COLD_TIMING if cold else WARM_TIMING)
        self._worker = Worker("hil.tvm.timer:Timer", self._setup, limit_s=_LIMIT_S)
        weakref.finalize(self, self._worker.close)
        self._bench = Bench(self._worker, self._store)
        self._exporters: dict[str, Exporter] = {}

    @property
    def is_here(self) -> bool:
        """Whether kernels are for this machine."""
        return self._setup.address is None and self.machine == this_machine()

    @property
    def is_measured(self) -> bool:
        """Whether kernels can be timed: on a board, or here.

        Those for another processor of this kind may run here, or use what it lacks: then they
        crash, in the worker.
        """
        return self._setup.address is not None or not self.machine.mtriple

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Time the kernels of `network` at each choice.

        Raises:
            BackendError: if another metric is asked for, no layer runs at any of the choices, or
            kernels do not run here.
            DataError: if the inputs do not fit the network.
            StoreError: if the store cannot be used any more.
        """
        self._require(metric)
        self._require_runs()
        prices = self.prices(network)
        return priced_table(prices, choices, self._source(), self._context.progress)

    def prices(self, network: Network) -> Prices:
        """Return what prices the steps of a network."""
        return Prices(self._exporter(network), self.machine, self._operation, self._step)

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Compile and time the whole network of each policy; (P,) seconds, p10.

        Raises:
            BackendError: if another metric is asked for, or kernels do not run here.
            DataError: if the inputs do not fit the network.
            FailedPolicyError: if a policy crashed or hung.
            PolicyError: if a policy is of another network.
            StoreError: if the store cannot be used any more.
            UnsupportedChoiceError: if a policy uses bits that do not run here.
        """
        self._require(metric)
        self._require_runs()
        for position in range(len(policies)):
            _check(network, policies[position], position)
        times = np.empty(len(policies))
        for position in range(len(policies)):
            self._context.progress(position / len(policies), f"{position} policies timed")
            taken = self._network(network, policies[position])
            if taken.failure is not None:
                raise FailedPolicyError(taken.failure, float(taken.facts.get("wall_s", 0.0)))
            times[position] = taken.measurements[KERNEL].p10_s
        return times

    def program(
        self, exporter: Exporter, policy: Policy, corrections: Corrections | None = None
    ) -> Program:
        """Return the kernels of a policy, each cut as it is quickest.

        Args:
            exporter: holds network, ranges and quantized parameters.
            policy: the bits.
            corrections: of outputs of layers.

        Raises:
            PolicyError: if the policy does not fit the network, or a layer does not run so.
        """
        policy.check(exporter.network)
        for layer in exporter.network.layers:
            if reason := not_deployable(layer, policy[layer.name], TVM_TARGET):
                raise PolicyError(
                    f"layer {layer.name!r} at {policy[layer.name]} is not deployable: {reason}"
                )
        return lower(exporter, policy, self.machine, self.tile, corrections)

    def write(self, program: Program, path: Path) -> None:
        """Compile a program into a shared library, or an archive of objects if it ends in ``.tar``.

        Raises:
            BackendError: if there is no compiler to link it with.
        """
        compiled = build(program, self.machine.target)
        try:
            compiled.export_library(str(path))
        except (RuntimeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise BackendError(f"the library cannot be linked: {text[-300:]}") from error

    def tile(self, operation: Operation) -> Tile:
        """Return how the quickest kernel of an operation is cut; timed unless the store knows.

        Where kernels cannot be timed, it is the one of which most is expected.

        Raises:
            FailedPolicyError: if no kernel of the operation is exact, or timing them crashed.
        """
        if not self.is_measured:
            return operation.kernels(self.machine.instructions)[0].tile
        record = self._operation(operation)
        if record.failure is not None:
            raise FailedPolicyError(record.failure)
        taken = record.measurements
        return Tile.parse(min(taken, key=lambda tile: taken[tile].p10_s))

    def _network(self, network: Network, policy: Policy) -> Record:
        program = self.program(self._exporter(network), policy)
        return self._take({"program": program.digest}, lambda: program)

    def _operation(self, operation: Operation) -> Record:
        return self._take({"operation": asdict(operation)}, lambda: operation)

    def _step(self, step: Step) -> Record:
        return self._take({"kernel": sha256(repr(step.kernel).encode()).hexdigest()}, lambda: step)

    def _take(
        self, content: Mapping[str, Any], job: Callable[[], Operation | Step | Program]
    ) -> Record:
        shared = {
            "measured": "kernels of TVM",
            "machine": asdict(self.machine),
            "source": source_digest(),
            "timing": asdict(self._setup.timing),
        }
        subject = Subject({**shared, **content})
        held = self._store.get(subject)
        if held is not None and held.failure is None:
            return held
        return self._bench.take(subject, job())

    def _exporter(self, network: Network) -> Exporter:
        if network.digest not in self._exporters:
            inputs = self._context.inputs
            if inputs is None:
                ranges = made_up_ranges(network)
            else:
                check_inputs(network, inputs)
                ranges = collect_ranges(network, inputs[:_RANGE_INPUTS])
            options = ExportOptions(weight_method="minmax", pack=False)
            self._exporters[network.digest] = Exporter(network, ranges, options, TVM_TARGET)
        return self._exporters[network.digest]

    def _source(self) -> dict[str, object]:
        return {
            "backend": self.name,
            "target": TVM_TARGET.name,
            "method": "each kernel timed alone",
            "caches": self._setup.timing.mode.value,
            "device": self.device.to_dict(),
            "runtime": {"name": _RUNTIME, "threads": 1},
            "instructions": self.machine.instructions.name,
            "processor": asdict(self.machine),
            "inputs": "random" if self._context.inputs is None else "given",
            "created_s": time.time(),
        }

    def _require_runs(self) -> None:
        if not self.is_measured:
            raise BackendError(
                f"kernels for {self.machine.mtriple} do not run here; --remote HOST:PORT/KEY "
                "times them on a board"
            )

    def _require(self, metric: Metric) -> None:
        if metric not in self.metrics:
            raise BackendError(
                f"{self.name} measures latency, not {metric.value}; "
                "for energy use analytical:PRESET; size always comes from the exporter"
            )


def _check(network: Network, policy: Policy, position: int) -> None:
    policy.check(network)
    for layer in network.layers:
        if reason := not_deployable(layer, policy[layer.name], TVM_TARGET):
            raise UnsupportedChoiceError(
                f"policy {position}: layer {layer.name!r} at {policy[layer.name]}: {reason}"
            )


@cache
def source_digest() -> str:
    """Return the SHA-256 of the sources of kernels: what they measure is of one version of them."""
    hashed = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def _board_machine(address: Address) -> Machine:
    patience = Patience(wait_s=10.0)
    with Worker("hil.tvm.remote:BoardReader", address, limit_s=3 * patience.wait_s) as worker:
        try:
            answer = worker.call(patience)
        except WorkerError as error:
            raise BackendError(f"the board {address} does not answer: {error}") from error
    assert isinstance(answer, tuple)
    mcpu, mtriple = answer
    if not mcpu:
        raise BackendError(
            f"the board {address} does not tell its processor; write --cost "
            "tvm:mcpu=NAME,mtriple=TRIPLE"
        )
    here = this_machine().triple
    return Machine(mcpu, "" if mtriple == here else mtriple)


def _device(machine: Machine, address: Address | None) -> Device:
    """Describe who runs kernels; boards of one key are alike."""
    here = detect(_RUNTIME)
    if address is None:
        return here
    triple = machine.mtriple or here.architecture
    return replace(
        here,
        cpu=f"{address.key} ({machine.mcpu})",
        architecture=triple.partition("-")[0],
        isa=(machine.instructions.name,),
        cores=1,
        memory_bytes=0,
        system="unknown",
    )
