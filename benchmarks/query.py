"""How fast a table prices policies, beside bare numpy on the same arrays.

    python benchmarks/query.py           # 100,000 policies of a 53-layer network
    python benchmarks/query.py --quick   # 2,000 policies, for the test

Two things are called bare. (a) gathers the layers' costs alone and sums them, which leaves out
glue and conversions. (b) gathers all three blocks with format codes that are already known. Both
get their indices in numpy's own index type, which spares them a conversion. Rounds are interleaved;
the figures are medians, and each ratio is the median of the paired ratios. Then an accelerator's
roofline prices 10,000 layers at 64 choices, once.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from costmodels.accelerator import Accelerator
from costmodels.accelerator_files import find
from costmodels.analytical import create
from costmodels.model import BackendContext
from costmodels.pricing import total
from costmodels.roofline import price
from costmodels.sketch import Sketch
from costmodels.table import Cells, CostTable, FloatArray, Provenance
from costmodels.units import Metric
from quantization.bits import DEFAULT_CHOICES, INTEGER_WIDTHS, BitWidths
from quantization.formats import format_codes, wiring
from quantization.network import Network
from quantization.policy import PolicyBatch

CELLS = (10_000, 64)
"""Layers and choices that an accelerator's roofline prices at once."""
LIMIT = 3.0
MOBILENET_V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1)]
MOBILENET_V2 += [(6, 160, 3, 2), (6, 320, 1, 1)]
"""Expansion, channels, repeats, stride: Sandler et al., CVPR 2018, table 2."""


def mobilenet_v2(size: int = 32) -> Network:
    """Return the wiring of MobileNetV2 on small images: 53 layers, 10 residual adds."""
    sketch = Sketch()
    y = sketch.node("Relu", sketch.conv(sketch.input((1, 3, size, size)), 32, kernel=3, stride=2))
    channels = 32
    for expansion, outputs, repeats, stride in MOBILENET_V2:
        for index in range(repeats):
            x, hidden = y, channels * expansion
            if expansion != 1:
                y = sketch.node("Relu", sketch.conv(y, hidden))
            step = stride if index == 0 else 1
            y = sketch.conv(y, hidden, kernel=3, stride=step, groups=hidden)
            y = sketch.conv(sketch.node("Relu", y), outputs)
            if step == 1 and channels == outputs:
                y = sketch.node("Add", x, y)
            channels = outputs
    y = sketch.node("GlobalAveragePool", sketch.node("Relu", sketch.conv(y, 1280)))
    return sketch.network(sketch.gemm(sketch.node("Flatten", y), 1280, 1000))


def filled(network: Network) -> CostTable:
    """Return a table of `network` in which every cell of every block costs something."""
    table = create("haq", BackendContext()).table(network, DEFAULT_CHOICES, Metric.LATENCY)
    random = np.random.default_rng(0)
    conversion = random.uniform(0, 1e-6, table.conversion.value.shape)
    conversion[:, range(len(table.formats)), range(len(table.formats))] = 0.0
    return replace(
        table,
        glue=Cells.of(random.uniform(0, 1e-6, table.glue.value.shape), Provenance.ASSUMED),
        conversion=Cells.of(conversion, Provenance.ASSUMED),
        constant=1e-6,
    )


def bare_layers(table: CostTable, index: npt.NDArray[np.intp]) -> FloatArray:
    """Gather and sum the costs of the layers, (P,); `index` is (P, L)."""
    costs: FloatArray = table.unary.value[np.arange(index.shape[1]), index].sum(1)
    return costs


