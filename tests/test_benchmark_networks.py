"""The architectures that benchmarks build are the published ones, alive, and deployable."""

import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks
from hil.audit import audit
from hil.ort import Runner, one_feed, random_inputs
from quantization.export import Exporter
from quantization.network import Network
from quantization.ranges import collect_ranges
from quantization.reading import read_network
from tests.networks import random_policy, uniform

ROOT = Path(__file__).parents[1]

PUBLISHED = {
    "deit_tiny": (5_717_416, 1.26e9),
    "densenet121": (7_978_856, 2.834e9),
    "efficientnet_b0": (5_288_548, 386e6),
    "mixer_s32": (19_104_624, 1.00e9),
    "mnasnet_b1": (4_383_312, 314e6),
    "mobilenet_v1": (4_231_976, 569e6),
    "mobilenet_v2": (3_504_872, 301e6),
    "mobilenet_v3_small": (2_542_856, 56e6),
    "resnet18": (11_689_512, 1.814e9),
    "resnet50": (25_557_032, 4.089e9),
    "shufflenet_v2": (2_278_604, 145e6),
    "squeezenet1_1": (1_235_496, 349e6),
    "vgg11": (132_863_336, 7.609e9),
}
"""Parameters, and multiply-accumulates for an image of 224x224.

Parameters are weights, biases, and scales and shifts of batch-norms, without running statistics.
Multiply-accumulates are those of convolutions and matrix products, without biases. Both from the
metadata of torchvision's weights (`num_params`; `_ops`, in 10^9), which agree with the rounder
figures of the papers: 5.3 M and 0.39 G (Tan & Le, table 2), 3.4 M and 300 M (Sandler et al.,
table 4), 2.5 M and 56 M (Howard et al., table 3), 1.8 G (He et al., table 1), 1.24 M (authors'
SqueezeNet repository). MobileNetV3-Small's second figure is the paper's own: torchvision's 0.057 G
has too few digits for a tolerance of 1 %.

torchvision lacks three. MobileNetV1: 4.2 M and 569 M (Howard et al., 2017, table 8). DeiT-Tiny:
5.72 M and 1.26 G; Mixer-S/32: 19.10 M and 1.00 G (both timm, table of inference benchmarks). Their
exact numbers of parameters are sums by hand that round to these.
"""

EXPORTED = ("efficientnet_b0", "mobilenet_v2", "mobilenet_v3_small", "resnet18", "squeezenet1_1")
"""Those that benchmarks use.

An export takes seconds, so the others were put through the tests that need one when they were
added, and are only counted here; ``EXPORTED = tuple(PUBLISHED)`` repeats it.
"""

UNBIASED = {"densenet121": 58 + 3}
"""Layers that have no bias by design: no batch-norm stands behind them, but before the next."""


