"""Latency of every layer of one network, measured in context.

A layer's cost inside a network is not its cost alone: neighbours decide layout changes, lost
fusions and what the caches hold. So whole networks are timed, each under a policy of a design and
paired with the float network, and the table is the linear model that explains these times:

    time / float time = 1 + sum over integer layers, integer glue and conversions of their effect

with a physical prior from one profile of the float and one of the all-integer network.
"""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from costmodels.table import BoolArray, FloatArray
from hil.audit import require_kernels
from hil.design import Pattern, patterns
from hil.ort import Runner, one_feed
from hil.profile import node_shares
from hil.regression import Fit, fit
from hil.timing import Clock, TimingOptions, time_interleaved
from quantization.bits import FLOAT32, BitWidths, Format
from quantization.deployment import not_deployable
from quantization.export import Exporter
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array

INTEGER = BitWidths(8, 8)
"""Stands for every deployable integer choice: they all execute the same kernels."""

_TURNS = TimingOptions(blocks=3, samples=5, warm_runs=1, turn_s=0.0, sample_s=1e-3, warm_up=None)
_HELD_OUT = 7
"""Every seventh policy is held out of the fit and tells its error."""
_LEAST_POLICIES = 24
_DISTURBED = 1.05
"""A policy is left out if the float network beside it took this much longer than undisturbed.

Other users of a shared machine do not slow all kernels alike. Measured on the reference network
(two virtual cores, Zen 5): float 415 us and uniform INT8 193 us when alone, 476 us and 257 us in
bad minutes, so that their ratio goes from 0.465 to 0.54. Pairing does not mend that.
"""
_LEAST_SHARE = 0.25
"""Of the policies that are kept, however disturbed they are."""


@dataclass(frozen=True, eq=False)
class Timed:
    """One policy of the design and its paired timing."""

    pattern: Pattern
    ratio: float
    measurement: Measurement
    reference: Measurement


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibrating one network gives.

    Args:
        float_s: p10 of the float network in seconds.
        float_shares: share of the float network's time, by node name.
        fit: effects relative to the float network's time, in the order of `Effects`.
        effects: what the coefficients stand for.
        paid: (D,) effects that at least one timed policy has; no time tells anything of the others.
        timed: the timed policies that were fitted or held out.
        disturbed: how many others were timed while the machine was disturbed, and left out.
        held_out_error: mean absolute relative error on policies that were not fitted.
        held_out: how many these were.
    """

    float_s: float
    float_shares: dict[str, float]
    fit: Fit
    effects: "Effects"
    paid: BoolArray
    timed: tuple[Timed, ...]
    disturbed: int
    held_out_error: float
    held_out: int


Measure = Callable[[Pattern, int], Timed]
"""Times the policy of a pattern; the second argument is a seed."""


class Effects:
    """The columns of the linear model, and how a policy turns into a row.

    Args:
        network: the network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.layers = network.layer_names
        self.glue = tuple(glue.name for glue in network.glue if glue.integer)
        self.conversions = tuple(
            (tensor.name, target)
            for tensor in network.tensors
            for target in (Format.INT8, Format.FLOAT32)
        )
        self.count = len(self.layers) + len(self.glue) + len(self.conversions)

    @property
    def blocks(self) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """(D,): 0 for layers, 1 for glue, 2 and 3 for conversions to integers and to floats."""
        target = [2 if target is Format.INT8 else 3 for _, target in self.conversions]
        return np.array([0] * len(self.layers) + [1] * len(self.glue) + target, np.intp)

    def row(self, policy: Policy) -> FloatArray:
        """Return the features of `policy`, (D,)."""
        chosen = formats(self.network, policy)
        integer = [not policy[name].reads.is_float for name in self.layers]
        glue = [not chosen.reads[name].is_float for name in self.glue]
        paid = {(tensor, target) for tensor, _, target in chosen.conversions}
        return np.array([*integer, *glue, *(key in paid for key in self.conversions)], float)

    def prior(
        self, float_shares: dict[str, float], integer_shares: dict[str, float], ratio: float
    ) -> tuple[FloatArray, FloatArray]:
        """Return prior means and relative deviations of all effects, (D,) each.

        Args:
            float_shares: share of the float network's time by node.
            integer_shares: the same of the all-integer network.
            ratio: time of the all-integer network over the float one.
        """
        nodes = (*self.layers, *self.glue)
        before = np.array([float_shares.get(name, 0.0) for name in nodes])
        after = np.array([integer_shares.get(name, 0.0) for name in nodes]) * ratio
        # Nothing is known of what a conversion costs before it is timed; it may even gain a fusion:
        # the mean is zero. It streams its tensor once, so costs are thought to scatter in
        # proportion to sizes; how widely is fitted (the block's scale).
        counts = [self.network.tensor_by_name[name].count for name, _ in self.conversions]
        streamed = np.array(counts) / max(sum(counts), 1)
        mean = np.concatenate([after - before, np.zeros(len(streamed))])
        spread = np.concatenate([before + after + 1e-3, streamed + 1e-3])
        return mean, spread


