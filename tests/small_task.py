"""For ``--task tests.small_task:digits``: a small network on scikit-learn's digits."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from quantization.task import Examples, Task


@cache
def digits() -> Task:
    """Return a network that learned from 200 of the images; 100 are searched on, 200 are for tests.

    It is trained here, in a second, and the same each time.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().reshape(-1, 1, 8, 8) / 16
    classes = torch.from_numpy(labels).long()
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images[:200]), classes[:200])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    parts = [
        Examples.of((images[where], classes[where]))
        for where in (slice(0, 200), slice(200, 300), slice(300, 500))
    ]
    return Task(network.eval(), *parts, name="digits")