@dataclass(frozen=True, eq=False)
class Built:
    """A network as benchmarks use it, and its exporter on random images."""

    name: str
    network: Network
    images: np.ndarray[Any, np.dtype[np.float32]]
    exporter: Exporter

    @cached_property
    def activations(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Every tensor of the float network, on an image that no statistics were taken from."""
        model = onnx.ModelProto()
        model.CopyFrom(self.network.model)
        names = [tensor.name for tensor in self.network.tensors if tensor.producer is not None]
        del model.graph.output[:]
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
        )
        feed = one_feed(self.network, random_inputs(self.network, 1, seed=5))
        return dict(zip(names, Runner(model.SerializeToString(), 1, feed)(), strict=True))


@pytest.fixture(scope="module", params=EXPORTED)
def built(request: pytest.FixtureRequest) -> Built:
    name = request.param
    shared = name == "mobilenet_v2"  # other tests build it too
    model = request.getfixturevalue("mobilenet_model") if shared else networks.build(name)
    network = read_network(model)
    images = random_inputs(network, 2)
    return Built(name, network, images, Exporter(network, collect_ranges(network, images)))


def test_every_network_has_published_figures_to_meet() -> None:
    assert PUBLISHED.keys() == networks.NETWORKS.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_network_has_exactly_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):  # counts need no values
        module = networks.NETWORKS[name]()
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_network_has_the_published_number_of_multiply_accumulates(name: str) -> None:
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        networks.NETWORKS[name]().eval()(torch.empty(1, 3, networks.SIZE, networks.SIZE))
    macs = counter.get_total_flops() // 2
    assert macs == pytest.approx(PUBLISHED[name][1], rel=0.01)


def test_the_reader_knows_every_operator_and_counts_as_torch_does(built: Built) -> None:
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        networks.NETWORKS[built.name]().eval()(torch.empty(1, 3, networks.SIZE, networks.SIZE))
    assert 2 * built.network.macs == counter.get_total_flops()
    assert built.network.coverage.unknown == ()


def test_no_two_biases_of_a_layer_are_equal_and_none_is_zero(built: Built) -> None:
    graph = built.network.model.graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    adding = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "Add")]
    constants = [arrays[name] for node in adding for name in node.input if name in arrays]
    biases = [constant for constant in constants if constant.ndim == 1]
    assert len(biases) >= sum(layer.has_weights for layer in built.network.layers)
    given = [bias for bias in biases if bias.any()]
    assert len(biases) - len(given) == UNBIASED.get(built.name, 0)
    for bias in given:
        assert len(np.unique(bias)) == len(bias)
        assert np.abs(bias).min() > 0


def test_all_activations_are_alive_and_of_ordinary_size(built: Built) -> None:
    products = {glue.outputs[0] for glue in built.network.glue if glue.kind == "Mul"}
    shares = {glue.outputs[0] for glue in built.network.glue if glue.kind == "Softmax"}
    for name, value in built.activations.items():
        assert np.isfinite(value).all(), name
        usual = value.mean() if name in shares else 1  # shares of many tokens are small
        assert 0.02 < value.std() / usual < 10, name
        assert np.abs(value).max() < 50, name
        assert not ((value != 0) & (np.abs(value) < np.finfo(np.float32).tiny)).any(), name
        # A gate may shut a channel; the test below sees to it that few do.
        if value.ndim == 4 and value.shape[2] > 1 and name not in products:
            assert (np.ptp(value, axis=(2, 3)) > 0).all(), f"{name} has dead channels"


def test_gates_of_squeeze_excite_are_neither_all_open_nor_all_shut(built: Built) -> None:
    kinds = ("Sigmoid", "HardSigmoid")
    makers = [glue.outputs[0] for glue in built.network.glue if glue.kind in kinds]
    pooled = [name for name in makers if built.activations[name].shape[2:] == (1, 1)]
    # EfficientNet has two in each block: its activation holds a gate, too.
    assert len(pooled) == {"efficientnet_b0": 2 * 16, "mobilenet_v3_small": 9}.get(built.name, 0)
    for name in pooled:
        value = built.activations[name]
        assert ((value > 0.05) & (value < 0.95)).mean() > 0.9, name
        assert value.std() > 0.02, name


@pytest.mark.parametrize("kind", ["float", "int8", "mixed"])
def test_the_network_is_deployed_as_asked(built: Built, kind: str) -> None:
    network = built.network
    exact = uniform(network, "w32a32")
    policies = {
        "float": exact,
        "int8": uniform(network, "w8a8"),
        "mixed": random_policy(network, seed=0),
    }
    policy, feed = policies[kind], one_feed(network, built.images)
    model = built.exporter.build(policy)
    audit(network, policy, model, built.exporter.size_bytes(policy)).require()
    [found] = Runner(model, 1, feed)()
    assert found.shape == (1, 1000)
    assert np.isfinite(found).all()
    assert found.std() > 0.02
    if kind == "int8":
        [expected] = Runner(built.exporter.build(exact), 1, feed)()
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.8


def test_the_script_names_its_networks_if_asked_for_another() -> None:
    """As a script it must find its own modules; what it writes comes from `build`."""
    command = [sys.executable, "benchmarks/networks.py", "resnet19"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no network 'resnet19'; there are deit_tiny, densenet121" in done.stderr
