"""The backend ``ort``: latency measured on this machine through ONNX Runtime.

``ort`` measures the CPU, ``ort:cuda`` a GPU (`hil.providers`): the same code with another provider.
`table` calibrates a network in context (`hil.calibration`); `total` builds and times the quantized
networks themselves. Both in a worker process, and both look into the store first: what it holds
since yesterday is not measured again. Choices that execute the same kernel share one measurement,
hence one number.
"""

import logging
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from costmodels.errors import BackendError, UnsupportedChoiceError
from costmodels.model import BackendContext
from costmodels.spread import spread_table
from costmodels.table import CostTable, FloatArray
from costmodels.units import Metric
from hil.bench import MemoryStore, RecordStore
from hil.calibration import (
    TURNS,
    Calibration,
    Inspect,
    InspectRaw,
    Measure,
    Timed,
    as_policy,
    calibrate_network,
)
from hil.design import Pattern
from hil.device import detect
from hil.ort import one_feed, random_inputs, recorded_options
from hil.policy_bench import PolicyBench, policy_worker
from hil.policy_timer import Setup, shared_content
from hil.profile import profile_of
from hil.providers import CPU, Provider, find_provider
from hil.store import OLD_S, Store
from hil.tables import measured_table
from hil.timing import TimingOptions, WarmUp
from quantization.bits import FLOAT32, BitWidths, Format
from quantization.deployment import CPU_TARGET, ExportOptions, Target, not_deployable
from quantization.network import Network
from quantization.policy import PolicyBatch
from quantization.quantizer import Float32Array
from quantization.ranges import Ranges, check_inputs, collect_ranges, made_up_ranges

_LIMIT_S = 120.0
"""Longest time for building, loading and timing one policy; what takes longer counts as hung."""

_LOGGER = logging.getLogger(__name__)
_TOTAL_TURNS = TimingOptions(blocks=10)
_RANGE_INPUTS = 64
_DEVICE_TURNS = replace(TURNS, warm_up=WarmUp(cap_s=1.0), turn_s=20e-3)
"""On a device: it raises its clock under load, and searches for kernels in its first runs."""