class BareBlocks:
    """Gather and sum all three blocks, format codes known before the clock starts.

    Each conversion is one (tensor, target) that some policy could ask for; that it is paid once
    per target is taken care of beforehand, by pointing repeats at the free diagonal.
    """

    def __init__(self, table: CostTable, network: Network, policies: PolicyBatch) -> None:
        self._table = table
        wires = wiring(network)
        columns = np.ascontiguousarray(policies.index.T)
        reads, writes = format_codes(network, columns, policies.choices, table.formats)
        self._index = policies.index.astype(np.intp)
        self._glue = np.ascontiguousarray(reads[list(wires.glue_rows)].T).astype(np.intp)
        tensors, sources, targets = [], [], []
        for tensor, writer in enumerate(wires.tensor_writers):
            seen: list[npt.NDArray[np.uint8]] = []
            for reader in wires.tensor_readers[tensor]:
                target = reads[reader].copy()
                for other in seen:
                    np.copyto(target, writes[writer], where=target == other)
                seen.append(reads[reader])
                tensors.append(tensor)
                sources.append(writes[writer])
                targets.append(target)
        self._tensors = np.array(tensors)
        self._sources = np.ascontiguousarray(np.array(sources).T).astype(np.intp)
        self._targets = np.ascontiguousarray(np.array(targets).T).astype(np.intp)

    def __call__(self) -> FloatArray:
        """Return the cost of each policy, (P,)."""
        table = self._table
        layers = table.unary.value[np.arange(self._index.shape[1]), self._index].sum(1)
        glue = table.glue.value[np.arange(self._glue.shape[1]), self._glue].sum(1)
        conversions = table.conversion.value[self._tensors, self._sources, self._targets].sum(1)
        costs: FloatArray = layers + glue + conversions + table.constant
        return costs


def measure(policies: int, rounds: int) -> dict[str, float]:
    """Time `total` and both bare forms; seconds and ratios by name."""
    network = mobilenet_v2()
    table = filled(network)
    random = np.random.default_rng(1)
    index = random.integers(0, len(table.choices), (policies, len(network.layers)))
    batch = PolicyBatch(network.layer_names, table.choices, index.astype(np.uint8))
    blocks = BareBlocks(table, network, batch)
    np.testing.assert_allclose(total(table, network, batch), blocks(), rtol=1e-9)

    forms: dict[str, Callable[[], FloatArray]] = {
        "total": lambda: total(table, network, batch),
        "bare_layers": lambda: bare_layers(table, index),
        "bare_blocks": blocks,
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(rounds + 2):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            if round_ >= 2:  # the first two warm the caches
                seconds[name].append(time.perf_counter() - start)
    result = {f"{name}_s": float(np.median(samples)) for name, samples in seconds.items()}
    for name in ("bare_layers", "bare_blocks"):
        paired = np.divide(seconds["total"], seconds[name])
        result[f"ratio_to_{name}"] = float(np.median(paired))
    result["cells_s"] = price_cells(network)
    return result | {"layers": len(network.layers), "policies": policies, "rounds": rounds}


def price_cells(network: Network) -> float:
    """Return the seconds in which an accelerator prices `CELLS` layers x choices."""
    accelerator = find("bit-serial-cloud")
    assert isinstance(accelerator, Accelerator)
    layers = (network.layers * CELLS[0])[: CELLS[0]]
    widths = sorted(INTEGER_WIDTHS)
    choices = [BitWidths(w, a) for w in widths for a in widths][: CELLS[1]]
    start = time.perf_counter()
    price(accelerator, layers, choices, Metric.LATENCY)
    return time.perf_counter() - start


def main() -> int:
    """Print the figures; return 1 if a full run costs more than `LIMIT` bare ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few policies and rounds")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(2_000, 3) if arguments.quick else measure(100_000, 15)
    missed = not arguments.quick and result["ratio_to_bare_layers"] > LIMIT
    if arguments.json:
        print(json.dumps(result))
        return int(missed)
    print(f"{result['policies']:,.0f} policies of {result['layers']:.0f} layers")
    print(f"total                          {result['total_s'] * 1e3:8.2f} ms")
    for name, what in (("bare_layers", "(a) layers only"), ("bare_blocks", "(b) all blocks")):
        seconds, ratio = result[f"{name}_s"], result[f"ratio_to_{name}"]
        print(f"bare numpy, {what:18} {seconds * 1e3:8.2f} ms   total / bare = {ratio:.2f}")
    layers, choices = CELLS
    print(f"roofline, {layers:,} layers x {choices} choices {result['cells_s'] * 1e3:8.2f} ms")
    if not arguments.quick:
        print(f"limit {LIMIT} of (a): {'MISSED' if missed else 'met'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
