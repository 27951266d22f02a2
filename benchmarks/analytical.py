"""Our analytical prices beside those of other packages, in the same run.

    pip install '.[rivals]'                   # optional; what is missing is said and left out
    python benchmarks/analytical.py           # about six minutes on two cores
    python benchmarks/analytical.py --quick   # a few layers, for the test

*MACs*: ours beside those of `onnx-tool`, on ten published networks; each difference above 1 % is
explained. *Energy and cycles*: the accelerator `bit-fusion` described to `zigzag-dse`
(`benchmarks/rival_zigzag.py`), layers of ResNet-18 and MobileNetV2 at several widths. Rank
correlations are over distinct shapes, totals over all layers. The response to a width is the total
there over that at w8a8.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from scipy.stats import spearmanr

from benchmarks import networks, rival_onnx_tool, rival_zigzag
from benchmarks.rival_onnx_tool import MacCounts
from benchmarks.rival_zigzag import Priced, Shape
from costmodels import roofline
from costmodels.accelerator import Accelerator
from costmodels.accelerator_files import find
from costmodels.cells import FloatArray
from costmodels.units import Metric
from quantization.bits import BitWidths, parse_choices
from quantization.network import Layer
from quantization.reading import read_network
from quantization.torch_export import export_module

COUNTED = (
    "deit_tiny",
    "densenet121",
    "efficientnet_b0",
    "mixer_s32",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "resnet18",
    "resnet50",
    "squeezenet1_1",
    "vgg11",
)
PRICED = ("resnet18", "mobilenet_v2")
WIDTHS = parse_choices("w8a8,w4a8,w8a4,w4a4,w2a2")
ACCELERATOR = "bit-fusion"
IGNORES = 0.01
"""A cost that changes by a smaller share from w8a8 to another width does not respond to it."""
QUICK_LAYERS, QUICK_WIDTHS = 3, 2


def main() -> int:
    """Compare with every rival that is installed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes that run zigzag-dse")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--quick", action="store_true", help="a network and a few layers")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    if installed("onnx-tool"):
        found["macs"] = compare_macs(COUNTED[6:7] if arguments.quick else COUNTED)
    if installed("zigzag-dse"):
        found["costs"] = compare_costs(PRICED, arguments.jobs, quick=arguments.quick)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1))
    return 0


