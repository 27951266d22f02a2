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
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hil.ort import load_with_graph, session_options
from hil.trace import executed_kernels, owners
from quantization.errors import ModelError
from quantization.export import Exporter
from quantization.policy import Policy
from quantization.quantizer import Float32Array

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


def profile_nodes(
    exporter: Exporter, policy: Policy, threads: int, feed: Mapping[str, Float32Array]
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
    profiled = profile_session(exporter.build(policy), threads, feed)
    graph, spent = profiled.graph, defaultdict[str, float](float)
    for owner, duration in zip(owners(exporter.network, graph), profiled.seconds, strict=True):
        if owner is not None:
            spent[owner] += duration
    total = sum(spent.values())
    shares = {name: value / total for name, value in spent.items()} if total else {}
    return Profile(shares, executed_kernels(exporter.network, graph))


@dataclass(frozen=True, eq=False)
class ProfiledSession:
    """A session whose first runs were profiled; it runs as any other now.

    Args:
        session: the ``onnxruntime.InferenceSession``.
        graph: the graph that it executes.
        seconds: of each of its operators, in a run; see `durations`.
    """

    session: Any
    graph: onnx.GraphProto
    seconds: Sequence[float]


def profile_session(
    model: bytes, threads: int, feed: Mapping[str, Float32Array], enough_s: float = math.inf
) -> ProfiledSession:
    """Load `model` and profile some runs.

    Args:
        model: serialized ONNX model.
        threads: of the runtime.
        feed: inputs by name.
        enough_s: seconds after which no run begins that is not needed: operators of a large network
            take many whole microseconds each, so that fewer runs tell as much.

    Raises:
        ModelError: if the runtime refuses the model, or profiles other operators than those of
            the graph that it says it executes.
    """
    with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session, graph = load_with_graph(model, options)
        started = time.perf_counter()
        for run in range(_RUNS):
            if run >= _FEWEST_RUNS and time.perf_counter() - started > enough_s:
                break
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    microseconds = durations(events, [node.op_type for node in graph.node])
    return ProfiledSession(session, graph, [1e-6 * each for each in microseconds])


def durations(events: Iterable[Mapping[str, Any]], kinds: Sequence[str]) -> list[float]:
    """Return the time of each operator in a run, in microseconds, from the events of a profile.

    It is the mean over the quicker half of the runs: on a shared machine a single interruption
    lasts longer than all operators of a small network together. (Whole runs are left out, since
    times are whole microseconds: the quicker half of each operator's would favour the small ones.)
    The names of events are not unique, but operators run one after the other, in the order of the
    graph; an event holds the number that its operator has within the session.

    Args:
        events: what the profiler wrote.
        kinds: operators of the optimized graph in its order.

    Raises:
        ModelError: if the profile holds other operators.
    """
    spent: dict[str, list[float]] = {}
    ran: list[str] = []
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            number = str(event["args"]["node_index"])
            if number not in spent:
                ran.append(str(event["args"]["op_name"]))
            spent.setdefault(number, []).append(float(event["dur"]))
    if ran != list(kinds):
        raise ModelError("ONNX Runtime profiled other operators than those of its optimized graph")
    if not spent:
        return []
    runs = np.array(list(spent.values())).T
    quicker = np.argsort(runs.sum(axis=1), kind="stable")[: (len(runs) + 1) // 2]
    return [float(mean) for mean in runs[quicker].mean(axis=0)]
