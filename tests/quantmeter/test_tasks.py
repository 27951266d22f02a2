"""``--task module:function``: a torch module and images of the user's own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from quantization.bits import BitWidths
from quantization.errors import DataError, ModelError, QuantmeterError
from quantization.policy import Policy
from quantization.reading import read_network
from quantmeter.cli import main
from quantmeter.tasks import CALIBRATION, load_task, open_task

SOURCE = """
import torch
from torch import nn
from quantization.task import Examples, Task

def tiny():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 1, 6, 6, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long()
    parts = [Examples.of((images[i::3], labels[i::3])) for i in range(3)]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                           nn.Linear(64, 2))
    return Task(module, *parts, name="tiny")

def no_task():
    return 7

def fails():
    raise KeyError("images")

def asks(path):
    return path

class Decides(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))

def decides():
    task = tiny()
    return Task(Decides(), task.train, task.search, task.test)
"""


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_task.py").write_text(SOURCE)
    (tmp_path / "my_broken_task.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("my_task", "my_broken_task"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("_here")
def test_a_task_becomes_a_workbench_whose_layers_are_its_modules() -> None:
    before = list(sys.path)
    task = load_task("my_task:tiny")
    assert sys.path == before
    bench = open_task(task)
    assert bench.network.layer_names == ("0", "4")
    for name, examples in (("search", task.search), ("test", task.test)):
        images, labels = bench.part(name)
        np.testing.assert_array_equal(images, examples.images)
        np.testing.assert_array_equal(labels, examples.labels)
    drawn = {image.tobytes() for image in bench.part("ranges")[0]}
    assert drawn == {image.tobytes() for image in task.train.images}  # fewer than CALIBRATION
    assert len(task.train) < CALIBRATION
    policy = Policy.uniform(bench.network, BitWidths.parse("w4a8"))
    assert bench.export(policy)


@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    ("name", "error", "reason"),
    [
        ("my_task", QuantmeterError, "write module:function"),
        (":tiny", QuantmeterError, "write module:function"),
        ("my_tusk:tiny", QuantmeterError, "no module 'my_tusk'"),
        ("my_task.deeper:tiny", QuantmeterError, "no module 'my_task.deeper'"),
        ("my_task:tini", QuantmeterError, "did you mean 'tiny'"),
        ("my_task:no_task", DataError, "returned int"),
        ("my_task:fails", DataError, r"KeyError: 'images' \(my_task.py, line 2\d\)"),
        ("my_task:asks", DataError, "TypeError: .*called without arguments"),
    ],
)
def test_what_is_no_task_is_told_in_one_line(
    name: str, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        load_task(name)


@pytest.mark.usefixtures("_here")
def test_what_the_tasks_own_module_lacks_is_not_hidden() -> None:
    with pytest.raises(DataError, match=r"my_broken_task cannot .*'a_module_that_nobody_has'"):
        load_task("my_broken_task:tiny")


@pytest.mark.usefixtures("_here")
def test_what_torch_cannot_export_is_one_line() -> None:
    with pytest.raises(ModelError, match="torch cannot export the task's module: ") as caught:
        open_task(load_task("my_task:decides"))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_here")
def test_search_takes_a_task_instead_of_model_and_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "--cost latency=analytical:haq --method exact --budget size=2kB --no-store --out RUN"
    assert main(["search", "--task", "my_task:tiny", *line.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["best"]["policy"]["layers"]) == {"0", "4"}
    assert len(found["split"]["search"]) == 20
    assert read_network(tmp_path / "RUN/model.onnx").digest == found["network"]
    for wrong, message in (
        (["--task", "my_task:tiny", "MODEL.onnx"], "leave out MODEL.onnx and --data"),
        ([], "MODEL.onnx is missing: give it right behind"),
        (["MODEL.onnx"], "images are missing: give --data DATA.npz"),
        (["--task", "my_task:no_task"], "returned int"),
    ):
        assert main(["search", *wrong, *line.split()]) == 2
        assert message in capsys.readouterr().err
