"""Policies compiled by Apache TVM: one shared library each, timed beside ONNX Runtime."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from costmodels.model import BackendContext
from hil import race
from hil.compare import CompareOptions, Comparison, equal, looks_until
from hil.device import detect
from hil.ort import Runner, one_feed, recorded_options
from hil.timing import Mode, TurnOptions
from hil.tvm.backend import create
from quantization.bits import FLOAT32
from quantization.deployment import CPU_TARGET, not_deployable
from quantization.errors import PolicyError, did_you_mean
from quantization.policy import Policy
from quantization.ranges import batches
from quantization.simulation import Simulation
from quantmeter.benchmarking import FLOAT, parse_rival, predicted_costs
from quantmeter.costs import Costs
from quantmeter.workbench import Workbench
from search.oracle import Interval, count_right

if TYPE_CHECKING:
    from hil.tvm.live import TvmLive
    from hil.tvm.program import Program

RUNTIME = "tvm"
ONNX_RUNTIME = "w8a8 (onnxruntime)"
"""What users have today: timed beside every policy."""
_AGAIN = "float, loaded again"
_COMPARED_IMAGES = 8


def open_compiler(runtime: str, context: BackendContext) -> "TvmLive":
    """Return what compiles for ``--runtime``: ``tvm``, or ``tvm:mcpu=NAME`` for a processor.

    Raises:
        BackendError: if that is no such runtime, or TVM is not installed.
    """
    name, _, argument = runtime.partition(":")
    if name != RUNTIME:
        hint = did_you_mean(name, (RUNTIME, "onnxruntime"))
        raise BackendError(f"no runtime {runtime!r}{hint}; there are onnxruntime and {RUNTIME}")
    return create(argument, context)


@dataclass(frozen=True)
class Agreement:
    """How near a compiled network's outputs are to the exported file's.

    Args:
        images: that both were run on.
        exact: whether all outputs are equal to the last bit.
        largest: the largest difference, relative to the largest output.
        against: what they were compared with.
        integers: whether all that is computed is integers, so that outputs have to be equal.
    """

    images: int
    exact: bool
    largest: float
    against: str
    integers: bool

    @property
    def ok(self) -> bool:
        """Whether outputs are what they have to be.

        Sums of floats have another order, and an integer behind one may fall on the other side of
        a tie, which layers behind it may make more of: for those there is no bound but what is
        printed.
        """
        return self.exact or not self.integers

    @property
    def short(self) -> str:
        """In a word or two."""
        return "exact" if self.exact else f"within {self.largest:.1e}"

    def __str__(self) -> str:
        if self.exact:
            return f"equal to those of {self.against} to the last bit"
        return f"at most {self.largest:.1e} of the largest away from those of {self.against}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "images": self.images,
            "exact": self.exact,
            "integers_only": self.integers,
            "largest_difference": self.largest,
            "against": self.against,
        }


@dataclass(frozen=True, eq=False)
class CompiledPolicy:
    """One compiled policy: compared with what the exporter writes, timed, scored.

    Args:
        name: the path as typed, or bit-widths.
        policy: what was asked for.
        to_float: paired comparison with the float network in ONNX Runtime.
        agreement: with the exported file.
        predicted_s: what the cost model predicts for p10, in seconds; None without a model.
        accuracy: on the test images, by running the library; None without data.
        size_bytes: of the library.
        kernels: how many layers run which kernels.
    """

    name: str
    policy: Policy
    to_float: Comparison
    agreement: Agreement | None
    predicted_s: float | None
    accuracy: Interval | None
    size_bytes: int
    kernels: Mapping[str, int]

    @property
    def measurement(self) -> Measurement:
        """Raw samples."""
        return self.to_float.candidate

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        accuracy, agreement = self.accuracy, self.agreement
        return {
            "policy": self.name,
            "median_s": self.measurement.median_s,
            "p10_s": self.measurement.p10_s,
            "ratio_to_float": self.to_float.ratio.to_dict(),
            "verdict": self.to_float.verdict.value,
            "predicted_s": self.predicted_s,
            "accuracy": None if accuracy is None else accuracy.share,
            "accuracy_interval": None if accuracy is None else [accuracy.low, accuracy.high],
            "size_bytes": self.size_bytes,
            "kernels": dict(self.kernels),
            "outputs": None if agreement is None else agreement.to_dict(),
            "samples": self.measurement.to_dict(),
        }


@dataclass(frozen=True, eq=False)
class CompiledBenchmark:
    """All results of one interleaved run.

    Args:
        device: where it ran; JSON values.
        instructions: that the kernels use.
        results: one per policy and rival; the float network and uniform w8a8 in ONNX Runtime too.
        again: a second session of the float network compared with the first.
        notes: what a reader must know.
    """

    device: Mapping[str, Any]
    instructions: str
    results: tuple[CompiledPolicy, ...]
    again: Comparison
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the benchmark as JSON values."""
        return {
            "runtime": RUNTIME,
            "device": dict(self.device),
            "instructions": self.instructions,
            "reference": "the float network in ONNX Runtime",
            "onnxruntime": recorded_options(1),
            "noise_floor": {**self.again.ratio.to_dict(), "relative": self.again.ratio.furthest},
            "notes": list(self.notes),
            "results": [result.to_dict() for result in self.results],
        }


