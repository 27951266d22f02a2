"""Published model sizes, each in the unit that it fits, and multiply-accumulates of layers."""

import pytest
import torch

from benchmarks.networks import NETWORKS
from benchmarks.query import mobilenet_v2
from costmodels.registry import backend
from costmodels.units import Metric
from quantization.bits import parse_choices
from quantization.reading import read_network
from quantization.torch_export import export_module
from tests.test_benchmark_networks import EXPORTED, PUBLISHED

COUNTED = ("mixer_s32", "mnasnet_b1", "mobilenet_v1", "resnet50", "shufflenet_v2")
"""With the five that `tests/test_benchmark_networks.py` reads, these are ten networks."""
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


@pytest.mark.parametrize("name", COUNTED)
def test_the_layers_have_the_published_number_of_multiply_accumulates(name: str) -> None:
    """Their sources stand beside `PUBLISHED`."""
    module = NETWORKS[name]().eval()
    network = read_network(export_module(module, torch.zeros(1, 3, 224, 224)))
    assert network.coverage.unknown_macs == 0
    assert network.macs == pytest.approx(PUBLISHED[name][1], rel=0.01)


def test_ten_networks_are_counted() -> None:
    assert len({*COUNTED, *EXPORTED}) == 10
