"""Model sizes as texts print them, each in the unit that it fits."""

import pytest
import torch

from benchmarks.networks import NETWORKS
from benchmarks.query import mobilenet_v2
from costmodels.registry import backend
from costmodels.units import Metric
from quantization.bits import parse_choices

MIB, MB = 2**20, 10**6

SIZES = [
    ("resnet50", 32, 97.5, MIB, 1),
    ("resnet50", 8, 24.4, MIB, 1),
    ("resnet50", 6, 18.3, MIB, 1),
    ("mobilenet_v2", 32, 14, MB, 0),
]
"""Network, bits of each parameter, figure, its unit in bytes, digits behind the point.

The text (Quantization Part 8, HAQ Results on ImageNet) prints "MB" for all. Those of ResNet-50 are
MiB: 25.56 M parameters in float are 102.2 MB. That of MobileNetV2 is MB: 3.50 M are 14.0 MB, and
13.4 MiB. Every parameter counts, scales and shifts of batch-norms too.
"""


@pytest.mark.parametrize(("name", "bits", "figure", "unit", "digits"), SIZES)
def test_the_sizes_that_the_text_prints(
    name: str, bits: int, figure: float, unit: int, digits: int
) -> None:
    with torch.device("meta"):  # counts need no values
        module = NETWORKS[name]()
    size = sum(parameter.numel() for parameter in module.parameters()) * bits / 8
    assert round(size / unit, digits) == figure
    other = MB if unit == MIB else MIB
    assert round(size / other, digits) != figure, "the other unit does not fit"


def test_weights_alone_are_one_per_cent_less() -> None:
    """The formula counts weights: biases, scales and shifts are left out."""
    network = mobilenet_v2()
    table = backend("analytical:haq").table(network, parse_choices("w8a8,w32a32"), Metric.SIZE)
    eight, single = table.unary.value.sum(0)
    assert single == 4 * eight
    assert single / MB == pytest.approx(14, rel=0.01)
    assert single < 14 * MB
