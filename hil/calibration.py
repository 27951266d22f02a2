"""Latency of every layer of one network, measured in context.

A layer's cost inside a network is not its cost alone: neighbours decide layout changes, lost
fusions and what the caches hold. So whole networks are timed, each under a policy of a design and
paired with the float network. Two models explain these times, one on top of the other:

    time / float time = 1 + sum over integer layers, integer glue and conversions of their effect
                          + sum over groups of neighbouring layers of theirs

The first sum is what a table can hold; the second is its context (`costmodels.context`). A device
that has half precision instead of integers is calibrated alike: read half for integer. Both have a
physical prior, the first from one profile of the float and one of the all-integer network (or of
what comes nearest to it and does not crash).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.context import Context
from costmodels.errors import BackendError
from costmodels.measurement import Measurement
from costmodels.spread import INTEGER
from costmodels.table import BoolArray, FloatArray
from hil.design import Pattern, mixture, patterns
from hil.effects import Effects, shares_of_nodes
from hil.interactions import Interactions
from hil.profile import Profile, RawProfile
from hil.profiles import Profiles, take_profiles
from hil.records import Failure, Record
from hil.regression import Fit, Prior, fit, ordinary
from hil.timing import TimingOptions, low_ratio
from hil.validation import LEAST_POLICIES, Validation
from quantization.bits import FLOAT32, BitWidths
from quantization.deployment import CPU_TARGET, Target, not_deployable
from quantization.network import Network
from quantization.policy import Policy

TURNS = TimingOptions(blocks=5, samples=1, warm_runs=1, turn_s=5e-3, sample_s=1e-3, warm_up=None)
"""How one policy is timed: briefly, since many policies tell more than many runs of one.

Disturbances come in bursts that last longer than a turn: five short turns of either network repeat
better than three long ones that take the same time (see `hil.timing.low_ratio`).
"""

_LEAST_FITTED = 24
_LEAST_APART = 16
"""How many different policies the model that is judged is fitted to, at least.

Both streams draw from the same few policies in a small network: of five layers (32 policies) some
six are left that never judge, and a model of so few predicted a time below nothing for others. Of
seven layers and more, 16 are left of the first 40 policies already.
"""

_QUIET, _LOUDER = 0.03, 0.05
"""The noise of a row grows by its size with each `_LOUDER` that float took longer than `_QUIET`.

Other users of a shared machine do not slow all kernels alike. Measured on the reference network
(two virtual cores, Zen 5): float 415 us and uniform INT8 193 us when alone, 476 us and 257 us in
bad minutes, so that their ratio goes from 0.465 to 0.54. Pairing does not mend that; counting such
rows for less does. On five networks of 224 x 224 the mean error over policies that were not fitted
was 1.8-3.9 % with all rows alike and 1.0-3.2 % so (60 s each, one noisy afternoon).
"""
_UNLIKE = 4.0
"""Robust standard deviations beyond which a row is left out: something happened while it ran."""


class FailedPolicyError(BackendError):
    """A policy that could not be timed.

    Args:
        failure: why.
        wall_s: seconds that this took.
    """

    def __init__(self, failure: Failure, wall_s: float = 0.0) -> None:
        super().__init__(f"the policy could not be timed: {failure.kind.value}: {failure.text}")
        self.failure, self.wall_s = failure, wall_s


@dataclass(frozen=True, eq=False)
class Timed:
    """One policy of the design and its paired timing.

    Args:
        pattern: (L,) which layers run as integers.
        ratio: time of the policy over that of the float network beside it (`low_ratio`).
        measurement: of the policy.
        reference: of the float network.
        wall_s: seconds that building, loading and timing took.
        created_s: when it was stored, Unix time in seconds; None if no store took it.
    """

    pattern: Pattern
    ratio: float
    measurement: Measurement
    reference: Measurement
    wall_s: float
    created_s: float | None = None

    @classmethod
    def of(cls, pattern: Pattern, record: Record) -> "Timed":
        """Read a record with measurements ``policy`` and ``float``.

        Raises:
            FailedPolicyError: if it holds a failure.
        """
        if record.failure is not None:
            raise FailedPolicyError(record.failure, float(record.facts.get("wall_s", 0.0)))
        policy, reference = record.measurements["policy"], record.measurements["float"]
        parts = (record.facts[name] for name in ("build_s", "load_s", "timing_s"))
        ratio = low_ratio(policy, reference)
        return cls(pattern, ratio, policy, reference, sum(parts), record.created_s)


Measure = Callable[[Pattern, int], Timed]
"""Times the policy of a pattern; the second argument is a seed.

