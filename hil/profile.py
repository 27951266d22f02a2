"""Shares of a network's time by node, from ONNX Runtime's profiler.

The profiler inflates small networks, so its times serve as shares only, never as absolutes.
"""

import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hil.buffers import prepared_run
from hil.ort import load_with_graph, session_options
from hil.providers import CPU, Provider
from hil.trace import executed_kernels, owners
from quantization.errors import ModelError
from quantization.export import Exporter
from quantization.network import Network
from quantization.policy import Policy
from quantization.quantizer import Float32Array

_SUFFIX = "_kernel_time"
_RUNS = 30
_FEWEST_RUNS = 6


@dataclass(frozen=True, eq=False)
class Profile:
    """What one profiled session tells of a network under one policy.

    Args:
        shares: share of the time that each layer and glue operator takes, by node name.
        kernels: executed kernel of each layer.
    """

    shares: Mapping[str, float]
    kernels: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class RawProfile:
    """What the profiler wrote of a session's operators.

    Args:
        events: name, operator, number within the session and microseconds of each.
        graph: the graph that the session executes, serialized; its constants have no values.
    """

    events: tuple[tuple[str, str, str, float], ...]
    graph: bytes

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]], graph: onnx.GraphProto) -> "RawProfile":
        """Keep what is used of the events of a profile."""
        kept = tuple(
            (
                str(event["name"]).removesuffix(_SUFFIX),
                str(event["args"]["op_name"]),
                str(event["args"]["node_index"]),
                float(event["dur"]),
            )
            for event in events
            if event.get("cat") == "Node" and str(event["name"]).endswith(_SUFFIX)
        )
        return cls(kept, graph.SerializeToString())


def profile_nodes(
    exporter: Exporter,
    policy: Policy,
    threads: int,
    feed: Mapping[str, Float32Array],
    provider: Provider = CPU,
) -> Profile:
    """Profile the network under `policy`.

    An operator that another one took over (an activation by its convolution) has no share of its
    own: its time is in the other's. Time of what belongs to no node (quantize, dequantize, layout
    changes) is spread over all nodes in proportion, so that the shares add up to 1.

    Raises:
        ModelError: if the runtime refuses the model, or profiles other operators than those of
            the graph that it says it executes.
        PolicyError: if the policy does not fit the network or a layer is not deployable.
    """
    return profile_of(exporter.network, profile_raw(exporter, policy, threads, feed, provider))


def profile_raw(
    exporter: Exporter,
    policy: Policy,
    threads: int,
    feed: Mapping[str, Float32Array],
    provider: Provider = CPU,
) -> RawProfile:
    """Profile the network under `policy`, and interpret nothing (`profile_of` does).

    Raises:
        ModelError: if the runtime refuses the model.
        PolicyError: if the policy does not fit the network or a layer is not deployable.
    """
    return profile_session(exporter.build(policy), threads, feed, provider=provider).raw


def profile_of(network: Network, raw: RawProfile) -> Profile:
    """Return what the profiler's events tell of a network; see `profile_nodes`.

    Raises:
        ModelError: if they are of other operators than those of the graph.
    """
    graph = onnx.GraphProto.FromString(raw.graph)
    spent = defaultdict[str, float](float)
    for owner, duration in zip(owners(network, graph), durations(raw, graph), strict=True):
        if owner is not None:
            spent[owner] += duration
    total = sum(spent.values())
    shares = {name: value / total for name, value in spent.items()} if total else {}
    return Profile(shares, executed_kernels(network, graph))


@dataclass(frozen=True, eq=False)
class ProfiledSession:
    """A session whose first runs were profiled; it runs as any other now.

    Args:
        session: the ``onnxruntime.InferenceSession``.
        graph: the graph that it executes.
        raw: what the profiler wrote.
    """

    session: Any
    graph: onnx.GraphProto
    raw: RawProfile

    @cached_property
    def seconds(self) -> Sequence[float]:
        """Of each of its operators, in a run; see `durations`, and what it raises."""
        return [1e-6 * each for each in durations(self.raw, self.graph)]


def profile_session(
    model: bytes,
    threads: int,
    feed: Mapping[str, Float32Array],
    enough_s: float = math.inf,
    *,
    provider: Provider = CPU,
) -> ProfiledSession:
    """Load `model` and profile some runs.

    Args:
        model: serialized ONNX model.
        threads: of the runtime.
        feed: inputs by name.
        enough_s: seconds after which no run begins that is not needed: operators of a large network
            take many whole microseconds each, so that fewer runs tell as much.
        provider: who executes it.

    Raises:
        ModelError: if the runtime refuses the model.
    """
    with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session, graph = load_with_graph(model, options, provider=provider)
        run_once = prepared_run(session, provider, feed)
        started = time.perf_counter()
        for run in range(_RUNS):
            if run >= _FEWEST_RUNS and time.perf_counter() - started > enough_s:
                break
            run_once()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return ProfiledSession(session, graph, RawProfile.of(events, graph))


def durations(raw: RawProfile, graph: onnx.GraphProto) -> list[float]:
    """Return the time of each operator in a run, in microseconds, from the events of a profile.

    It is the mean over the quicker half of the runs: on a shared machine a single interruption
    lasts longer than all operators of a small network together. (Whole runs are left out, since
    times are whole microseconds: the quicker half of each operator's would favour the small ones.)
    Operators are found by their names, since on a device they may run in another order than that of
    the graph. Where names are not unique, operators run one after the other, in the graph's order;
    an event holds the number that its operator has within the session.

    Args:
        raw: what the profiler wrote.
        graph: the optimized graph.

    Raises:
        ModelError: if the profile holds other operators.
    """
    spent: dict[str, list[float]] = {}
    ran: list[tuple[str, str]] = []
    for name, kind, number, microseconds in raw.events:
        if number not in spent:
            ran.append((kind, name))
        spent.setdefault(number, []).append(microseconds)
    order = _order(ran, [(node.op_type, node.name) for node in graph.node])
    if order is None:
        raise ModelError("ONNX Runtime profiled other operators than those of its optimized graph")
    if not spent:
        return []
    runs = np.array(list(spent.values()))[order].T
    quicker = np.argsort(runs.sum(axis=1), kind="stable")[: (len(runs) + 1) // 2]
    return [float(mean) for mean in runs[quicker].mean(axis=0)]


def _order(ran: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]) -> list[int] | None:
    """Position among those that ran, (kind, name) each, of each operator of the graph."""
    position = {each: i for i, each in enumerate(ran)}
    if len(position) == len(ran) == len(wanted) and set(wanted) == set(position):
        return [position[each] for each in wanted]
    if [kind for kind, _ in ran] == [kind for kind, _ in wanted]:
        return list(range(len(ran)))
    return None