def compile_policy(bench: Workbench, policy: Policy, live: "TvmLive", path: Path) -> "Program":
    """Write the library of a policy; statistics are corrected if there is data.

    Raises:
        BackendError: if it cannot be linked.
        PolicyError: if the policy does not fit the network or is not deployable.
    """
    exporter, corrections = bench.parameters(policy)
    program = live.program(exporter, policy, corrections)
    live.write(program, path)
    return program


def benchmark_compiled(
    bench: Workbench,
    policies: Mapping[str, Policy],
    live: "TvmLive",
    *,
    costs: Costs | None = None,
    rivals: Sequence[str] | None = None,
    blocks: int = 20,
    cold: bool = False,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> CompiledBenchmark:
    """Compile policies and time them, interleaved with rivals and ONNX Runtime.

    Args:
        bench: network and data, for the target of TVM.
        policies: by the name they are reported under.
        live: compiles, and knows which kernels are quickest.
        costs: predicts latency, if it prices it.
        rivals: bit-widths, such as ``w8a8``, which TVM runs too; None for w8a8.
        blocks: how often each candidate gets a turn at most.
        cold: empty the caches before each run.
        progress: called with the share done and what is being done.

    Raises:
        BackendError: if kernels are of another processor, or on a board.
        CostError: if the blocks are too few to tell anything.
        PolicyError: if a policy does not fit, is not deployable, or is named like a rival.
        WorkerError: if a library crashed or hung while it was timed.
    """
    if not live.is_here:
        raise BackendError(
            "bench times on this machine; quantmeter cost --cost tvm --remote times a board"
        )
    rivals = ("w8a8",) if rivals is None else rivals
    if twice := sorted({*rivals, FLOAT, _AGAIN, ONNX_RUNTIME} & set(policies)):
        raise PolicyError(f"{twice[0]!r} names a policy and a rival; give its path as ./{twice[0]}")
    asked = {**policies, **{name: parse_rival(name, bench) for name in rivals}}
    predicted = predicted_costs(bench, costs, asked)
    options = CompareOptions(
        looks_until(blocks),
        turns=TurnOptions(mode=Mode.COLD if cold else Mode.WARM),
        seed=bench.seed,
    )
    feed = one_feed(bench.network, bench.range_inputs)
    models = {FLOAT: bench.export(Policy({}))}
    models[_AGAIN] = models[FLOAT]
    integers = Policy.uniform(bench.network, CPU_TARGET.narrow)
    if _runs_in_onnxruntime(bench, integers):
        models[ONNX_RUNTIME] = bench.export(integers)
    with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
        libraries, programs = dict[str, Path](), dict[str, "Program"]()
        for number, (name, policy) in enumerate(asked.items()):
            progress(number / len(asked), f"compiling {name}")
            libraries[name] = Path(folder) / f"{number}.so"
            programs[name] = compile_policy(bench, policy, live, libraries[name])
        progress(0.0, "timing, interleaved")
        compared = race.run(race.Race(models, FLOAT, _AGAIN, feed, 1, options, libraries=libraries))
        progress(1.0, "timing, interleaved")
        results = [
            CompiledPolicy(
                name,
                policy,
                compared[name],
                agreement(bench, policy, libraries[name], programs[name]),
                predicted[name][0],
                _accuracy(bench, libraries[name]),
                libraries[name].stat().st_size,
                kernels_of(programs[name]),
            )
            for name, policy in asked.items()
        ]
    for name in (ONNX_RUNTIME, FLOAT):
        if name in models:
            results.append(_rival(bench, name, models[name], compared))
    notes = () if bench.data is not None else ("random inputs: no accuracy is reported",)
    return CompiledBenchmark(
        detect("apache-tvm").to_dict(),
        live.machine.instructions.name,
        tuple(results),
        compared[_AGAIN],
        notes,
    )


def kernels_of(program: "Program") -> dict[str, int]:
    """Return how many layers run at which width, and how many other steps there are."""
    from hil.tvm.kernel import ConvolutionKernel

    found: Counter[str] = Counter()
    for step in program.steps:
        kernel = step.kernel
        if isinstance(kernel, ConvolutionKernel):
            counted = " counted" if kernel.tile.counts else ""
            found[f"{kernel.bits} bits{counted}"] += 1
        else:
            found["other"] += 1
    return dict(sorted(found.items()))


def _rival(
    bench: Workbench, name: str, model: bytes, compared: Mapping[str, Comparison]
) -> CompiledPolicy:
    """Describe what ONNX Runtime runs."""
    bits = FLOAT32 if name == FLOAT else CPU_TARGET.narrow
    again = compared[_AGAIN]
    found = equal(again.reference, again.floor) if name == FLOAT else compared[name]
    policy = Policy.uniform(bench.network, bits)
    return CompiledPolicy(name, policy, found, None, None, None, len(model), {})


def _runs_in_onnxruntime(bench: Workbench, policy: Policy) -> bool:
    return not any(
        not_deployable(layer, policy[layer.name], target)
        for layer in bench.network.layers
        for target in (CPU_TARGET, bench.target)
    )


def agreement(bench: Workbench, policy: Policy, library: Path, program: "Program") -> Agreement:
    """Compare outputs with those of the exported file, or of the simulation where it has none.

    Args:
        bench: network and data.
        policy: the bits.
        library: what was compiled.
        program: what it was compiled from.
    """
    from hil.tvm.compiling import CompiledNetwork

    compiled = CompiledNetwork.read(library)
    images = bench.range_inputs[:_COMPARED_IMAGES]
    name = bench.network.input_names[0]
    feeds = [{name: part} for part in batches(bench.network, images)]
    found = [compiled.run(feed) for feed in feeds]
    if onnx := _runs_in_onnxruntime(bench, policy):
        runner = Runner(bench.export(policy), 1, feeds[0])
        wanted = [runner.run(feed) for feed in feeds]
    else:
        exporter, corrections = bench.parameters(policy)
        logits = Simulation(exporter, images).logits(policy, images, corrections)
        wanted = [[part] for part in batches(bench.network, logits)]
    pairs = [
        (mine, theirs)
        for run, other in zip(found, wanted, strict=True)
        for mine, theirs in zip(run, other, strict=False)  # the simulation has the first output
    ]
    furthest = max(float(np.abs(mine - theirs).max()) for mine, theirs in pairs)
    largest = max(float(np.abs(theirs).max()) for _, theirs in pairs)
    return Agreement(
        len(images),
        all(np.array_equal(mine, theirs) for mine, theirs in pairs),
        furthest / max(largest, 1e-30),
        "onnxruntime" if onnx else "the accuracy simulation",
        onnx and program.is_integer,
    )


def _accuracy(bench: Workbench, library: Path) -> Interval | None:
    from hil.tvm.compiling import CompiledNetwork

    if bench.data is None or not bench.classifies:
        return None
    compiled = CompiledNetwork.read(library)
    images, labels = bench.part("test")
    expected = bench.float_labels if labels is None else labels
    name = bench.network.input_names[0]
    logits = [compiled.run({name: part})[0] for part in batches(bench.network, images)]
    return Interval.wilson(
        count_right(np.concatenate(logits)[: len(images)], expected), len(images)
    )
