"""The reference task: its images, its shipped network, its training and its export."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.train_digits import DigitsNetwork, train
from benchmarks.training import predict
from quantization.errors import DataError
from quantization.torch_export import export_module
from quantmeter.reference_task import (
    IMAGE_SIZE,
    SHIPPED_MODEL,
    TRAIN_COUNT,
    DigitsTask,
    bilinear_matrix,
    load_digits_task,
)


@pytest.fixture(scope="module")
def task() -> DigitsTask:
    return load_digits_task()


@pytest.fixture(scope="module")
def shipped() -> onnx.ModelProto:
    return onnx.load(SHIPPED_MODEL)


def _read(path: Path, images: NDArray[np.float32]) -> NDArray[np.int64]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"x": image[None]})[0] for image in images]
    return np.asarray(np.concatenate(logits).argmax(1), dtype=np.int64)


def test_images_are_single_precision_and_within_the_intensity_range(task: DigitsTask) -> None:
    assert task.train_images.shape == (TRAIN_COUNT, 1, IMAGE_SIZE, IMAGE_SIZE)
    assert task.unseen_images.shape == (897, 1, IMAGE_SIZE, IMAGE_SIZE)
    for images in (task.train_images, task.unseen_images):
        assert images.dtype == np.float32
        assert images.min() >= 0.0
        assert images.max() <= 1.0
    assert task.unseen_labels.dtype == np.int64


def test_no_unseen_image_is_a_training_image(task: DigitsTask) -> None:
    training = {image.tobytes() for image in task.train_images}
    unseen = {image.tobytes() for image in task.unseen_images}
    assert not training & unseen
    assert len(training) + len(unseen) == 1797


def test_the_split_holds_the_same_share_of_every_digit(task: DigitsTask) -> None:
    training = np.bincount(task.train_labels, minlength=10) / len(task.train_labels)
    unseen = np.bincount(task.unseen_labels, minlength=10) / len(task.unseen_labels)
    np.testing.assert_allclose(training, unseen, atol=0.002)


def test_the_same_seed_rebuilds_the_same_task_and_another_does_not(task: DigitsTask) -> None:
    again, other = load_digits_task(), load_digits_task(seed=1)
    np.testing.assert_array_equal(task.train_images, again.train_images)
    np.testing.assert_array_equal(task.unseen_labels, again.unseen_labels)
    assert not np.array_equal(task.unseen_labels, other.unseen_labels)


def test_a_task_whose_labels_do_not_fit_its_images_is_refused(task: DigitsTask) -> None:
    with pytest.raises(ValueError, match="896 labels"):
        DigitsTask(task.train_images, task.train_labels, task.unseen_images, task.unseen_labels[1:])


def test_enlarging_keeps_a_constant_image_constant() -> None:
    matrix = bilinear_matrix(8, IMAGE_SIZE)
    np.testing.assert_allclose(matrix @ np.full((8, 8), 0.3) @ matrix.T, 0.3)


def test_the_shipped_model_has_21_layers_and_about_200_000_parameters(
    shipped: onnx.ModelProto,
) -> None:
    operators = Counter(node.op_type for node in shipped.graph.node)
    assert operators["Conv"] + operators["Gemm"] == 21
    assert operators["BatchNormalization"] == operators["Conv"] == 20
    assert operators["Add"] == 3
    sizes = {
        constant.name: numpy_helper.to_array(constant).size
        for constant in shipped.graph.initializer
        if constant.name.endswith((".weight", ".bias"))
    }
    network = DigitsNetwork()
    assert sum(sizes.values()) == sum(weight.numel() for weight in network.parameters())
    assert sum(sizes.values()) == 210_794


def test_every_node_with_a_weight_is_named_by_its_module_and_shares_nothing(
    shipped: onnx.ModelProto,
) -> None:
    modules = dict(DigitsNetwork().named_modules())
    constants = {constant.name for constant in shipped.graph.initializer}
    weighted = [
        n for n in shipped.graph.node if n.op_type in ("Conv", "Gemm", "BatchNormalization")
    ]
    for node in weighted:
        assert node.name in modules
        assert node.input[1] == f"{node.name}.weight"
    read = [name for node in shipped.graph.node for name in node.input if name in constants]
    assert len(read) == len(set(read)) == len(constants)


def test_the_shipped_model_takes_one_image_at_opset_21(shipped: onnx.ModelProto) -> None:
    (image,) = shipped.graph.input
    assert image.name == "x"
    assert [size.dim_value for size in image.type.tensor_type.shape.dim] == [1, 1, 32, 32]
    assert shipped.opset_import[0].version == 21


def test_the_shipped_model_reads_97_percent_of_the_unseen_images(task: DigitsTask) -> None:
    right = _read(SHIPPED_MODEL, task.unseen_images) == task.unseen_labels
    assert right.mean() >= 0.97


def test_a_quick_training_run_lowers_the_loss_repeatably_and_exports(
    task: DigitsTask, tmp_path: Path
) -> None:
    images, labels = task.train_images[:64], task.train_labels[:64]
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        network = DigitsNetwork()
        seen: list[int] = []
        runs.append(
            train(
                network,
                images,
                labels,
                epochs=4,
                batch=32,
                on_epoch=lambda epoch, _, seen=seen: seen.append(epoch),  # type: ignore[misc]
            )
        )
        assert seen == [1, 2, 3, 4]
    losses, again = runs
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, again, rtol=1e-4)
    assert not network.training

    path = tmp_path / "digits.onnx"
    export_module(network, torch.rand(1, 1, IMAGE_SIZE, IMAGE_SIZE), path)
    np.testing.assert_array_equal(predict(network, images), _read(path, images))


def test_without_scikit_learn_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match="pip install"):
        load_digits_task()