Raises `FailedPolicyError` if it crashed, hung or raised.
"""
Inspect = Callable[[Policy], Profile]
"""Profiles a policy.

Raises `hil.worker.WorkerError` or `ModelError` if that cannot be done.
"""
InspectRaw = Callable[[Policy], RawProfile]
"""The same, not yet interpreted (`hil.profile.profile_of`)."""


@dataclass(frozen=True, eq=False)
class Model:
    """Both sums of the model, fitted.

    Args:
        effects: the columns of the first.
        coefficients: (D,) effects relative to the float network's time, none implausible.
        fit: the regression that they come from.
        context: the second, relative to the float network's time.
        context_fit: the regression that it comes from.
        unlike: how many rows were left out because they were unlike all others.
    """

    effects: Effects
    coefficients: FloatArray
    fit: Fit
    context: Context
    context_fit: Fit
    unlike: int

    def table(self, patterns_: Sequence[Pattern]) -> FloatArray:
        """Return the ratios to float, (P,), that the table alone predicts."""
        return 1 + rows_of(self.effects, patterns_) @ self.coefficients

    def total(self, patterns_: Sequence[Pattern]) -> FloatArray:
        """Return the ratios to float, (P,), that table and context predict."""
        index = np.array(patterns_, np.uint8)
        narrow = self.effects.narrow
        return self.table(patterns_) + self.context.correction(index, (FLOAT32, narrow))


@dataclass(frozen=True, eq=False)
class Calibration:
    """What calibrating one network gives.

    Args:
        float_s: p10 of the float network in seconds, undisturbed.
        shares: (L + G,) share of the float network's time of each layer and glue operator.
        kernels: executed kernels as integers and as floats, by layer; empty where not known.
        model: fitted to all policies.
        paid: (D,) effects that at least one timed policy has; no time tells anything of the others.
        timed: the policies that were timed.
        judged: (N,) which of them judged the model: their errors are those of a model that was
            fitted without them.
        disturbed: how many were timed while the machine was disturbed, and count for less.
        failed: what the failed ones ended in.
        profile_failure: why the fit knew no profile of integer layers; None if it did.
        validation: what those that judged say; None if there were none, as in a network so small
            that both streams draw the same policies.

    Attributes:
        created_s: when the oldest of the timings was stored, Unix time in seconds; None if no
            store took any.
    """

    float_s: float
    shares: FloatArray
    kernels: tuple[Mapping[str, str], Mapping[str, str]]
    model: Model
    paid: BoolArray
    timed: tuple[Timed, ...]
    judged: BoolArray
    disturbed: int
    failed: tuple[Failure, ...]
    profile_failure: Failure | None
    validation: Validation | None

    @property
    def created_s(self) -> float | None:
        """See the class."""
        times = [each.created_s for each in self.timed if each.created_s is not None]
        return min(times, default=None)


def calibrate_network(
    network: Network,
    measure: Measure,
    inspect: Inspect,
    *,
    seconds: float,
    seed: int,
    progress: Callable[[float, str], None],
    target: Target = CPU_TARGET,
) -> Calibration:
    """Time policies of one network for about `seconds`, and fit table and context.

    Args:
        network: the network.
        measure: times the policy of one pattern beside the float network.
        inspect: profiles a policy.
        seconds: time for building, loading and timing policies. What an earlier run already took
            counts, so that a run which was killed goes on to the same end.
        seed: of the design.
        progress: called with the share done and what is being done.
        target: the provider that executes the policies; names the format beside float32.

    Raises:
        AuditError: if the runtime does not execute the float network as asked.
        BackendError: if the time was too short for a fit, most policies failed, the float network
            cannot be profiled, or no layer runs in the narrow format.
        ModelError: if the runtime refuses the float network.
    """
    narrow = target.narrow
    free = np.array([not not_deployable(layer, narrow, target) for layer in network.layers])
    if not free.any():
        kernels = narrow.reads.label if narrow.half else "integers"
        raise BackendError(f"no layer of this network runs as {kernels} here; there is no choice")
    timed: list[Timed] = []
    judged: list[bool] = []
    failed: list[Failure] = []
    spent = 0.0
    for position, (pattern, judges) in enumerate(schedule(free, seed)):
        if spent > seconds and len(timed) > 2:
            break
        progress(min(spent / seconds, 1.0), f"{len(timed)} policies timed")
        try:
            timed.append(measure(pattern, seed + position))
        except FailedPolicyError as error:
            failed.append(error.failure)
            spent += error.wall_s
            if len(failed) > max(len(timed), 2):
                raise
            continue
        judged.append(judges)
        spent += timed[-1].wall_s
    fitted = len(timed) - sum(judged)
    if fitted < _LEAST_FITTED:
        raise BackendError(
            f"{seconds:g} s were enough for {len(timed)} policies only, {fitted} of them to fit; "
            f"{_LEAST_FITTED} are needed: give more time"
        )
    progress(1.0, f"{len(timed)} policies timed")
    profiles = take_profiles(
        lambda pattern: inspect(as_policy(network, pattern, narrow)), most_integers(timed).pattern
    )
    return _calibration(Effects(network, narrow), free, timed, np.array(judged), failed, profiles)


def _calibration(
    effects: Effects,
    free: Pattern,
    timed: Sequence[Timed],
    judged: BoolArray,
    failed: Sequence[Failure],
    profiles: Profiles,
) -> Calibration:
    network = effects.network
    shares = shares_of_nodes(network, profiles.floats.shares)
    prior = profiles.prior(effects, most_integers(timed).ratio)
    references = np.array([t.reference.p10_s for t in timed])
    weights = loudness(references)
    if _different(timed, never_judged(timed, judged)) < _LEAST_APART:
        judged = np.zeros_like(judged)  # all are fitted then, and none judges
    fitted = never_judged(timed, judged)
    trial = _fit_model(
        effects,
        prior,
        shares,
        [t for t, fits in zip(timed, fitted, strict=True) if fits],
        weights[fitted],
    )
    model = _fit_model(effects, prior, shares, timed, weights, start=trial)
    validation = None
    if judged.any():
        apart = [t for t, judges in zip(timed, judged, strict=True) if judges]
        judging = [t.pattern for t in apart]
        ratios = np.array([t.ratio for t in apart])
        validation = Validation.of(trial.total(judging), trial.table(judging), ratios)
    return Calibration(
        float(np.median(references[weights == 1])),
        shares,
        profiles.kernels(network, free),
        model,
        effects.paid(rows_of(effects, [t.pattern for t in timed])),
        tuple(timed),
        judged,
        int((weights > 1).sum()),
        tuple(failed),
        profiles.failure,
        validation,
    )


def never_judged(timed: Sequence[Timed], judged: BoolArray) -> BoolArray:
    """Return which policies, (N,), a model may be fitted to that the judging ones judge.

    Both streams may draw the same policy, more often the fewer layers there are; such a one judges
    only.
    """
    judging = {t.pattern.tobytes() for t, judges in zip(timed, judged, strict=True) if judges}
    return np.array([t.pattern.tobytes() not in judging for t in timed], np.bool_)


def _different(timed: Sequence[Timed], chosen: BoolArray) -> int:
    """How many different policies are among the chosen ones."""
    return len({t.pattern.tobytes() for t, wanted in zip(timed, chosen, strict=True) if wanted})


def most_integers(timed: Sequence[Timed]) -> Timed:
    """Return the policy with the most integer layers, the earliest of these.

    That is the all-integer one, unless it failed; the prior then takes the nearest to it.
    """
    return max(timed, key=lambda each: int(each.pattern.sum()))


def schedule(free: Pattern, seed: int) -> Iterator[tuple[Pattern, bool]]:
    """Yield what to time, and whether it judges: all integer, all float, then both streams.

    Two of five judge until there are enough for an interval; then one of ten does.

    Args:
        free: (L,) layers that can run as integers.
        seed: of the draws.
    """
    yield free, False
    yield np.zeros_like(free), False
    design, judges = patterns(free, seed), mixture(free, seed)
    drawn = 0
    for position in itertools.count(1):
        few = drawn < LEAST_POLICIES
        if position % 5 in (2, 4) if few else position % 10 == 0:
            drawn += 1
            yield next(judges), True
        else:
            yield next(design), False


def loudness(references: FloatArray) -> FloatArray:
    """Return by what factor the noise of each policy is larger than in quiet, (N,).

    Args:
        references: (N,) seconds of the float network beside each.
    """
    longer = references / np.percentile(references, 5) - 1
    return 1 + np.maximum(longer - _QUIET, 0.0) / _LOUDER


def _fit_model(
    effects: Effects,
    prior: Prior,
    shares: FloatArray,
    timed: Sequence[Timed],
    weights: FloatArray,
    start: Model | None = None,
) -> Model:
    """Fit both sums; scales and noise are those of `start`, if there is one."""
    chosen = [t.pattern for t in timed]
    rows, ratios = rows_of(effects, chosen), np.array([t.ratio for t in timed])
    first, kept = _fit_without_unlike(
        rows, ratios - 1, prior, weights, None if start is None else start.fit
    )
    coefficients = effects.plausible(first.coefficients, shares)
    layers = len(effects.layers)
    interactions = Interactions.of(effects.network, prior.spread[:layers])
    second, like = _fit_without_unlike(
        interactions.features(np.array(chosen))[kept],
        (ratios - 1 - rows @ coefficients)[kept],
        interactions.prior,
        weights[kept],
        None if start is None else start.context_fit,
    )
    context = Context(interactions.groups, second.coefficients)
    return Model(effects, coefficients, first, context, second, len(timed) - int(like.sum()))


def _fit_without_unlike(
    rows: FloatArray, target: FloatArray, prior: Prior, weights: FloatArray, start: Fit | None
) -> tuple[Fit, BoolArray]:
    """Fit, and fit again without the rows that the first fit finds unlike all others."""
    first = fit(rows, target, prior, weights=weights, start=start)
    kept = ordinary(first.surprise, _UNLIKE)
    again = fit(rows[kept], target[kept], prior, weights=weights[kept], start=start)
    return again, kept


def rows_of(effects: Effects, chosen: Sequence[Pattern]) -> FloatArray:
    """Return the features of the policies of patterns, (P, D)."""
    policies = (as_policy(effects.network, pattern, effects.narrow) for pattern in chosen)
    return np.array([effects.row(policy) for policy in policies])


def as_policy(
    network: Network, pattern: Sequence[bool] | Pattern, narrow: BitWidths = INTEGER
) -> Policy:
    """Return the policy that runs the layers of `pattern` at `narrow`, the others as float32."""
    pairs = zip(network.layer_names, pattern, strict=True)
    return Policy({name: narrow if chosen else FLOAT32 for name, chosen in pairs})
