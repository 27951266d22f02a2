"""Times one probe under several policies, whole and operator by operator."""

import time
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from costmodels.calibrated.items import FEATURES, Items, items_of
from costmodels.cells import BoolArray
from costmodels.spread import INTEGER
from hil import attribution, limits, probes
from hil.attribution import Attribution, attribute, relative_to_float
from hil.calibration import as_policy
from hil.design import Pattern, mixture
from hil.ort import one_feed, random_inputs, recorded_options
from hil.policy_timer import RefusedPolicyError
from hil.profile import profile_session
from hil.records import Record, Subject
from hil.timing import TimingOptions, time_interleaved
from quantization.bits import Format
from quantization.deployment import ExportOptions, not_deployable
from quantization.errors import ModelError
from quantization.export import REVISION, Exporter
from quantization.formats import formats
from quantization.network import Network
from quantization.policy import Policy
from quantization.ranges import made_up_ranges

TURNS = TimingOptions(blocks=5, samples=1, warm_runs=1, turn_s=5e-3, sample_s=1e-3, warm_up=None)
_PIECE_TURNS = 3
"""Of a piece, whose undisturbed time only tells what the profiler adds."""
_PROFILE_S = 0.05
_DIGITS = 10
"""Of seconds: the profiler counts microseconds; so raw readings can be written without a loss."""


@dataclass(frozen=True)
class ProbeSetup:
    """What all probes have in common.

    Args:
        options: of the exporter; ``pack`` off saves loading time.
        threads: of the runtime.
        timing: how long each policy is timed.
    """

    options: ExportOptions = field(
        default_factory=lambda: ExportOptions(weight_method="minmax", pack=False)
    )
    threads: int = 1
    timing: TimingOptions = TURNS


@dataclass(frozen=True)
class ProbeJob:
    """One probe to time.

    Args:
        seed: of the probe and of its mixed policies.
        whole: whether it is a whole network, see `hil.probes`.
    """

    seed: int
    whole: bool = False


@dataclass(frozen=True)
class LimitsJob:
    """The device's limits are to be timed, see `hil.limits`."""


def limits_subject(setup: ProbeSetup) -> Subject:
    """Return the identity of what a `LimitsJob` gives, apart from the device."""
    return Subject(
        {
            "measured": "limits",
            "revision": limits.REVISION,
            "runtime": recorded_options(setup.threads),
        }
    )


def subject(setup: ProbeSetup, job: ProbeJob) -> Subject:
    """Return the identity of what timing `job` gives, apart from the device."""
    return Subject(
        {
            "measured": "a probe",
            "probe": asdict(job),
            "revisions": [probes.REVISION, attribution.REVISION, REVISION],
            "features": list(FEATURES),
            "export": asdict(setup.options),
            "runtime": recorded_options(setup.threads),
            "timing": asdict(setup.timing),
        }
    )


def policies_of(network: Network, job: ProbeJob) -> dict[str, Policy]:
    """Return the policies under which a probe is timed, by name.

    All float, all integer where that differs, and one mixed policy of the mixture that
    calibrations are judged by; of whole probes two.
    """
    free = np.array([not not_deployable(layer, INTEGER) for layer in network.layers])
    drawn = mixture(free, job.seed)
    patterns: dict[str, Pattern] = {"float": np.zeros_like(free), "integer": free}
    patterns |= {f"mixed{i}": next(drawn) for i in range(2 if job.whole else 1)}
    known: set[bytes] = set()
    different = {}
    for name, pattern in patterns.items():
        if pattern.tobytes() not in known:
            different[name] = as_policy(network, pattern)
        known.add(pattern.tobytes())
    return different


class ProbeTimer:
    """Builds, profiles and times probes; made for a worker process (`hil.worker`).

    Args:
        setup: what they have in common.
    """

    def __init__(self, setup: ProbeSetup) -> None:
        self._setup = setup

    def __call__(self, job: ProbeJob | LimitsJob) -> Record:
        """Time the probe of `job`, or the device's limits.

        Returns:
            A measurement for each of `policies_of`. Facts: ``parts``, by policy what `rows`
            gives; ``wall_s``.

        Raises:
            RefusedPolicyError: if the runtime refuses the probe under one of its policies.
        """
        if isinstance(job, LimitsJob):
            return limits.time_limits(self._setup.threads)
        started, setup = time.perf_counter(), self._setup
        network = probes.probe(job.seed, whole=job.whole)
        exporter = Exporter(network, made_up_ranges(network), setup.options)
        feed = one_feed(network, random_inputs(network, 1, job.seed))
        runs, parts = {}, {}
        floats: Attribution | None = None
        for name, policy in policies_of(network, job).items():
            model = exporter.build(policy)
            try:
                found = profile_session(model, setup.threads, feed, _PROFILE_S)
                seconds = found.seconds
            except ModelError as error:
                raise RefusedPolicyError(f"{name}: {error}") from error
            spent = attribute(network, policy, found.graph, seconds)
            floats = floats or spent  # the float policy comes first
            parts[name] = rows(network, policy, relative_to_float(network, policy, spent, floats))
            runs[name] = lambda session=found.session: session.run(None, feed)
        timing = setup.timing if job.whole else replace(setup.timing, blocks=_PIECE_TURNS)
        measured = time_interleaved(runs, timing)
        return Record(measured, facts={"parts": parts, "wall_s": time.perf_counter() - started})


def items_and_formats(network: Network, job: ProbeJob) -> list[tuple[Items, BoolArray]]:
    """Return the rows of a probe under each of its policies, and which of them read integers."""
    return [paid_items(network, policy) for policy in policies_of(network, job).values()]


def paid_items(network: Network, policy: Policy) -> tuple[Items, BoolArray]:
    """Return the rows of a network under a policy, and which of them read integers."""
    items, integer, _ = _paid(network, policy)
    return items, integer


def rows(network: Network, policy: Policy, spent: Attribution) -> dict[str, Any]:
    """Return what each part of a network is and took, as JSON values.

    The rows of `Items` (layers, glue, conversions that the policy pays), ``integer`` whether each
    reads integers, ``seconds`` by the profiler, and ``nodes``: operators that this is, 0 for what
    was taken over.
    """
    items, integer, keys = _paid(network, policy)
    nodes = [*spent.layer_nodes, *spent.glue_nodes, *(spent.conversion_nodes[k] for k in keys)]
    seconds = [*spent.layers, *spent.glue, *(spent.conversions[k] for k in keys)]
    return {
        **items.to_dict(),
        "integer": integer.tolist(),
        "seconds": [round(float(s), _DIGITS) for s in seconds],
        "nodes": [int(count) for count in nodes],
    }


def _paid(network: Network, policy: Policy) -> tuple[Items, BoolArray, list[tuple[str, Format]]]:
    """Rows of a network under a policy, their formats, and the keys of those of conversions."""
    items, chosen = items_of(network), formats(network, policy)
    converted = {(tensor, target) for tensor, _, target in chosen.conversions}
    nodes = [*network.layer_names, *(glue.name for glue in network.glue)]
    integer = [not chosen.reads[name].is_float for name in nodes]
    parts, keys = [items.layers, items.glue], []
    for part, target in ((items.quantize, Format.INT8), (items.dequantize, Format.FLOAT32)):
        here = [(tensor.name, target) in converted for tensor in network.tensors]
        parts.append(part.at(np.array(here, np.bool_)))
        pairs = zip(network.tensors, here, strict=True)
        keys += [(tensor.name, target) for tensor, is_paid in pairs if is_paid]
    integer += [not target.is_float for _, target in keys]
    return Items.joined(parts), np.array(integer, np.bool_), keys