class OrtLive:
    """Measures latency through a provider of ONNX Runtime.

    Args:
        context: threads, time for a table, real inputs, seed, store and whether to measure anew.
        provider: who executes what is measured.
        accelerator: its device in words, if that is not the CPU.

    Attributes:
        name: the backend's.
        device: who measures.
        provider: as given.
        turns: how calibration times one policy.

    Raises:
        StoreError: if the store cannot be used.
    """

    metrics = frozenset({Metric.LATENCY})

    def __init__(
        self, context: BackendContext, provider: Provider = CPU, accelerator: str = ""
    ) -> None:
        self.name = "ort" if provider == CPU else f"ort:{provider.name}"
        self.provider = provider
        self.turns = TURNS if provider.is_cpu else _DEVICE_TURNS
        self._context = context
        self.device = detect(accelerator=accelerator)
        self._store: RecordStore = MemoryStore()
        self._kept: Store | None = None
        if context.store is not None:
            # The limit is that of the beginning: nothing becomes old while this object uses it.
            store = Store(context.store, self.device, since_s=time.time() - OLD_S)
            weakref.finalize(self, store.close)
            self._store = self._kept = store
        self._setups: dict[str, Setup] = {}
        self._benches: dict[tuple[str, TimingOptions, bool], PolicyBench] = {}
        self._tables: dict[str, CostTable] = {}
        self._totals: dict[tuple[str, bytes], float] = {}

    def keep_in(self, store: RecordStore) -> None:
        """Keep measurements in `store` from now on, instead of that of the context."""
        self._store = store
        self._benches.clear()

    def table(self, network: Network, choices: Sequence[BitWidths], metric: Metric, /) -> CostTable:
        """Calibrate `network` for `BackendContext.seconds`; once per network.

        Raises:
            AuditError: if the runtime does not execute the float network as asked.
            BackendError: if another metric is asked for, no layer runs at any of the choices, the
                time is too short, or most policies failed.
            DataError: if the inputs do not fit the network.
            ModelError: if the runtime refuses the float network.
            StoreError: if the store cannot be used any more.
        """
        self._require(metric)
        self._require_kernels(network, choices)
        if network.digest not in self._tables:
            found = calibrate_network(
                network,
                self.measure(network),
                self.profile(network),
                seconds=self._context.seconds,
                seed=self._context.seed,
                progress=self._context.progress,
                target=self.target,
            )
            self._tables[network.digest] = measured_table(
                network, found, self._source(found), self.target
            )
        return spread_table(self._tables[network.digest], network, choices, self.target)

    @property
    def target(self) -> Target:
        """What can be deployed for the provider."""
        return self.provider.target

    def total(self, network: Network, policies: PolicyBatch, metric: Metric, /) -> FloatArray:
        """Build, audit and time each policy, paired with the float network; (P,) seconds, p10.

        Policies whose layers run the same kernels share one measurement.

        Raises:
            AuditError: if the runtime does not execute the float network as asked.
            BackendError: if another metric is asked for.
            DataError: if the inputs do not fit the network.
            FailedPolicyError: if a policy crashed or hung, or the runtime refuses it or executes
                something else.
            ModelError: if the runtime refuses the float network.
            PolicyError: if a policy is of another network.
            StoreError: if the store cannot be used any more.
            UnsupportedChoiceError: if a policy uses bits that do not run here.
        """
        self._require(metric)
        patterns = []
        for position in range(len(policies)):
            policy = policies[position]
            policy.check(network)
            for layer in network.layers:
                if reason := not_deployable(layer, policy[layer.name], self.target):
                    raise UnsupportedChoiceError(
                        f"policy {position}: layer {layer.name!r} at {policy[layer.name]}: {reason}"
                    )
            reads = [policy[name].reads for name in network.layer_names]
            patterns.append(np.array([each is not Format.FLOAT32 for each in reads]))
        times = np.empty(len(patterns))
        for position, pattern in enumerate(patterns):
            self._context.progress(position / len(patterns), f"{position} policies timed")
            times[position] = self._time(network, pattern)
        return times

    def measure(self, network: Network) -> Measure:
        """Return what times policies of `network` as calibration does."""
        return self._measure(network, self.turns)

    def profile(self, network: Network) -> Inspect:
        """Return what profiles policies of `network`."""
        taken = self.raw_profile(network)
        return lambda policy: profile_of(network, taken(policy))

    def raw_profile(self, network: Network) -> InspectRaw:
        """Return what profiles policies of `network`; on a device in a process of its own."""
        profiles = not self.provider.is_cpu
        return lambda policy: self._bench(network, self.turns, profiles=profiles).profile(policy)

    def _measure(self, network: Network, turns: TimingOptions) -> Measure:
        # It refers to this object, with which worker and store end, not to the bench alone.
        def measure(pattern: Pattern, seed: int) -> Timed:
            bench = self._bench(network, turns)
            policy = as_policy(network, pattern, self.target.narrow)
            return Timed.of(pattern, bench.measure(policy, seed))

        return measure

    def _time(self, network: Network, pattern: Pattern) -> float:
        """Time of one policy: its paired ratio to float, times the float network's time.

        That is what the float network took when it was timed as a policy, so that all totals refer
        to one number.
        """
        turns = self.turns if self._context.brief else _TOTAL_TURNS
        measure, seed = self._measure(network, turns), self._context.seed
        floats = np.zeros_like(pattern)
        for each in (floats, pattern):
            key = network.digest, each.tobytes()
            if key not in self._totals:
                timed = measure(each, seed)
                base = self._totals.get((network.digest, floats.tobytes()), timed.reference.p10_s)
                self._totals[key] = base * timed.ratio if each.any() else base
        return self._totals[network.digest, pattern.tobytes()]

    def _bench(
        self, network: Network, turns: TimingOptions, *, profiles: bool = False
    ) -> PolicyBench:
        key = network.digest, turns, profiles
        if key not in self._benches:
            setup = replace(self._setup(network), timing=turns)
            worker = policy_worker(setup, limit_s=_LIMIT_S, profiles=profiles)
            weakref.finalize(self, worker.close)
            self._benches[key] = PolicyBench(setup, worker, self._store)
        return self._benches[key]

    def _setup(self, network: Network) -> Setup:
        if network.digest not in self._setups:
            inputs = self._inputs(network)
            options = ExportOptions(
                weight_method="minmax", pack=False, reduce_range=self.device.saturates
            )
            setup = self._setups[network.digest] = Setup(
                network,
                self._ranges(network, inputs),
                one_feed(network, inputs),
                options,
                self._context.threads,
                provider=self.provider,
            )
            self._look_into_store(setup)
        return self._setups[network.digest]

    def _look_into_store(self, setup: Setup) -> None:
        """Remove what is to be measured anew; say what is there that cannot be used."""
        if self._kept is None:
            return
        content = shared_content(setup)
        if self._context.anew:
            self._kept.discard(content)
        others = self._kept.elsewhere(content)
        if others and next(self._kept.entries(content), None) is None:
            names = "; ".join(
                ", ".join(filter(None, (d.cpu, d.accelerator, f"{d.runtime} {d.runtime_version}")))
                for d in others
            )
            _LOGGER.warning(
                "the store holds measurements of this network by other devices or runtime versions "
                "(%s); they are not used",
                names,
            )

    def _inputs(self, network: Network) -> Float32Array:
        given = self._context.inputs
        inputs = random_inputs(network, 4, self._context.seed) if given is None else given
        check_inputs(network, inputs)
        return inputs

    def _ranges(self, network: Network, inputs: Float32Array) -> Ranges:
        if self._context.inputs is None:
            return made_up_ranges(network)
        return collect_ranges(network, inputs[:_RANGE_INPUTS])

    def _source(self, found: Calibration) -> dict[str, object]:
        validation, profile = found.validation, found.profile_failure
        elsewhere = {} if self.target == CPU_TARGET else {"target": self.target.name}
        return {
            **elsewhere,
            "backend": self.name,
            "method": "whole-network timings of designed policies, paired with float, fitted",
            "ratios": "trimmed mean of the turns' quickest runs, policy over float",
            "device": self.device.to_dict(),
            "runtime": recorded_options(self._context.threads, self.provider),
            "seconds": self._context.seconds,
            "seed": self._context.seed,
            "inputs": "random" if self._context.inputs is None else "given",
            "created_s": time.time() if found.created_s is None else found.created_s,
            "policies": len(found.timed),
            "disturbed_policies": found.disturbed,
            "unlike_policies": found.model.unlike,
            "failed_policies": [failure.to_dict() for failure in found.failed],
            "profile_failure": None if profile is None else profile.to_dict(),
            "reading_noise": found.model.fit.noise,
            "validation": None if validation is None else validation.to_dict(),
        }

    def _require_kernels(self, network: Network, choices: Sequence[BitWidths]) -> None:
        """Raise, before anything is measured, if `choices` leave all layers at float32."""

        def runs(bits: BitWidths) -> bool:
            return any(not not_deployable(layer, bits, self.target) for layer in network.layers)

        asked, narrow = [bits for bits in choices if bits != FLOAT32], self.target.narrow
        if asked and not any(map(runs, asked)) and runs(narrow):
            raise BackendError(
                f"no layer runs at {', '.join(map(str, asked))} on {self.target.name}; "
                f"try --choices {narrow},{FLOAT32}"
            )

    def _require(self, metric: Metric) -> None:
        if metric not in self.metrics:
            raise BackendError(
                f"{self.name} measures latency, not {metric.value}; "
                "for energy use analytical:PRESET; size always comes from the exporter"
            )


def create(argument: str, context: BackendContext) -> OrtLive:
    """Measure through ONNX Runtime on this machine: ``ort`` on the CPU, ``ort:cuda`` on a GPU.

    Raises:
        BackendError: if the device that is named is not there, or measuring it is not built.
    """
    return OrtLive(context, *find_provider(argument))
