"""Cost backends beside each other, on policies that were measured."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from costmodels.compare import Agreement, check_measured, predict, rivals
from costmodels.errors import BackendError
from costmodels.measured import MeasuredPolicies
from costmodels.model import BackendContext, CostModel
from costmodels.spread import INTEGER
from costmodels.units import Metric
from hil.calibration import FailedPolicyError, as_policy
from hil.design import Pattern, mixture
from hil.device import detect
from hil.live import OrtLive
from hil.ort import recorded_options
from quantization.deployment import CPU_TARGET, not_deployable
from quantization.errors import PolicyError
from quantization.network import Network
from quantization.policy import Policy, PolicyBatch
from quantmeter.costs import parse_costs
from quantmeter.data import Data
from quantmeter.workbench import open_workbench

POLICIES = 20
"""How many policies are drawn unless told otherwise."""

Progress = Callable[[float, str], None]

_FRESH = 1_000_000
"""Added to the seed of the draw: a calibration with the same seed is fitted to what it draws."""
_DRAWS = 50
"""Draws for each policy that is asked for: a small network has few different ones."""


_AGAIN = (
    "measured the policies a second time: a perfect predictor's error would be about its error "
    "over the square root of 2"
)
_ELSEWHERE = "measured the policies here and now; the first time, they were measured otherwise"


@dataclass(frozen=True, eq=False)
class Compared:
    """How backends agree with measured policies.

    Args:
        measured: the policies, their times, and who measured them.
        agreements: one per backend, in the order of the request, then the rivals.
        notes: what a reader must know, such as which policies could not be timed.
    """

    measured: MeasuredPolicies
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the policies."""
        return tuple(self.measured.policies)

    @property
    def best(self) -> int:
        """Position of the policy that was measured to be the fastest."""
        return int(self.measured.seconds.argmin())

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        seconds = self.measured.seconds.tolist()
        rows = zip(self.measured.policies.items(), seconds, strict=True)
        return {
            "policies": [
                {
                    "name": name,
                    "seconds": s,
                    "layers": {layer: str(bits) for layer, bits in policy.layers.items()},
                }
                for (name, policy), s in rows
            ],
            "best": {"name": self.names[self.best], "seconds": seconds[self.best]},
            "backends": [
                {**each.to_dict(), "picked": [self.names[i] for i in each.picked]}
                for each in self.agreements
            ],
            "source": dict(self.measured.source),
            "notes": list(self.notes),
        }


def compare(
    model: str | Path | Network,
    costs: Sequence[str],
    *,
    policies: int | Mapping[str, Policy] | None = None,
    measured: MeasuredPolicies | str | Path | None = None,
    data: str | Path | Data | None = None,
    seconds: float = 60.0,
    threads: int = 1,
    seed: int = 0,
    store: Path | None = None,
    progress: Progress = lambda _share, _what: None,
    live: CostModel | None = None,
) -> Compared:
    """Compare cost backends with the measured latency of the same policies.

    MACs x bits and the size of the exported file, which need no backend, are compared as well. The
    backend ``ort`` measures every policy a second time. Both readings are as noisy: the error of a
    perfect predictor would be that row's over the square root of 2.

    Args:
        model: path of an ONNX file, or a network.
        costs: values of ``--cost``, such as ``analytical:haq`` or ``latency=table:T.json``.
        policies: how many to draw from the mixture that judges calibrations (default `POLICIES`),
            or policies by name; float and w8a8 throughout are always among them.
        measured: policies that were measured earlier, or their file: none is measured then.
        data: images for realistic values; random inputs without.
        seconds: wall time that a backend may spend on measuring a table.
        threads: of the runtime.
        seed: of what is drawn.
        store: file of the measurements that are kept, or None.
        progress: called with the share done and what is being done.
        live: measures the policies; None for ONNX Runtime; for tests.

    Raises:
        BackendError: if a backend prices no latency, is named twice or cannot price the policies,
            or fewer than two of these could be timed.
        CostError: if the measured policies are of another network or fewer than two.
        PolicyError: if a policy does not fit or cannot be deployed, or both policies and measured
            ones are given.
        UnsupportedChoiceError: if a backend does not support the bits of a policy; names it.
    """
    bench = open_workbench(model, data, seed=seed)
    network, inputs = bench.network, None if bench.data is None else bench.range_inputs
    notes: list[str] = []
    asked: Mapping[str, Policy]
    if measured is None:
        asked = _asked(network, POLICIES if policies is None else policies, seed, notes)
    elif policies is None:
        measured = _held(measured, network)
        asked, taken = measured.policies, measured.source.get("seed")
        seed = taken if isinstance(taken, int) and taken >= 0 else seed
    else:
        raise PolicyError("give policies to measure, or some that were measured; not both")
    batch = PolicyBatch.of(network, asked.values())
    # With the seed of the first reading, the store would answer the second with the first.
    context = BackendContext(threads, seconds, seed + 1, inputs, store, progress)
    models = _models(costs, context)
    if any(getattr(model, "target", CPU_TARGET).own_kernels for model in models.values()):
        notes.append("tvm prices kernels of its own; what is measured here is ONNX Runtime's")
    said = predict(network, batch, models, Metric.LATENCY, lambda name: progress(0.0, name))
    if measured is None:
        live = live or OrtLive(BackendContext(threads, seed=seed, inputs=inputs, store=store))
        source = {
            **_how(live.name, threads),
            "seed": seed,
            "inputs": "random" if inputs is None else "given",
            "created_s": time.time(),
        }
        measured = _measure(network, asked, live, source, progress, notes)
    kept = np.array([i for i, name in enumerate(asked) if name in measured.policies], np.intp)
    simple = rivals(network, batch)
    judged = [each.take(kept) for each in (*said, *simple)]
    if len(simple) < 2:
        notes.append("without the size: not every policy can be exported here")
    for name, each in models.items():
        if isinstance(each, OrtLive):
            how = _how(name, threads)
            alike = all(measured.source.get(key) == value for key, value in how.items())
            notes.append(f"{name} {_AGAIN if alike else _ELSEWHERE}")
    return Compared(
        measured,
        tuple(Agreement.of(each, measured.seconds, Metric.LATENCY) for each in judged),
        tuple(notes),
    )


