"""The Fashion-MNIST tasks, for ``--task benchmarks.fashion.tasks:mobilenet`` and ``:resnet``."""

from benchmarks.fashion.data import flip_and_shift, load_fashion
from benchmarks.fashion.networks import load_network
from quantization.task import Examples, Task


def mobilenet() -> Task:
    """Return the MobileNetV2-style network with its images."""
    return _task("mobilenet")


def resnet() -> Task:
    """Return ResNet-14 with its images."""
    return _task("resnet")


def _task(name: str) -> Task:
    images = load_fashion()
    parts = (images.train, images.search, images.test)
    train, search, test = (Examples(*part) for part in parts)
    return Task(load_network(name), train, search, test, flip_and_shift, f"fashion-{name}")
