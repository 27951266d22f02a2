"""Random networks: the same for every seed, possible, and where published networks are."""

import hashlib

import numpy as np
import pytest

from hil import probes
from quantization.network import Network
from tests.hil.device_world import drawn

SEEDS = range(24)


@pytest.fixture(scope="module")
def pieces() -> list[Network]:
    return [drawn(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def wholes() -> list[Network]:
    return [drawn(seed, whole=True) for seed in SEEDS]


def test_a_seed_gives_the_same_network_for_ever() -> None:
    """If this fails, raise `probes.REVISION`: stored measurements are of the former networks."""
    told = hashlib.sha256()
    for seed in range(12):
        for whole in (False, True):
            told.update(drawn(seed, whole=whole).digest.encode())
    assert probes.REVISION == 3
    assert told.hexdigest()[:16] == "964392cd19ec85d0"


def test_seeds_and_both_sorts_give_different_networks(
    pieces: list[Network], wholes: list[Network]
) -> None:
    assert len({network.digest for network in (*pieces, *wholes)}) == 2 * len(SEEDS)


@pytest.mark.parametrize(("seed", "whole"), [(1194, False), (2396, True)])
def test_a_block_whose_halves_would_be_too_large_becomes_another(seed: int, whole: bool) -> None:
    """Seeds whose halves of a shuffle block were narrowed until a division by zero."""
    assert drawn(seed, whole=whole).macs > 0


def test_every_operator_of_a_probe_is_known(pieces: list[Network], wholes: list[Network]) -> None:
    for network in (*pieces, *wholes):
        assert network.coverage.unknown == ()
        assert network.coverage.unknown_macs == 0


def test_no_layer_is_larger_than_those_of_published_networks(
    pieces: list[Network], wholes: list[Network]
) -> None:
    for network in wholes:
        convolutions = [layer for layer in network.layers if layer.kind == "Conv"]
        assert max((layer.macs for layer in convolutions), default=0) <= 3.3e8
    for network in pieces:
        assert max(layer.macs for layer in network.layers) <= 2e9


def test_a_whole_network_goes_from_an_image_to_classes(wholes: list[Network]) -> None:
    for network in wholes:
        (image,) = (network.tensor_by_name[name] for name in network.input_names)
        (classes,) = (network.tensor_by_name[name] for name in network.output_names)
        assert image.shape[1] == 3
        assert classes.shape[0] == 1
        assert classes.shape[1] in (10, 100, 1000)


def test_probes_hold_the_kinds_of_layers_and_glue_that_networks_are_made_of() -> None:
    networks = [drawn(seed, whole=seed % 2 == 0) for seed in range(60)]
    kinds = {node.kind for network in networks for node in network.execution_order}
    assert kinds >= {"Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "MaxPool", "AveragePool"}
    assert kinds >= {"Clip", "Relu", "HardSwish", "Sigmoid", "Gelu", "Softmax", "Split"}
    assert kinds >= {"BatchNormalization", "LayerNormalization", "GlobalAveragePool", "Transpose"}
    layers = [layer for network in networks for layer in network.layers]
    assert any(layer.is_depthwise for layer in layers)
    assert any(1 < layer.groups < layer.in_channels for layer in layers)
    assert any(not layer.has_weights for layer in layers)


def test_weights_are_of_ordinary_size(pieces: list[Network]) -> None:
    for network in pieces[:4]:
        weights = [t for t in network.model.graph.initializer if len(t.dims) == 4]
        for tensor in weights:
            values = np.frombuffer(tensor.raw_data, np.float32)
            assert np.isfinite(values).all()
            assert 0 < values.std() < 2
