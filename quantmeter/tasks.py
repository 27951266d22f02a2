"""Tasks of one's own: a function that returns a torch module and its images."""

import importlib
import sys
import traceback
from pathlib import Path

import numpy as np

from quantization.errors import DataError, ModelError, QuantmeterError, did_you_mean
from quantization.range_choices import RangeChoices
from quantization.ranges import RangeMethod
from quantization.task import Task
from quantmeter.data import Data, Split
from quantmeter.workbench import Workbench, check_fit

CALIBRATION = 512
"""Training images that ranges and statistics corrections come from."""
_LONGEST = 200


def load_task(name: str) -> Task:
    """Call the function that `name` stands for, and return the task that it makes.

    Args:
        name: ``module:function``; modules are also looked for in the current folder. The function
            takes no argument and returns a `Task`.

    Raises:
        QuantmeterError: if `name` is not of that form, or there is no such module or function.
        DataError: if the function raises, or returns something else.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise QuantmeterError(f"{name!r} names no task; write module:function")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # anything: it is the user's code
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise QuantmeterError(
                f"no module {module_name!r} here ({here}) or among those installed"
            ) from None
        raise DataError(
            f"module {module_name} cannot be imported: {type(error).__name__}: {_one_line(error)}"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        close = did_you_mean(function_name, known)
        raise QuantmeterError(f"{module_name} has no function {function_name!r}{close}")
    try:
        task = function()
    except QuantmeterError:
        raise
    except Exception as error:  # anything: it is the user's code
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"{name} raised {type(error).__name__}: {_one_line(error)} "
            f"({Path(last.filename).name}, line {last.lineno}); it is called without "
            "arguments and returns a Task"
        ) from error
    if not isinstance(task, Task):
        raise DataError(f"{name} returned {type(task).__name__}; return a quantization.task.Task")
    return task


def _one_line(error: Exception) -> str:
    """The first line of what an error says, cut where it becomes long."""
    lines = str(error).strip().splitlines()
    return lines[0][:_LONGEST] if lines else "no words"


def open_task(
    task: Task, *, seed: int = 0, ranges: RangeMethod | RangeChoices = "minmax"
) -> Workbench:
    """Export a task's module and return the workbench of it and its images.

    Layers are named by their modules. Ranges come from `CALIBRATION` of the training images.

    Args:
        task: the task.
        seed: draws those images.
        ranges: how activation ranges are chosen.

    Raises:
        ModelError: if the module cannot be exported, or ONNX Runtime computes something else.
        DataError: if the images do not fit the network.
    """
    import torch

    from quantization.reading import read_network
    from quantization.torch_export import export_module

    example = torch.from_numpy(task.train.images[:1])
    try:
        model = export_module(task.module, example)
    except QuantmeterError:
        raise
    except Exception as error:  # torch's exporter raises errors of all kinds
        raise ModelError(
            f"torch cannot export the task's module: {type(error).__name__}: {_one_line(error)}"
        ) from error
    network = read_network(model)
    parts = (task.train.drawn(CALIBRATION, seed), task.search, task.test)
    data = Data(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
    check_fit(network, data.x, data.y)
    check_fit(network, task.train.images, task.train.labels)
    bounds = np.cumsum([len(part) for part in parts])
    drawn, search, test = np.split(np.arange(bounds[-1]), bounds[:-1])
    return Workbench(network, data, Split(drawn, search, test, seed), seed, ranges, task=task)
