"""The third verb: export policies, audit the files, time them paired against rivals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from costmodels.model import unit_of
from costmodels.units import Metric, Unit
from hil import race
from hil.audit import Audit, audit
from hil.compare import CompareOptions, Comparison, equal, looks_until
from hil.conditions import Conditions, advice
from hil.device import detect
from hil.energy import EnergyOptions
from hil.energy_bench import EnergyJob, take_energy
from hil.ort import Runner, one_feed, recorded_options
from hil.providers import CPU, Provider
from hil.timing import Mode, Ratio, TurnOptions
from quantization.bits import FLOAT32, BitWidths
from quantization.deployment import idle_options
from quantization.errors import PolicyError
from quantization.policy import Policy, PolicyBatch
from quantization.ranges import batches
from quantmeter.costs import Costs
from quantmeter.energy import EnergyReport, TakeEnergy, modelled_energy
from quantmeter.workbench import Workbench
from search.oracle import Interval, count_right

FLOAT = "float"
_AGAIN = "float, loaded again"
"""Timed beside all others: what the float network differs by from itself is noise."""


@dataclass(frozen=True, eq=False)
class Benchmarked:
    """One exported policy: audited, timed, scored.

    Args:
        name: the path as typed, or ``float``, or bit-widths.
        policy: what was asked for.
        to_float: paired comparison with the float network, with its 95 % interval; the raw samples.
        predicted_s: what the cost model predicts for p10, in seconds; None without a model, or if
            it prices cycles.
        predicted_ratio_to_float: its prediction over that for the float network; None without a
            model, or if it does not price the float network.
        accuracy: on the test images, by running the file; None without data.
        audit: of the file.
    """

    name: str
    policy: Policy
    to_float: Comparison
    predicted_s: float | None
    predicted_ratio_to_float: float | None
    accuracy: Interval | None
    audit: Audit

    @property
    def measurement(self) -> Measurement:
        """Raw samples."""
        return self.to_float.candidate

    @property
    def ratio_to_float(self) -> Ratio:
        """Time over that of the float network, with its 95 % interval."""
        return self.to_float.ratio

    @property
    def ratio_limit(self) -> float:
        """What the ratio may be in another session too: its upper limit, and the floor above."""
        return self.ratio_to_float.high * (1 + self.to_float.floor)

    @property
    def size_bytes(self) -> int:
        """Bytes of the exported file."""
        return self.audit.size_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        accuracy = self.accuracy
        return {
            "policy": self.name,
            "median_s": self.measurement.median_s,
            "p10_s": self.measurement.p10_s,
            "p90_s": self.measurement.quantile_s(0.9),
            "p99_s": self.measurement.quantile_s(0.99),
            "ratio_to_float": self.ratio_to_float.to_dict(),
            "verdict": self.to_float.verdict.value,
            "floor": self.to_float.floor,
            "detectable": self.to_float.detectable,
            "blocks": self.to_float.blocks,
            "predicted_s": self.predicted_s,
            "predicted_ratio_to_float": self.predicted_ratio_to_float,
            "accuracy": None if accuracy is None else accuracy.share,
            "accuracy_interval": None if accuracy is None else [accuracy.low, accuracy.high],
            "size_bytes": self.size_bytes,
            "audit": self.audit.to_dict(),
            "samples": self.measurement.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class Benchmark:
    """All results of one interleaved run.

    Args:
        device: where it ran; JSON values.
        runtime: threads and options; JSON values.
        results: one per policy and rival.
        again: a second session of the float network compared with the first; a ratio no further
            from 1 than its interval reaches may be noise, and no verdict is given on it.
        notes: what a reader must know, such as that inputs were random.
        mode: what the caches held when a run began.
        energy: per run of each file; None if it was not asked for.
    """

    device: Mapping[str, Any]
    runtime: Mapping[str, Any]
    results: tuple[Benchmarked, ...]
    again: Comparison
    notes: tuple[str, ...]
    mode: Mode = Mode.WARM
    energy: EnergyReport | None = None

    @property
    def noise(self) -> Ratio:
        """The float network's time over its own, with its 95 % interval."""
        return self.again.ratio

    @property
    def floor(self) -> float:
        """The relative difference that every verdict cleared: `noise`, or what it is at least."""
        return self.again.floor

    def to_dict(self) -> dict[str, Any]:
        """Return the benchmark as JSON values."""
        return {
            "device": dict(self.device),
            "runtime": dict(self.runtime),
            "mode": self.mode.value,
            "noise_floor": {**self.noise.to_dict(), "relative": self.noise.furthest},
            "floor": self.floor,
            "notes": list(self.notes),
            "energy": None if self.energy is None else self.energy.to_dict(),
            "results": [self._entry(result) for result in self.results],
        }

    def _entry(self, result: Benchmarked) -> dict[str, Any]:
        energy = {} if self.energy is None else {"energy": self.energy.of(result.name)}
        return {**result.to_dict(), **energy}