def installed(name: str) -> bool:
    """Return whether a rival is installed, and print which version, or that it is missing."""
    try:
        print(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
        print(f"{name} is not installed, left out: pip install '.[rivals]'")
        return False
    return True


def build(name: str) -> onnx.ModelProto:
    """Build a network whose weights nobody reads."""
    module = networks.NETWORKS[name]().eval()
    return export_module(module, torch.randn(1, 3, networks.SIZE, networks.SIZE))


def compare_macs(names: Sequence[str]) -> dict[str, Any]:
    """Print both counts of each network, and why they differ."""
    print(f"{'MACs, millions':20} {'ours':>9} {'theirs':>9} {'ratio':>6}  {'all ops':>9}  layers")
    found = {}
    for name in names:
        counts = rival_onnx_tool.count(build(name))
        ours, theirs = sum(counts.ours.values()), sum(counts.theirs.values())
        everything = theirs + sum(counts.others.values())
        print(
            f"{name:20} {ours / 1e6:9.2f} {theirs / 1e6:9.2f} {ours / theirs:6.3f}  "
            f"{everything / 1e6:9.2f}  {why(counts)}"
        )
        found[name] = {"ours": ours, "theirs": theirs, "everything": everything} | {
            "layers": len(counts.ours),
            "apart": len(counts.apart),
            "unexplained": counts.unexplained,
            "others": dict(counts.others),
        }
    return found


def why(counts: MacCounts) -> str:
    """Return why layers and totals differ, in words."""
    unexplained = counts.unexplained
    text = f"{len(counts.apart)} of {len(counts.ours)} more than 1 % apart"
    if counts.apart:
        text += f", {len(counts.apart) - len(unexplained)} by additions of a bias"
    if unexplained:
        text += f", unexplained: {', '.join(unexplained)}"
    most = [f"{kind} {macs / 1e6:.1f}" for kind, macs in counts.others.most_common(3) if macs]
    return f"{text}; theirs counts on top: {', '.join(most) or 'nothing'}"


def compare_costs(names: Iterable[str], jobs: int, *, quick: bool) -> dict[str, Any]:
    """Print energy and cycles of each network by both, and how they respond to widths."""
    accelerator = find(ACCELERATOR)
    assert isinstance(accelerator, Accelerator)
    widths = [WIDTHS[0], WIDTHS[-1]] if quick else WIDTHS
    print(
        f"{accelerator.name}: {rival_zigzag.LOOPS} loops permuted, {rival_zigzag.SPATIAL} ways to "
        f"unroll; both at {rival_zigzag.clock(accelerator) / 1e6:.0f} MHz"
    )
    found = {}
    with ProcessPoolExecutor(jobs) as pool:
        for name in names:
            layers = read_network(build(name)).layers
            times = Counter(Shape.of(layer) for layer in layers)
            distinct = {Shape.of(layer): layer for layer in layers}
            if quick:
                distinct = dict(sorted(distinct.items(), key=_work)[:QUICK_LAYERS])
            shapes = list(distinct)
            asked = [(shape, bits) for shape in shapes for bits in widths]
            start = time.perf_counter()
            theirs = list(pool.map(partial(_price, accelerator), asked))
            print(
                f"{name}: {len(shapes)} distinct shapes of {len(layers)} layers, theirs took "
                f"{time.perf_counter() - start:.0f} s in {jobs} processes"
            )
            errors = Counter(each for each in theirs if isinstance(each, str))
            for error, count in errors.items():
                print(f"    {count} shapes x widths stopped by {error}")
            rows = [theirs[i * len(widths) :][: len(widths)] for i in range(len(shapes))]
            kept = [i for i, row in enumerate(rows) if all(isinstance(p, Priced) for p in row)]
            found[name] = _report(
                accelerator,
                [distinct[shapes[i]] for i in kept],
                np.array([[times[shapes[i]]] for i in kept], np.float64),
                widths,
                [[p for p in rows[i] if isinstance(p, Priced)] for i in kept],
            )
            found[name] |= {"errors": dict(errors), "shapes": [str(shapes[i]) for i in kept]}
    return found


def _work(item: tuple[Shape, Layer]) -> int:
    return item[1].macs


def _price(accelerator: Accelerator, asked: tuple[Shape, BitWidths]) -> Priced | str:
    return rival_zigzag.price(accelerator, *asked)


def _report(
    accelerator: Accelerator,
    layers: Sequence[Layer],
    times: FloatArray,
    widths: Sequence[BitWidths],
    theirs: Sequence[Sequence[Priced]],
) -> dict[str, Any]:
    """Print a row per width; every array is (L, K)."""
    joules, _ = roofline.price(accelerator, layers, widths, Metric.ENERGY)
    seconds, _ = roofline.price(accelerator, layers, widths, Metric.LATENCY)
    assert accelerator.mac_energy is not None
    per_mac, _ = accelerator.mac_energy.read(widths)
    products = np.array([[layer.macs] for layer in layers]) * per_mac

    def of(field: Callable[[Priced], float]) -> FloatArray:
        return np.array([[field(priced) for priced in row] for row in theirs], np.float64)

    rival, rival_products = of(lambda p: p.joules), of(lambda p: p.product_joules)
    both = {
        "energy": (joules, rival),
        "cycles": (seconds * rival_zigzag.clock(accelerator), of(lambda p: p.cycles)),
        "energy of products": (products, rival_products),
        "energy of moving": (joules - products, rival - rival_products),
    }
    found: dict[str, Any] = {}
    print(f"    {'':7} {'rank':^15}  {'ours / theirs':^15}  at width / at w8a8: ours, theirs")
    print(
        "    width   energy  cycles   energy  cycles  " + "  ".join(f"{what:16}" for what in both)
    )
    for column, bits in enumerate(widths):
        ranks, ratios, responses, alone = {}, {}, {}, {}
        for what, (ours, other) in both.items():
            ranks[what] = float(spearmanr(ours[:, column], other[:, column]).statistic)
            totals = [(each * times).sum(axis=0) for each in (ours, other)]
            ratios[what] = float(totals[0][column] / totals[1][column])
            responses[what] = [float(total[column] / total[0]) for total in totals]
            alone[what] = _respond_alone(
                ours[:, column] / ours[:, 0], other[:, column] / other[:, 0]
            )
        pairs = "  ".join(f"{f'{a:5.3f}, {b:5.3f}':16}" for a, b in responses.values())
        print(
            f"    {bits!s:7} {ranks['energy']:6.3f}  {ranks['cycles']:6.3f}   "
            f"{ratios['energy']:6.2f}  {ratios['cycles']:6.2f}  {pairs}"
        )
        found[str(bits)] = {"rank": ranks, "ratio": ratios, "response": responses, "alone": alone}
    for what in both:
        for side, who in enumerate(("ours", "theirs")):
            counts = {bits: row["alone"][what][side] for bits, row in found.items()}
            if any(counts.values()):
                said = ", ".join(f"{count} at {bits}" for bits, count in counts.items() if count)
                print(f"    {what}, of {len(layers)} shapes {who} alone responds in: {said}")
    return {"widths": found}


def _respond_alone(ours: FloatArray, theirs: FloatArray) -> list[int]:
    """Return in how many of L layers ours responds and theirs does not, and the other way."""
    moves = [np.abs(each - 1) > IGNORES for each in (ours, theirs)]
    return [int((moves[0] & ~moves[1]).sum()), int((moves[1] & ~moves[0]).sum())]


if __name__ == "__main__":
    sys.exit(main())
