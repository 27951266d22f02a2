"""The Fashion-MNIST tasks, for ``--task benchmarks.fashion.tasks:mobilenet`` and ``:resnet``.

Every benchmark takes its networks and images from here, so that their figures can be compared.
"""

from benchmarks.fashion.data import flip_and_shift, load_fashion
from benchmarks.fashion.networks import load_network
from quantization.task import Examples, Task
from quantmeter.tasks import open_task
from quantmeter.workbench import Workbench


def mobilenet() -> Task:
    """Return the MobileNetV2-style network with its images."""
    return fashion_task("mobilenet")


def resnet() -> Task:
    """Return ResNet-14 with its images."""
    return fashion_task("resnet")


def fashion_task(name: str) -> Task:
    """Return a network of `benchmarks.fashion.networks` with its images.

    Trained on 55,000 and searched on 2,000; the 3,000 held out are left alone, and the test images
    are the 10,000 of the publication.

    Raises:
        DataError: if the images are not installed.
    """
    images = load_fashion()
    parts = (images.train, images.search, images.test)
    train, search, test = (Examples(*part) for part in parts)
    return Task(load_network(name), train, search, test, flip_and_shift, f"fashion-{name}")


def fashion_bench(name: str) -> Workbench:
    """Return `fashion_task` as a workbench; its ranges come from 512 of the training images.

    Raises:
        DataError: if the images are not installed.
    """
    return open_task(fashion_task(name))
