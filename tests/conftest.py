"""Networks and images that many tests share; each is made once per session."""

import signal
from collections.abc import Iterator

import onnx
import onnxruntime
import pytest
import torch

from quantization.reading import read_network
from tests import networks
from tests.networks import Subject

torch.set_num_threads(1)
onnxruntime.set_default_logger_severity(4)


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees, or adds to, what this machine's user has measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUANTMETER_STORE", str(tmp_path_factory.mktemp("store") / "own.sqlite"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _denormals_count() -> None:
    """The first session of a process decides for its main thread; hypothesis needs denormals."""
    kind = onnx.TensorProto.FLOAT
    x, y = (onnx.helper.make_tensor_value_info(name, kind, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 21)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_counts() -> Iterator[None]:
    """A shell's background jobs, and all that they start, would ignore it; some tests send it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def small() -> Subject:
    """A small MobileNetV2-like network."""
    return networks.subject(networks.small_mobilenet(), 200)


@pytest.fixture(scope="session")
def branching() -> Subject:
    """A small network with every integer glue operator."""
    return networks.subject(networks.branching(), 200)


@pytest.fixture(scope="session")
def attention() -> Subject:
    """A small network with an attention head."""
    return networks.subject(networks.attention(), 200)


@pytest.fixture(scope="session")
def digits() -> Subject:
    """The shipped network of the reference task with 400 of its unseen images."""
    from quantmeter.reference_task import SHIPPED_MODEL, load_digits_task

    task = load_digits_task()
    network = read_network(SHIPPED_MODEL)
    unseen = task.unseen_images[:400], task.unseen_labels[:400]
    return Subject(network, task.train_images[:256], *unseen)


@pytest.fixture(scope="session")
def mobilenet_model() -> onnx.ModelProto:
    """MobileNetV2 for 224x224 images, with random weights."""
    from benchmarks.networks import build

    return build("mobilenet_v2")


@pytest.fixture(scope="session")
def mobilenet(mobilenet_model: onnx.ModelProto) -> Subject:
    """MobileNetV2 at 224x224 with four images to calibrate and four to compare on."""
    made = networks.subject(read_network(mobilenet_model), 4)
    return Subject(made.network, made.calibration[:4], made.images)
