"""Fashion-MNIST: its images and split, augmentation, and the networks that benchmarks use."""

import gzip
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from benchmarks import proxies, qat
from benchmarks.contest.tasks import fashion
from benchmarks.fashion import data, tasks
from benchmarks.fashion.data import FashionImages, fashion_folder, flip_and_shift, load_fashion
from benchmarks.fashion.networks import NETWORKS, example, load_network, model_path
from benchmarks.train_fashion import accuracy
from quantization.errors import DataError
from quantization.quantizer import Float32Array
from quantization.reading import read_network
from quantization.torch_export import export_module
from tests.scripts import run_script


@pytest.fixture(scope="module")
def images() -> FashionImages:
    try:
        return load_fashion()
    except DataError as error:
        pytest.skip(str(error))


def test_the_split_has_the_stated_sizes_and_its_parts_share_no_position(
    images: FashionImages,
) -> None:
    parts = (images.train, images.search, images.held_out, images.test)
    assert [len(labels) for _, labels in parts] == [55_000, 2_000, 3_000, 10_000]
    for pixels, labels in parts:
        assert pixels.shape == (len(labels), 1, 28, 28)
        assert (pixels.dtype, labels.dtype) == (np.float32, np.int64)
    per_class = sum(np.bincount(labels, minlength=10) for _, labels in parts[:3])
    assert per_class.tolist() == [6_000] * 10  # each of the 60,000 images occurs once


def test_training_images_are_standardised(images: FashionImages) -> None:
    pixels = images.train[0]
    assert abs(float(pixels.mean())) < 0.01
    assert abs(float(pixels.std()) - 1) < 0.01


def test_another_seed_splits_otherwise(images: FashionImages) -> None:
    other = load_fashion(seed=1)
    assert not np.array_equal(images.search[1], other.search[1])
    np.testing.assert_array_equal(images.test[1], other.test[1])


def test_without_the_package_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist"):
        fashion_folder()
    with pytest.raises(DataError, match="elsewhere"):
        fashion_folder(tmp_path / "elsewhere")  # an argument goes before the variable


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"\0\0\x08\x01\0\0\0\x02\0")])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is damaged"):
        load_fashion(tmp_path)


def test_every_benchmark_takes_the_same_images_for_ranges_search_and_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "resnet"
    draw = np.random.default_rng(0)

    def made_up(count: int) -> tuple[Float32Array, np.ndarray]:
        return draw.random((count, 1, 28, 28), np.float32), draw.integers(0, 10, count)

    images = FashionImages(made_up(2000), made_up(12), made_up(13), made_up(14))
    monkeypatch.setattr(tasks, "load_fashion", lambda: images)
    subject, contest, compared = qat.fashion(name), fashion(name).bench, proxies.load(name)
    ranges = subject.train.drawn(512, 0)  # as `qat.run` draws them at its default seed
    for part, expected in (
        ("ranges", (ranges.images, ranges.labels)),
        ("search", images.search),
        ("test", images.test),
    ):
        other = getattr(compared, "held_out" if part == "test" else part)
        for found in (contest.part(part), other):
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(subject.test.images, images.test[0])
    digests = [n.weights_digest for n in (subject.network, contest.network, compared.network)]
    assert len(set(digests)) == 1


def test_flips_and_shifts_move_a_pixel_by_two_at_most_and_mirror_half() -> None:
    pixels = torch.full((400, 1, 28, 28), -data.MEAN / data.DEVIATION)
    pixels[:, :, 10, 5] = 3.0
    moved = flip_and_shift(pixels, torch.Generator().manual_seed(0))
    count, _, rows, columns = (moved == 3.0).nonzero().T
    assert count.tolist() == list(range(400))
    assert set((rows - 10).tolist()) == {-2, -1, 0, 1, 2}
    mirrored = columns > 13
    assert set((columns[mirrored] - 22).tolist()) == {-2, -1, 0, 1, 2}
    assert set((columns[~mirrored] - 5).tolist()) == {-2, -1, 0, 1, 2}
    assert 150 < int(mirrored.sum()) < 250
    assert set(moved.unique().tolist()) == set(pixels.unique().tolist())


@pytest.mark.parametrize(
    ("name", "layers", "weights"), [("mobilenet", 18, 34_256), ("resnet", 16, 0)]
)
def test_the_networks_have_the_stated_layers_named_by_their_modules(
    name: str, layers: int, weights: int
) -> None:
    module = NETWORKS[name]()
    network = read_network(export_module(module, example()))
    assert len(network.layers) == layers
    assert set(network.layer_names) <= {path for path, _ in module.named_modules()}
    if weights:
        assert sum(layer.weight_count for layer in network.layers) == weights


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_torch_module_is_rebuilt_from_the_shipped_file(name: str) -> None:
    module = load_network(name)
    few = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(model_path(name), providers=["CPUExecutionProvider"])
    found = [session.run(["logits"], {"x": one[None].numpy()})[0] for one in few]
    with torch.inference_mode():
        np.testing.assert_allclose(np.concatenate(found), module(few).numpy(), atol=1e-4)
    assert model_path(name).stat().st_size < 1_000_000


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_shipped_networks_read_91_percent_of_unseen_images(
    images: FashionImages, name: str
) -> None:
    pixels, labels = images.held_out
    assert accuracy(load_network(name), pixels, labels) >= 0.91


def test_what_was_trained_channels_last_exports_for_any_batch() -> None:
    """Its views would be exported as an index into the one batch of the example."""
    module = NETWORKS["mobilenet"]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    operators = {node.op_type for node in export_module(module, example()).graph.node}
    assert not operators & {"Gather", "Transpose"}
    assert module.stem.weight.is_contiguous(memory_format=torch.channels_last)  # left as it was


def test_a_quick_training_run_prints_accuracies_and_exports(
    images: FashionImages, tmp_path: Path
) -> None:
    path = tmp_path / "quick.onnx"
    arguments = "mobilenet", "--quick", "--output", str(path)
    printed = run_script("benchmarks/train_fashion.py", *arguments)
    assert re.search(r"test accuracy: [\d.]+ %", printed), printed
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert operators.count("BatchNormalization") == 17