def parse_rival(text: str, bench: Workbench) -> Policy:
    """Read ``--vs``: ``float``, or bit-widths for every layer.

    Raises:
        BitWidthError: if it is neither.
    """
    bits = FLOAT32 if text == FLOAT else BitWidths.parse(text)
    return Policy.uniform(bench.network, bits)


def benchmark(
    bench: Workbench,
    policies: Mapping[str, Policy],
    *,
    costs: Costs | None = None,
    rivals: Sequence[str] | None = None,
    threads: int = 1,
    blocks: int = 20,
    cold: bool = False,
    score: bool = True,
    energy: bool = False,
    take: TakeEnergy = take_energy,
    provider: Provider = CPU,
    accelerator: str = "",
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> Benchmark:
    """Export, audit and time policies, interleaved with rivals and the float network.

    Args:
        bench: network and data.
        policies: by the name they are reported under.
        costs: predicts latency, if it prices it.
        rivals: ``float`` or bit-widths, such as ``w8a8``; None for float and the other bits
            that the provider has kernels for.
        threads: of the runtime.
        blocks: how often each candidate gets a turn at most: one that is clearly faster or slower
            than the float network gets fewer.
        cold: empty the caches before each run, instead of running with what the last one left.
        score: run every file on the test images, if there are any.
        energy: measure the energy per run too, after the timing, or say why that is not possible.
        take: measures it; for tests.
        provider: who executes the files; `bench` is for its target.
        accelerator: its device in words, if that is not the CPU.
        progress: called with the share done and what is being done.

    Raises:
        BackendError: if the cost model predicts nothing that is measured here, or cold runs are
            asked for on another device than the CPU.
        CostError: if the blocks are too few to tell anything.
        PolicyError: if a policy does not fit, is not deployable, or is named like a rival.
        WorkerError: if a file crashed or hung while it was timed.
    """
    if cold and not provider.is_cpu:
        raise BackendError("cold runs empty the processor's caches, not a GPU's; leave --cold out")
    mode = Mode.COLD if cold else Mode.WARM
    options = CompareOptions(looks_until(blocks), turns=TurnOptions(mode=mode), seed=bench.seed)
    rivals = (FLOAT, str(provider.target.narrow)) if rivals is None else rivals
    if twice := sorted({*rivals, FLOAT, _AGAIN} & set(policies)):
        raise PolicyError(f"{twice[0]!r} names a policy and a rival; give its path as ./{twice[0]}")
    asked = {**policies, **{name: parse_rival(name, bench) for name in rivals}}
    predicted = predicted_costs(bench, costs, asked)  # says what cannot be priced before the timing
    modelled = modelled_energy(bench.network, costs, asked) if energy else None
    models = {name: bench.export(policy) for name, policy in asked.items()}
    feed = one_feed(bench.network, bench.range_inputs)
    loaded = {FLOAT: bench.export(Policy({})), **models}
    loaded[_AGAIN] = loaded[FLOAT]
    progress(0.0, "timing, interleaved")
    compared = race.run(race.Race(loaded, FLOAT, _AGAIN, feed, threads, options, provider))
    progress(1.0, "timing, interleaved")
    report = None
    if energy:
        progress(1.0, "energy, of warm runs")
        job = EnergyJob(models, feed, threads, EnergyOptions(seed=bench.seed), provider)
        report = EnergyReport(take(job), modelled)
    compared[FLOAT] = equal(compared[_AGAIN].reference, compared[_AGAIN].floor)
    score = score and bench.data is not None and bench.classifies
    results = []
    for name, policy in asked.items():
        seconds, ratio = predicted[name]
        results.append(
            Benchmarked(
                name,
                policy,
                compared[name],
                seconds,
                ratio,
                _accuracy_on_test(bench, Runner(models[name], threads, feed, provider=provider))
                if score
                else None,
                audit(
                    bench.network,
                    policy,
                    models[name],
                    bench.exporter.size_bytes(policy),
                    bench.exporter.options,
                    provider,
                ),
            )
        )
    notes = ["cold: the caches are emptied before each run; predictions are warm"] if cold else []
    notes += ["random inputs: no accuracy is reported"] if bench.data is None else []
    notes += [
        f"{name}: the option {option} decides nothing on this runtime"
        for name, policy in policies.items()
        for option in idle_options(policy.options)
    ]
    if bench.data is not None and not bench.classifies:
        notes.append("the output is not (N, classes): no accuracy is reported")
    reference = compared[FLOAT].candidate
    notes += advice(Conditions.from_dict(reference.context["conditions"]))
    return Benchmark(
        detect(accelerator=accelerator).to_dict(),
        recorded_options(threads, provider),
        tuple(results),
        compared[_AGAIN],
        tuple(notes),
        mode,
        report,
    )


def accuracy_on_test(bench: Workbench, model: bytes) -> Interval:
    """Run an exported model of `bench` on the test images; reads them once.

    Without labels, accuracy is agreement with the float network.
    """
    feed = one_feed(bench.network, bench.range_inputs)
    return _accuracy_on_test(bench, Runner(model, 1, feed))


def _accuracy_on_test(bench: Workbench, runner: Runner) -> Interval:
    images, labels = bench.part("test")
    expected = bench.float_labels if labels is None else labels
    name = bench.network.input_names[0]
    logits = [runner.run({name: part})[0] for part in batches(bench.network, images)]
    found = np.concatenate(logits)[: len(images)]
    return Interval.wilson(count_right(found, expected), len(images))


def predicted_costs(
    bench: Workbench, costs: Costs | None, asked: Mapping[str, Policy]
) -> dict[str, tuple[float | None, float | None]]:
    """Return what is predicted of each policy: seconds, and the ratio to the float network.

    Raises:
        BackendError: if the cost model predicts nothing that is measured.
    """
    if costs is None or Metric.LATENCY not in costs.models:
        return dict.fromkeys(asked, (None, None))
    model, policies = costs.model(Metric.LATENCY), list(asked.values())
    totals = costs.total(bench.network, policies, Metric.LATENCY)
    base = costs.float_total(bench.network, Metric.LATENCY)
    choices = PolicyBatch.of(bench.network, policies).choices
    unit = unit_of(model, bench.network, choices, Metric.LATENCY)
    if base is None and unit is not Unit.SECONDS:
        raise BackendError(
            f"{model.name} is in {unit.value} and does not price the float network: it predicts "
            "nothing that is measured here; leave it out"
        )
    return {
        name: (
            float(t) if unit is Unit.SECONDS else None,
            None if base is None else float(t) / base,
        )
        for name, t in zip(asked, totals, strict=True)
    }


def read_policies(paths: Sequence[str | Path]) -> dict[str, Policy]:
    """Read policy files; the names are the paths as given.

    Raises:
        PolicyError: if a file is missing or no policy.
    """
    return {str(path): Policy.read(path) for path in paths}
