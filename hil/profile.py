"""Shares of a network's time by node, from ONNX Runtime's profiler.

The profiler inflates small networks, so its times serve as shares only, never as absolutes.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import onnx

from hil.audit import layer_of
from hil.ort import load_session, session_options
from quantization.export import Exporter
from quantization.policy import Policy
from quantization.quantizer import Float32Array

_RUNS = 30


def node_shares(
    exporter: Exporter, policy: Policy, threads: int, feed: Mapping[str, Float32Array]
) -> dict[str, float]:
    """Return the share of the time that each layer and glue operator takes under `policy`.

    Time of operators that belong to no node (layout changes, quantize, dequantize) is spread over
    all nodes in proportion, so that the shares add up to 1.
    """
    model = exporter.build(policy)
    with tempfile.TemporaryDirectory(prefix="quantmeter-") as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        session = load_session(model, options)
        for _ in range(_RUNS):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load_model(options.optimized_model_filepath).graph
    belongs = layer_of(exporter.network, graph)
    glue = {g.name for g in exporter.network.glue}
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            node = str(event["name"]).removesuffix("_kernel_time")
            owner = belongs.get(node) or (node.split("_token_")[0])
            if owner in exporter.network.layer_names or owner in glue:
                spent[owner] += float(event["dur"])
    total = sum(spent.values())
    return {name: value / total for name, value in spent.items()} if total else {}