def calibrate_network(
    exporter: Exporter,
    inputs: Float32Array,
    *,
    seconds: float,
    threads: int,
    seed: int,
    progress: Callable[[float, str], None],
    measure: Measure | None = None,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Time policies of one network for about `seconds`, and fit the table's effects.

    Args:
        exporter: builds the policies; `ExportOptions.pack` off saves loading time.
        inputs: at least one input, (N, ...); the first batch is what runs.
        seconds: wall time, including building and loading.
        threads: of the runtime.
        seed: of the design.
        progress: called with the share done and what is being done.
        measure: times one pattern; None builds, loads and times it beside the float network.
        clock: seconds, of the whole; for tests.

    Raises:
        AuditError: if the runtime does not execute what a policy asks for.
        BackendError: if the time was too short for a fit, or no layer runs as integers.
        ModelError: if the runtime refuses a model.
    """
    network, feed = exporter.network, one_feed(exporter.network, inputs)
    free = np.array([not not_deployable(layer, INTEGER) for layer in network.layers])
    if not free.any():
        raise BackendError("no layer of this network runs as integers here; there is no choice")
    started = clock()
    measure = measure or _paired_with_float(exporter, threads, feed)
    timed: list[Timed] = []
    uniform = [free, np.zeros_like(free)]
    for pattern in itertools.chain(uniform, patterns(free, seed)):
        elapsed = clock() - started
        if elapsed > seconds and len(timed) > 2:
            break
        progress(min(elapsed / seconds, 1.0), f"{len(timed)} policies timed")
        timed.append(measure(pattern, seed + len(timed)))
    if len(timed) < _LEAST_POLICIES:
        raise BackendError(
            f"{seconds:.0f} s were enough for {len(timed)} policies only; "
            f"{_LEAST_POLICIES} are needed: give more time"
        )
    progress(1.0, f"{len(timed)} policies timed")
    all_integer = timed[0].ratio
    taken, timed = len(timed), undisturbed(timed)
    float_shares = node_shares(exporter, Policy({}), threads, feed)
    integer_shares = node_shares(exporter, as_policy(network, free), threads, feed)
    effects = Effects(network)
    prior = effects.prior(float_shares, integer_shares, all_integer)
    rows = np.array([effects.row(as_policy(network, t.pattern)) for t in timed])
    ratios = np.array([t.ratio for t in timed])
    held = np.arange(len(timed)) % _HELD_OUT == _HELD_OUT - 1
    trial = fit(rows[~held], ratios[~held] - 1, *prior, effects.blocks)
    error = np.abs((1 + trial.predict(rows[held])) / ratios[held] - 1).mean()
    final = fit(rows, ratios - 1, *prior, effects.blocks, start=trial)
    float_s = float(np.median([t.reference.p10_s for t in timed]))
    return Calibration(
        float_s,
        float_shares,
        final,
        effects,
        np.asarray(rows.any(axis=0), np.bool_),
        tuple(timed),
        taken - len(timed),
        float(error),
        int(held.sum()),
    )


def undisturbed(timed: Sequence[Timed]) -> list[Timed]:
    """Return the policies beside which the float network was about as quick as it ever is.

    At least `_LEAST_POLICIES`, and at least a quarter of all, in the order of timing.
    """
    references = np.array([t.reference.p10_s for t in timed])
    least = max(_LEAST_POLICIES, math.ceil(_LEAST_SHARE * len(timed)))
    limit = max(
        _DISTURBED * float(np.percentile(references, 5)),
        float(np.sort(references)[min(least, len(timed)) - 1]),
    )
    return [t for t, reference in zip(timed, references, strict=True) if reference <= limit]


def as_policy(network: Network, pattern: Sequence[bool] | Pattern) -> Policy:
    """Return the policy that runs the layers of `pattern` as integers, the others as floats."""
    pairs = zip(network.layer_names, pattern, strict=True)
    return Policy({name: INTEGER if integer else FLOAT32 for name, integer in pairs})


def _paired_with_float(exporter: Exporter, threads: int, feed: dict[str, Float32Array]) -> Measure:
    """Time policies beside the float network; what is not executed as asked is never timed."""
    network = exporter.network

    def runner(policy: Policy) -> Runner:
        check = partial(require_kernels, network, policy)
        return Runner(exporter.build(policy), threads, feed, check)

    reference = runner(Policy({}))

    def measure(pattern: Pattern, seed: int) -> Timed:
        runs = {"policy": runner(as_policy(network, pattern)), "float": reference}
        found = time_interleaved(runs, replace(_TURNS, seed=seed))
        ratio = found["policy"].p10_s / found["float"].p10_s
        return Timed(pattern, ratio, found["policy"], found["float"])

    return measure