def _how(backend: str, threads: int) -> dict[str, Any]:
    """Return what two measurements must share before they are two readings of one thing."""
    return {
        "backend": backend,
        "device": detect().to_dict(),
        "runtime": recorded_options(threads),
    }


def _held(measured: MeasuredPolicies | str | Path, network: Network) -> MeasuredPolicies:
    """Return the measured policies, read if they are a file, if they are of the network."""
    if not isinstance(measured, MeasuredPolicies):
        measured = MeasuredPolicies.read(measured)
    measured.check(network)
    check_measured(measured.seconds, len(measured.policies))
    return measured


def _models(costs: Sequence[str], context: BackendContext) -> dict[str, CostModel]:
    """Return what prices latency, by name.

    Raises:
        BackendError: if one does not, or is named twice.
    """
    found: dict[str, CostModel] = {}
    for text in costs:
        model = parse_costs([text], context).models.get(Metric.LATENCY)
        if model is None:
            raise BackendError(f"--cost {text} prices no latency; only latency is compared")
        if model.name in found:
            raise BackendError(f"--cost {text} is given twice; keep one")
        found[model.name] = model
    return found


def _asked(
    network: Network, policies: int | Mapping[str, Policy], seed: int, notes: list[str]
) -> dict[str, Policy]:
    """Return what to measure, by name: the two uniform policies, and those given or drawn.

    Raises:
        BackendError: if no layer runs as integers.
        PolicyError: if a policy cannot be deployed, or is named like a uniform one.
    """
    free = np.array([not not_deployable(layer, INTEGER) for layer in network.layers])
    if not free.any():
        raise BackendError("no layer of this network runs as integers here; there is no choice")
    integers = str(INTEGER) if free.all() else f"{INTEGER} where it runs"
    floats = as_policy(network, np.zeros_like(free))
    uniform = {"float": floats, integers: as_policy(network, free)}
    if not isinstance(policies, int):
        if twice := sorted(set(uniform) & set(policies)):
            raise PolicyError(f"{twice[0]!r} names a policy that is measured anyway; rename yours")
        for name, policy in policies.items():
            for layer in network.layers:
                if reason := not_deployable(layer, policy[layer.name]):
                    bits = policy[layer.name]
                    raise PolicyError(f"{name}: layer {layer.name!r} at {bits}: {reason}")
        return {**policies, **uniform}
    drawn = _drawn(free, policies, seed)
    if len(drawn) < policies:
        notes.append(f"only {len(drawn)} different random policies were found of {policies}")
    named = {f"random {i}": as_policy(network, each) for i, each in enumerate(drawn, start=1)}
    return {**named, **uniform}


def _drawn(free: Pattern, count: int, seed: int) -> list[Pattern]:
    """Return up to `count` different patterns, none of them uniform."""
    known = {free.tobytes(), np.zeros_like(free).tobytes()}
    found: list[Pattern] = []
    for pattern in islice(mixture(free, seed + _FRESH), _DRAWS * count):
        if pattern.tobytes() not in known:
            known.add(pattern.tobytes())
            found.append(pattern)
        if len(found) == count:
            break
    return found


def _measure(
    network: Network,
    asked: Mapping[str, Policy],
    live: CostModel,
    source: Mapping[str, Any],
    progress: Progress,
    notes: list[str],
) -> MeasuredPolicies:
    """Measure one policy after the other; one that crashes or hangs is left out, and noted.

    Raises:
        BackendError: if fewer than two are left.
    """
    seconds: dict[str, float] = {}
    for position, (name, policy) in enumerate(asked.items()):
        progress(position / len(asked), f"{position} of {len(asked)} policies timed")
        try:
            [found] = live.total(network, PolicyBatch.of(network, [policy]), Metric.LATENCY)
        except FailedPolicyError as error:
            notes.append(f"{name} is left out: {error}")
        else:
            seconds[name] = float(found)
    if len(seconds) < 2:
        raise BackendError(f"{len(seconds)} of {len(asked)} policies could be timed; {notes[-1]}")
    timed = {name: asked[name] for name in seconds}
    return MeasuredPolicies(network.digest, timed, np.array(list(seconds.values())), source)
